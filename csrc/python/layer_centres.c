/* _core.Layer: the distribution of its queries, for the scorer "triattention". */
#include <stdbool.h>

#include "layer_object.h"

const char ra_set_centres_doc
    [] = "set_centres(frequency, mean, length, interleaved=False, largest=False, group_mean=False)\n--\n\n"
         "Once for a layer, copied: float64 frequency [pairs], float32 mean [Hq, D] and length [Hq, pairs]; "
         "ra_query_centres.";

static PyObject *do_set_centres(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    ra_buffers b = {.count = 0};
    ra_query_centres centres = {0};
    bool *flags[] = {&centres.interleaved, &centres.largest, &centres.group_mean};
    for (Py_ssize_t i = 3; i < count; i++) {
        int flag = PyObject_IsTrue(args[i]);
        if (flag < 0)
            return NULL;
        *flags[i - 3] = flag;
    }
    Py_ssize_t heads = (Py_ssize_t)ra_layer_query_heads(self->layer), pairs = PyObject_Length(args[0]);
    Py_ssize_t d = (Py_ssize_t)ra_pool_head_dim(self->pool->pool);
    if (pairs < 0)
        return NULL;
    if (pairs > d / 2)
        return PyErr_Format(PyExc_ValueError, "%zd pairs in heads of size %zd", pairs, d);
    PyObject *result = NULL;
    if ((centres.frequency = ra_take(&b, args[0], "frequency", 'd', pairs, 0)) != NULL &&
        (centres.mean = ra_take(&b, args[1], "mean", 'f', heads * d, 0)) != NULL &&
        (centres.length = ra_take(&b, args[2], "length", 'f', heads * pairs, 0)) != NULL) {
        centres.pairs = pairs;
        ra_status status = ra_layer_set_centres(self->layer, &centres);
        result = status == RA_OK ? Py_NewRef(Py_None) : ra_raise(status, "centres must be finite, lengths not below 0");
    }
    ra_release(&b);
    return result;
}
RA_METHOD(set_centres, 3, 6)
