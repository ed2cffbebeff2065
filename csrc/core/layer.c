/* A layer's lists: made, resized, changed, restored. */
#include "layer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "cold.h"
#include "scorer.h"
#include "triattention.h"

#define DEFAULT_PAGES 4 /* of a head's list in a new layer */

static bool needs(const ra_layer *layer, int stat)
{
    if (ra_stats[stat]->of_pages && layer->pool->backend->device)
        return false;
    for (int i = 0; layer->scorer && i < layer->scorer->stat_count; i++)
        if (layer->scorer->stats[i] == stat)
            return true;
    return false;
}

/* The lists that have an entry a head or a slot, for `pages` pages a head; *to starts as a copy of a layer. False without
 * memory: what was made is freed. */
static bool new_lists(ra_layer *to, int64_t rows, int64_t pages)
{
    int64_t pairs, entries, d = to->pool->head_dim;
    *to = (ra_layer){.pool = to->pool,
                     .kv_heads = to->kv_heads,
                     .query_heads = to->query_heads,
                     .group = to->group,
                     .window = to->window,
                     .scorer = to->scorer,
                     .stats = to->stats,
                     .scale = to->scale,
                     .softcap = to->softcap,
                     .rows = rows,
                     .pages = pages};
    if (pages > INT32_MAX / PAGE || !ra_size_of(rows, to->kv_heads, 1, 1, &pairs) ||
        !ra_size_of(pairs, pages, PAGE, 4, &entries))
        return false;
    entries /= 4;
    to->table = ra_new(entries / PAGE, sizeof *to->table);
    to->slots = ra_new_zeroed(pairs, sizeof *to->slots);
    to->positions = ra_new(entries, sizeof *to->positions);
    bool made = to->table && to->slots && to->positions;
    for (int s = 0; made && s < RA_STATS; s++) {
        if (!needs(to, s))
            continue;
        int64_t fields;
        to->columns[s] = ra_size_of(entries, ra_stats[s]->fields, 4, 1, &fields) ? ra_new_zeroed(fields, 1) : NULL;
        to->states[s] = ra_new_zeroed(pairs, ra_stats[s]->head_bytes(d));
        made = to->columns[s] && to->states[s];
    }
    return made;
}

static void free_lists(ra_layer *layer)
{
    free(layer->table);
    free(layer->slots);
    free(layer->positions);
    for (int s = 0; s < RA_STATS; s++) {
        free(layer->columns[s]);
        free(layer->states[s]);
    }
}

/* The lists that have an entry a row. */
static bool new_rows(ra_layer *to)
{
    int64_t floats;
    if (!ra_size_of(to->rows, to->window, to->query_heads, to->pool->head_dim, &floats))
        return false;
    to->tokens = ra_new_zeroed(to->rows, sizeof *to->tokens);
    to->q_begin = ra_new_zeroed(to->rows, sizeof *to->q_begin);
    to->q_end = ra_new_zeroed(to->rows, sizeof *to->q_end);
    to->queries = ra_new(floats, sizeof *to->queries);
    to->row_slots = ra_new_zeroed(to->rows, sizeof *to->row_slots);
    return to->tokens && to->q_begin && to->q_end && to->queries && to->row_slots;
}

static void free_rows(ra_layer *layer)
{
    free(layer->tokens);
    free(layer->q_begin);
    free(layer->q_end);
    free(layer->queries);
    free(layer->row_slots);
}

static bool new_sinks(ra_layer *layer)
{
    layer->sinks = ra_new(layer->query_heads, sizeof *layer->sinks);
    for (int64_t h = 0; layer->sinks && h < layer->query_heads; h++)
        layer->sinks[h] = -INFINITY;
    return layer->sinks != NULL;
}

static void copy_head(const ra_layer *from, int64_t source, ra_layer *to, int64_t target)
{
    int64_t slots = from->slots[source];
    size_t bytes = (size_t)slots * 4;
    to->slots[target] = (int32_t)slots;
    memcpy(ra_pages_of(to, target), ra_pages_of(from, source), (size_t)ra_pages_for(slots) * sizeof(int32_t));
    memcpy(ra_positions_of(to, target), ra_positions_of(from, source), bytes);
    for (int s = 0; s < RA_STATS; s++) {
        if (!from->columns[s])
            continue;
        for (int field = 0; field < ra_stats[s]->fields; field++)
            memcpy(ra_column_of(to, s, field, target), ra_column_of(from, s, field, source), bytes);
        memcpy(ra_state_of(to, s, target), ra_state_of(from, s, source), ra_stats[s]->head_bytes(from->pool->head_dim));
    }
}

static void copy_row(const ra_layer *from, int64_t source, ra_layer *to, int64_t target)
{
    int64_t floats = from->window * from->query_heads * from->pool->head_dim;
    to->tokens[target] = from->tokens[source];
    to->q_begin[target] = from->q_begin[source];
    to->q_end[target] = from->q_end[source];
    if (from->queries + source * floats != to->queries + target * floats)
        memcpy(to->queries + target * floats, from->queries + source * floats, (size_t)floats * sizeof *to->queries);
}

static void share_pages(const ra_layer *layer, int64_t pair)
{
    for (int64_t p = 0; p < ra_pages_for(layer->slots[pair]); p++)
        ra_pool_share(layer->pool, ra_pages_of(layer, pair)[p]);
}

static void drop_pages(const ra_layer *layer, int64_t pair, int64_t from, int64_t to)
{
    while (to > from)
        ra_pool_drop(layer->pool, ra_pages_of(layer, pair)[--to]);
}

static void link_layer(ra_layer *layer)
{
    ra_pool *pool = layer->pool;
    layer->previous = NULL;
    layer->next = pool->layers;
    if (pool->layers)
        pool->layers->previous = layer;
    pool->layers = layer;
}

ra_status ra_layer_create(ra_pool *pool, const ra_layer_config *config, ra_layer **out)
{
    if (!pool || !config || !out || config->rows < 1 || config->rows > INT32_MAX || config->kv_heads < 1 ||
        config->window < 1 || config->query_heads < config->kv_heads || config->query_heads % config->kv_heads ||
        config->window > INT32_MAX || config->query_heads > INT32_MAX ||
        !ra_backend_supports(pool->backend, config->scorer) ||
        (config->scorer && ra_scorer_gathers(config->scorer) && !ra_stat_config_is_good(&config->stats)))
        return RA_ERR_ARGUMENT;
    ra_layer *layer = ra_new_zeroed(1, sizeof *layer);
    if (!layer)
        return RA_ERR_NO_MEMORY;
    *layer = (ra_layer){.pool = pool,
                        .kv_heads = config->kv_heads,
                        .query_heads = config->query_heads,
                        .group = config->query_heads / config->kv_heads,
                        .window = config->window,
                        .scorer = config->scorer,
                        .stats = config->stats};
    if (!new_lists(layer, config->rows, DEFAULT_PAGES) || !new_rows(layer) || !new_sinks(layer)) {
        free_lists(layer);
        free_rows(layer);
        free(layer);
        return RA_ERR_NO_MEMORY;
    }
    link_layer(layer);
    *out = layer;
    return RA_OK;
}

ra_status ra_layer_copy(ra_layer *layer, ra_layer **out)
{
    if (!layer || !out)
        return RA_ERR_ARGUMENT;
    ra_status status = ra_lists_write(layer);
    if (status != RA_OK)
        return status;
    if (layer->cold)
        ra_cut_abandon(layer); /* recalled tokens are cold again */
    ra_layer *copy = ra_new_zeroed(1, sizeof *copy);
    if (!copy)
        return RA_ERR_NO_MEMORY;
    *copy = *layer;
    if (!new_lists(copy, layer->rows, layer->pages) || !new_rows(copy) || !new_sinks(copy) ||
        !ra_cold_for_rows(layer, NULL, layer->rows, &copy->cold)) {
        free_lists(copy);
        free_rows(copy);
        free(copy->sinks);
        free(copy);
        return RA_ERR_NO_MEMORY;
    }
    for (int64_t pair = 0; pair < ra_pairs(layer); pair++) {
        copy_head(layer, pair, copy, pair);
        share_pages(copy, pair);
    }
    for (int64_t row = 0; row < layer->rows; row++)
        copy_row(layer, row, copy, row);
    memcpy(copy->sinks, layer->sinks, (size_t)layer->query_heads * sizeof *copy->sinks);
    copy->times = layer->times;
    copy->centres = ra_centres_share(layer->centres);
    copy->centres_set = layer->centres_set;
    link_layer(copy);
    ra_lists_changed(copy);
    *out = copy;
    return RA_OK;
}

void ra_layer_unreserve(ra_layer *layer)
{
    layer->pool->reserved -= layer->reserved;
    layer->reserved = layer->replays = 0;
    layer->pending = false;
}

static void free_cut(ra_layer *layer)
{
    ra_cut_state *cut = &layer->cut;
    free(cut->cut);
    free(cut->totals);
    free(cut->protect);
    free(cut->scores);
    free(cut->kept);
    free(cut->keep);
    *cut = (ra_cut_state){0};
}

void ra_layer_destroy(ra_layer *layer)
{
    if (!layer)
        return;
    ra_layer_reset(layer);
    ra_lists_close(layer);
    if (layer->previous)
        layer->previous->next = layer->next;
    else
        layer->pool->layers = layer->next;
    if (layer->next)
        layer->next->previous = layer->previous;
    free_lists(layer);
    free_rows(layer);
    free_cut(layer);
    ra_cold_free(layer->cold);
    free(layer->sinks);
    ra_centres_drop(layer->centres);
    free(layer);
}

/* The lists of *fresh in place of the layer's own. */
static void replace_lists(ra_layer *layer, const ra_layer *fresh)
{
    free_lists(layer);
    layer->pages = fresh->pages;
    layer->table = fresh->table;
    layer->slots = fresh->slots;
    layer->positions = fresh->positions;
    memcpy(layer->columns, fresh->columns, sizeof layer->columns);
    memcpy(layer->states, fresh->states, sizeof layer->states);
}

static bool resize(ra_layer *layer, int64_t pages)
{
    ra_layer fresh = *layer;
    if (!new_lists(&fresh, layer->rows, pages)) {
        free_lists(&fresh);
        return false;
    }
    for (int64_t pair = 0; pair < ra_pairs(layer); pair++)
        copy_head(layer, pair, &fresh, pair);
    replace_lists(layer, &fresh);
    return true;
}

bool ra_layer_make_room(ra_layer *layer, int64_t pages)
{
    return pages <= layer->pages || resize(layer, ra_max(pages, layer->pages + layer->pages / 4));
}

void ra_layer_shrink(ra_layer *layer)
{
    int64_t most = ra_pages_for(ra_most_slots(layer));
    if (layer->pages <= 2 * most + 32 || layer->cut.begun || ra_cold_is_merged(layer) || layer->pending ||
        layer->lists != RA_LISTS_HOST)
        return;
    if (resize(layer, most + most / 4 + 8)) /* without memory for it they stay long */
        free_cut(layer);
}

/* ---- Rows ---- */

/* The host's lists are current, and nothing counts on them any more. */
static ra_status begin_change(ra_layer *layer)
{
    ra_status status = ra_lists_write(layer);
    if (status != RA_OK)
        return status;
    ra_layer_unreserve(layer);
    ra_cut_abandon(layer);
    return RA_OK;
}

static void empty_row(ra_layer *layer, int64_t row)
{
    for (int64_t head = 0; head < layer->kv_heads; head++) {
        int64_t pair = ra_pair(layer, row, head);
        drop_pages(layer, pair, 0, ra_pages_for(layer->slots[pair]));
        layer->slots[pair] = 0;
        ra_stats_clear(layer, pair);
    }
    ra_cold_empty_row(layer, row);
    layer->tokens[row] = layer->q_begin[row] = layer->q_end[row] = 0;
}

void ra_layer_reset(ra_layer *layer)
{
    ra_layer_unreserve(layer);
    layer->cut.begun = false; /* no page is looked at: its memory may be gone */
    ra_cold_forget(layer);
    if (ra_lists_write(layer) != RA_OK)
        return; /* a dead device: its pages are lost */
    for (int64_t row = 0; row < layer->rows; row++)
        empty_row(layer, row);
    ra_cold_empty(layer);
    ra_lists_changed(layer);
}

ra_status ra_layer_release(ra_layer *layer, int64_t row)
{
    if (!layer || row < 0 || row >= layer->rows)
        return RA_ERR_ARGUMENT;
    ra_status status = begin_change(layer);
    if (status != RA_OK)
        return status;
    empty_row(layer, row);
    ra_lists_changed(layer);
    return RA_OK;
}

ra_status ra_layer_fork(ra_layer *layer, int64_t from, int64_t to)
{
    if (!layer || from < 0 || from >= layer->rows || to < 0 || to >= layer->rows)
        return RA_ERR_ARGUMENT;
    if (from == to)
        return RA_OK;
    ra_status status = begin_change(layer);
    if (status != RA_OK)
        return status;
    empty_row(layer, to);
    for (int64_t head = 0; head < layer->kv_heads; head++) {
        copy_head(layer, ra_pair(layer, from, head), layer, ra_pair(layer, to, head));
        share_pages(layer, ra_pair(layer, to, head));
    }
    copy_row(layer, from, layer, to);
    ra_cold_fork(layer, from, to);
    ra_lists_changed(layer);
    return RA_OK;
}

ra_status ra_layer_reorder(ra_layer *layer, const int64_t *source, int64_t new_row_count)
{
    if (!layer || !source || new_row_count < 1 || new_row_count > INT32_MAX)
        return RA_ERR_ARGUMENT;
    for (int64_t row = 0; row < new_row_count; row++)
        if (source[row] < -1 || source[row] >= layer->rows)
            return RA_ERR_ARGUMENT;
    ra_status status = ra_lists_write(layer);
    if (status != RA_OK)
        return status;
    if (layer->cold)
        ra_cut_abandon(layer);
    ra_layer fresh = *layer;
    ra_cold *cold = NULL;
    if (!new_lists(&fresh, new_row_count, layer->pages) || !new_rows(&fresh) ||
        !ra_cold_for_rows(layer, source, new_row_count, &cold)) {
        free_lists(&fresh);
        free_rows(&fresh);
        return RA_ERR_NO_MEMORY;
    }
    for (int64_t row = 0; row < new_row_count; row++) {
        if (source[row] < 0)
            continue;
        for (int64_t head = 0; head < layer->kv_heads; head++) {
            copy_head(layer, ra_pair(layer, source[row], head), &fresh, ra_pair(&fresh, row, head));
            share_pages(&fresh, ra_pair(&fresh, row, head));
        }
        copy_row(layer, source[row], &fresh, row);
    }
    ra_layer_reset(layer); /* the old rows let go of their pages */
    replace_lists(layer, &fresh);
    free_rows(layer);
    free_cut(layer);
    ra_cold_free(layer->cold);
    layer->cold = cold;
    layer->rows = new_row_count;
    layer->ready_tokens = layer->ready_slots = 0; /* more rows need more scratch */
    layer->tokens = fresh.tokens;
    layer->q_begin = fresh.q_begin;
    layer->q_end = fresh.q_end;
    layer->queries = fresh.queries;
    layer->row_slots = fresh.row_slots;
    ra_lists_changed(layer);
    return RA_OK;
}

ra_status ra_layer_crop(ra_layer *layer, const int64_t *tokens)
{
    if (!layer || !tokens)
        return RA_ERR_ARGUMENT;
    for (int64_t row = 0; row < layer->rows; row++)
        if (tokens[row] < 0)
            return RA_ERR_ARGUMENT;
    ra_status status = ra_lists_write(layer);
    if (status != RA_OK)
        return status;
    if (layer->cold)
        ra_cut_abandon(layer); /* what a cut has recalled is evicted all the same */
    for (int64_t row = 0; row < layer->rows; row++) {
        int64_t left = layer->tokens[row] - tokens[row];
        if (left < 0)
            return RA_ERR_EVICTED;
        for (int64_t head = 0; head < layer->kv_heads && tokens[row]; head++) {
            int64_t pair = ra_pair(layer, row, head), slots = layer->slots[pair];
            if (slots < tokens[row] || ra_positions_of(layer, pair)[slots - tokens[row]] != left)
                return RA_ERR_EVICTED;
        }
    }
    ra_layer_unreserve(layer);
    ra_cut_abandon(layer);
    for (int64_t row = 0; row < layer->rows; row++) {
        if (!tokens[row])
            continue;
        layer->tokens[row] -= tokens[row];
        layer->q_end[row] = ra_min(layer->q_end[row], layer->tokens[row]);
        layer->q_begin[row] = ra_min(layer->q_begin[row], layer->q_end[row]);
        for (int64_t head = 0; head < layer->kv_heads; head++) {
            int64_t pair = ra_pair(layer, row, head), slots = layer->slots[pair] - tokens[row];
            drop_pages(layer, pair, ra_pages_for(slots), ra_pages_for(layer->slots[pair]));
            layer->slots[pair] = (int32_t)slots;
            ra_stats_crop(layer, pair, slots);
        }
        ra_cold_crop(layer, row);
    }
    ra_lists_changed(layer);
    return RA_OK;
}

/* ---- Restoring what was read ---- */

ra_status ra_layer_restore(ra_layer *layer, int64_t row, int64_t head, int64_t slots, const int32_t *positions,
                           const float *keys, const float *values, int64_t *missing)
{
    if (!layer || row < 0 || row >= layer->rows || head < 0 || head >= layer->kv_heads || slots < 0 ||
        slots > INT32_MAX - PAGE || !missing || (slots && (!positions || !keys || !values)))
        return RA_ERR_ARGUMENT;
    ra_pool *pool = layer->pool;
    int64_t pair = ra_pair(layer, row, head), d = pool->head_dim, pages = ra_pages_for(slots);
    *missing = 0;
    if (layer->slots[pair] || layer->tokens[row])
        return RA_ERR_ARGUMENT; /* only an empty row is filled */
    for (int64_t i = 0; i < slots; i++) {
        if (positions[i] < 0 || (i && positions[i] <= positions[i - 1]))
            return RA_ERR_ARGUMENT;
        if (!pool->format->holds(RA_F32, keys + i * d, d) || !pool->format->holds(RA_F32, values + i * d, d))
            return RA_ERR_NOT_FINITE;
    }
    ra_status status = ra_lists_write(layer);
    if (status != RA_OK)
        return status;
    const ra_device *device = pool->backend->device;
    char *copy = device ? ra_new((int64_t)pool->page_bytes, 1) : NULL; /* of a page */
    if (!ra_layer_make_room(layer, pages) || (device && !copy)) {
        free(copy);
        return RA_ERR_NO_MEMORY;
    }
    if (pages > ra_pool_spare(pool)) {
        free(copy);
        *missing = pages - ra_pool_spare(pool);
        return RA_ERR_NO_PAGES;
    }
    ra_layer_unreserve(layer);
    ra_cut_abandon(layer);
    for (int64_t p = 0; p < pages; p++)
        ra_pages_of(layer, pair)[p] = ra_pool_take(pool);
    for (int64_t i = 0; i < slots; i += PAGE) {
        const int64_t stride = d * (int64_t)sizeof *keys;
        const ra_rows k = {.data = (const char *)(keys + i * d), .stride = stride, .dtype = RA_F32};
        const ra_rows v = {.data = (const char *)(values + i * d), .stride = stride, .dtype = RA_F32};
        void *page = pool->memory[ra_pages_of(layer, pair)[i / PAGE]];
        pool->format->write(device ? copy : page, 0, ra_min(PAGE, slots - i), d, &k, &v);
        if (device && status == RA_OK)
            status = device->up(pool, page, copy, pool->page_bytes);
    }
    free(copy);
    if (slots)
        memcpy(ra_positions_of(layer, pair), positions, (size_t)slots * sizeof *positions);
    layer->slots[pair] = (int32_t)slots;
    ra_stats_append(layer, pair, 0);
    ra_lists_changed(layer);
    return status;
}

ra_status ra_layer_restore_row(ra_layer *layer, int64_t row, int64_t tokens, const float *queries, int64_t count,
                               float scale, float softcap)
{
    if (!layer || row < 0 || row >= layer->rows || tokens < 0 || tokens > INT32_MAX || count < 0 ||
        count > ra_min(layer->window, tokens) || (count && !queries) || layer->tokens[row] || !isfinite(scale) ||
        !isfinite(softcap) || softcap < 0)
        return RA_ERR_ARGUMENT;
    for (int64_t head = 0; head < layer->kv_heads; head++) {
        int64_t pair = ra_pair(layer, row, head), slots = layer->slots[pair];
        if (slots && ra_positions_of(layer, pair)[slots - 1] >= tokens)
            return RA_ERR_ARGUMENT;
    }
    int64_t d = layer->pool->head_dim;
    if (!ra_all_finite(RA_F32, queries, count * layer->query_heads * d))
        return RA_ERR_NOT_FINITE;
    ra_status status = begin_change(layer);
    if (status != RA_OK)
        return status;
    layer->tokens[row] = layer->q_end[row] = tokens;
    layer->q_begin[row] = tokens - count;
    for (int64_t i = 0; i < count; i++)
        for (int64_t h = 0; h < layer->query_heads; h++)
            memcpy(ra_query(layer, row, tokens - count + i) + h * d, queries + (h * count + i) * d,
                   (size_t)d * sizeof *queries);
    layer->scale = scale;
    layer->softcap = softcap;
    return RA_OK;
}
