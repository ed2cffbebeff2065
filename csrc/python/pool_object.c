/* _core.Pool: a pool of pages whose slabs are torch tensors. */
#include <string.h>

#include "backend.h"
#include "module.h"

/* Work is put on the stream that torch uses now. */
static int set_stream(pool_object *pool)
{
    module_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)pool));
    void *stream = NULL;
    if (!state)
        return -1;
    if (pool->memory.type != DL_CPU &&
        (ra_find_torch(state) || state->exchange->current_work_stream(pool->memory.type, pool->memory.id, &stream)))
        return -1;
    ra_status status = ra_pool_set_stream(pool->pool, stream);
    if (status != RA_OK)
        ra_raise(status, "pool");
    return status == RA_OK ? 0 : -1;
}

int ra_pool_enter(pool_object *pool)
{
    if (!pool->slabs) {
        PyErr_SetString(PyExc_RuntimeError, "the cache is being collected");
        return -1;
    }
    if (pool->busy) {
        PyErr_SetString(PyExc_RuntimeError, "the cache is in use by another thread");
        return -1;
    }
    if (pool->backend && set_stream(pool))
        return -1;
    pool->busy = 1;
    return 0;
}

static void destroy_dead(pool_object *pool)
{
    while (pool->dead) {
        dead_layer *dead = pool->dead;
        pool->dead = dead->next;
        ra_layer_destroy(dead->layer);
        PyMem_Free(dead);
    }
}

void ra_pool_leave(pool_object *pool)
{
    destroy_dead(pool);
    pool->info = ra_pool_get_info(pool->pool);
    pool->busy = 0;
}

void ra_pool_bury(pool_object *pool, dead_layer *layer)
{
    layer->next = pool->dead;
    pool->dead = layer;
    if (!pool->busy) {
        destroy_dead(pool);
        pool->info = ra_pool_get_info(pool->pool);
    }
}

static PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"format", "head_dim", "backend", "device", NULL};
    const char *name;
    long long head_dim;
    PyObject *capsule = Py_None;
    int device_id = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sL|Oi:Pool", names, &name, &head_dim, &capsule, &device_id))
        return NULL;
    const ra_backend *backend = NULL;
    if (capsule != Py_None && !(backend = PyCapsule_GetPointer(capsule, RA_BACKEND_CAPSULE)))
        return NULL;
    const ra_format *format = ra_format_find(name);
    if (!format)
        return PyErr_Format(PyExc_TypeError, "format '%s' not supported; float32, bfloat16 and float16 are", name);
    ra_pool *pool;
    ra_status status = backend ? ra_pool_create_on(backend, device_id, format, head_dim, &pool)
                               : ra_pool_create(format, head_dim, &pool);
    if (status == RA_ERR_ARGUMENT)
        return PyErr_Format(PyExc_ValueError, "head_dim must be between 1 and %d, got %lld", RA_MAX_HEAD_DIM, head_dim);
    if (status != RA_OK)
        return ra_raise(status, "Pool");
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *slabs = PyDict_New();
    pool_object *self = slabs ? (pool_object *)alloc(type, 0) : NULL;
    if (!self) {
        ra_pool_destroy(pool);
        Py_XDECREF(slabs);
        return NULL;
    }
    self->pool = pool;
    self->slabs = slabs;
    self->head_dim = head_dim;
    self->memory = backend ? (dl_device){.type = ra_backend_memory(backend), .id = device_id} : ra_host_memory;
    if (backend) {
        Py_INCREF(capsule);
        self->backend = capsule;
    }
    self->info = ra_pool_get_info(pool);
    return (PyObject *)self;
}

static int pool_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((pool_object *)object)->slabs);
    Py_VISIT(((pool_object *)object)->backend);
    return 0;
}

/* Only garbage is cleared: no layer is used any more. */
static int pool_clear(PyObject *object)
{
    Py_CLEAR(((pool_object *)object)->slabs);
    return 0;
}

static void pool_dealloc(PyObject *object)
{
    pool_object *self = (pool_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    destroy_dead(self);
    ra_pool_destroy(self->pool);
    Py_XDECREF(self->slabs);
    Py_XDECREF(self->backend);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

PyDoc_STRVAR(add_slab_doc, "add_slab(tensor)\n--\n\nLends a 1-D uint8 tensor of whole pages, 64-byte aligned.");

static PyObject *lend(pool_object *self, PyObject *tensor)
{
    module_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    dl_tensor view;
    if (!state || ra_view(state, tensor, "slab", self->memory, 1, &view))
        return NULL;
    int64_t page = (int64_t)ra_pool_page_bytes(self->pool), id;
    if (view.dtype.code != DL_UINT || view.dtype.bits != 8 || view.shape[0] < page || view.shape[0] % page ||
        view.strides[0] != 1)
        return PyErr_Format(PyExc_ValueError, "a slab is a contiguous uint8 tensor of a multiple of %lld bytes",
                            (long long)page);
    ra_status status = ra_pool_add_slab(self->pool, view.data, view.shape[0] / page, &id);
    if (status == RA_ERR_ARGUMENT)
        return PyErr_Format(PyExc_ValueError, "a slab must be aligned to 64 bytes and may be lent once only");
    if (status != RA_OK)
        return ra_raise(status, "add_slab");
    PyObject *key = PyLong_FromLongLong(id);
    int failed = !key || PyDict_SetItem(self->slabs, key, tensor);
    Py_XDECREF(key);
    if (!failed)
        Py_RETURN_NONE;
    return NULL; /* the pages stay lent, and nothing else holds the tensor: no way back, but only for want of memory */
}

static PyObject *pool_add_slab(PyObject *object, PyObject *tensor)
{
    pool_object *self = (pool_object *)object;
    if (ra_pool_enter(self))
        return NULL;
    PyObject *result = lend(self, tensor);
    ra_pool_leave(self);
    return result;
}

PyDoc_STRVAR(trim_doc, "trim(keep_free)\n--\n\nMoves pages together and frees empty slabs while keep_free pages stay "
                       "free. Returns the number of slabs freed, at most TRIM_AT_MOST.");

static PyObject *pool_trim(PyObject *object, PyObject *argument)
{
    pool_object *self = (pool_object *)object;
    long long keep_free = PyLong_AsLongLong(argument);
    if (keep_free == -1 && PyErr_Occurred())
        return NULL;
    int64_t ids[TRIM_AT_MOST], count = 0;
    if (ra_pool_enter(self))
        return NULL;
    ra_status status = ra_pool_trim(self->pool, keep_free, ids, TRIM_AT_MOST, &count);
    PyObject *gone = PyList_New(0); /* tensors go last: their end may run code that lends others */
    int failed = !gone;
    for (int64_t i = 0; status == RA_OK && !failed && i < count; i++) {
        PyObject *key = PyLong_FromLongLong(ids[i]);
        PyObject *slab = key ? PyDict_GetItemWithError(self->slabs, key) : NULL;
        failed = slab ? PyList_Append(gone, slab) || PyDict_DelItem(self->slabs, key) : PyErr_Occurred() != NULL;
        Py_XDECREF(key);
    }
    ra_pool_leave(self);
    Py_XDECREF(gone);
    if (status != RA_OK)
        return ra_raise(status, "trim");
    return failed ? NULL : PyLong_FromLongLong(count);
}

PyDoc_STRVAR(info_doc, "info()\n--\n\n(pages, used, free, peak_used, slabs), page counts. While a call is under way in "
                       "another thread: as they were before it.");

static PyObject *pool_info(PyObject *object, PyObject *unused)
{
    (void)unused;
    pool_object *self = (pool_object *)object;
    if (self->backend && !self->busy && self->slabs) { /* on a device it is looked at only here */
        if (ra_pool_enter(self))
            return NULL;
        ra_status status = ra_pool_wait(self->pool);
        ra_pool_leave(self);
        if (status != RA_OK)
            return ra_raise(status, "info");
    }
    ra_pool_info i = self->info;
    return Py_BuildValue("(LLLLL)", (long long)i.pages, (long long)i.used, (long long)i.free, (long long)i.peak_used,
                         (long long)i.slabs);
}

static PyObject *pool_taken(PyObject *object, PyObject *unused)
{
    (void)unused;
    return PyLong_FromLongLong(ra_pool_taken(((pool_object *)object)->pool));
}

static PyObject *pool_reset_peak(PyObject *object, PyObject *unused)
{
    (void)unused;
    pool_object *self = (pool_object *)object;
    if (ra_pool_enter(self))
        return NULL;
    ra_pool_reset_peak(self->pool);
    ra_pool_leave(self);
    Py_RETURN_NONE;
}

static PyObject *pool_page_bytes(PyObject *object, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(ra_pool_page_bytes(((pool_object *)object)->pool));
}

static PyObject *pool_cold_bytes(PyObject *object, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(ra_pool_cold_bytes(((pool_object *)object)->pool));
}

static PyMethodDef methods[] = {
    {"add_slab", pool_add_slab, METH_O, add_slab_doc},
    {"trim", pool_trim, METH_O, trim_doc},
    {"info", pool_info, METH_NOARGS, info_doc},
    {"taken", pool_taken, METH_NOARGS,
     "taken()\n--\n\nPages in use; on a device those that its layers may have taken: it is not waited for."},
    {"reset_peak", pool_reset_peak, METH_NOARGS, "reset_peak()\n--\n\nStarts the peak anew at what is used now."},
    {NULL, NULL, 0, NULL},
};

static PyObject *pool_format(PyObject *object, void *unused)
{
    (void)unused;
    const ra_format *format = ra_pool_format(((pool_object *)object)->pool);
    for (size_t i = 0; ra_format_name(i); i++)
        if (ra_format_find(ra_format_name(i)) == format)
            return PyUnicode_FromString(ra_format_name(i));
    Py_RETURN_NONE;
}

static PyObject *pool_backend(PyObject *object, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(ra_backend_name(ra_pool_backend(((pool_object *)object)->pool)));
}

static PyGetSetDef getset[] = {
    {"page_bytes", pool_page_bytes, NULL, "Bytes of one page.", NULL},
    {"cold_bytes", pool_cold_bytes, NULL, "Bytes of the cold tiers of its layers.", NULL},
    {"format", pool_format, NULL, "Name of the page format.", NULL},
    {"backend", pool_backend, NULL, "Name of what computes on the pages.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Pool(format, head_dim, backend=None, device=0)\n--\n\nPages of 16 tokens of one KV head; see "
                "reasonalloc.h. backend: the capsule of another module than the CPU's."},
    {Py_tp_new, pool_new},
    {Py_tp_dealloc, pool_dealloc},
    {Py_tp_traverse, pool_traverse},
    {Py_tp_clear, pool_clear},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {0, NULL},
};

PyType_Spec ra_pool_spec = {
    .name = "reasonalloc._core.Pool",
    .basicsize = sizeof(pool_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};
