/* R-KV's redundancy (arXiv 2505.24133) without the n x n matrix, and without looking at old pairs again.
 *
 * With unit keys u_i the column mean of the cosine matrix (zero diagonal, one entry of each row zeroed) is
 *     mean_j = (u_j . sum_i u_i  -  u_j . u_j  -  sum of the zeroed entries of column j) / n
 * The zeroed entry of row i is its newest similar key, or entry 0 where it has none. Keys are never copied:
 * u = k / (|k| + 1e-8) is applied to the dot products. */
#ifndef RA_REDUNDANCY_H
#define RA_REDUNDANCY_H

#include "internal.h"

#define RA_NONE_SIMILAR (-1)
/* The newest similar key was evicted; if there is another one it lies before slot `bound`. */
static inline int32_t ra_similar_before(int64_t bound) { return (int32_t)(-2 - bound); }
static inline int64_t ra_similar_bound(int32_t similar) { return -2 - (int64_t)similar; }

/* For each slot the newest similar one among all: fills similar and cosine, of which the first known->slots are right
 * as far as keys before known->slots go; inverse and sum are up to date. dots: [slots], k_j . sum of the unit keys. */
ra_status ra_find_similar(ra_known *known, const ra_span *span, float threshold, float *dots);

#endif
