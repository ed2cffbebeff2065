/* Budgets: robustify and the head allocators. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

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
    for (int64_t i = 0; i < total - sum; i++)
        out[parts[i % n].index]++;
}

ra_status ra_robustify(const double *x, int64_t n, int64_t total, double gamma, double lo, double hi, double floor_,
                       int64_t *out)
{
    if (n < 1 || !x || !out || total < 0 || !isfinite(gamma) || gamma < 0 || !(lo >= 0 && lo <= 1) || !(hi >= 1) ||
        !(floor_ >= 0))
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
    double *y = ra_new(n, sizeof *y);
    ra_remainder *parts = ra_new(n, sizeof *parts);
    if (!y || !parts) {
        free(y);
        free(parts);
        return RA_ERR_NO_MEMORY;
    }
    /* A claim of nothing is a very small claim: it grows once all others have met their upper bound. */
    double y_least = INFINITY;
    for (int64_t i = 0; i < n; i++) {
        y[i] = highest > 0 ? pow(fmax(x[i] / highest, 1e-9), gamma) : 1;
        y_least = fmin(y_least, y[i]);
    }
    double below = 0, above = fmax(most, 1) / fmax(y_least, 1e-300); /* every claim at its upper bound */
    for (int step = 0; step < 400 && above - below > 0; step++) {
        double middle = below + (above - below) / 2;
        if (middle <= below || middle >= above)
            break;
        if (clipped_sum(y, n, middle, least, most) < (double)total)
            below = middle;
        else
            above = middle;
    }
    for (int64_t i = 0; i < n; i++)
        y[i] = fmin(fmax(below * y[i], least), most);
    round_to_total(y, n, total, parts, out);
    free(y);
    free(parts);
    return RA_OK;
}

static void uniform(int64_t heads, int64_t total, int64_t *out)
{
    for (int64_t h = 0; h < heads; h++)
        out[h] = total / heads + (h < total % heads);
}

/* claims[h] = window + number of the head's scores among the `chosen` best of the layer, ties all in. */
static ra_status claim(const float *const *scores, const int64_t *counts, int64_t heads, int64_t window,
                       int64_t chosen, double *claims)
{
    int64_t all = 0, at = 0;
    for (int64_t h = 0; h < heads; h++)
        all += counts[h];
    float tau = -INFINITY;
    if (chosen < all && chosen > 0) {
        float *pool = ra_new(all, sizeof *pool);
        if (!pool)
            return RA_ERR_NO_MEMORY;
        for (int64_t h = 0; h < heads; at += counts[h++])
            if (counts[h])
                memcpy(pool + at, scores[h], (size_t)counts[h] * sizeof *pool);
        tau = ra_kth_largest(pool, all, chosen);
        free(pool);
    }
    for (int64_t h = 0; h < heads; h++) {
        claims[h] = (double)window;
        for (int64_t i = 0; chosen > 0 && i < counts[h]; i++)
            claims[h] += scores[h][i] >= tau;
    }
    return RA_OK;
}

ra_status ra_route(const float *const *scores, const int64_t *counts, int64_t heads, int64_t window, int64_t total,
                   const ra_route_config *config, int64_t *out)
{
    if (!scores || !counts || !config || !out || heads < 1 || window < 0 || total < 0)
        return RA_ERR_ARGUMENT;
    for (int64_t h = 0; h < heads; h++)
        if (counts[h] < 0 || (counts[h] && !scores[h]))
            return RA_ERR_ARGUMENT;
    if (total < heads * window)
        return RA_ERR_INFEASIBLE;
    if (config->heads == RA_HEADS_UNIFORM) {
        uniform(heads, total, out);
        return RA_OK;
    }
    for (int64_t h = 0; h < heads; h++)
        if (!ra_all_finite(RA_F32, scores[h], counts[h]))
            return RA_ERR_NOT_FINITE;
    double *claims = ra_new(heads, sizeof *claims), mean = (double)total / (double)heads;
    if (!claims)
        return RA_ERR_NO_MEMORY;
    ra_status status = claim(scores, counts, heads, window, total - heads * window, claims);
    if (status == RA_OK && config->heads == RA_HEADS_ROUTE) {
        status = config->mu >= 0 && config->mu <= 1
                     ? ra_robustify(claims, heads, total, config->gamma, config->lo, config->hi,
                                    fmax(config->mu * mean, (double)window), out)
                     : RA_ERR_ARGUMENT;
    } else if (status == RA_OK && config->heads == RA_HEADS_POOLED) {
        double sum = 0, share = config->safeguard;
        for (int64_t h = 0; h < heads; h++)
            sum += claims[h];
        for (int64_t h = 0; h < heads; h++)
            claims[h] = (1 - share) * claims[h] * (sum > 0 ? (double)total / sum : 1) + share * mean;
        status = share >= 0 && share <= 1 ? ra_robustify(claims, heads, total, 1, 0, (double)heads,
                                                         fmax(floor(share * mean), (double)window), out)
                                          : RA_ERR_ARGUMENT;
    } else if (status == RA_OK) {
        status = RA_ERR_ARGUMENT;
    }
    free(claims);
    return status;
}
