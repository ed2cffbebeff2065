/* _core.Layer's part in CUDA graphs: what must be there before one, and what is counted after it. */
#include "layer_object.h"

/* Tokens that a graph serves at least before lists without a limit outgrow it. */
enum { GRAPH_TOKENS = 256 };

const char
    ra_prepare_doc[] = "prepare(steps, totals=None, protect_below=None)\n--\n\n"
                       "On a device: before a capture, or before `steps` replays of a captured step of one token a "
                       "row. Makes room for them, "
                       "brings the device's lists up to date, and sends what the cuts to come are given (int64 [B] "
                       "each). Returns 0, or the "
                       "pages to add before calling again. What is captured counts as made: replay it once for that.";

static PyObject *do_prepare(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    ra_buffers b = {.count = 0};
    long long steps;
    int64_t missing = 0;
    const int64_t *totals = NULL, *protect = NULL;
    const Py_ssize_t rows = (Py_ssize_t)ra_layer_rows(self->layer);
    PyObject *result = NULL;
    if (ra_whole_number(args[0], &steps))
        return NULL;
    if ((count > 1 && args[1] != Py_None && !(totals = ra_take(&b, args[1], "totals", 'i', rows, 0))) ||
        (count > 2 && args[2] != Py_None && !(protect = ra_take(&b, args[2], "protect_below", 'i', rows, 0))))
        goto end;
    const int64_t ahead = self->ahead > GRAPH_TOKENS ? self->ahead : GRAPH_TOKENS;
    ra_status status = ra_layer_prepare(self->layer, steps, ahead, totals, protect, &missing);
    if (status == RA_ERR_ARGUMENT)
        PyErr_Format(
            PyExc_ValueError,
            "prepare: steps must be at least 1, protect_below needs totals, and the layer must lie on a device; "
            "got %lld steps%s",
            steps, self->pool->backend ? "" : " for a layer in host memory");
    else
        result = ra_pages_or_error(status, missing, "prepare");
end:
    ra_release(&b);
    return result;
}
RA_METHOD(prepare, 1, 3)

const char ra_replayed_doc
    [] = "replayed(steps)\n--\n\nCounts replays of a captured step. ValueError for more than were prepared.";

static PyObject *do_replayed(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    long long steps;
    if (ra_whole_number(args[0], &steps))
        return NULL;
    if (ra_layer_replayed(self->layer, steps) != RA_OK)
        return PyErr_Format(PyExc_ValueError, "replayed: %lld steps were not prepared", steps);
    Py_RETURN_NONE;
}
RA_METHOD(replayed, 1, 1)

const char ra_replayed_cut_doc[] = "replayed_cut(totals)\n--\n\nCounts a replay of a captured cut, after the steps "
                                   "before it. ValueError if other totals "
                                   "were sent than these.";

static PyObject *do_replayed_cut(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    const int64_t *totals = ra_take(&b, args[0], "totals", 'i', (Py_ssize_t)ra_layer_rows(self->layer), 0);
    if (!totals)
        return NULL;
    ra_status status = ra_layer_replayed_cut(self->layer, totals);
    ra_release(&b);
    if (status != RA_OK)
        return PyErr_Format(PyExc_ValueError, "replayed_cut: other totals were prepared");
    Py_RETURN_NONE;
}
RA_METHOD(replayed_cut, 1, 1)

PyObject *ra_layer_generation_of(PyObject *object, void *unused)
{
    (void)unused;
    return PyLong_FromLongLong(ra_layer_generation(((layer_object *)object)->layer));
}
