/* _core.Layer: one layer's ragged heads. A call claims the pool before it looks at its arguments, so that nothing that they
 * do can change what is checked; the hot ones take positional arguments (METH_FASTCALL) and release the GIL. */
#include <stdbool.h>

#include "layer_object.h"
#include "torch_bridge.h"

static PyObject *wrap(PyTypeObject *type, pool_object *pool, ra_layer *layer, int64_t ahead)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    dead_layer *grave = PyMem_Calloc(1, sizeof *grave);
    layer_object *self = grave ? (layer_object *)alloc(type, 0) : NULL;
    if (!self) {
        PyMem_Free(grave);
        ra_layer_destroy(layer);
        return grave ? NULL : PyErr_NoMemory();
    }
    grave->layer = layer;
    self->layer = layer;
    self->grave = grave;
    self->ahead = ahead;
    Py_INCREF((PyObject *)pool);
    self->pool = pool;
    return (PyObject *)self;
}

static PyObject *layer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"pool", "rows", "kv_heads", "query_heads", "window", "scorer", "ahead", "stats", NULL};
    module_state *state = PyType_GetModuleState(type);
    PyObject *pool, *stats = NULL;
    long long rows, kv_heads, query_heads, window, ahead = 0;
    const char *scorer = NULL;
    if (!state || !PyArg_ParseTupleAndKeywords(args, kwargs, "O!LLLL|zLO:Layer", names, state->pool_type, &pool, &rows,
                                               &kv_heads, &query_heads, &window, &scorer, &ahead, &stats))
        return NULL;
    ra_layer_config config = {.rows = rows,
                              .kv_heads = kv_heads,
                              .query_heads = query_heads,
                              .window = window,
                              .scorer = scorer ? ra_scorer_find(scorer) : NULL};
    if (ahead < 0)
        return PyErr_Format(PyExc_ValueError, "ahead must not be negative, got %lld", ahead);
    if (scorer && !config.scorer)
        return PyErr_Format(PyExc_ValueError, "scorer '%s' is unknown", scorer);
    if (ra_parse_stats(stats, &config.stats))
        return NULL;
    const ra_backend *backend = ra_pool_backend(((pool_object *)pool)->pool);
    if (!ra_backend_supports(backend, config.scorer))
        return PyErr_Format(PyExc_ValueError, "the backend %s has no scorer '%s'", ra_backend_name(backend), scorer);
    if (ra_pool_enter((pool_object *)pool))
        return NULL;
    ra_layer *layer;
    ra_status status = ra_layer_create(((pool_object *)pool)->pool, &config, &layer);
    PyObject *made = status == RA_OK ? wrap(type, (pool_object *)pool, layer, ahead) : NULL;
    ra_pool_leave((pool_object *)pool);
    if (status == RA_ERR_ARGUMENT)
        return PyErr_Format(PyExc_ValueError,
                            "rows, kv_heads and window must be at least 1 and query_heads a multiple of kv_heads, got "
                            "rows %lld, kv_heads %lld, query_heads %lld, window %lld",
                            rows, kv_heads, query_heads, window);
    if (status != RA_OK)
        return ra_raise(status, "Layer");
    return made;
}

static int layer_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT((PyObject *)((layer_object *)object)->pool);
    return 0;
}

static void layer_dealloc(PyObject *object)
{
    layer_object *self = (layer_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    ra_pool_bury(self->pool, self->grave);
    Py_DECREF((PyObject *)self->pool);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

/* ---- Step ---- */

/* begin: an int (every row has that many tokens) or int64 [rows + 1]. */
static int take_begin(layer_object *self, ra_buffers *b, PyObject *object, const int64_t **begin, int64_t *tokens)
{
    *begin = NULL;
    if (PyLong_Check(object)) {
        long long number;
        if (ra_whole_number(object, &number))
            return -1;
        *tokens = number;
        return 0;
    }
    *begin = ra_take(b, object, "begin", 'i', (Py_ssize_t)ra_layer_rows(self->layer) + 1, 0);
    return *begin ? 0 : -1;
}

PyDoc_STRVAR(reserve_doc,
             "reserve(begin)\n--\n\nMakes room for a step: begin is the number of new tokens of every row, or "
             "int64 [rows + 1] as in step. Returns 0, or the pages to add before calling again.");

static PyObject *do_reserve(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    ra_buffers b = {.count = 0};
    const int64_t *begin;
    int64_t tokens = 0, missing = 0;
    (void)count;
    if (take_begin(self, &b, args[0], &begin, &tokens))
        return NULL;
    ra_status status = ra_layer_reserve(self->layer, begin, tokens, self->ahead, &missing);
    ra_release(&b);
    return ra_pages_or_error(status, missing, "reserve");
}
static RA_METHOD(reserve, 1, 1)

/* A [rows, heads, tokens, D] tensor. tokens -1: any number. rows 1 where all rows are packed into one. */
static int view_tokens(layer_object *self, PyObject *object, const char *name, int64_t heads, int64_t *tokens,
                       bool *packed, ra_tokens *out)
{
    module_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    dl_tensor view;
    ra_dtype dtype;
    if (!state || ra_view_numbers(state, object, name, self->pool->memory, 4, &view, &dtype))
        return -1;
    int64_t rows = ra_layer_rows(self->layer), d = self->pool->head_dim;
    if (*tokens < 0) {
        *tokens = view.shape[2];
        *packed = *packed && view.shape[0] == 1 && rows > 1;
    }
    int64_t given = *packed ? 1 : rows;
    if (view.shape[0] != given || view.shape[1] != heads || view.shape[2] != *tokens || view.shape[3] != d ||
        *tokens < 1) {
        PyErr_Format(PyExc_ValueError, "%s must have shape [%lld, %lld, %lld, %lld], got [%lld, %lld, %lld, %lld]",
                     name, (long long)given, (long long)heads, (long long)*tokens, (long long)d,
                     (long long)view.shape[0], (long long)view.shape[1], (long long)view.shape[2],
                     (long long)view.shape[3]);
        return -1;
    }
    if (view.strides[3] != 1 && d > 1) {
        PyErr_Format(PyExc_ValueError, "%s must be contiguous in its last dimension", name);
        return -1;
    }
    *out = (ra_tokens){.data = view.data,
                       .dtype = dtype,
                       .stride_row = *packed ? 0 : view.strides[0],
                       .stride_head = view.strides[1],
                       .stride_token = view.strides[2]};
    return 0;
}

static int view_out(layer_object *self, PyObject *object, int64_t tokens, bool packed, ra_output *out)
{
    module_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    dl_tensor view;
    ra_dtype dtype;
    if (!state || ra_view_numbers(state, object, "out", self->pool->memory, 4, &view, &dtype))
        return -1;
    int64_t heads = ra_layer_query_heads(self->layer), d = self->pool->head_dim;
    int64_t rows = packed ? 1 : ra_layer_rows(self->layer);
    if (view.shape[0] != rows || view.shape[1] != tokens || view.shape[2] != heads || view.shape[3] != d ||
        (d > 1 && view.strides[3] != 1) || (heads > 1 && view.strides[2] != d) ||
        (tokens > 1 && view.strides[1] < heads * d) || (rows > 1 && view.strides[0] < tokens * heads * d)) {
        PyErr_Format(PyExc_ValueError, "out must be [%lld, %lld, %lld, %lld], contiguous in its last two dimensions",
                     (long long)rows, (long long)tokens, (long long)heads, (long long)d);
        return -1;
    }
    *out = (ra_output){.data = view.data,
                       .dtype = dtype,
                       .stride_row = packed ? 0 : view.strides[0],
                       .stride_token = view.strides[1]};
    return 0;
}

/* [Hq] where the pages lie: an array in host memory, or a tensor. */
static int view_sinks(layer_object *self, PyObject *object, ra_buffers *b, const float **out)
{
    Py_ssize_t heads = (Py_ssize_t)ra_layer_query_heads(self->layer);
    module_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    dl_tensor view;
    ra_dtype dtype;
    if (!self->pool->backend)
        return (*out = ra_take(b, object, "sinks", 'f', heads, 0)) ? 0 : -1;
    if (!state || ra_view_numbers(state, object, "sinks", self->pool->memory, 1, &view, &dtype))
        return -1;
    if (dtype != RA_F32 || view.shape[0] != heads || (heads > 1 && view.strides[0] != 1)) {
        PyErr_Format(PyExc_ValueError, "sinks must be contiguous float32 [%zd]", heads);
        return -1;
    }
    *out = view.data;
    return 0;
}

PyDoc_STRVAR(
    step_doc,
    "step(queries, keys, values, out, scale, cut_in=None, begin=None, index=None, softcap=0.0, sinks=None, "
    "visible=None, prompt=None)\n--\n\n"
    "Appends the new tokens, remembers their queries and, unless out is None, attends. queries [B, Hq, T, D], keys "
    "and values [B, H, T, D], out [B, T, Hq, D]; with begin and index also B = 1, all rows packed. cut_in int64 [B]: "
    "steps that follow before a row's next cut. begin int64 [B + 1], index int64 [begin[B]]: row b's new tokens "
    "stand at index[begin[b]:begin[b + 1]]; the rest is padding, which out keeps as it is. sinks float32 [Hq], a "
    "tensor where the pool "
    "lies on a device. "
    "visible bool [begin[B], columns]: whether a token sees a position. prompt bool [B]: rows whose tokens so far are "
    "all of their prompt. ra_layer_step has the rest. Returns 0, or the "
    "number of pages to add before calling again; then nothing has changed.");

static int refuse_negated(layer_object *self, PyObject *const *args, PyObject *sinks)
{
    static const char *const names[] = {"queries", "keys", "values", "out"};
    module_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    if (!state)
        return -1;
    for (int i = 0; i < 4; i++)
        if (args[i] != Py_None && ra_refuse_negated(state, args[i], names[i]))
            return -1;
    return self->pool->backend && sinks != Py_None ? ra_refuse_negated(state, sinks, "sinks") : 0;
}

static PyObject *step_with(layer_object *self, PyObject *const *args, Py_ssize_t count, ra_buffers *b)
{
    ra_layer *layer = self->layer;
    int64_t rows = ra_layer_rows(layer), tokens = -1, total;
    ra_step step = {0};
    PyObject *const none = Py_None;
    PyObject *cut_in = count > 5 ? args[5] : none, *begin = count > 6 ? args[6] : none,
             *index = count > 7 ? args[7] : none, *sinks = count > 9 ? args[9] : none,
             *visible = count > 10 ? args[10] : none, *prompt = count > 11 ? args[11] : none;
    if (ra_finite_number(args[4], "scale", &step.scale) ||
        (count > 8 && ra_finite_number(args[8], "softcap", &step.softcap)))
        return NULL;
    if (step.softcap < 0)
        return PyErr_Format(PyExc_ValueError, "softcap must not be negative, got %R", args[8]);
    if (step.scale == 0)
        return PyErr_Format(PyExc_ValueError, "scale must not be 0");
    /* What may run Python code comes before views of tensors. */
    if (refuse_negated(self, args, sinks))
        return NULL;
    const Py_buffer *mask = NULL;
    if (visible != none) {
        if (PyObject_GetBuffer(visible, &b->views[b->count], PyBUF_FORMAT | PyBUF_C_CONTIGUOUS))
            return NULL;
        mask = &b->views[b->count++];
    }
    if (cut_in != none && !(step.cut_in = ra_take(b, cut_in, "cut_in", 'i', (Py_ssize_t)rows, 0)))
        return NULL;
    if (begin != none && !(step.begin = ra_take(b, begin, "begin", 'i', (Py_ssize_t)rows + 1, 0)))
        return NULL;
    if (step.begin && (step.begin[rows] < 0 || step.begin[rows] > PY_SSIZE_T_MAX / 64))
        return PyErr_Format(PyExc_ValueError, "begin must rise from 0, got an end of %lld",
                            (long long)step.begin[rows]);
    if (index != none &&
        (!step.begin || !(step.index = ra_take(b, index, "index", 'i', (Py_ssize_t)step.begin[rows], 0))))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "index needs begin");
    if (sinks != none && view_sinks(self, sinks, b, &step.sinks))
        return NULL;
    if (prompt != none && !(step.prompt = ra_take(b, prompt, "prompt", 'b', (Py_ssize_t)rows, 0)))
        return NULL;
    bool packed = step.index != NULL;
    if (view_tokens(self, args[0], "queries", ra_layer_query_heads(layer), &tokens, &packed, &step.queries) ||
        view_tokens(self, args[1], "keys", ra_layer_kv_heads(layer), &tokens, &packed, &step.keys) ||
        view_tokens(self, args[2], "values", ra_layer_kv_heads(layer), &tokens, &packed, &step.values) ||
        (args[3] != none && view_out(self, args[3], tokens, packed, &step.out)))
        return NULL;
    step.tokens = tokens;
    total = step.begin ? step.begin[rows] : rows * tokens;
    for (int64_t i = 0; step.index && i < total; i++)
        if (step.index[i] < 0 || step.index[i] >= tokens)
            return PyErr_Format(PyExc_ValueError, "index[%lld] is %lld, the tensors have %lld tokens", (long long)i,
                                (long long)step.index[i], (long long)tokens);
    for (int64_t row = 0; step.begin && !step.index && row < rows; row++)
        if (step.begin[row + 1] - step.begin[row] > tokens)
            return PyErr_Format(PyExc_ValueError, "row %lld has more new tokens than the tensors' %lld", (long long)row,
                                (long long)tokens);
    if (mask) {
        int64_t most = 0;
        for (int64_t row = 0; row < rows; row++) {
            int64_t fresh = step.begin ? step.begin[row + 1] - step.begin[row] : tokens;
            int64_t end = ra_layer_tokens(layer, row) + fresh;
            most = end > most ? end : most;
        }
        if (mask->ndim != 2 || mask->itemsize != 1 || mask->shape[0] != total || mask->shape[1] < most)
            return PyErr_Format(PyExc_ValueError, "visible must be bool [%lld, at least %lld]", (long long)total,
                                (long long)most);
        step.visible = mask->buf;
        step.visible_stride = mask->shape[1];
    }
    int64_t missing = 0;
    ra_parallel parallel = ra_torch_parallel();
    ra_status status = ra_layer_reserve(layer, step.begin, tokens, self->ahead, &missing);
    if (status == RA_ERR_NO_PAGES)
        return PyLong_FromLongLong(missing);
    if (status == RA_OK) {
        Py_BEGIN_ALLOW_THREADS
        status = ra_layer_step(layer, &step, parallel);
        Py_END_ALLOW_THREADS
    }
    if (status == RA_ERR_ARGUMENT)
        return PyErr_Format(PyExc_ValueError, "step: begin and index must rise");
    if (status != RA_OK)
        return ra_raise(status, "keys or values");
    return PyLong_FromLong(0);
}

static PyObject *do_step(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    ra_buffers b = {.count = 0};
    PyObject *result = step_with(self, args, count, &b);
    ra_release(&b);
    return result;
}
static RA_METHOD(step, 5, 12)

/* ---- Rows ---- */

PyDoc_STRVAR(reorder_doc,
             "reorder(source)\n--\n\nRow i becomes row source[i] (int64 array), sharing its pages; -1: empty.");

static PyObject *do_reorder(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    Py_ssize_t rows = PyObject_Length(args[0]);
    const int64_t *source = rows < 0 ? NULL : ra_take(&b, args[0], "source", 'i', rows, 0);
    if (!source)
        return NULL;
    ra_status status = ra_layer_reorder(self->layer, source, rows);
    ra_release(&b);
    if (status != RA_OK)
        return ra_raise(status, "rows");
    Py_RETURN_NONE;
}
static RA_METHOD(reorder, 1, 1)

static PyObject *do_fork(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    int64_t from, to;
    if (ra_row_number(self, args[0], &from) || ra_row_number(self, args[1], &to))
        return NULL;
    ra_status status = ra_layer_fork(self->layer, from, to);
    if (status != RA_OK)
        return ra_raise(status, "fork");
    Py_RETURN_NONE;
}
static RA_METHOD(fork, 2, 2)

static PyObject *do_release(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    int64_t row;
    if (ra_row_number(self, args[0], &row))
        return NULL;
    ra_status status = ra_layer_release(self->layer, row);
    if (status != RA_OK)
        return ra_raise(status, "release");
    Py_RETURN_NONE;
}
static RA_METHOD(release, 1, 1)

PyDoc_STRVAR(crop_doc,
             "crop(tokens)\n--\n\nForgets the newest tokens of each row (an int for all, or int64 [rows]); ValueError "
             "if one was evicted.");

static PyObject *do_crop(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    int64_t rows = ra_layer_rows(self->layer), *same = NULL;
    const int64_t *tokens;
    if (PyLong_Check(args[0])) {
        long long number;
        if (ra_whole_number(args[0], &number))
            return NULL;
        same = PyMem_Malloc((size_t)rows * sizeof *same);
        if (!same)
            return PyErr_NoMemory();
        for (int64_t row = 0; row < rows; row++)
            same[row] = number;
        tokens = same;
    } else if (!(tokens = ra_take(&b, args[0], "tokens", 'i', (Py_ssize_t)rows, 0))) {
        return NULL;
    }
    ra_status status = ra_layer_crop(self->layer, tokens);
    ra_release(&b);
    PyMem_Free(same);
    if (status != RA_OK)
        return ra_raise(status, "crop");
    Py_RETURN_NONE;
}
static RA_METHOD(crop, 1, 1)

static PyObject *do_reset(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)args, (void)count;
    ra_layer_reset(self->layer);
    Py_RETURN_NONE;
}
static RA_METHOD(reset, 0, 0)

PyDoc_STRVAR(copy_doc, "copy()\n--\n\nA layer that holds the same, sharing pages.");

static PyObject *do_copy(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)args, (void)count;
    ra_layer *copy;
    ra_status status = ra_layer_copy(self->layer, &copy);
    if (status != RA_OK)
        return ra_raise(status, "copy");
    return wrap(Py_TYPE((PyObject *)self), self->pool, copy, self->ahead);
}
static RA_METHOD(copy, 0, 0)

static PyObject *layer_times(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    (void)args, (void)count;
    ra_times t = ((layer_object *)object)->times;
    return Py_BuildValue("(LLLL)", (long long)t.score_ns, (long long)t.route_ns, (long long)t.evict_ns,
                         (long long)t.attend_ns);
}

static PyObject *layer_rows(PyObject *object, void *unused)
{
    (void)unused;
    return PyLong_FromLongLong(ra_layer_rows(((layer_object *)object)->layer));
}

static PyObject *layer_scale(PyObject *object, void *unused)
{
    (void)unused;
    return PyFloat_FromDouble((double)ra_layer_scale(((layer_object *)object)->layer));
}

static PyObject *layer_softcap(PyObject *object, void *unused)
{
    (void)unused;
    return PyFloat_FromDouble((double)ra_layer_softcap(((layer_object *)object)->layer));
}

/* clang-format takes these braces for a block. */
/* clang-format off */
#define FAST(name, doc) {#name, (PyCFunction)(void (*)(void))layer_##name, METH_FASTCALL, doc}
/* clang-format on */

static PyMethodDef methods[] = {
    FAST(reserve, reserve_doc),
    FAST(step, step_doc),
    FAST(cut, ra_cut_doc),
    FAST(figures, ra_figures_doc),
    FAST(prepare, ra_prepare_doc),
    FAST(replayed, ra_replayed_doc),
    FAST(replayed_cut, ra_replayed_cut_doc),
    FAST(cut_score, ra_cut_score_doc),
    FAST(cut_scores, ra_cut_scores_doc),
    FAST(cut_set_scores, ra_cut_set_scores_doc),
    FAST(cut_allocate, ra_cut_allocate_doc),
    FAST(cut_choose, ra_cut_choose_doc),
    FAST(cut_kept, ra_cut_kept_doc),
    FAST(cut_apply, ra_cut_apply_doc),
    FAST(cut_abandon, ra_cut_abandon_doc),
    FAST(cut_set_totals, ra_cut_set_totals_doc),
    FAST(keep_cold, ra_keep_cold_doc),
    FAST(cut_recall, ra_cut_recall_doc),
    FAST(cold_slots, ra_cold_slots_doc),
    FAST(cold_recalled, ra_cold_recalled_doc),
    FAST(cold_read, ra_cold_read_doc),
    FAST(cold_restore, ra_cold_restore_doc),
    FAST(reorder, reorder_doc),
    FAST(fork, "fork(source, target)\n--\n\nRow `target` becomes row `source`, sharing its pages."),
    FAST(release, "release(row)\n--\n\nEmpties a row."),
    FAST(crop, crop_doc),
    FAST(reset, "reset()\n--\n\nDrops every token; pages go home."),
    FAST(copy, copy_doc),
    FAST(set_centres, ra_set_centres_doc),
    FAST(slots, ra_slots_doc),
    FAST(row_slots, ra_row_slots_doc),
    FAST(table, ra_table_doc),
    FAST(positions, ra_positions_doc),
    FAST(read, ra_read_doc),
    FAST(queries, ra_queries_doc),
    FAST(tokens, ra_tokens_doc),
    FAST(times, "times()\n--\n\n(score, route, evict, attend) in nanoseconds, as of the last call."),
    FAST(columns, ra_columns_doc),
    FAST(restore, ra_restore_doc),
    FAST(restore_columns, ra_restore_columns_doc),
    FAST(restore_row, ra_restore_row_doc),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getset[] = {
    {"rows", layer_rows, NULL, "Rows of the batch.", NULL},
    {"scale", layer_scale, NULL, "Scale of the logits in the newest step.", NULL},
    {"generation", ra_layer_generation_of, NULL,
     "Another number than at the capture of a graph: the graph must not be replayed any more. 0 in host memory.", NULL},
    {"softcap", layer_softcap, NULL, "Soft-capping of the logits in the newest step, 0 for none.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Layer(pool, rows, kv_heads, query_heads, window, scorer=None)\n--\n\nRagged heads of one layer; see "
                "reasonalloc.h."},
    {Py_tp_new, layer_new},
    {Py_tp_dealloc, layer_dealloc},
    {Py_tp_traverse, layer_traverse},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {0, NULL},
};

PyType_Spec ra_layer_spec = {
    .name = "reasonalloc._core.Layer",
    .basicsize = sizeof(layer_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};
