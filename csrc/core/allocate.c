/* Budgets: robustify and the head allocators. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "layer.h"

#define RA_MAX_GAMMA 32 /* the least claim, 1e-9, to a higher power is no number any more */

#define RA_MAX_TOTAL ((int64_t)1 << 52) /* doubles are whole numbers up to there */

typedef struct ra_remainder {
    double part;
    int64_t index;
} ra_remainder;

static int by_remainder(const void *a, const void *b)
{
    const ra_remainder *x = a, *y = b;
    if (x->part != y->part)
        return x->part > y->part ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

static double clipped_sum(const double *x, int64_t n, double scale, double lo, double hi)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += fmin(fmax(scale * x[i], lo), hi);
    return sum;
}

/* Integers of real[] that sum to total; real lies in [lo, hi], both whole, and sums to about total. */
static void round_to_total(const double *real, int64_t n, int64_t total, ra_remainder *parts, int64_t *out)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        out[i] = (int64_t)floor(real[i]);
        sum += out[i];
        parts[i] = (ra_remainder){.part = real[i] - floor(real[i]), .index = i};
    }
    qsort(parts, (size_t)n, sizeof *parts, by_remainder);
    int64_t each = (total - sum) / n, odd = (total - sum) % n;
    for (int64_t i = 0; i < n; i++)
        out[parts[i].index] += each + (i < odd);
}

/* The largest scale at which the clipped claims stay below total. Claims span up to 144 powers of ten, so the middle is
 * geometric until the ends are near each other. */
static double scale_below(const double *y, int64_t n, double total, double least, double most, double y_least)
{
    double below = 0, above = fmax(most, 1) / fmax(y_least, 1e-300); /* every claim at its upper bound */
    double low = least > 0 ? least : total / (double)n;              /* every claim at its lower bound, or too little */
    if (low > 0 && low < above && clipped_sum(y, n, low, least, most) < total)
        below = low;
    while (above > below) {
        double middle = below > 0 && above / below > 4 ? sqrt(below) * sqrt(above) : below + (above - below) / 2;
        if (middle <= below || middle >= above)
            break;
        if (clipped_sum(y, n, middle, least, most) < total)
            below = middle;
        else
            above = middle;
    }
    return below;
}

/* Scratch of robustify and of route: `scores` of all heads of a layer together. */
static size_t robustify_bytes(int64_t n)
{
    ra_scratch count = {0};
    ra_scratch_take(&count, n, sizeof(double));
    ra_scratch_take(&count, n, sizeof(ra_remainder));
    return count.used + 64;
}

size_t ra_route_bytes(int64_t heads, int64_t scores)
{
    ra_scratch count = {0};
    ra_scratch_take(&count, heads, sizeof(double));
    ra_scratch_take(&count, scores, sizeof(float));
    return count.used + 64 + robustify_bytes(heads);
}

static ra_status robustify(const double *x, int64_t n, int64_t total, double gamma, double lo, double hi, double floor_,
                           ra_scratch *scratch, int64_t *out)
{
    if (n < 1 || !x || !out || total < 0 || total > RA_MAX_TOTAL || !(gamma >= 0 && gamma <= RA_MAX_GAMMA) ||
        !(lo >= 0 && lo <= 1) || !(hi >= 1) || !(floor_ >= 0))
        return RA_ERR_ARGUMENT;
    double highest = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!(x[i] >= 0) || isinf(x[i]))
            return RA_ERR_ARGUMENT;
        highest = fmax(highest, x[i]);
    }
    double mean = (double)total / (double)n;
    if (floor_ > mean)
        return RA_ERR_INFEASIBLE;
    /* Whole bounds inside the wished ones, or the nearest whole ones outside where no integers fit inside. */
    double least = ceil(fmax(lo * mean, floor_)), most = floor(fmin(hi * mean, (double)total));
    if (least > mean)
        least = floor(fmax(lo * mean, floor_));
    if (most < mean)
        most = ceil(mean);
    double *y = ra_scratch_take(scratch, n, sizeof *y);
    ra_remainder *parts = ra_scratch_take(scratch, n, sizeof *parts);
    if (!y || !parts)
        return RA_ERR_NO_MEMORY;
    /* A claim of nothing is a very small claim: it grows once all others have met their upper bound. */
    double y_least = INFINITY;
    for (int64_t i = 0; i < n; i++) {
        y[i] = highest > 0 ? pow(fmax(x[i] / highest, 1e-9), gamma) : 1;
        y_least = fmin(y_least, y[i]);
    }
    double below = scale_below(y, n, (double)total, least, most, y_least);
    for (int64_t i = 0; i < n; i++)
        y[i] = fmin(fmax(below * y[i], least), most);
    round_to_total(y, n, total, parts, out);
    return RA_OK;
}

ra_status ra_robustify(const double *x, int64_t n, int64_t total, double gamma, double lo, double hi, double floor,
                       int64_t *out)
{
    if (n < 1 || n > INT32_MAX)
        return RA_ERR_ARGUMENT;
    ra_scratch scratch = {0};
    if (!ra_scratch_grow(&scratch, robustify_bytes(n)))
        return RA_ERR_NO_MEMORY;
    ra_status status = robustify(x, n, total, gamma, lo, hi, floor, &scratch, out);
    free(scratch.memory);
    return status;
}

static void uniform(int64_t heads, int64_t total, int64_t *out)
{
    for (int64_t h = 0; h < heads; h++)
        out[h] = total / heads + (h < total % heads);
}

/* claims[h] = window + number of the head's scores among the `chosen` best of the layer, ties all in. pool: [all]. */
static void claim(const float *const *scores, const int64_t *counts, int64_t heads, int64_t window, int64_t chosen,
                  int64_t all, float *pool, double *claims)
{
    float tau = -INFINITY;
    if (chosen < all && chosen > 0) {
        for (int64_t h = 0, at = 0; h < heads; at += counts[h++])
            if (counts[h])
                memcpy(pool + at, scores[h], (size_t)counts[h] * sizeof *pool);
        tau = ra_kth_largest(pool, all, chosen);
    }
    for (int64_t h = 0; h < heads; h++) {
        claims[h] = (double)window;
        for (int64_t i = 0; chosen > 0 && i < counts[h]; i++)
            claims[h] += scores[h][i] >= tau;
    }
}

bool ra_route_config_is_good(const ra_route_config *config)
{
    switch (config->heads) {
    case RA_HEADS_UNIFORM: return true;
    case RA_HEADS_ROUTE:
        return config->mu >= 0 && config->mu <= 1 && config->gamma >= 0 && config->gamma <= RA_MAX_GAMMA &&
               config->lo >= 0 && config->lo <= 1 && config->hi >= 1;
    case RA_HEADS_POOLED: return config->safeguard >= 0 && config->safeguard <= 1;
    }
    return false;
}

ra_status ra_route_in(const float *const *scores, const int64_t *counts, int64_t heads, int64_t window, int64_t total,
                      const ra_route_config *config, ra_scratch *scratch, int64_t *out)
{
    int64_t windows = heads, all = 0;
    for (int64_t h = 0; h < heads; h++)
        all += counts[h];
    if (!ra_size_times(&windows, window) || total < windows)
        return RA_ERR_INFEASIBLE;
    if (config->heads == RA_HEADS_UNIFORM) {
        uniform(heads, total, out);
        return RA_OK;
    }
    if (config->heads == RA_HEADS_ROUTE
            ? !(config->mu >= 0 && config->mu <= 1)
            : config->heads != RA_HEADS_POOLED || !(config->safeguard >= 0 && config->safeguard <= 1))
        return RA_ERR_ARGUMENT;
    for (int64_t h = 0; h < heads; h++)
        if (!ra_all_finite(RA_F32, scores[h], counts[h]))
            return RA_ERR_NOT_FINITE;
    double *claims = ra_scratch_take(scratch, heads, sizeof *claims), mean = (double)total / (double)heads;
    float *pool = ra_scratch_take(scratch, all, sizeof *pool);
    if (!claims || !pool)
        return RA_ERR_NO_MEMORY;
    claim(scores, counts, heads, window, total - windows, all, pool, claims);
    if (config->heads == RA_HEADS_ROUTE)
        return robustify(claims, heads, total, config->gamma, config->lo, config->hi,
                         fmax(config->mu * mean, (double)window), scratch, out);
    double sum = 0, share = config->safeguard;
    for (int64_t h = 0; h < heads; h++)
        sum += claims[h];
    for (int64_t h = 0; h < heads; h++)
        claims[h] = (1 - share) * claims[h] * (sum > 0 ? (double)total / sum : 1) + share * mean;
    return robustify(claims, heads, total, 1, 0, (double)heads, fmax(floor(share * mean), (double)window), scratch,
                     out);
}

ra_status ra_route(const float *const *scores, const int64_t *counts, int64_t heads, int64_t window, int64_t total,
                   const ra_route_config *config, int64_t *out)
{
    int64_t all = 0;
    if (!scores || !counts || !config || !out || heads < 1 || heads > INT32_MAX || window < 0 || total < 0 ||
        total > RA_MAX_TOTAL)
        return RA_ERR_ARGUMENT;
    for (int64_t h = 0; h < heads; h++)
        if (counts[h] < 0 || counts[h] > INT32_MAX || (counts[h] && !scores[h]) ||
            __builtin_add_overflow(all, counts[h], &all))
            return RA_ERR_ARGUMENT;
    ra_scratch scratch = {0};
    if (!ra_scratch_grow(&scratch, ra_route_bytes(heads, all)))
        return RA_ERR_NO_MEMORY;
    ra_status status = ra_route_in(scores, counts, heads, window, total, config, &scratch, out);
    free(scratch.memory);
    return status;
}
