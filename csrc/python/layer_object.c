/* _core.Layer: one layer's ragged heads. Hot calls take positional arguments (METH_FASTCALL) and release the GIL. */
#include <math.h>

#include "module.h"
#include "torch_bridge.h"

typedef struct layer_object {
    PyObject_HEAD
    ra_layer *layer;
    pool_object *pool;
} layer_object;

static PyObject *layer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"pool", "rows", "kv_heads", "query_heads", "window", NULL};
    module_state *state = PyType_GetModuleState(type);
    PyObject *pool;
    long long rows, kv_heads, query_heads, window;
    if (!state || !PyArg_ParseTupleAndKeywords(args, kwargs, "O!LLLL:Layer", names, state->pool_type, &pool, &rows,
                                               &kv_heads, &query_heads, &window))
        return NULL;
    ra_layer *layer;
    ra_status status = ra_layer_create(((pool_object *)pool)->pool, rows, kv_heads, query_heads, window, &layer);
    if (status == RA_ERR_ARGUMENT)
        return PyErr_Format(PyExc_ValueError,
                            "rows, kv_heads and window must be at least 1 and query_heads a multiple of kv_heads, got "
                            "rows %lld, kv_heads %lld, query_heads %lld, window %lld",
                            rows, kv_heads, query_heads, window);
    if (status != RA_OK)
        return ra_raise(status, "Layer");
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    layer_object *self = (layer_object *)alloc(type, 0);
    if (!self) {
        ra_layer_destroy(layer);
        return NULL;
    }
    self->layer = layer;
    Py_INCREF(pool);
    self->pool = (pool_object *)pool;
    return (PyObject *)self;
}

static void layer_dealloc(PyObject *object)
{
    layer_object *self = (layer_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    ra_layer_destroy(self->layer);
    Py_XDECREF((PyObject *)self->pool);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

/* A [rows, heads, tokens, D] tensor of the pool's dtype. */
static int view_tokens(layer_object *self, PyObject *object, const char *name, int64_t heads, int64_t *tokens,
                       ra_tokens *out)
{
    module_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    dl_tensor view;
    ra_dtype dtype;
    if (!state || ra_view(state, object, name, 4, &view) || ra_view_dtype(&view, name, &dtype))
        return -1;
    int64_t rows = ra_layer_rows(self->layer), d = self->pool->head_dim;
    if (dtype != self->pool->dtype) {
        PyErr_Format(PyExc_TypeError, "%s: the cache holds another dtype", name);
        return -1;
    }
    if (*tokens < 0)
        *tokens = view.shape[2];
    if (view.shape[0] != rows || view.shape[1] != heads || view.shape[2] != *tokens || view.shape[3] != d ||
        *tokens < 1) {
        PyErr_Format(PyExc_ValueError, "%s must have shape [%lld, %lld, %lld, %lld], got [%lld, %lld, %lld, %lld]",
                     name, (long long)rows, (long long)heads, (long long)*tokens, (long long)d,
                     (long long)view.shape[0], (long long)view.shape[1], (long long)view.shape[2],
                     (long long)view.shape[3]);
        return -1;
    }
    if (view.strides[3] != 1 && d > 1) {
        PyErr_Format(PyExc_ValueError, "%s must be contiguous in its last dimension", name);
        return -1;
    }
    *out = (ra_tokens){.data = view.data, .stride_row = view.strides[0], .stride_head = view.strides[1],
                       .stride_token = view.strides[2]};
    return 0;
}

/* None, or a contiguous [rows, tokens] bool tensor. */
static int view_real(layer_object *self, PyObject *object, int64_t tokens, const bool **out)
{
    *out = NULL;
    if (object == Py_None)
        return 0;
    module_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    dl_tensor view;
    if (!state || ra_view(state, object, "real", 2, &view))
        return -1;
    int64_t rows = ra_layer_rows(self->layer);
    if (view.dtype.code != DL_BOOL || view.dtype.bits != 8 || view.shape[0] != rows || view.shape[1] != tokens ||
        (view.strides[1] != 1 && tokens > 1) || (view.strides[0] != tokens && rows > 1)) {
        PyErr_Format(PyExc_ValueError, "real must be a contiguous bool tensor [%lld, %lld]", (long long)rows,
                     (long long)tokens);
        return -1;
    }
    *out = view.data;
    return 0;
}

static int arity(Py_ssize_t got, Py_ssize_t want, const char *name)
{
    if (got == want)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", name, want, got);
    return -1;
}

PyDoc_STRVAR(step_doc,
             "step(queries, keys, values, real, scale, out, cut_in=-1)\n--\n\n"
             "Appends the new tokens, remembers their queries and, unless out is None, attends: queries [B, Hq, T, D], "
             "keys and values [B, H, T, D], real bool [B, T] or None, out [B, T, Hq, D]. Returns 0, or the number of "
             "pages to add before calling again; then nothing has changed. cut_in: steps that follow before the next cut, negative: "
             "none in sight.");

static PyObject *layer_step(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    layer_object *self = (layer_object *)object;
    ra_layer *layer = self->layer;
    if (count != 6 && arity(count, 7, "step"))
        return NULL;
    int64_t tokens = -1, missing = 0;
    ra_tokens queries, keys, values;
    const bool *real;
    void *out = NULL;
    if (view_tokens(self, args[0], "queries", ra_layer_query_heads(layer), &tokens, &queries) ||
        view_tokens(self, args[1], "keys", ra_layer_kv_heads(layer), &tokens, &keys) ||
        view_tokens(self, args[2], "values", ra_layer_kv_heads(layer), &tokens, &values) ||
        view_real(self, args[3], tokens, &real))
        return NULL;
    double scale = PyFloat_AsDouble(args[4]);
    if (scale == -1 && PyErr_Occurred())
        return NULL;
    if (!isfinite(scale))
        return PyErr_Format(PyExc_ValueError, "scale must be finite, got %R", args[4]);
    long long cut_in = count > 6 ? PyLong_AsLongLong(args[6]) : -1;
    if (count > 6 && cut_in == -1 && PyErr_Occurred())
        return NULL;
    if (args[5] != Py_None) {
        dl_tensor view;
        ra_dtype dtype;
        int64_t rows = ra_layer_rows(layer), heads = ra_layer_query_heads(layer), d = self->pool->head_dim;
        module_state *state = PyType_GetModuleState(Py_TYPE(object));
        if (!state || ra_view(state, args[5], "out", 4, &view) || ra_view_dtype(&view, "out", &dtype))
            return NULL;
        if (dtype != self->pool->dtype || view.shape[0] != rows || view.shape[1] != tokens || view.shape[2] != heads ||
            view.shape[3] != d || (d > 1 && view.strides[3] != 1) || (heads > 1 && view.strides[2] != d) ||
            (tokens > 1 && view.strides[1] != heads * d) || (rows > 1 && view.strides[0] != tokens * heads * d))
            return PyErr_Format(PyExc_ValueError, "out must be contiguous [B, T, Hq, D] of the cache's dtype");
        out = view.data;
    }
    if (ra_pool_enter(self->pool))
        return NULL;
    ra_status status;
    ra_parallel parallel = ra_torch_parallel();
    Py_BEGIN_ALLOW_THREADS
    status = ra_layer_append(layer, keys, values, tokens, real, parallel, &missing);
    if (status == RA_OK)
        status = ra_layer_observe(layer, queries, tokens, real);
    if (status == RA_OK && out)
        status = ra_layer_attend(layer, queries, tokens, real, (float)scale, cut_in, out, parallel);
    Py_END_ALLOW_THREADS
    ra_pool_leave(self->pool);
    if (status == RA_ERR_NO_PAGES)
        return PyLong_FromLongLong(missing);
    if (status != RA_OK)
        return ra_raise(status, "keys or values");
    return PyLong_FromLong(0);
}

PyDoc_STRVAR(compress_doc,
             "compress(totals, protect_below, score, route, budgets, lost, cut)\n--\n\n"
             "Scores, routes and evicts every row whose slots exceed totals[row] (int64 [B]; negative: leave alone). "
             "score = (scorer, alpha, threshold, kernel, seed), route = (heads, gamma, lo, hi, mu, safeguard). Writes "
             "budgets int64 [B, H], lost float64 [B, H] and cut bool [B] of the rows that were cut. Returns 0, or the "
             "pages to add before calling again.");

static PyObject *layer_compress(PyObject *object, PyObject *args)
{
    layer_object *self = (layer_object *)object;
    ra_layer *layer = self->layer;
    PyObject *objects[7];
    ra_score_config score;
    ra_route_config route;
    if (!PyArg_ParseTuple(args, "OOOOOOO:compress", &objects[0], &objects[1], &objects[2], &objects[3], &objects[4],
                          &objects[5], &objects[6]) ||
        ra_parse_score_config(objects[2], &score) || ra_parse_route_config(objects[3], &route))
        return NULL;
    Py_ssize_t rows = (Py_ssize_t)ra_layer_rows(layer), heads = (Py_ssize_t)ra_layer_kv_heads(layer);
    const struct {
        int object;
        const char *name, *format;
        Py_ssize_t count;
        int writable;
    } wanted[5] = {{0, "totals", "l", rows, 0},
                   {1, "protect_below", "l", rows, 0},
                   {4, "budgets", "l", rows * heads, 1},
                   {5, "lost", "d", rows * heads, 1},
                   {6, "cut", "?", rows, 1}};
    Py_buffer buffers[5];
    int held = 0;
    PyObject *result = NULL;
    for (; held < 5; held++)
        if (ra_buffer(objects[wanted[held].object], wanted[held].name, wanted[held].format, wanted[held].count,
                      wanted[held].writable, &buffers[held]))
            goto cleanup;
    if (ra_pool_enter(self->pool))
        goto cleanup;
    int64_t missing = 0;
    ra_status status;
    ra_parallel parallel = ra_torch_parallel();
    Py_BEGIN_ALLOW_THREADS
    status = ra_layer_compress(layer, buffers[0].buf, buffers[1].buf, &score, &route, buffers[2].buf, buffers[3].buf,
                               buffers[4].buf, parallel, &missing);
    Py_END_ALLOW_THREADS
    ra_pool_leave(self->pool);
    if (status == RA_OK || status == RA_ERR_NO_PAGES)
        result = PyLong_FromLongLong(status == RA_OK ? 0 : missing);
    else
        ra_raise(status, "scores");
cleanup:
    while (held--)
        PyBuffer_Release(&buffers[held]);
    return result;
}

/* Scores of a row lie in one float32 buffer: head after head, older tokens only. Points out[h] at each head's part
 * unless out is NULL; returns their number. */
static Py_ssize_t split_scores(const ra_layer *layer, int64_t row, float *flat, float **out)
{
    Py_ssize_t total = 0;
    for (int64_t h = 0; h < ra_layer_kv_heads(layer); h++) {
        int64_t older = ra_layer_slots(layer, row, h) - ra_layer_window(layer);
        if (out)
            out[h] = flat + total;
        total += older > 0 ? (Py_ssize_t)older : 0;
    }
    return total;
}

/* The row exists and no other thread is changing it. */
static int check_row(const layer_object *self, long long row)
{
    if (ra_pool_check_idle(self->pool))
        return -1;
    if (row >= 0 && row < ra_layer_rows(self->layer))
        return 0;
    PyErr_Format(PyExc_IndexError, "row %lld of a layer with %lld rows", row, (long long)ra_layer_rows(self->layer));
    return -1;
}

static int check_head(const layer_object *self, long long row, long long head)
{
    if (check_row(self, row))
        return -1;
    if (head >= 0 && head < ra_layer_kv_heads(self->layer))
        return 0;
    PyErr_Format(PyExc_IndexError, "head %lld of a layer with %lld KV heads", head,
                 (long long)ra_layer_kv_heads(self->layer));
    return -1;
}

PyDoc_STRVAR(score_doc, "score(row, score, out)\n--\n\nScores of a row's older tokens, head after head, into float32 out.");

static PyObject *layer_score(PyObject *object, PyObject *args)
{
    layer_object *self = (layer_object *)object;
    long long row;
    PyObject *config_tuple, *out;
    ra_score_config config;
    if (!PyArg_ParseTuple(args, "LOO:score", &row, &config_tuple, &out) || check_row(self, row) ||
        ra_parse_score_config(config_tuple, &config))
        return NULL;
    Py_ssize_t total = split_scores(self->layer, row, NULL, NULL);
    Py_buffer buffer;
    if (ra_buffer(out, "out", "f", total, 1, &buffer))
        return NULL;
    float **pointers = PyMem_Malloc((size_t)ra_layer_kv_heads(self->layer) * sizeof *pointers);
    if (!pointers || ra_pool_enter(self->pool)) {
        PyMem_Free(pointers);
        PyBuffer_Release(&buffer);
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    }
    split_scores(self->layer, row, buffer.buf, pointers);
    ra_status status;
    ra_parallel parallel = ra_torch_parallel();
    Py_BEGIN_ALLOW_THREADS
    status = ra_layer_score(self->layer, row, &config, pointers, parallel);
    Py_END_ALLOW_THREADS
    ra_pool_leave(self->pool);
    PyMem_Free(pointers);
    PyBuffer_Release(&buffer);
    if (status != RA_OK)
        return ra_raise(status, "scores");
    Py_RETURN_NONE;
}

PyDoc_STRVAR(evict_doc, "evict(row, budgets, scores, protect_below, lost)\n--\n\nCuts a row's heads to budgets (int64 [H]) "
                        "by scores (float32, head after head); lost float64 [H] is written. Returns 0, or the pages to "
                        "add before calling again.");

static PyObject *layer_evict(PyObject *object, PyObject *args)
{
    layer_object *self = (layer_object *)object;
    long long row, protect_below;
    PyObject *objects[3];
    if (!PyArg_ParseTuple(args, "LOOLO:evict", &row, &objects[0], &objects[1], &protect_below, &objects[2]) ||
        check_row(self, row))
        return NULL;
    Py_ssize_t heads = (Py_ssize_t)ra_layer_kv_heads(self->layer), total = split_scores(self->layer, row, NULL, NULL);
    Py_buffer budgets, scores, lost;
    if (ra_buffer(objects[0], "budgets", "l", heads, 0, &budgets))
        return NULL;
    PyObject *result = NULL;
    float **pointers = NULL;
    if (ra_buffer(objects[1], "scores", "f", total, 0, &scores))
        goto release_budgets;
    if (ra_buffer(objects[2], "lost", "d", heads, 1, &lost))
        goto release_scores;
    pointers = PyMem_Malloc((size_t)heads * sizeof *pointers);
    if (!pointers) {
        PyErr_NoMemory();
        goto release_lost;
    }
    split_scores(self->layer, row, scores.buf, pointers);
    if (ra_pool_enter(self->pool))
        goto release_lost;
    ra_status status;
    int64_t missing = 0;
    ra_parallel parallel = ra_torch_parallel();
    Py_BEGIN_ALLOW_THREADS
    status = ra_layer_evict(self->layer, row, budgets.buf, (const float *const *)pointers, protect_below, lost.buf,
                            parallel, &missing);
    Py_END_ALLOW_THREADS
    ra_pool_leave(self->pool);
    if (status == RA_OK || status == RA_ERR_NO_PAGES)
        result = PyLong_FromLongLong(status == RA_OK ? 0 : missing);
    else
        ra_raise(status, status == RA_ERR_ARGUMENT ? "budgets below the window" : "scores");
release_lost:
    PyMem_Free(pointers);
    PyBuffer_Release(&lost);
release_scores:
    PyBuffer_Release(&scores);
release_budgets:
    PyBuffer_Release(&budgets);
    return result;
}

PyDoc_STRVAR(slots_doc, "slots(out)\n--\n\nSlots kept by each head into int64 out [B, H].");

static PyObject *layer_slots(PyObject *object, PyObject *out)
{
    layer_object *self = (layer_object *)object;
    int64_t rows = ra_layer_rows(self->layer), heads = ra_layer_kv_heads(self->layer);
    Py_buffer buffer;
    if (ra_pool_check_idle(self->pool) || ra_buffer(out, "out", "l", (Py_ssize_t)(rows * heads), 1, &buffer))
        return NULL;
    int64_t *slots = buffer.buf;
    for (int64_t i = 0; i < rows * heads; i++)
        slots[i] = ra_layer_slots(self->layer, i / heads, i % heads);
    PyBuffer_Release(&buffer);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(positions_doc, "positions(row, head)\n--\n\nPositions of a head's slots, ascending, as int32 bytes.");

static PyObject *layer_positions(PyObject *object, PyObject *args)
{
    layer_object *self = (layer_object *)object;
    long long row, head;
    if (!PyArg_ParseTuple(args, "LL:positions", &row, &head) || check_head(self, row, head))
        return NULL;
    return PyBytes_FromStringAndSize((const char *)ra_layer_positions(self->layer, row, head),
                                     (Py_ssize_t)ra_layer_slots(self->layer, row, head) * (Py_ssize_t)sizeof(int32_t));
}

PyDoc_STRVAR(read_doc, "read(row, head, values, out)\n--\n\nA head's keys (values if true) into float32 out [N, D].");

static PyObject *layer_read(PyObject *object, PyObject *args)
{
    layer_object *self = (layer_object *)object;
    long long row, head;
    int values;
    PyObject *out;
    Py_buffer buffer;
    if (!PyArg_ParseTuple(args, "LLpO:read", &row, &head, &values, &out) || check_head(self, row, head) ||
        ra_buffer(out, "out", "f", (Py_ssize_t)(ra_layer_slots(self->layer, row, head) * self->pool->head_dim), 1,
                  &buffer))
        return NULL;
    ra_status status = ra_layer_read(self->layer, row, head, values, buffer.buf);
    PyBuffer_Release(&buffer);
    if (status != RA_OK)
        return ra_raise(status, "read");
    Py_RETURN_NONE;
}

PyDoc_STRVAR(queries_doc, "queries(row)\n--\n\n(n, float32 bytes of [Hq, n, D]): the row's newest queries.");

static PyObject *layer_queries(PyObject *object, PyObject *argument)
{
    layer_object *self = (layer_object *)object;
    long long row = PyLong_AsLongLong(argument);
    if ((row == -1 && PyErr_Occurred()) || check_row(self, row))
        return NULL;
    int64_t count = ra_layer_queries(self->layer, row, NULL);
    Py_ssize_t floats = (Py_ssize_t)(count * ra_layer_query_heads(self->layer) * self->pool->head_dim);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, floats * (Py_ssize_t)sizeof(float));
    if (!bytes)
        return NULL;
    ra_layer_queries(self->layer, row, (float *)(void *)PyBytes_AsString(bytes));
    return Py_BuildValue("(LN)", (long long)count, bytes);
}

PyDoc_STRVAR(reorder_doc, "reorder(source)\n--\n\nRow i becomes row source[i] (int64 array), sharing its pages.");

static PyObject *layer_reorder(PyObject *object, PyObject *source)
{
    layer_object *self = (layer_object *)object;
    Py_ssize_t rows = PyObject_Length(source);
    Py_buffer buffer;
    if (rows < 0 || ra_buffer(source, "source", "l", rows, 0, &buffer))
        return NULL;
    ra_status status = RA_OK;
    if (!ra_pool_enter(self->pool)) {
        status = ra_layer_reorder(self->layer, buffer.buf, rows);
        ra_pool_leave(self->pool);
    }
    PyBuffer_Release(&buffer);
    if (PyErr_Occurred())
        return NULL;
    if (status != RA_OK)
        return ra_raise(status, "rows");
    Py_RETURN_NONE;
}

PyDoc_STRVAR(crop_doc, "crop(tokens)\n--\n\nForgets the newest tokens of every row; ValueError if one was evicted.");

static PyObject *layer_crop(PyObject *object, PyObject *argument)
{
    layer_object *self = (layer_object *)object;
    long long tokens = PyLong_AsLongLong(argument);
    if ((tokens == -1 && PyErr_Occurred()) || ra_pool_enter(self->pool))
        return NULL;
    ra_status status = ra_layer_crop(self->layer, tokens);
    ra_pool_leave(self->pool);
    if (status != RA_OK)
        return ra_raise(status, "crop");
    Py_RETURN_NONE;
}

static PyObject *layer_reset(PyObject *object, PyObject *unused)
{
    (void)unused;
    layer_object *self = (layer_object *)object;
    if (ra_pool_enter(self->pool))
        return NULL;
    ra_layer_reset(self->layer);
    ra_pool_leave(self->pool);
    Py_RETURN_NONE;
}

static PyObject *layer_seen(PyObject *object, PyObject *argument)
{
    layer_object *self = (layer_object *)object;
    long long row = PyLong_AsLongLong(argument);
    if ((row == -1 && PyErr_Occurred()) || check_row(self, row))
        return NULL;
    return PyLong_FromLongLong(ra_layer_seen(self->layer, row));
}

static PyObject *layer_times(PyObject *object, PyObject *unused)
{
    (void)unused;
    ra_times t = ra_layer_times(((layer_object *)object)->layer);
    return Py_BuildValue("(LLLL)", (long long)t.score_ns, (long long)t.route_ns, (long long)t.evict_ns,
                         (long long)t.attend_ns);
}

static PyObject *layer_rows(PyObject *object, void *unused)
{
    (void)unused;
    return PyLong_FromLongLong(ra_layer_rows(((layer_object *)object)->layer));
}

static PyMethodDef methods[] = {
    {"step", (PyCFunction)(void (*)(void))layer_step, METH_FASTCALL, step_doc},
    {"compress", layer_compress, METH_VARARGS, compress_doc},
    {"score", layer_score, METH_VARARGS, score_doc},
    {"evict", layer_evict, METH_VARARGS, evict_doc},
    {"slots", layer_slots, METH_O, slots_doc},
    {"positions", layer_positions, METH_VARARGS, positions_doc},
    {"read", layer_read, METH_VARARGS, read_doc},
    {"queries", layer_queries, METH_O, queries_doc},
    {"reorder", layer_reorder, METH_O, reorder_doc},
    {"crop", layer_crop, METH_O, crop_doc},
    {"reset", layer_reset, METH_NOARGS, "reset()\n--\n\nDrops every token; pages go home."},
    {"seen", layer_seen, METH_O, "seen(row)\n--\n\nTokens the row was given, evicted ones included."},
    {"times", layer_times, METH_NOARGS, "times()\n--\n\n(score, route, evict, attend) in nanoseconds."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getset[] = {
    {"rows", layer_rows, NULL, "Rows of the batch.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Layer(pool, rows, kv_heads, query_heads, window)\n--\n\nRagged heads of one layer; see reasonalloc.h."},
    {Py_tp_new, layer_new},
    {Py_tp_dealloc, layer_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {0, NULL},
};

PyType_Spec ra_layer_spec = {
    .name = "reasonalloc._core.Layer",
    .basicsize = sizeof(layer_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
