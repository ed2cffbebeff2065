/* What the files of the extension module share. */
#ifndef RA_MODULE_H
#define RA_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "dlpack_abi.h"
#include "reasonalloc.h"

#define TRIM_AT_MOST 64 /* slabs that one call of Pool.trim frees */

typedef struct module_state {
    PyTypeObject *pool_type, *layer_type;
    PyTypeObject *tensor_type; /* the type whose exchange API is cached */
    const dl_exchange_api *exchange;
} module_state;

/* Raises the Python error that belongs to a status, as "what: text". Returns NULL. */
PyObject *ra_raise(ra_status status, const char *what);

/* ---- tensor_view.c ---- */

/* A borrowed view of a CPU tensor with `ndim` dimensions; valid while the object lives. 0, or -1 with an error set. */
int ra_view(module_state *state, PyObject *object, const char *name, int ndim, dl_tensor *out);
/* Its dtype as ra_dtype. 0, or -1 with an error set. */
int ra_view_dtype(const dl_tensor *view, const char *name, ra_dtype *out);
/* A contiguous buffer (numpy array) of `count` items of the struct format `format`; release with PyBuffer_Release. */
int ra_buffer(PyObject *object, const char *name, const char *format, Py_ssize_t count, int writable, Py_buffer *out);

/* ---- pool_object.c, layer_object.c ---- */

typedef struct pool_object {
    PyObject_HEAD
    ra_pool *pool;
    PyObject *slabs; /* dict: slab id -> tensor that owns the memory */
    ra_dtype dtype;
    int64_t head_dim;
    int busy; /* a call is under way with the GIL released */
} pool_object;

/* Claims a pool for a call without the GIL; -1 with an error if another thread is inside. */
int ra_pool_enter(pool_object *pool);
/* -1 with an error if another thread is inside: nothing may be read while it changes. */
int ra_pool_check_idle(const pool_object *pool);
static inline void ra_pool_leave(pool_object *pool) { pool->busy = 0; }

extern PyType_Spec ra_pool_spec, ra_layer_spec;
extern PyMethodDef ra_functions[];

/* Reads (scorer, alpha, threshold, kernel, seed) and (heads, gamma, lo, hi, mu, safeguard) tuples. */
int ra_parse_score_config(PyObject *tuple, ra_score_config *out);
int ra_parse_route_config(PyObject *tuple, ra_route_config *out);

#endif
