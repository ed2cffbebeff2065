/* Budgets: robustify and the head allocators. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "layer.h"
#include "robustify.h"

#define RA_MAX_GAMMA 32 /* the least claim, 1e-9, to a higher power is no number any more */

#define RA_MAX_TOTAL ((int64_t)1 << 52) /* doubles are whole numbers up to there */

/* Scratch of robustify and of route: `scores` of all heads of a layer together. */
static size_t robustify_bytes(int64_t n)
{
    ra_scratch count = {0};
    ra_scratch_take(&count, n, sizeof(double));
    ra_scratch_take(&count, n, sizeof(rb_remainder));
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
    for (int64_t i = 0; i < n; i++)
        if (!(x[i] >= 0) || isinf(x[i]))
            return RA_ERR_ARGUMENT;
    if (floor_ > (double)total / (double)n)
        return RA_ERR_INFEASIBLE;
    double *y = ra_scratch_take(scratch, n, sizeof *y);
    rb_remainder *parts = ra_scratch_take(scratch, n, sizeof *parts);
    if (!y || !parts)
        return RA_ERR_NO_MEMORY;
    rb_robustify(x, n, total, gamma, lo, hi, floor_, y, parts, out);
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

static ra_status given(const int64_t *limits, int64_t heads, int64_t window, int64_t total, int64_t *out)
{
    for (int64_t h = 0; h < heads; h++) {
        if (limits[h] > RA_MAX_TOTAL)
            return RA_ERR_ARGUMENT;
        if (limits[h] >= 0 && limits[h] < window)
            return RA_ERR_INFEASIBLE;
    }
    return rb_given(limits, heads, window, total, out) ? RA_OK : RA_ERR_INFEASIBLE;
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

static bool are_shares(const double *x, int64_t heads)
{
    for (int64_t h = 0; x && h < heads; h++)
        if (!(x[h] >= 0) || isinf(x[h]))
            return false;
    return x != NULL;
}

bool ra_route_config_is_good(const ra_route_config *config, int64_t heads)
{
    switch (config->heads) {
    case RA_HEADS_UNIFORM: return true;
    case RA_HEADS_ROUTE:
        return config->mu >= 0 && config->mu <= 1 && config->gamma >= 0 && config->gamma <= RA_MAX_GAMMA &&
               config->lo >= 0 && config->lo <= 1 && config->hi >= 1;
    case RA_HEADS_POOLED: return config->safeguard >= 0 && config->safeguard <= 1;
    case RA_HEADS_GIVEN: return config->limits != NULL;
    case RA_HEADS_SHARES:
        return config->lo >= 0 && config->lo <= 1 && config->hi >= 1 && are_shares(config->shares, heads);
    }
    return false;
}

static ra_status by_shares(const ra_route_config *config, int64_t heads, int64_t window, int64_t protect_below,
                           int64_t total, ra_scratch *scratch, int64_t *out)
{
    double *y = ra_scratch_take(scratch, heads, sizeof *y);
    rb_remainder *parts = ra_scratch_take(scratch, heads, sizeof *parts);
    if (!y || !parts)
        return RA_ERR_NO_MEMORY;
    rb_shares(config->shares, heads, window, protect_below, total, config->lo, config->hi, y, parts, out);
    return RA_OK;
}

ra_status ra_route_in(const float *const *scores, const int64_t *counts, int64_t heads, int64_t window,
                      int64_t protect_below, int64_t total, const ra_route_config *config, ra_scratch *scratch,
                      int64_t *out)
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
    if (!ra_route_config_is_good(config, heads))
        return RA_ERR_ARGUMENT;
    if (config->heads == RA_HEADS_GIVEN)
        return given(config->limits, heads, window, total, out);
    if (config->heads == RA_HEADS_SHARES)
        return by_shares(config, heads, window, protect_below, total, scratch, out);
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
    double share = config->safeguard;
    rb_safeguard(claims, heads, total, share);
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
    ra_status status = ra_route_in(scores, counts, heads, window, 0, total, config, &scratch, out);
    free(scratch.memory);
    return status;
}
