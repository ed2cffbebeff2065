/* Functions over several layers of a cut: their totals, and the eviction, all or none. */
#include "layers_cut.h"
#include "layer_object.h"
#include "torch_bridge.h"

/* Layers of one call, whose pools are claimed for it. */
typedef struct layer_list {
    PyObject *tuple; /* owns the objects */
    ra_layer **layers;
    Py_ssize_t count, claimed; /* of the objects, those whose pools have been looked at */
} layer_list;

static layer_object *object_of(const layer_list *list, Py_ssize_t i)
{
    return (layer_object *)PyTuple_GetItem(list->tuple, i);
}

/* Whether an earlier one has the same pool, which is claimed once. */
static bool is_again(const layer_list *list, Py_ssize_t i)
{
    for (Py_ssize_t other = 0; other < i; other++)
        if (object_of(list, other)->pool == object_of(list, i)->pool)
            return true;
    return false;
}

static void leave(layer_list *list)
{
    for (Py_ssize_t i = list->claimed; i-- > 0;)
        if (!is_again(list, i)) {
            for (Py_ssize_t same = i; same < list->claimed; same++)
                if (object_of(list, same)->pool == object_of(list, i)->pool)
                    object_of(list, same)->times = ra_layer_times(list->layers[same]);
            ra_pool_leave(object_of(list, i)->pool);
        }
    PyMem_Free(list->layers);
    Py_XDECREF(list->tuple);
}

/* 0, or -1 with an error set and nothing claimed. */
static int enter(PyObject *module, PyObject *sequence, layer_list *list)
{
    const module_state *state = PyModule_GetState(module);
    *list = (layer_list){.tuple = PySequence_Tuple(sequence)};
    if (!list->tuple)
        return -1;
    list->count = PyTuple_Size(list->tuple);
    list->layers = PyMem_Malloc((size_t)(list->count ? list->count : 1) * sizeof *list->layers);
    if (!list->layers) {
        PyErr_NoMemory();
        goto failed;
    }
    if (!list->count) {
        PyErr_SetString(PyExc_ValueError, "give at least one layer");
        goto failed;
    }
    for (Py_ssize_t i = 0; i < list->count; i++)
        if (!PyObject_TypeCheck(PyTuple_GetItem(list->tuple, i), state->layer_type)) {
            PyErr_Format(PyExc_TypeError, "layers are _core.Layer objects, got %R", PyTuple_GetItem(list->tuple, i));
            goto failed;
        }
    for (; list->claimed < list->count; list->claimed++) {
        list->layers[list->claimed] = object_of(list, list->claimed)->layer;
        for (Py_ssize_t other = 0; other < list->claimed; other++)
            if (list->layers[other] == list->layers[list->claimed]) {
                PyErr_SetString(PyExc_ValueError, "a layer is named twice");
                goto failed;
            }
        if (!is_again(list, list->claimed) && ra_pool_enter(object_of(list, list->claimed)->pool))
            goto failed;
    }
    return 0;
failed:
    leave(list);
    return -1;
}

const char ra_py_cut_route_layers_doc[] =
    "cut_route_layers(layers, totals, protect_below, r_max, out)\n--\n\nTotals of layers that are being cut, by the "
    "scores of all of them: int64 out [B, L] of the rows whose int64 totals [B] are not negative; "
    "ra_cut_route_layers.";

PyObject *ra_py_cut_route_layers(PyObject *module, PyObject *args)
{
    PyObject *layers, *objects[3];
    double r_max;
    layer_list list;
    ra_buffers b = {.count = 0};
    if (!PyArg_ParseTuple(args, "OOOdO:cut_route_layers", &layers, &objects[0], &objects[1], &r_max, &objects[2]) ||
        enter(module, layers, &list))
        return NULL;
    Py_ssize_t rows = (Py_ssize_t)ra_layer_rows(list.layers[0]);
    const int64_t *totals = ra_take(&b, objects[0], "totals", 'i', rows, 0), *protect = NULL;
    int64_t *out = NULL;
    if (totals)
        protect = ra_take(&b, objects[1], "protect_below", 'i', rows, 0);
    if (protect)
        out = ra_take(&b, objects[2], "out", 'i', rows * list.count, 1);
    ra_status status = RA_OK;
    if (out) {
        Py_BEGIN_ALLOW_THREADS
        status = ra_cut_route_layers(list.layers, list.count, totals, protect, r_max, out);
        Py_END_ALLOW_THREADS
    }
    ra_release(&b);
    leave(&list);
    if (!out)
        return NULL;
    if (status == RA_ERR_ARGUMENT)
        return PyErr_Format(PyExc_ValueError,
                            "layer totals: no cut of all layers has begun, they differ in rows, heads or window, or "
                            "r_max is below 1");
    if (status == RA_ERR_INFEASIBLE)
        return PyErr_Format(PyExc_ValueError, "layer totals: a total is below the windows or above what layers hold");
    if (status != RA_OK)
        return ra_raise(status, "layer totals");
    Py_RETURN_NONE;
}

const char ra_py_cut_apply_layers_doc
    [] = "cut_apply_layers(layers)\n--\n\nEvicts from all layers what was not chosen, or from none. Returns (layer, "
         "pages): the number of one whose pool lacks pages, to add before calling again; pages 0: it is done.";

PyObject *ra_py_cut_apply_layers(PyObject *module, PyObject *layers)
{
    layer_list list;
    int64_t which = 0, missing = 0;
    if (enter(module, layers, &list))
        return NULL;
    ra_status status;
    ra_parallel parallel = ra_torch_parallel();
    Py_BEGIN_ALLOW_THREADS
    status = ra_cut_apply_layers(list.layers, list.count, parallel, &which, &missing);
    Py_END_ALLOW_THREADS
    leave(&list);
    if (status == RA_OK || status == RA_ERR_NO_PAGES)
        return Py_BuildValue("LL", (long long)which, (long long)(status == RA_OK ? 0 : missing));
    return ra_raise(status, "no cut of all layers has begun, or nothing was chosen");
}

const char ra_py_route_layers_doc
    [] = "route_layers(scores, counts, heads, window, total, r_max, out)\n--\n\nfloat32 scores head after head, layer "
         "after layer, int64 counts [L, H] -> int64 out [L]; ra_route_layers.";

PyObject *ra_py_route_layers(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *objects[3];
    long long heads, window, total;
    double r_max;
    ra_buffers b = {.count = 0};
    if (!PyArg_ParseTuple(args, "OOLLLdO:route_layers", &objects[0], &objects[1], &heads, &window, &total, &r_max,
                          &objects[2]))
        return NULL;
    Py_ssize_t lists = PyObject_Length(objects[1]), all = lists < 0 ? -1 : PyObject_Length(objects[0]);
    if (all < 0)
        return NULL;
    if (heads < 1 || lists < 1 || lists % heads)
        return PyErr_Format(PyExc_ValueError, "counts are of whole layers of heads, got %zd for %lld heads", lists,
                            heads);
    const float *scores = ra_take(&b, objects[0], "scores", 'f', all, 0);
    const int64_t *counts = scores ? ra_take(&b, objects[1], "counts", 'i', lists, 0) : NULL;
    int64_t *out = counts ? ra_take(&b, objects[2], "out", 'i', lists / (Py_ssize_t)heads, 1) : NULL;
    const float **pointers = out ? PyMem_Malloc((size_t)lists * sizeof *pointers) : NULL;
    ra_status status = RA_ERR_NO_MEMORY;
    int64_t at = 0;
    for (Py_ssize_t i = 0; pointers && i < lists && at >= 0; i++) {
        pointers[i] = scores + at;
        at = counts[i] < 0 || counts[i] > all - at ? -1 : at + counts[i];
    }
    bool fits = pointers && at == all;
    if (fits)
        status = ra_route_layers(pointers, counts, lists / (Py_ssize_t)heads, heads, window, total, r_max, out);
    PyMem_Free(pointers);
    ra_release(&b);
    if (!out)
        return NULL;
    if (pointers && !fits)
        return PyErr_Format(PyExc_ValueError, "counts must be >= 0 and sum to the number of scores");
    if (status == RA_ERR_INFEASIBLE)
        return PyErr_Format(PyExc_ValueError, "a total of %lld is below the windows or above what the layers hold",
                            total);
    if (status != RA_OK)
        return ra_raise(status, "layer totals");
    Py_RETURN_NONE;
}
