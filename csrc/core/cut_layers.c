/* The phases of a cut that span layers. */
#include <string.h>

#include "backend.h"
#include "cold.h"

static bool belong_together(ra_layer *const *layers, int64_t count)
{
    for (int64_t l = 0; l < count; l++)
        if (!layers[l] || !layers[l]->cut.begun || layers[l]->rows != layers[0]->rows ||
            layers[l]->kv_heads != layers[0]->kv_heads || layers[l]->window != layers[0]->window)
            return false;
    for (int64_t l = 0; l < count; l++)
        for (int64_t other = 0; other < l; other++)
            if (layers[other] == layers[l])
                return false; /* no layer is cut twice */
    return count > 0;
}

typedef struct route_lists {
    const float **scores; /* [L, H] */
    int64_t *counts;      /* [L, H] */
    int64_t *totals;      /* [R, L] */
    ra_scratch rest;
} route_lists;

static route_lists take_lists(int64_t rows, int64_t count, int64_t heads, ra_scratch *scratch)
{
    return (route_lists){.scores = ra_scratch_take(scratch, count * heads, sizeof(float *)),
                         .counts = ra_scratch_take(scratch, count * heads, sizeof(int64_t)),
                         .totals = ra_scratch_take(scratch, rows * count, sizeof(int64_t)),
                         .rest = ra_scratch_part(scratch, ra_route_layers_bytes(count))};
}

static ra_status route_row(ra_layer *const *layers, int64_t count, int64_t row, int64_t total, int64_t protect_below,
                           double r_max, route_lists lists)
{
    int64_t heads = layers[0]->kv_heads, window = layers[0]->window;
    /* What every head of every layer still has of the protected tokens, as far as there is room. */
    int64_t base = ra_max(0, total / (count * heads) - window);
    for (int64_t l = 0; l < count && base; l++)
        for (int64_t h = 0; h < heads && base; h++) {
            int64_t pair = ra_pair(layers[l], row, h);
            base = ra_protected(layers[l], pair, protect_below, ra_min(base, ra_older(layers[l], pair)));
        }
    for (int64_t l = 0, i = 0; l < count; l++)
        for (int64_t h = 0; h < heads; h++, i++) {
            int64_t pair = ra_pair(layers[l], row, h);
            lists.scores[i] = ra_scores_of(layers[l], pair) + base;
            lists.counts[i] = ra_older(layers[l], pair) - base;
            if (lists.counts[i] + base > 0 && !layers[l]->cut.cut[row])
                return RA_ERR_ARGUMENT; /* it has not been scored */
        }
    int64_t *totals = lists.totals + row * count;
    total -= count * heads * base;
    ra_status status = ra_route_layers_in(lists.scores, lists.counts, count, heads, window, total, r_max, &lists.rest,
                                          totals);
    for (int64_t l = 0; l < count && status == RA_OK; l++)
        totals[l] += heads * base;
    return status;
}

ra_status ra_cut_route_layers(ra_layer *const *layers, int64_t count, const int64_t *totals,
                              const int64_t *protect_below, double r_max, int64_t *out)
{
    if (!layers || !totals || !protect_below || !out || !belong_together(layers, count))
        return RA_ERR_ARGUMENT;
    int64_t start = ra_now_ns(), rows = layers[0]->rows;
    ra_pool *pool = layers[0]->pool;
    ra_scratch needed = {0};
    (void)take_lists(rows, count, layers[0]->kv_heads, &needed);
    if (!ra_pool_scratch(pool, needed.used + 64))
        return RA_ERR_NO_MEMORY;
    route_lists lists = take_lists(rows, count, layers[0]->kv_heads, &pool->scratch);
    ra_status status = RA_OK;
    for (int64_t row = 0; row < rows && status == RA_OK; row++)
        if (totals[row] >= 0)
            status = route_row(layers, count, row, totals[row], protect_below[row], r_max, lists);
    for (int64_t row = 0; row < rows && status == RA_OK; row++)
        if (totals[row] >= 0)
            memcpy(out + row * count, lists.totals + row * count, (size_t)count * sizeof *out);
    layers[0]->times.route_ns += ra_now_ns() - start;
    return status;
}

ra_status ra_cut_set_totals(ra_layer *layer, const int64_t *totals)
{
    if (!layer || !totals || !layer->cut.begun)
        return RA_ERR_ARGUMENT;
    for (int64_t row = 0; row < layer->rows; row++) {
        if (!layer->cut.cut[row])
            continue;
        int64_t slots = 0;
        for (int64_t head = 0; head < layer->kv_heads; head++)
            slots += layer->slots[ra_pair(layer, row, head)];
        layer->cut.totals[row] = totals[row];
        layer->cut.cut[row] = totals[row] >= 0 && slots > totals[row];
    }
    return RA_OK;
}

/* Scratch that ra_cut_apply asks for, or more. */
static size_t apply_bytes(const ra_layer *layer, int64_t pages)
{
    return (size_t)ra_pairs(layer) * 64 + (size_t)pages * sizeof(int64_t) + 256;
}

ra_status ra_cut_apply_layers(ra_layer *const *layers, int64_t count, ra_parallel parallel, int64_t *which,
                              int64_t *missing)
{
    if (!layers || !which || !missing || !belong_together(layers, count))
        return RA_ERR_ARGUMENT;
    *missing = 0;
    for (int64_t l = 0; l < count; l++) {
        const ra_layer *layer = layers[l];
        for (int64_t pair = 0; pair < ra_pairs(layer); pair++)
            if (layer->cut.cut[pair / layer->kv_heads] && layer->cut.keep[pair] < 0)
                return RA_ERR_ARGUMENT; /* nothing was chosen */
    }
    /* All that could fail comes first: waiting, pages and scratch for every layer. */
    for (int64_t l = 0; l < count; l++) {
        ra_status status = ra_layer_wait(layers[l]);
        if (status != RA_OK)
            return status;
    }
    for (int64_t l = 0; l < count; l++) {
        ra_pool *pool = layers[l]->pool;
        int64_t need = 0;
        for (int64_t i = 0; i <= l && pool->info.shared; i++) /* of the layers so far that take from this pool */
            need += layers[i]->pool == pool ? pool->backend->apply_pages(layers[i]) : 0;
        if (need > ra_pool_spare(pool)) {
            *which = l;
            *missing = need - ra_pool_spare(pool);
            return RA_ERR_NO_PAGES;
        }
        if (!ra_pool_scratch(pool, apply_bytes(layers[l], need)))
            return RA_ERR_NO_MEMORY;
    }
    for (int64_t l = 0; l < count; l++) {
        ra_status status = ra_cold_retire(layers[l], parallel);
        if (status != RA_OK)
            return status;
    }
    for (int64_t l = 0; l < count; l++) {
        int64_t none;
        ra_status status = ra_cut_apply(layers[l], parallel, &none);
        if (status != RA_OK)
            return status; /* a device that fails */
    }
    return RA_OK;
}
