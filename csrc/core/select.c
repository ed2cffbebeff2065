/* Which tokens stay. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "layer.h"

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

ra_status ra_select_into(const float *scores, int64_t count, int64_t keep, int64_t protect, float *floats, bool *flags,
                         int32_t *out)
{
    if (!ra_all_finite(RA_F32, scores, count))
        return RA_ERR_NOT_FINITE;
    if (!keep)
        return RA_OK;
    for (int64_t i = 0; keep == count && i < count; i++)
        out[i] = (int32_t)i;
    if (keep == count)
        return RA_OK;
    memset(flags, 0, (size_t)count * sizeof *flags);
    protect = ra_min(protect, count);
    int64_t first = ra_min(protect, keep), at = 0;
    mark_best(scores, 0, protect, first, floats, flags);
    mark_best(scores, protect, count, keep - first, floats, flags);
    for (int64_t i = 0; i < count; i++)
        if (flags[i])
            out[at++] = (int32_t)i;
    return RA_OK;
}

ra_status ra_select(const float *scores, int64_t count, int64_t keep, int64_t protect, int64_t *out)
{
    if (count < 0 || count > INT32_MAX || keep < 0 || keep > count || protect < 0 || (count && !scores) ||
        (keep && !out))
        return RA_ERR_ARGUMENT;
    float *floats = ra_new(count, sizeof *floats);
    bool *flags = ra_new(count, sizeof *flags);
    int32_t *slots = ra_new(keep, sizeof *slots);
    ra_status status = RA_ERR_NO_MEMORY;
    if (floats && flags && slots)
        status = ra_select_into(scores, count, keep, protect, floats, flags, slots);
    for (int64_t i = 0; status == RA_OK && i < keep; i++)
        out[i] = slots[i];
    free(floats);
    free(flags);
    free(slots);
    return status;
}
