/* What csrc/python needs of torch. Nothing of torch is linked: its symbols are looked up once it has been imported. */
#ifndef RA_TORCH_BRIDGE_H
#define RA_TORCH_BRIDGE_H

#include "reasonalloc.h"

/* Finds torch's symbols in this process. 0, or -1 with *missing (may be NULL) naming what is not there; static text.
 * Any thread may call it; after a failure it may be called again. */
int ra_torch_load(const char **missing);

/* Registers torch.ops.reasonalloc.*; again and again is fine. backend: what computes on CUDA tensors from now on; NULL:
 * they are refused. 0, or -1 with *error (may be NULL), static text. */
int ra_torch_register(const ra_backend *backend, const char **error);

/* Spreads work over torch's own thread pool; NULL (serial) while torch is not in the process. */
ra_parallel ra_torch_parallel(void);

#endif
