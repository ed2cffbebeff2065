/* Attention of the newest queries as a score: SnapKV (arXiv 2404.14469) in R-KV's form (arXiv 2505.24133). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

void ra_softmax(float *x, int64_t n)
{
    if (n < 1)
        return;
    const ra_kernels *kernels = ra_kernels_get();
    float sum = kernels->exp_sum(x, (size_t)n, kernels->max(x, (size_t)n));
    kernels->scale(x, (size_t)n, 1 / sum);
}

/* logits[w][older]: max over the group of q.k, a page at a time. */
static void group_logits(const ra_span *span, const float *queries, int64_t count, int64_t group, int64_t older,
                         float *logits)
{
    float dots[RA_TILE_ROWS * PAGE];
    int64_t d = span->d, rows = count * group;
    for (int64_t i = 0; i < count * older; i++)
        logits[i] = -INFINITY;
    for (int64_t start = 0; start < older; start += PAGE) {
        int64_t tokens = ra_min(PAGE, older - start);
        for (int64_t first = 0; first < rows; first += RA_TILE_ROWS) {
            int64_t m = ra_min(RA_TILE_ROWS, rows - first);
            span->kernels->qk(queries + first * d, (size_t)m, ra_span_k(span, start / PAGE), (size_t)d, NULL, dots);
            for (int64_t i = 0; i < m; i++) {
                float *row = &logits[(first + i) / group * older + start];
                for (int64_t t = 0; t < tokens; t++)
                    row[t] = dots[i * PAGE + t] > row[t] ? dots[i * PAGE + t] : row[t];
            }
        }
    }
}

/* out[i] = max of x[i - kernel/2 .. i + kernel/2]; x has kernel/2 numbers of room on both sides and is overwritten.
 * Maxima over twice as many neighbours are taken until two of them cover the kernel, so that wide kernels cost little
 * more, and in loops that vectorise. */
static void max_pool(float *x, int64_t n, int64_t kernel, float *out)
{
    int64_t half = kernel / 2, width = 1;
    float *start = x - half;
    for (int64_t i = 0; i < half; i++)
        start[i] = x[n + i] = -INFINITY;
    for (; 2 * width <= kernel; width *= 2)
        for (int64_t i = 0; i + width < n + 2 * half; i++)
            start[i] = start[i + width] > start[i] ? start[i + width] : start[i];
    const float *later = start + kernel - width;
    for (int64_t i = 0; i < n; i++)
        out[i] = later[i] > start[i] ? later[i] : start[i];
}

ra_status ra_importance_from(const float *sum, int64_t count, int64_t older, int64_t kernel, float *out)
{
    int64_t half = ra_min(kernel / 2, older); /* wider covers everything too */
    float *room = ra_new(older + 2 * half, sizeof *room);
    if (!room)
        return RA_ERR_NO_MEMORY;
    memcpy(room + half, sum, (size_t)older * sizeof *room);
    ra_kernels_get()->scale(room + half, (size_t)older, 1 / (float)count);
    max_pool(room + half, older, 2 * half + 1, out);
    free(room);
    return RA_OK;
}

ra_status ra_importance(const ra_span *span, const float *queries, int64_t count, int64_t group, int64_t older,
                        int64_t kernel, float *out)
{
    if (older < 1)
        return RA_OK;
    if (count < 1) { /* nothing was observed: no token matters more than another */
        for (int64_t i = 0; i < older; i++)
            out[i] = 1 / (float)older;
        return RA_OK;
    }
    float *logits = ra_new(count * older, sizeof *logits);
    if (!logits)
        return RA_ERR_NO_MEMORY;
    group_logits(span, queries, count, group, older, logits);
    for (int64_t w = 0; w < count; w++) {
        ra_softmax(logits + w * older, older);
        for (int64_t i = 0; w && i < older; i++)
            logits[i] += logits[w * older + i];
    }
    ra_status status = ra_importance_from(logits, count, older, kernel, out);
    free(logits);
    return status;
}
