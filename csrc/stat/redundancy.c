/* Column means of the cosine matrix, and what is kept for the next time. */
#include "redundancy.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NORM_FLOOR 1e-8f
/* The sum of the unit keys is kept while tokens come and go, and computed afresh once this many times as many unit keys
 * as there are slots have been added or taken off. Each rounds off at most 16 * 2^-24 a dimension (a page's part is
 * summed in float32, the rest in float64), hence a column mean by at most 4 * 16 * 2^-24 * sqrt(D): 4e-5 at D = 128,
 * below 1e-7 in practice. */
#define DRIFT 4

void ra_known_clear(ra_known *known)
{
    free(known->inverse);
    free(known->similar);
    free(known->cosine);
    free(known->sum);
    *known = (ra_known){0};
}

/* Room for `slots`, in whole pages. */
static bool resize(ra_known *known, int64_t slots)
{
    slots = ra_pages_for(slots) * PAGE;
    if (!ra_grow((void **)&known->inverse, slots, sizeof *known->inverse) ||
        !ra_grow((void **)&known->similar, slots, sizeof *known->similar) ||
        !ra_grow((void **)&known->cosine, slots, sizeof *known->cosine))
        return false;
    for (int64_t i = known->slots; i < slots; i++)
        known->inverse[i] = 0; /* kernels read whole pages */
    known->capacity = slots;
    return true;
}

/* Adds weight[t] times the page's keys to the sum. */
static void add_page(ra_known *known, const ra_span *span, int64_t page, const float *weight)
{
    float part[RA_MAX_HEAD_DIM];
    memset(part, 0, (size_t)span->d * sizeof *part);
    span->kernels->weighted_sum(ra_span_k(span, page), weight, (size_t)span->d, part);
    for (int64_t c = 0; c < span->d; c++)
        known->sum[c] += (double)part[c];
}

/* Inverse norms of the new keys, and their part of the sum; false if a norm overflows. */
static bool add_new(ra_known *known, const ra_span *span)
{
    bool finite = true;
    for (int64_t page = known->slots / PAGE; page * PAGE < span->slots; page++) {
        float squares[PAGE], weight[PAGE] = {0};
        span->kernels->square_norms(ra_span_k(span, page), (size_t)span->d, squares);
        for (int64_t t = 0; t < ra_min(PAGE, span->slots - page * PAGE); t++)
            if (page * PAGE + t >= known->slots) {
                known->inverse[page * PAGE + t] = weight[t] = 1 / (sqrtf(squares[t]) + NORM_FLOOR);
                finite &= squares[t] <= FLT_MAX;
            }
        add_page(known, span, page, weight);
    }
    known->moved += span->slots - known->slots;
    return finite;
}

static void sum_afresh(ra_known *known, const ra_span *span)
{
    memset(known->sum, 0, (size_t)span->d * sizeof *known->sum);
    for (int64_t page = 0; page * PAGE < span->slots; page++) {
        float weight[PAGE] = {0};
        memcpy(weight, known->inverse + page * PAGE,
               (size_t)ra_min(PAGE, span->slots - page * PAGE) * sizeof *weight);
        add_page(known, span, page, weight);
    }
    known->moved = 0;
}

void ra_known_remove(ra_known *known, const ra_span *span, int64_t page, const bool *leaves)
{
    float weight[PAGE] = {0};
    int64_t count = 0;
    for (int64_t t = 0; t < PAGE && page * PAGE + t < known->slots; t++)
        if (leaves[t]) {
            weight[t] = -known->inverse[page * PAGE + t];
            count++;
        }
    if (count)
        add_page(known, span, page, weight);
    known->moved += count;
}

void ra_known_keep(ra_known *known, const int64_t *slots, int64_t keep)
{
    int32_t *before = known->slots ? ra_new(known->slots + 1, sizeof *before) : NULL; /* survivors before a slot */
    if (!before) {
        ra_known_clear(known);
        return;
    }
    int64_t kept = 0;
    for (int64_t slot = 0; slot < known->slots; slot++) {
        while (kept < keep && slots[kept] < slot)
            kept++;
        before[slot] = (int32_t)kept;
    }
    while (kept < keep && slots[kept] < known->slots)
        kept++;
    before[known->slots] = (int32_t)kept;
    for (int64_t i = 0; i < kept; i++) {
        int32_t similar = known->similar[slots[i]];
        if (similar >= 0)
            similar = before[similar] < keep && slots[before[similar]] == similar
                          ? before[similar]
                          : ra_similar_before(before[similar]);
        else if (similar != RA_NONE_SIMILAR)
            similar = ra_similar_before(before[ra_similar_bound(similar)]);
        known->similar[i] = similar; /* i <= slots[i]: nothing that is still to be read */
        known->cosine[i] = known->cosine[slots[i]];
        known->inverse[i] = known->inverse[slots[i]];
    }
    known->slots = kept;
    if (known->capacity > 2 * kept + PAGE && !resize(known, kept + PAGE)) /* after a long prompt */
        ra_known_clear(known);
    free(before);
}

/* Sum over each column of its zeroed entries. */
static void zeroed_entries(const ra_known *known, const ra_span *span, double *removed)
{
    float first[RA_MAX_HEAD_DIM], dots[PAGE];
    ra_span_key(span, 0, first);
    ra_kernels_get()->scale(first, (size_t)span->d, known->inverse[0]);
    for (int64_t page = 0; page * PAGE < span->slots; page++) {
        bool have_dots = false;
        for (int64_t i = page * PAGE; i < ra_min(page * PAGE + PAGE, span->slots); i++) {
            if (known->similar[i] >= 0) {
                removed[known->similar[i]] += (double)known->cosine[i];
            } else if (i) { /* no similar key: entry 0, which for row 0 is the diagonal */
                if (!have_dots)
                    span->kernels->qk(first, 1, ra_span_k(span, page), (size_t)span->d, NULL, dots);
                have_dots = true;
                removed[0] += (double)(dots[i % PAGE] * known->inverse[i]);
            }
        }
    }
}

static bool prepare(ra_known *known, const ra_span *span, float threshold)
{
    if (known->slots > span->slots || known->threshold != threshold)
        ra_known_clear(known);
    known->threshold = threshold;
    if (!known->sum)
        known->sum = calloc((size_t)span->d, sizeof *known->sum);
    return known->sum && (known->capacity >= span->slots || resize(known, span->slots));
}

ra_status ra_redundancy(const ra_span *span, ra_known *known, float threshold, float *out)
{
    int64_t n = span->slots;
    if (n < 1)
        return RA_OK;
    double *removed = calloc((size_t)n, sizeof *removed);
    if (!removed || !prepare(known, span, threshold)) {
        free(removed);
        ra_known_clear(known);
        return RA_ERR_NO_MEMORY;
    }
    if (!add_new(known, span)) {
        free(removed);
        ra_known_clear(known);
        return RA_ERR_NOT_FINITE;
    }
    if (known->moved > DRIFT * n)
        sum_afresh(known, span);
    ra_status status = ra_find_similar(known, span, threshold, out);
    if (status == RA_OK) {
        known->slots = n;
        zeroed_entries(known, span, removed);
        for (int64_t j = 0; j < n; j++) {
            double inverse = (double)known->inverse[j];
            double self = 1 - (double)NORM_FLOOR * inverse; /* |k| / (|k| + floor) */
            out[j] = (float)(((double)out[j] * inverse - self * self - removed[j]) / (double)n);
        }
        ra_softmax(out, n);
    } else {
        ra_known_clear(known); /* the sum holds keys that `slots` does not count */
    }
    free(removed);
    return status;
}
