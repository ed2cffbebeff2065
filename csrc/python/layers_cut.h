/* Functions of the module over several layers. */
#ifndef RA_LAYERS_CUT_H
#define RA_LAYERS_CUT_H

#include "module.h"

PyObject *ra_py_route_layers(PyObject *module, PyObject *args);
PyObject *ra_py_cut_route_layers(PyObject *module, PyObject *args);
PyObject *ra_py_cut_apply_layers(PyObject *module, PyObject *layers);
extern const char ra_py_route_layers_doc[], ra_py_cut_route_layers_doc[], ra_py_cut_apply_layers_doc[];

#endif
