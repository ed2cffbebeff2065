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
    PyObject *is_neg; /* the method's name */
} module_state;

/* Raises the Python error that belongs to a status, as "what: text". Returns NULL. */
PyObject *ra_raise(ra_status status, const char *what);

/* ---- tensor_view.c ---- */

/* Looks up torch's tensors before the first one comes: a device's stream is asked of them. 0, or -1 with an error set. */
int ra_find_torch(module_state *state);
/* Where a tensor must lie, as DLPack says it. */
extern const dl_device ra_host_memory;
/* A borrowed view of a tensor with `ndim` dimensions; valid while the object lives. 0, or -1 with an error set. */
int ra_view(module_state *state, PyObject *object, const char *name, dl_device where, int ndim, dl_tensor *out);
/* The same for tensors whose elements are numbers: its dtype too. */
int ra_view_numbers(module_state *state, PyObject *object, const char *name, dl_device where, int ndim, dl_tensor *out,
                    ra_dtype *dtype);
/* Tensors of torch may carry a sign that is applied when they are read, which DLPack does not tell: those are refused. It may
 * run Python code, so it comes before any view is taken. */
int ra_refuse_negated(module_state *state, PyObject *object, const char *name);
/* Its dtype as ra_dtype. 0, or -1 with an error set. */
int ra_view_dtype(const dl_tensor *view, const char *name, ra_dtype *out);
/* A contiguous buffer (numpy array) of `count` items; kind: 'i' int64, 'd' float64, 'f' float32, 'b' bool, 'p' int32.
 * Release with PyBuffer_Release. */
int ra_buffer(PyObject *object, const char *name, char kind, Py_ssize_t count, int writable, Py_buffer *out);

/* ---- pool_object.c, layer_object.c ---- */

/* A layer whose object died while another thread was in its pool: it is destroyed when that thread leaves. */
typedef struct dead_layer {
    ra_layer *layer;
    struct dead_layer *next;
} dead_layer;

typedef struct pool_object {
    PyObject_HEAD ra_pool *pool;
    PyObject *slabs;   /* dict: slab id -> tensor that owns the memory; NULL once the collector has cleared it */
    PyObject *backend; /* the capsule, NULL: the CPU's */
    dl_device memory;  /* of pages, tokens and outputs */
    int64_t head_dim;
    ra_pool_info info; /* as it was when the pool was left */
    int busy;          /* a call is under way, perhaps with the GIL released */
    dead_layer *dead;
} pool_object;

/* Claims a pool for a call, before its arguments are looked at: their own code may run then, and the GIL is released later.
 * -1 with an error if another call is under way. */
int ra_pool_enter(pool_object *pool);
void ra_pool_leave(pool_object *pool);
/* Destroys a layer now, or when the call that is under way leaves. */
void ra_pool_bury(pool_object *pool, dead_layer *layer);

extern PyType_Spec ra_pool_spec, ra_layer_spec;
extern PyMethodDef ra_functions[];

/* Reads (scorer, alpha, threshold, kernel, seed) and (heads, gamma, lo, hi, mu, safeguard) tuples. */
int ra_parse_score_config(PyObject *tuple, ra_score_config *out);
int ra_parse_route_config(PyObject *tuple, Py_ssize_t layer_heads, ra_route_config *out);

#endif
