/* Scratch of a cut: what its kernels leave for each other, laid out by one hand. A head's lists in it are as long as the
 * longest head may be, in whole pages. */
#pragma once
#include "common.cuh"

constexpr int BLOCK_SLOTS = 256; /* of a block that goes through keys: 64 a warp */

struct cut_scratch {
    int64_t stride;    /* S: entries of a list */
    int32_t queries;   /* lists of logits of a head */
    int32_t parts;     /* blocks of keys of a head */
    float *logits;     /* [R, H, queries, S] of the window's queries, or of heads of some of them; or scores of heads */
    float *softmaxes;  /* [R, H, queries, 2] their tops and one over their sums */
    float *inverse;    /* [R, H, S] 1 / (|k| + floor) */
    float *mean;       /* [R, H, S] column means of the cosine matrix */
    float *attention;  /* [R, H, S] sum of softmaxes, of scorers without redundancy: in the place of `mean` */
    float *values;     /* [R, H, S] what they know of values: in that of `inverse` */
    double *products;  /* [R, H, S] what dkv sums up: in that of `removed` */
    int64_t *removed;  /* [R, H, S] sums of the zeroed entries of a column, in units of 2^-40 */
    float *unit_parts; /* [R, H, parts, D] sums of the unit keys of a block */
    float *unit_sum;   /* [R, H, D] of all */
    double *claims;    /* [R, 5, H] of allocation */
    int32_t *plan;     /* [R, H, 4] of moves, then 3 of all */
    int32_t *taken;    /* [R, H, M] pages that survivors move into */
    int32_t *frees;    /* [R, H, M] 1: the page has no owner afterwards */
    size_t bytes;
};

RA_HOST_DEVICE cut_scratch lay_scratch(const ra_cuda_layer &l, int most_slots, void *memory)
{
    cut_scratch s;
    char *at = (char *)memory;
    size_t used = 0, pairs = (size_t)l.rows * l.kv_heads;
    s.stride = list_room(most_slots);
    s.queries = most(l.window, l.group);
    s.parts = (int32_t)((s.stride + BLOCK_SLOTS - 1) / BLOCK_SLOTS);
    const size_t entries = pairs * s.stride;
#define RA_LAY(field, type, count)                                                                                     \
    s.field = (type *)(at + used);                                                                                     \
    used += aligned((size_t)(count) * sizeof(type));
    RA_LAY(logits, float, entries *s.queries)
    RA_LAY(softmaxes, float, pairs *s.queries * 2)
    RA_LAY(inverse, float, entries)
    RA_LAY(mean, float, entries)
    RA_LAY(removed, int64_t, entries)
    RA_LAY(unit_parts, float, pairs *s.parts *l.head_dim)
    RA_LAY(unit_sum, float, pairs *l.head_dim)
    RA_LAY(claims, double, 5 * pairs)
    RA_LAY(plan, int32_t, 4 * pairs + 3)
    RA_LAY(taken, int32_t, pairs *(s.stride / PAGE))
    RA_LAY(frees, int32_t, pairs *(s.stride / PAGE))
#undef RA_LAY
    s.attention = s.mean;
    s.values = s.inverse;
    s.products = (double *)s.removed;
    s.bytes = used;
    return s;
}

/* How many of a head's first `count` slots stand before position `below`; positions ascend. */
RA_DEVICE int protected_slots(const int32_t *positions, int64_t below, int count)
{
    int lo = 0, hi = most(0, count);
    while (lo < hi) {
        int middle = (lo + hi) / 2;
        if (positions[middle] < below)
            lo = middle + 1;
        else
            hi = middle;
    }
    return lo;
}
