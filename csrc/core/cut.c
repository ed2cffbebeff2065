/* The cut: which rows, how much each head keeps, and the four phases one after the other. */
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "cold.h"
#include "robustify.h"
#include "scorer.h"

void ra_cut_abandon(ra_layer *layer)
{
    layer->cut.begun = false;
    ra_cold_separate(layer);
}

static int64_t row_slots(const ra_layer *layer, int64_t row)
{
    int64_t slots = 0;
    for (int64_t head = 0; head < layer->kv_heads; head++)
        slots += layer->slots[ra_pair(layer, row, head)];
    return slots;
}

bool ra_cut_make_lists(ra_layer *layer)
{
    ra_cut_state *cut = &layer->cut;
    if (cut->cut && cut->pages == layer->pages && cut->rows == layer->rows)
        return true;
    int64_t pairs = ra_pairs(layer), entries = pairs * (layer->pages + 1) * PAGE;
    ra_cut_state fresh = {.cut = ra_new(layer->rows, sizeof *fresh.cut),
                          .totals = ra_new(layer->rows, sizeof *fresh.totals),
                          .protect = ra_new_zeroed(layer->rows, sizeof *fresh.protect),
                          .scores = ra_new(entries, sizeof *fresh.scores),
                          .kept = ra_new(entries, sizeof *fresh.kept),
                          .keep = ra_new(pairs, sizeof *fresh.keep),
                          .pages = layer->pages,
                          .rows = layer->rows};
    bool made = fresh.cut && fresh.totals && fresh.protect && fresh.scores && fresh.kept && fresh.keep;
    ra_cut_state gone = made ? *cut : fresh;
    free(gone.cut);
    free(gone.totals);
    free(gone.protect);
    free(gone.scores);
    free(gone.kept);
    free(gone.keep);
    if (made)
        *cut = fresh;
    return made;
}

ra_status ra_cut_score(ra_layer *layer, const int64_t *totals, const ra_score_config *config, bool *cut,
                       ra_parallel parallel)
{
    if (!layer || !totals || (config && (!ra_score_config_is_good(config) || !ra_scorer_fits(config->scorer, layer))))
        return RA_ERR_ARGUMENT;
    int64_t start = ra_now_ns(), over = 0;
    layer->cut.begun = false; /* rows that were recalled for it stay so */
    ra_status status = ra_layer_wait(layer);
    if (status != RA_OK)
        return status;
    if (!ra_cut_make_lists(layer))
        return RA_ERR_NO_MEMORY;
    for (int64_t row = 0; row < layer->rows; row++) {
        layer->cut.totals[row] = totals[row];
        layer->cut.cut[row] = totals[row] >= 0 && row_slots(layer, row) > totals[row];
        if (layer->cut.cut[row] && !ra_cold_is_recalled(layer, row))
            return RA_ERR_ARGUMENT;
        over += layer->cut.cut[row];
    }
    for (int64_t pair = 0; pair < ra_pairs(layer); pair++) {
        layer->cut.keep[pair] = -1;
        if (!config && layer->cut.cut[pair / layer->kv_heads])
            memset(ra_scores_of(layer, pair), 0, (size_t)ra_older(layer, pair) * sizeof(float));
    }
    status = config && over ? layer->pool->backend->score(layer, config, parallel) : RA_OK;
    layer->times.score_ns += ra_now_ns() - start;
    if (status != RA_OK)
        return status;
    layer->cut.begun = true;
    if (cut)
        memcpy(cut, layer->cut.cut, (size_t)layer->rows * sizeof *cut);
    return RA_OK;
}

/* Whether a cut has begun that takes in this head. */
static bool is_cut(const ra_layer *layer, int64_t row, int64_t head)
{
    return layer && layer->cut.begun && row >= 0 && row < layer->rows && head >= 0 && head < layer->kv_heads &&
           layer->cut.cut[row];
}

float *ra_cut_scores(ra_layer *layer, int64_t row, int64_t head, int64_t *count)
{
    if (!is_cut(layer, row, head))
        return NULL;
    *count = ra_older(layer, ra_pair(layer, row, head));
    return ra_scores_of(layer, ra_pair(layer, row, head));
}

const int32_t *ra_cut_kept(const ra_layer *layer, int64_t row, int64_t head, int64_t *count)
{
    if (!is_cut(layer, row, head) || layer->cut.keep[ra_pair(layer, row, head)] < 0)
        return NULL;
    *count = layer->cut.keep[ra_pair(layer, row, head)];
    return ra_kept_of(layer, ra_pair(layer, row, head));
}

/* The tokens that every head of the row evicts last and still has, as far as `total` has room for them. */
static int64_t spared(const ra_layer *layer, int64_t row, int64_t total, int64_t protect_below)
{
    int64_t least = total / layer->kv_heads - layer->window;
    for (int64_t head = 0; head < layer->kv_heads && least > 0; head++) {
        int64_t pair = ra_pair(layer, row, head);
        least = ra_protected(layer, pair, protect_below, ra_min(least, ra_older(layer, pair)));
    }
    return ra_max(0, least);
}

typedef struct route_lists {
    const float **scores; /* [H] */
    int64_t *counts;      /* [H] */
    int64_t *budgets;     /* [R, H] */
    ra_scratch rest;
} route_lists;

static route_lists take_lists(const ra_layer *layer, int64_t most, ra_scratch *scratch)
{
    int64_t H = layer->kv_heads;
    return (route_lists){.scores = ra_scratch_take(scratch, H, sizeof(float *)),
                         .counts = ra_scratch_take(scratch, H, sizeof(int64_t)),
                         .budgets = ra_scratch_take(scratch, layer->rows * H, sizeof(int64_t)),
                         .rest = ra_scratch_part(scratch, ra_route_bytes(H, most))};
}

static ra_status allocate_row(const ra_layer *layer, int64_t row, int64_t protect_below, const ra_route_config *route,
                              route_lists lists)
{
    int64_t H = layer->kv_heads, total = layer->cut.totals[row];
    /* slots that nobody allocates */
    int64_t base = rb_by_figures(route->heads) ? 0 : spared(layer, row, total, protect_below);
    int64_t *budgets = lists.budgets + row * H;
    for (int64_t head = 0; head < H; head++) {
        lists.scores[head] = ra_scores_of(layer, ra_pair(layer, row, head)) + base;
        lists.counts[head] = ra_older(layer, ra_pair(layer, row, head)) - base;
    }
    ra_status status = ra_route_in(lists.scores, lists.counts, H, layer->window, protect_below, total - H * base, route,
                                   &lists.rest, budgets);
    for (int64_t head = 0; status == RA_OK && head < H; head++)
        budgets[head] += base;
    return status;
}

ra_status ra_cut_allocate(ra_layer *layer, const int64_t *protect_below, const ra_route_config *route, int64_t *budgets)
{
    if (!layer || !layer->cut.begun || !protect_below || !route || !budgets)
        return RA_ERR_ARGUMENT;
    int64_t H = layer->kv_heads, start = ra_now_ns(), most = 0;
    for (int64_t row = 0; row < layer->rows; row++)
        most = ra_max(most, row_slots(layer, row));
    ra_scratch count = {0};
    (void)take_lists(layer, most, &count);
    if (!ra_pool_scratch(layer->pool, count.used + 64))
        return RA_ERR_NO_MEMORY;
    route_lists lists = take_lists(layer, most, &layer->pool->scratch);
    ra_status status = RA_OK;
    for (int64_t row = 0; row < layer->rows && status == RA_OK; row++)
        if (layer->cut.cut[row])
            status = allocate_row(layer, row, protect_below[row], route, lists);
    for (int64_t row = 0; row < layer->rows && status == RA_OK; row++)
        if (layer->cut.cut[row])
            memcpy(budgets + row * H, lists.budgets + row * H, (size_t)H * sizeof *budgets);
    layer->times.route_ns += ra_now_ns() - start;
    return status;
}

ra_status ra_cut_choose(ra_layer *layer, const int64_t *protect_below, const int64_t *budgets, double *lost,
                        ra_parallel parallel)
{
    if (!layer || !layer->cut.begun || !protect_below || !budgets)
        return RA_ERR_ARGUMENT;
    for (int64_t pair = 0; pair < ra_pairs(layer); pair++) {
        int64_t slots = layer->slots[pair];
        if (layer->cut.cut[pair / layer->kv_heads] && budgets[pair] < ra_min(layer->window, slots))
            return RA_ERR_ARGUMENT;
    }
    int64_t start = ra_now_ns();
    ra_cold_forget(layer);
    memcpy(layer->cut.protect, protect_below, (size_t)layer->rows * sizeof *protect_below);
    ra_status status = layer->pool->backend->choose(layer, protect_below, budgets, lost, parallel);
    for (int64_t pair = 0; status != RA_OK && pair < ra_pairs(layer); pair++)
        layer->cut.keep[pair] = -1;
    layer->times.evict_ns += ra_now_ns() - start;
    return status;
}

ra_status ra_cut_apply(ra_layer *layer, ra_parallel parallel, int64_t *missing)
{
    if (!layer || !layer->cut.begun || !missing)
        return RA_ERR_ARGUMENT;
    *missing = 0;
    for (int64_t pair = 0; pair < ra_pairs(layer); pair++)
        if (layer->cut.cut[pair / layer->kv_heads] && layer->cut.keep[pair] < 0)
            return RA_ERR_ARGUMENT; /* nothing was chosen */
    const ra_backend *backend = layer->pool->backend;
    int64_t start = ra_now_ns();
    ra_status status = ra_layer_wait(layer);
    if (status != RA_OK)
        return status;
    int64_t need = layer->pool->info.shared ? backend->apply_pages(layer) : 0;
    if (need > ra_pool_spare(layer->pool)) {
        *missing = need - ra_pool_spare(layer->pool);
        return RA_ERR_NO_PAGES;
    }
    status = ra_cold_retire(layer, parallel);
    if (status == RA_OK)
        status = backend->apply(layer, parallel);
    if (status == RA_OK && backend->device)
        ra_lists_applied(layer);
    if (status == RA_OK) {
        ra_cold_settle(layer);
        layer->cut.begun = false; /* it is done */
    }
    layer->times.evict_ns += ra_now_ns() - start;
    return status;
}

int64_t ra_cut_fresh_pages(const ra_layer *layer, const int64_t *totals, int64_t tokens)
{
    int64_t need = 0;
    for (int64_t row = 0; row < layer->rows && layer->pool->info.shared; row++)
        for (int64_t head = 0; head < layer->kv_heads && totals[row] >= 0; head++)
            need += ra_pages_for(ra_min(layer->slots[ra_pair(layer, row, head)] + tokens, totals[row]));
    return need;
}

/* A row that is over a total with no room for its windows: only then is it looked at what heads hold. */
static ra_status check_totals(ra_layer *layer, const int64_t *totals)
{
    for (int64_t row = 0; row < layer->rows; row++) {
        if (totals[row] < 0 || totals[row] / layer->kv_heads >= layer->window || layer->row_slots[row] <= totals[row])
            continue;
        ra_status status = ra_layer_wait(layer);
        if (status != RA_OK || row_slots(layer, row) > totals[row])
            return status != RA_OK ? status : RA_ERR_INFEASIBLE;
    }
    return RA_OK;
}

/* Of given heads, for a cut that nobody looks at: rows keep no more than their totals, and the heads without a limit have room
 * for their windows. */
static ra_status check_limits(const ra_layer *layer, const ra_cut *cut)
{
    int64_t sum = 0, others = 0;
    if (cut->route.heads != RA_HEADS_GIVEN)
        return RA_OK;
    for (int64_t head = 0; head < layer->kv_heads; head++) {
        int64_t limit = cut->route.limits[head];
        if (limit > INT32_MAX)
            return RA_ERR_ARGUMENT;
        if (limit >= 0 && limit < layer->window)
            return RA_ERR_INFEASIBLE;
        others += limit < 0;
        sum += ra_max(limit, 0);
    }
    for (int64_t row = 0; row < layer->rows; row++) {
        int64_t total = cut->totals[row];
        if (total >= 0 && !others && sum > total)
            return RA_ERR_ARGUMENT;
        if (total >= 0 && others && total - sum < others * layer->window && layer->row_slots[row] > total)
            return RA_ERR_INFEASIBLE;
    }
    return RA_OK;
}

/* Nobody waits but for figures. */
static ra_status cut_on_device(ra_layer *layer, const ra_cut *cut, int64_t *missing)
{
    const ra_device *device = layer->pool->backend->device;
    if (!ra_score_config_is_good(&cut->score) || !ra_route_config_is_good(&cut->route, layer->kv_heads))
        return RA_ERR_ARGUMENT;
    ra_status status = device->fault(layer);
    if (status == RA_OK)
        status = check_limits(layer, cut);
    if (status == RA_OK)
        status = check_totals(layer, cut->totals);
    if (status != RA_OK)
        return status;
    int64_t need = ra_cut_fresh_pages(layer, cut->totals, 0), spare = ra_pool_spare(layer->pool);
    if (need > spare) {
        *missing = need - spare;
        return RA_ERR_NO_PAGES;
    }
    ra_cut_abandon(layer);
    if (device->capturing(layer->pool) &&
        (cut->budgets || !ra_lists_fit_capture(layer) || !device->has_sent(layer, cut->totals, cut->protect_below)))
        return RA_ERR_CAPTURE; /* it would be waited for, or its arguments copied from where they are no more later */
    status = device->cut(layer, cut);
    if (status != RA_OK)
        return status;
    ra_lists_cut(layer, cut->totals);
    if (!cut->budgets)
        return RA_OK;
    status = device->figures(layer, &(ra_figures){.cut = cut->cut, .budgets = cut->budgets, .lost = cut->lost});
    if (status == RA_OK && device->fold(layer))
        ra_lists_changed(layer);
    return status == RA_OK ? device->fault(layer) : status;
}

ra_status ra_layer_figures(ra_layer *layer, const ra_figures *figures)
{
    if (!layer || !figures || !figures->cut || !figures->before || !figures->after || !figures->budgets ||
        !figures->lost || !layer->pool->backend->device)
        return RA_ERR_ARGUMENT;
    const ra_device *device = layer->pool->backend->device;
    ra_status status = device->figures(layer, figures);
    if (status == RA_OK && device->fold(layer))
        ra_lists_changed(layer);
    return status;
}

ra_status ra_layer_cut(ra_layer *layer, const ra_cut *cut, ra_parallel parallel, int64_t *missing)
{
    if (!layer || !cut || !cut->totals || !cut->protect_below || !missing ||
        (!layer->pool->backend->device && (!cut->budgets || !cut->lost || !cut->cut)))
        return RA_ERR_ARGUMENT;
    *missing = 0;
    if (layer->pool->backend->device)
        return cut_on_device(layer, cut, missing);
    ra_score_config score = cut->score;
    score.protect_below = cut->protect_below;
    ra_status status = ra_cut_recall(layer, cut->totals, parallel, missing);
    if (status == RA_OK)
        status = ra_cut_score(layer, cut->totals, &score, cut->cut, parallel);
    if (status == RA_OK)
        status = ra_cut_allocate(layer, cut->protect_below, &cut->route, cut->budgets);
    if (status == RA_OK)
        status = ra_cut_choose(layer, cut->protect_below, cut->budgets, cut->lost, parallel);
    if (status == RA_OK)
        status = ra_cut_apply(layer, parallel, missing);
    if (status != RA_OK) {
        ra_cut_abandon(layer);
        memset(cut->cut, 0, (size_t)layer->rows * sizeof *cut->cut);
    }
    return status;
}
