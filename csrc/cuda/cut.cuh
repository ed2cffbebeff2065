/* Scratch of a cut: what its kernels leave for each other, laid out by one hand. */
#pragma once
#include "common.cuh"

struct cut_scratch {
    float *logits;    /* [R, H, W or 2, S]: of the window's queries */
    float *inverse;   /* [R, H, S] 1 / (|k| + floor) */
    float *cosine;    /* [R, H, S] with the newest similar key */
    int32_t *similar; /* [R, H, S] that key's slot, -1: none */
    float *mean;      /* [R, H, S] */
    int64_t *removed; /* [R, H, S] in units of 2^-40 */
    double *claims;   /* [R, 5, H] of allocation */
    int32_t *plan;    /* [R, H, 3] of moves */
    int32_t *taken;   /* [R, H, M] pages that survivors move into */
    size_t bytes;
};

RA_HOST_DEVICE cut_scratch lay_scratch(const ra_cuda_layer &l, void *memory)
{
    cut_scratch s;
    char *at = (char *)memory;
    size_t used = 0, pairs = (size_t)l.rows * l.kv_heads, entries = pairs * l.pages * PAGE;
#define RA_LAY(field, type, count)                                                                                     \
    s.field = (type *)(at + used);                                                                                     \
    used += aligned((size_t)(count) * sizeof(type));
    RA_LAY(logits, float, entries *(l.window > 2 ? l.window : 2))
    RA_LAY(inverse, float, entries)
    RA_LAY(cosine, float, entries)
    RA_LAY(similar, int32_t, entries)
    RA_LAY(mean, float, entries)
    RA_LAY(removed, int64_t, entries)
    RA_LAY(claims, double, 5 * pairs)
    RA_LAY(plan, int32_t, 3 * pairs)
    RA_LAY(taken, int32_t, pairs * l.pages)
#undef RA_LAY
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
