/* R-KV's redundancy (arXiv 2505.24133) without the n x n matrix, and without looking at old pairs again.
 *
 * With unit keys u_i the column mean of the cosine matrix (zero diagonal, one entry of each row zeroed) is
 *     mean_j = (u_j . sum_i u_i  -  u_j . u_j  -  sum of the zeroed entries of column j) / n
 * The zeroed entry of row i is its newest similar key, or entry 0 where it has none. Keys are never copied:
 * u = k / (|k| + 1e-8) is applied to the dot products. */
#ifndef RA_NEAREST_KEY_H
#define RA_NEAREST_KEY_H

#include "layer.h"

#define RA_NONE_SIMILAR (-1)
/* The newest similar key was evicted; if there is another one it lies before slot `bound`. */
static inline int32_t ra_similar_before(int64_t bound) { return (int32_t)(-2 - bound); }
static inline int64_t ra_similar_bound(int32_t similar) { return -2 - (int64_t)similar; }

typedef struct ra_nearest_state {
    int64_t slots; /* the first `slots` slots are known; 0 at first */
    int64_t moved; /* unit keys added to the sum or taken off it since it was computed afresh */
    float threshold;
    double sum[]; /* [D]: sum of the known unit keys */
} ra_nearest_state;

/* What is known of a head's keys. */
typedef struct ra_nearest {
    ra_nearest_state *state;
    float *inverse;   /* 1 / (|k| + 1e-8) */
    int32_t *similar; /* newest similar slot, RA_NONE_SIMILAR or ra_similar_before() */
    float *cosine;    /* with it */
} ra_nearest;

/* The column of a layer's head; its statistics must be kept. */
ra_nearest ra_nearest_of(const ra_layer *layer, int64_t pair);
/* One of nothing known, in scratch memory; state NULL if it does not fit. */
ra_nearest ra_nearest_in(ra_scratch *scratch, int64_t slots, int64_t head_dim);

/* out: [N], softmaxed. What is known is used, and afterwards all slots are known. */
ra_status ra_redundancy(const ra_span *span, ra_nearest *nearest, float threshold, ra_scratch *scratch, float *out);
size_t ra_redundancy_bytes(int64_t slots, int64_t head_dim);

/* ---- similar.c ---- */

/* For each slot the newest similar one among all: fills similar and cosine, of which the first state->slots are right
 * as far as keys before state->slots go; inverse and sum are up to date. dots: [N], k_j . sum of the unit keys. */
ra_status ra_find_similar(ra_nearest *nearest, const ra_span *span, float threshold, ra_scratch *scratch, float *dots);
size_t ra_find_similar_bytes(int64_t slots, int64_t head_dim);

#endif
