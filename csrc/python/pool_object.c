/* _core.Pool: a pool of pages whose slabs are torch tensors. */
#include <string.h>

#include "module.h"

int ra_pool_check_idle(const pool_object *pool)
{
    if (!pool->busy)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "the cache is in use by another thread");
    return -1;
}

int ra_pool_enter(pool_object *pool)
{
    if (ra_pool_check_idle(pool))
        return -1;
    pool->busy = 1;
    return 0;
}

static int dtype_from_name(const char *name, ra_dtype *out)
{
    static const char *const names[RA_DTYPES] = {"float32", "bfloat16", "float16"};
    for (int i = 0; i < RA_DTYPES; i++)
        if (!strcmp(name, names[i])) {
            *out = (ra_dtype)i;
            return 0;
        }
    PyErr_Format(PyExc_TypeError, "dtype '%s' not supported; float32, bfloat16 and float16 are", name);
    return -1;
}

static PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dtype", "head_dim", NULL};
    const char *dtype_name;
    long long head_dim;
    ra_dtype dtype;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sL:Pool", names, &dtype_name, &head_dim) ||
        dtype_from_name(dtype_name, &dtype))
        return NULL;
    ra_pool *pool;
    ra_status status = ra_pool_create(dtype, head_dim, &pool);
    if (status == RA_ERR_ARGUMENT)
        return PyErr_Format(PyExc_ValueError, "head_dim must be between 1 and %d, got %lld", RA_MAX_HEAD_DIM, head_dim);
    if (status != RA_OK)
        return ra_raise(status, "Pool");
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    pool_object *self = (pool_object *)alloc(type, 0);
    PyObject *slabs = PyDict_New();
    if (!self || !slabs) {
        ra_pool_destroy(pool);
        Py_XDECREF((PyObject *)self);
        Py_XDECREF(slabs);
        return NULL;
    }
    self->pool = pool;
    self->slabs = slabs;
    self->dtype = dtype;
    self->head_dim = head_dim;
    return (PyObject *)self;
}

static void pool_dealloc(PyObject *object)
{
    pool_object *self = (pool_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    ra_pool_destroy(self->pool);
    Py_XDECREF(self->slabs);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

PyDoc_STRVAR(add_slab_doc, "add_slab(tensor)\n--\n\nLends a 1-D uint8 tensor of whole pages, 64-byte aligned.");

static PyObject *pool_add_slab(PyObject *object, PyObject *tensor)
{
    pool_object *self = (pool_object *)object;
    module_state *state = PyType_GetModuleState(Py_TYPE(object));
    dl_tensor view;
    if (!state || ra_pool_check_idle(self) || ra_view(state, tensor, "slab", 1, &view))
        return NULL;
    int64_t page = (int64_t)ra_pool_page_bytes(self->pool);
    if (view.dtype.code != DL_UINT || view.dtype.bits != 8 || view.shape[0] < page || view.shape[0] % page ||
        view.strides[0] != 1)
        return PyErr_Format(PyExc_ValueError, "a slab is a contiguous uint8 tensor of a multiple of %lld bytes",
                            (long long)page);
    int64_t id;
    ra_status status = ra_pool_add_slab(self->pool, view.data, view.shape[0] / page, &id);
    if (status != RA_OK)
        return ra_raise(status, "add_slab");
    PyObject *key = PyLong_FromLongLong(id);
    int failed = !key || PyDict_SetItem(self->slabs, key, tensor);
    Py_XDECREF(key);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
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
    ra_pool_leave(self);
    if (status != RA_OK)
        return ra_raise(status, "trim");
    for (int64_t i = 0; i < count; i++) {
        PyObject *key = PyLong_FromLongLong(ids[i]);
        if (!key || PyDict_DelItem(self->slabs, key)) {
            Py_XDECREF(key);
            return NULL;
        }
        Py_DECREF(key);
    }
    return PyLong_FromLongLong(count);
}

PyDoc_STRVAR(info_doc, "info()\n--\n\n(pages, used, free, peak_used, slabs), page counts.");

static PyObject *pool_info(PyObject *object, PyObject *unused)
{
    (void)unused;
    ra_pool_info i = ra_pool_get_info(((pool_object *)object)->pool);
    return Py_BuildValue("(LLLLL)", (long long)i.pages, (long long)i.used, (long long)i.free, (long long)i.peak_used,
                         (long long)i.slabs);
}

static PyObject *pool_reset_peak(PyObject *object, PyObject *unused)
{
    (void)unused;
    ra_pool_reset_peak(((pool_object *)object)->pool);
    Py_RETURN_NONE;
}

static PyObject *pool_page_bytes(PyObject *object, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(ra_pool_page_bytes(((pool_object *)object)->pool));
}

static PyMethodDef methods[] = {
    {"add_slab", pool_add_slab, METH_O, add_slab_doc},
    {"trim", pool_trim, METH_O, trim_doc},
    {"info", pool_info, METH_NOARGS, info_doc},
    {"reset_peak", pool_reset_peak, METH_NOARGS, "reset_peak()\n--\n\nStarts the peak anew at what is used now."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getset[] = {
    {"page_bytes", pool_page_bytes, NULL, "Bytes of one page.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Pool(dtype, head_dim)\n--\n\nPages of 16 tokens of one KV head; see reasonalloc.h."},
    {Py_tp_new, pool_new},
    {Py_tp_dealloc, pool_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {0, NULL},
};

PyType_Spec ra_pool_spec = {
    .name = "reasonalloc._core.Pool",
    .basicsize = sizeof(pool_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
