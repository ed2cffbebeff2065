/* The extension module reasonalloc._core: limited API, multi-phase initialisation. */
#include "module.h"

static int exec(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    state->pool_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &ra_pool_spec, NULL);
    state->layer_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &ra_layer_spec, NULL);
    state->is_neg = PyUnicode_InternFromString("is_neg");
    if (!state->pool_type || !state->layer_type || !state->is_neg || PyModule_AddType(module, state->pool_type) ||
        PyModule_AddType(module, state->layer_type))
        return -1;
    return PyModule_AddIntConstant(module, "PAGE_TOKENS", RA_PAGE_TOKENS) ||
           PyModule_AddIntConstant(module, "MAX_HEAD_DIM", RA_MAX_HEAD_DIM) ||
           PyModule_AddIntConstant(module, "TRIM_AT_MOST", TRIM_AT_MOST);
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    module_state *state = PyModule_GetState(module);
    Py_VISIT(state->pool_type);
    Py_VISIT(state->layer_type);
    Py_VISIT(state->tensor_type);
    Py_VISIT(state->is_neg);
    return 0;
}

static int clear(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->pool_type);
    Py_CLEAR(state->layer_type);
    Py_CLEAR(state->tensor_type);
    Py_CLEAR(state->is_neg);
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)(intptr_t)exec},
    /* The state of pools and of the module is guarded by the GIL: a free-threaded interpreter turns it on for us. */
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "reasonalloc._core",
    .m_doc = "C core of reasonalloc; csrc/include/reasonalloc.h is its manual.",
    .m_size = sizeof(module_state),
    .m_methods = ra_functions,
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
