/* Graphs of the emulation in Python: what torch.cuda.CUDAGraph is on a GPU. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "backend.h"

int ra_add_graphs(PyObject *module);

#ifdef RA_EMULATE

#define CAPSULE "reasonalloc.emulated_graph"

static void free_graph(PyObject *capsule) { ra_emulate_free(PyCapsule_GetPointer(capsule, CAPSULE)); }

static PyObject *begin(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    if (ra_emulate_begin())
        return PyErr_Format(PyExc_RuntimeError, "a graph is being captured already");
    Py_RETURN_NONE;
}

static PyObject *end(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    ra_emulate_graph *graph = ra_emulate_end();
    if (!graph)
        return PyErr_Format(PyExc_RuntimeError, "no graph is being captured");
    PyObject *capsule = PyCapsule_New(graph, CAPSULE, free_graph);
    if (!capsule)
        ra_emulate_free(graph);
    return capsule;
}

static PyObject *replay(PyObject *module, PyObject *capsule)
{
    (void)module;
    const ra_emulate_graph *graph = PyCapsule_GetPointer(capsule, CAPSULE);
    if (!graph)
        return NULL;
    int error = ra_emulate_replay(graph);
    if (error)
        return PyErr_Format(PyExc_RuntimeError, "a kernel failed with error %d", error);
    Py_RETURN_NONE;
}

static PyObject *nodes(PyObject *module, PyObject *capsule)
{
    (void)module;
    const ra_emulate_graph *graph = PyCapsule_GetPointer(capsule, CAPSULE);
    PyObject *list = graph ? PyList_New(0) : NULL;
    for (size_t i = 0; list && ra_emulate_node(graph, i); i++) {
        PyObject *name = PyUnicode_FromString(ra_emulate_node(graph, i));
        if (!name || PyList_Append(list, name))
            Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

static PyMethodDef functions[] = {
    {"capture_begin", begin, METH_NOARGS, "capture_begin()\n--\n\nLaunches are recorded from now on, and not made."},
    {"capture_end", end, METH_NOARGS, "capture_end()\n--\n\nThe graph of what was launched since."},
    {"replay", replay, METH_O, "replay(graph)\n--\n\nMakes its launches, with the arguments of then."},
    {"nodes", nodes, METH_O, "nodes(graph)\n--\n\nNames of its kernels, and \"copy\" for copies to shared memory."},
    {NULL, NULL, 0, NULL},
};

int ra_add_graphs(PyObject *module) { return PyModule_AddFunctions(module, functions); }

#else

int ra_add_graphs(PyObject *module)
{
    (void)module;
    return 0;
}

#endif
