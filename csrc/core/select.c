/* Which tokens stay. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static float median_of_three(float a, float b, float c)
{
    if (a > b) {
        float swap = a;
        a = b;
        b = swap;
    }
    return c < a ? a : c > b ? b : c;
}

float ra_kth_largest(float *x, int64_t n, int64_t k)
{
    int64_t lo = 0, hi = n - 1, want = k - 1;
    while (lo < hi) {
        float pivot = median_of_three(x[lo], x[lo + (hi - lo) / 2], x[hi]);
        int64_t i = lo, j = hi;
        while (i <= j) {
            while (x[i] > pivot)
                i++;
            while (x[j] < pivot)
                j--;
            if (i <= j) {
                float swap = x[i];
                x[i++] = x[j];
                x[j--] = swap;
            }
        }
        if (want <= j)
            hi = j;
        else if (want >= i)
            lo = i;
        else
            return x[want];
    }
    return x[lo];
}

/* Marks the `keep` best of scores[begin, end), ties to the newer. scratch: [end - begin]. */
static void mark_best(const float *scores, int64_t begin, int64_t end, int64_t keep, float *scratch, bool *stays)
{
    if (keep <= 0)
        return;
    memcpy(scratch, scores + begin, (size_t)(end - begin) * sizeof *scratch);
    float tau = ra_kth_largest(scratch, end - begin, keep);
    for (int64_t i = begin; i < end; i++)
        if (scores[i] > tau) {
            stays[i] = true;
            keep--;
        }
    for (int64_t i = end - 1; i >= begin && keep; i--)
        if (scores[i] == tau) {
            stays[i] = true;
            keep--;
        }
}

ra_status ra_select(const float *scores, int64_t count, int64_t keep, int64_t protect, int64_t *out)
{
    if (count < 0 || keep < 0 || keep > count || protect < 0 || (count && !scores) || (keep && !out))
        return RA_ERR_ARGUMENT;
    if (!ra_all_finite(RA_F32, scores, count))
        return RA_ERR_NOT_FINITE;
    if (!keep)
        return RA_OK;
    float *scratch = ra_new(count, sizeof *scratch);
    bool *stays = calloc((size_t)count + 1, sizeof *stays);
    if (!scratch || !stays) {
        free(scratch);
        free(stays);
        return RA_ERR_NO_MEMORY;
    }
    protect = ra_min(protect, count);
    int64_t first = ra_min(protect, keep), at = 0;
    mark_best(scores, 0, protect, first, scratch, stays);
    mark_best(scores, protect, count, keep - first, scratch, stays);
    for (int64_t i = 0; i < count; i++)
        if (stays[i])
            out[at++] = i;
    free(scratch);
    free(stays);
    return RA_OK;
}
