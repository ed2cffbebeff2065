/* Arguments of _core.Layer's methods, and the frame around each of them. */
#include <math.h>

#include "layer_object.h"

PyObject *ra_call(PyObject *object, PyObject *const *args, Py_ssize_t count, Py_ssize_t least, Py_ssize_t most,
                  const char *name, ra_call_body body)
{
    layer_object *self = (layer_object *)object;
    if (count < least || count > most)
        return PyErr_Format(PyExc_TypeError, "%s takes %zd to %zd arguments, got %zd", name, least, most, count);
    if (ra_pool_enter(self->pool))
        return NULL;
    PyObject *result = body(self, args, count);
    self->times = ra_layer_times(self->layer);
    ra_pool_leave(self->pool);
    return result;
}

int ra_whole_number(PyObject *object, long long *out)
{
    *out = PyLong_AsLongLong(object);
    return *out == -1 && PyErr_Occurred() ? -1 : 0;
}

int ra_finite_number(PyObject *object, const char *name, float *out)
{
    double number = PyFloat_AsDouble(object);
    if (number == -1 && PyErr_Occurred())
        return -1;
    *out = (float)number;
    if (isfinite(*out))
        return 0;
    PyErr_Format(PyExc_ValueError, "%s must be finite, got %R", name, object);
    return -1;
}

int ra_row_number(const layer_object *self, PyObject *object, int64_t *out)
{
    long long row;
    if (ra_whole_number(object, &row))
        return -1;
    *out = row;
    if (row >= 0 && row < ra_layer_rows(self->layer))
        return 0;
    PyErr_Format(PyExc_IndexError, "row %lld of a layer with %lld rows", row, (long long)ra_layer_rows(self->layer));
    return -1;
}

static int head_number(const layer_object *self, PyObject *object, int64_t *out)
{
    long long head;
    if (ra_whole_number(object, &head))
        return -1;
    *out = head;
    if (head >= 0 && head < ra_layer_kv_heads(self->layer))
        return 0;
    PyErr_Format(PyExc_IndexError, "head %lld of a layer with %lld KV heads", head,
                 (long long)ra_layer_kv_heads(self->layer));
    return -1;
}

int ra_row_and_head(const layer_object *self, PyObject *const *args, int64_t *row, int64_t *head)
{
    return ra_row_number(self, args[0], row) || head_number(self, args[1], head) ? -1 : 0;
}

int ra_parse_stats(PyObject *object, ra_stat_config *out)
{
    int prompt, relative, birth;
    double decay, activation;
    *out = ra_stat_defaults();
    if (!object || object == Py_None)
        return 0;
    if (!PyTuple_Check(object)) {
        PyErr_Format(PyExc_TypeError, "stats is a tuple (prompt, decay, activation, relative, birth), got %R", object);
        return -1;
    }
    if (!PyArg_ParseTuple(object, "iddpp;stats is (prompt, decay, activation, relative, birth)", &prompt, &decay,
                          &activation, &relative, &birth))
        return -1;
    if (prompt < RA_PROMPT_ALL || prompt > RA_PROMPT_NONE || !(decay >= 0 && decay <= 1) || !((float)activation > 0) ||
        !isfinite((float)activation)) {
        PyErr_Format(PyExc_ValueError, "stats has prompt 0 to 2, decay in [0, 1] and activation above 0, got %R",
                     object);
        return -1;
    }
    *out = (ra_stat_config){.prompt = (ra_prompt_statistics)prompt,
                            .decay = (float)decay,
                            .activation = (float)activation,
                            .relative = relative != 0,
                            .birth = birth != 0};
    return 0;
}

void ra_release(ra_buffers *b)
{
    while (b->count)
        PyBuffer_Release(&b->views[--b->count]);
}

void *ra_take(ra_buffers *b, PyObject *object, const char *name, char kind, Py_ssize_t count, int writable)
{
    if (ra_buffer(object, name, kind, count, writable, &b->views[b->count]))
        return NULL;
    return b->views[b->count++].buf;
}

PyObject *ra_pages_or_error(ra_status status, int64_t missing, const char *what)
{
    return status == RA_OK || status == RA_ERR_NO_PAGES ? PyLong_FromLongLong(missing) : ra_raise(status, what);
}
