/* Tensors through the DLPack C exchange API (about 150 ns each), arrays through the buffer protocol. */
#include <stdbool.h>
#include <string.h>

#include "module.h"

static const dl_exchange_api *exchange_of(module_state *state, PyTypeObject *type)
{
    if (type == state->tensor_type)
        return state->exchange;
    PyObject *capsule = PyObject_GetAttrString((PyObject *)type, "__dlpack_c_exchange_api__");
    if (!capsule)
        return NULL;
    const dl_exchange_api *api = PyCapsule_GetPointer(capsule, DL_EXCHANGE_API_NAME);
    Py_DECREF(capsule);
    while (api && api->header.version.major > 1)
        api = (const dl_exchange_api *)api->header.previous;
    if (!api || api->header.version.major != 1 || !api->tensor_from_py_object) {
        PyErr_SetString(PyExc_BufferError, "the tensor type offers no DLPack 1.x C exchange API");
        return NULL;
    }
    Py_INCREF((PyObject *)type);
    Py_XDECREF((PyObject *)state->tensor_type);
    state->tensor_type = type;
    state->exchange = api;
    return api;
}

int ra_find_torch(module_state *state)
{
    PyObject *torch = state->exchange ? NULL : PyImport_ImportModule("torch");
    PyObject *type = torch ? PyObject_GetAttrString(torch, "Tensor") : NULL;
    bool found = state->exchange || (type && PyType_Check(type) && exchange_of(state, (PyTypeObject *)type));
    Py_XDECREF(type);
    Py_XDECREF(torch);
    if (!found && !PyErr_Occurred())
        PyErr_SetString(PyExc_ImportError, "torch has no Tensor");
    return found ? 0 : -1;
}

const dl_device ra_host_memory = {.type = DL_CPU, .id = -1};

int ra_view(module_state *state, PyObject *object, const char *name, dl_device where, int ndim, dl_tensor *out)
{
    const dl_exchange_api *api = exchange_of(state, Py_TYPE(object));
    if (!api) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s must be a torch tensor (torch >= 2.10), got %R", name, Py_TYPE(object));
        return -1;
    }
    if (api->tensor_from_py_object(object, out))
        return -1;
    if (out->device.type != where.type || (where.type != DL_CPU && out->device.id != where.id)) {
        if (where.type == DL_CPU)
            PyErr_Format(PyExc_TypeError, "%s must be on the CPU, got DLPack device %d", name, (int)out->device.type);
        else
            PyErr_Format(PyExc_TypeError, "%s must be on DLPack device %d, number %d, got device %d, number %d", name,
                         (int)where.type, (int)where.id, (int)out->device.type, (int)out->device.id);
        return -1;
    }
    if (out->ndim != ndim) {
        PyErr_Format(PyExc_ValueError, "%s must have %d dimensions, got %d", name, ndim, (int)out->ndim);
        return -1;
    }
    bool empty = false;
    for (int i = 0; i < ndim; i++)
        empty |= out->shape[i] == 0;
    if (!out->data && !empty) { /* fake tensors */
        PyErr_Format(PyExc_ValueError, "%s has no data", name);
        return -1;
    }
    out->data = (char *)out->data + out->byte_offset;
    return 0;
}

int ra_refuse_negated(module_state *state, PyObject *object, const char *name)
{
    PyObject *answer = PyObject_CallMethodObjArgs(object, state->is_neg, NULL);
    int negated = answer ? PyObject_IsTrue(answer) : 0;
    if (!answer && !PyErr_ExceptionMatches(PyExc_AttributeError))
        return -1;
    if (!answer)
        PyErr_Clear(); /* not torch's */
    Py_XDECREF(answer);
    if (negated > 0)
        PyErr_Format(PyExc_ValueError, "%s is negated lazily: give %s.resolve_neg()", name, name);
    return negated;
}

int ra_view_numbers(module_state *state, PyObject *object, const char *name, dl_device where, int ndim, dl_tensor *out,
                    ra_dtype *dtype)
{
    return ra_view(state, object, name, where, ndim, out) || ra_view_dtype(out, name, dtype) ? -1 : 0;
}

int ra_view_dtype(const dl_tensor *view, const char *name, ra_dtype *out)
{
    if (view->dtype.lanes == 1 && view->dtype.code == DL_FLOAT && view->dtype.bits == 32)
        *out = RA_F32;
    else if (view->dtype.lanes == 1 && view->dtype.code == DL_FLOAT && view->dtype.bits == 16)
        *out = RA_F16;
    else if (view->dtype.lanes == 1 && view->dtype.code == DL_BFLOAT && view->dtype.bits == 16)
        *out = RA_BF16;
    else {
        PyErr_Format(PyExc_TypeError,
                     "%s: dtype not supported (DLPack code %d, %d bits); float32, bfloat16 and float16 are", name,
                     (int)view->dtype.code, (int)view->dtype.bits);
        return -1;
    }
    return 0;
}

static const struct {
    char kind;
    const char *formats; /* any of these struct formats */
    Py_ssize_t size;
    const char *text;
} kinds[] = {
    {'i', "lq", 8, "int64"}, {'d', "d", 8, "float64"}, {'f', "f", 4, "float32"},
    {'b', "?", 1, "bool"},   {'p', "il", 4, "int32"},
};

int ra_buffer(PyObject *object, const char *name, char kind, Py_ssize_t count, int writable, Py_buffer *out)
{
    size_t k = 0;
    while (kinds[k].kind != kind)
        k++;
    if (PyObject_GetBuffer(object, out, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0)))
        return -1;
    const char *got = out->format ? out->format : "B";
    bool fits = got[0] && !got[1] && strchr(kinds[k].formats, got[0]) && out->itemsize == kinds[k].size;
    if (!fits || out->len / out->itemsize != count) {
        PyErr_Format(PyExc_ValueError, "%s must hold %zd items of %s, got %zd of format '%s'", name, count,
                     kinds[k].text, out->itemsize ? out->len / out->itemsize : 0, got);
        PyBuffer_Release(out);
        return -1;
    }
    return 0;
}
