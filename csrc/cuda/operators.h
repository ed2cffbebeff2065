/* What torch's operators run on a device (core/operators.h): memory that the caller laid out. As in launch.h nothing
 * waits or allocates. */
#ifndef RA_CUDA_OPERATORS_H
#define RA_CUDA_OPERATORS_H

#include "../core/operators.h"

#ifdef __cplusplus
extern "C" {
#endif

/* fault: a word that host and device see, its bytes set by plain stores. */
enum { RA_FAULT_LENGTHS, RA_FAULT_TABLE, RA_FAULT_NOT_FINITE }; /* bytes of it; NOT_FINITE is RA_CUDA_FAULT_SCORES' */

size_t ra_cuda_attend_paged_bytes(const ra_paged *pages);
int ra_cuda_attend_paged(const ra_paged *pages, const void *queries, float scale, void *out, uint32_t *fault,
                         void *scratch, void *stream);
size_t ra_cuda_append_paged_bytes(const ra_paged *pages);
int ra_cuda_append_paged(const ra_paged *pages, const void *keys, const void *values, uint32_t *fault, void *scratch,
                         void *stream);
size_t ra_cuda_score_dense_bytes(const ra_dense *keys);
int ra_cuda_score_dense(const ra_dense *keys, float *out, uint32_t *fault, void *scratch, void *stream);

/* ---- operators_host.c ---- */

extern const ra_operators ra_cuda_operators;

#ifdef __cplusplus
}
#endif
#endif
