/* The extension module reasonalloc._cuda: a backend for _core.Pool, and what it counts. It needs no driver to be imported.
 * Compiled with -DRA_EMULATE it is _cuda_emulated: the same kernels on the CPU, for tests. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <limits.h>

#include "backend.h"

#ifdef RA_EMULATE
#define NAME "_cuda_emulated"
#define INIT PyInit__cuda_emulated
#else
#define NAME "_cuda"
#define INIT PyInit__cuda
#endif

int ra_add_graphs(PyObject *module); /* of the emulation */

static PyObject *waits(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromLongLong(ra_device_waits());
}

static PyObject *allocations(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromLongLong(ra_device_allocations());
}

static PyObject *why_not_on(PyObject *module, PyObject *argument)
{
    (void)module;
    long device = PyLong_AsLong(argument);
    int before;
    if (device == -1 && PyErr_Occurred())
        return NULL;
    if (device < 0 || device > INT_MAX)
        return PyErr_Format(PyExc_ValueError, "device must be the number of one, got %ld", device);
    int error = ra_device_enter((int)device, &before);
    if (!error) {
        error = ra_cuda_probe();
        ra_device_leave(before);
    }
    return PyUnicode_FromString(error ? ra_device_error(error) : "");
}

#ifdef RA_EMULATE
static PyObject *set_order(PyObject *module, PyObject *argument)
{
    (void)module;
    unsigned long seed = PyLong_AsUnsignedLong(argument);
    if (seed == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    ra_emulate_order((unsigned)seed);
    Py_RETURN_NONE;
}
#endif

static PyMethodDef functions[] = {
    {"waits", waits, METH_NOARGS, "waits()\n--\n\nHow often the host has waited for a device."},
    {"allocations", allocations, METH_NOARGS, "allocations()\n--\n\nAllocations of memory for lists and scratch."},
    {"why_not_on", why_not_on, METH_O,
     "why_not_on(device)\n--\n\nWhy the module does not run on a device, by its number; empty if it does."},
#ifdef RA_EMULATE
    {"set_order", set_order, METH_O,
     "set_order(seed)\n--\n\nThreads and blocks run in an order drawn from seed; 0: in that of their numbers."},
#endif
    {NULL, NULL, 0, NULL},
};

static int exec(PyObject *module)
{
    union {
        const ra_backend *constant;
        void *plain; /* a capsule holds no const */
    } backend = {.constant = &ra_backend_cuda};
    PyObject *capsule = PyCapsule_New(backend.plain, RA_BACKEND_CAPSULE, NULL);
    int failed = PyModule_AddObjectRef(module, "backend", capsule);
    Py_XDECREF(capsule);
    return failed ? failed : ra_add_graphs(module);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)(intptr_t)exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "reasonalloc." NAME,
    .m_doc = "CUDA backend of reasonalloc.",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC INIT(void);
PyMODINIT_FUNC INIT(void) { return PyModuleDef_Init(&definition); }
