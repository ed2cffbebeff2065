/* A cut with a cold tier. Before it is scored, a row's cold tokens are put among its slots, so that scores, budgets and
 * choices are those of a row that has evicted nothing; once it is chosen, what goes is stored. Blocks stay as they are until
 * the cut is applied: a token that came back and does not stay is the record that it was. */
#include "cold.h"

#include <stdlib.h>
#include <string.h>

#include "backend.h"

/* ---- Recall ---- */

/* Cold tokens before position `below`, from number `begin` on. */
static int64_t run_below(const int32_t *positions, int64_t begin, int64_t count, int32_t below)
{
    int64_t end = begin;
    while (end < count && positions[end] < below)
        end++;
    return end - begin;
}

/* Puts entries of the cold tokens, `stride` bytes apart, among the n of a head; from the end on, for its own move back.
 * positions: of the head's slots; they may be the entries. */
static void spread(int32_t *entries, const int32_t *positions, int64_t n, const ra_cold_block *block, const char *cold,
                   size_t stride)
{
    for (int64_t i = n - 1, c = block->count - 1; c >= 0;) {
        if (i < 0 || positions[i] < block->positions[c]) {
            memcpy(entries + i + 1 + c, cold + (size_t)c * stride, 4);
            c--;
        } else {
            entries[i + 1 + c] = entries[i];
            i--;
        }
    }
}

/* Pages of the union: slots of the old pages and cold tokens, in order of position. */
static void fill_pages(const ra_layer *layer, int64_t pair, const int32_t *targets, float *floats)
{
    const ra_pool *pool = layer->pool;
    const ra_cold_block *block = layer->cold->blocks[pair];
    const int32_t *pages = ra_pages_of(layer, pair), *positions = ra_positions_of(layer, pair);
    int64_t n = layer->slots[pair], d = pool->head_dim;
    for (int64_t i = 0, c = 0; i < n || c < block->count;) {
        int64_t to = i + c, room = PAGE - to % PAGE;
        void *target = pool->memory[targets[to / PAGE]];
        int64_t last = ra_min(block->count, c + room);
        int64_t run = i < n ? run_below(block->positions, c, last, positions[i]) : last - c;
        if (run) {
            ra_rows keys, values;
            ra_cold_rows(layer, block, c, run, floats, &keys, &values);
            pool->format->write(target, to % PAGE, run, d, &keys, &values);
            c += run;
            continue;
        }
        uint8_t from[PAGE];
        int32_t before = c < block->count ? block->positions[c] : INT32_MAX;
        int64_t first = i;
        while (i < n && i - first < room && i / PAGE == first / PAGE && positions[i] < before) {
            from[i - first] = (uint8_t)(i % PAGE);
            i++;
        }
        pool->format->move(pool->memory[pages[first / PAGE]], from, target, to % PAGE, i - first, d);
    }
}

/* The lists of the union. Of statistics those that last come along, the others know what they did at the last cut. */
static void fill_lists(ra_layer *layer, int64_t pair)
{
    const ra_cold *cold = layer->cold;
    const ra_cold_block *block = cold->blocks[pair];
    int32_t *positions = ra_positions_of(layer, pair);
    int64_t n = layer->slots[pair];
    const char *carried = block->records + 2 * cold->row_bytes;
    for (int s = 0; s < RA_STATS; s++) {
        for (int field = 0; layer->columns[s] && ra_stats[s]->lasting && field < ra_stats[s]->fields; field++) {
            spread(ra_column_of(layer, s, field, pair), positions, n, block, carried, cold->record_bytes);
            carried += 4;
        }
    }
    spread(positions, positions, n, block, (const char *)block->positions, sizeof(int32_t));
    layer->slots[pair] = (int32_t)(n + block->count);
    ra_cold_restore_statistics(layer, pair, cold->statistics[pair]);
}

/* Columns that say of each slot what its key and value say. */
static void fill_columns(ra_layer *layer, int64_t pair)
{
    for (int s = 0; s < RA_STATS; s++)
        if (layer->columns[s] && !ra_stats[s]->lasting && ra_stats[s]->append)
            ra_stats[s]->append(layer, pair, 0);
}

typedef struct merge_job {
    ra_layer *layer;
    int64_t row;
    int32_t *targets; /* [H, most pages of a head] */
    int64_t most;
    float *floats; /* [H][2][PAGE][D] */
} merge_job;

static void merge_heads(int64_t begin, int64_t end, void *context)
{
    const merge_job *job = context;
    for (int64_t head = begin; head < end; head++)
        if (job->layer->cold->blocks[ra_pair(job->layer, job->row, head)])
            fill_pages(job->layer, ra_pair(job->layer, job->row, head), job->targets + head * job->most,
                       job->floats + head * 2 * PAGE * job->layer->pool->head_dim);
}

/* Pages are there, and lists are long enough. */
static void merge_row(merge_job *job, ra_parallel parallel)
{
    ra_layer *layer = job->layer;
    for (int64_t head = 0; head < layer->kv_heads; head++) {
        int64_t pair = ra_pair(layer, job->row, head), count = ra_cold_count(layer->cold->blocks[pair]);
        for (int64_t p = 0; count && p < ra_pages_for(layer->slots[pair] + count); p++)
            job->targets[head * job->most + p] = ra_pool_take(layer->pool);
    }
    ra_run(parallel, layer->kv_heads, 1, merge_heads, job);
    for (int64_t head = 0; head < layer->kv_heads; head++) {
        int64_t pair = ra_pair(layer, job->row, head);
        if (!layer->cold->blocks[pair])
            continue;
        for (int64_t p = ra_pages_for(layer->slots[pair]); p > 0; p--)
            ra_pool_drop(layer->pool, ra_pages_of(layer, pair)[p - 1]);
        fill_lists(layer, pair);
        memcpy(ra_pages_of(layer, pair), job->targets + head * job->most,
               (size_t)ra_pages_for(layer->slots[pair]) * sizeof *job->targets);
        fill_columns(layer, pair);
    }
    layer->cold->merged[job->row] = true;
}

static bool has_cold(const ra_layer *layer, int64_t row)
{
    for (int64_t head = 0; head < layer->kv_heads; head++)
        if (layer->cold->blocks[ra_pair(layer, row, head)])
            return true;
    return false;
}

bool ra_cold_is_recalled(const ra_layer *layer, int64_t row)
{
    return !layer->cold || layer->cold->merged[row] || !has_cold(layer, row);
}

/* What all rows need that are to be recalled. Rows go one after the other, so that pages of one are free for the next. */
typedef struct merge_need {
    int64_t rows, slots, pages; /* slots: of the head that has most then */
} merge_need;

static merge_need need_of(const ra_layer *layer, const int64_t *totals)
{
    merge_need need = {0};
    int64_t taken = 0;
    for (int64_t row = 0; row < layer->rows; row++) {
        if (totals[row] < 0 || ra_cold_is_recalled(layer, row))
            continue;
        int64_t freed = 0;
        for (int64_t head = 0; head < layer->kv_heads; head++) {
            int64_t pair = ra_pair(layer, row, head), count = ra_cold_count(layer->cold->blocks[pair]);
            if (!count)
                continue;
            need.slots = ra_max(need.slots, layer->slots[pair] + count);
            taken += ra_pages_for(layer->slots[pair] + count);
            for (int64_t p = 0; p < ra_pages_for(layer->slots[pair]); p++)
                freed += layer->pool->refs[ra_pages_of(layer, pair)[p]] == 1;
        }
        need.pages = ra_max(need.pages, taken);
        taken -= freed;
        need.rows++;
    }
    return need;
}

static int64_t row_slots(const ra_layer *layer, int64_t row)
{
    int64_t slots = 0;
    for (int64_t head = 0; head < layer->kv_heads; head++)
        slots += layer->slots[ra_pair(layer, row, head)];
    return slots;
}

/* A row keeps all that came back. */
static void keep_row(ra_layer *layer, int64_t row)
{
    for (int64_t head = 0; head < layer->kv_heads; head++) {
        int64_t pair = ra_pair(layer, row, head);
        layer->cold->recalled[pair] = ra_cold_count(layer->cold->blocks[pair]);
        ra_cold_put(layer, pair, NULL, NULL);
    }
    layer->cold->merged[row] = false;
}

ra_status ra_cut_recall(ra_layer *layer, const int64_t *totals, ra_parallel parallel, int64_t *missing)
{
    if (!layer || !totals || !missing)
        return RA_ERR_ARGUMENT;
    *missing = 0;
    if (!layer->cold)
        return RA_OK;
    int64_t start = ra_now_ns(), H = layer->kv_heads;
    ra_cold *cold = layer->cold;
    layer->cut.begun = false;
    if (!ra_cold_is_merged(layer))
        memset(cold->recalled, 0, (size_t)ra_pairs(layer) * sizeof *cold->recalled);
    merge_need need = need_of(layer, totals);
    if (!need.rows)
        return RA_OK;
    if (need.pages > ra_pool_spare(layer->pool)) {
        *missing = need.pages - ra_pool_spare(layer->pool);
        return RA_ERR_NO_PAGES;
    }
    if (need.slots > INT32_MAX - PAGE)
        return RA_ERR_ARGUMENT;
    /* All that may fail, also of ra_cold_separate, comes first. */
    merge_job job = {.layer = layer, .most = ra_pages_for(need.slots)};
    job.targets = ra_new(H * job.most, sizeof *job.targets);
    job.floats = ra_new(H * 2 * PAGE * layer->pool->head_dim, sizeof *job.floats);
    if (!job.targets || !job.floats || !ra_layer_make_room(layer, job.most) || !ra_cut_make_lists(layer) ||
        !ra_pool_scratch(layer->pool, (size_t)ra_pairs(layer) * 64 + 256)) {
        free(job.targets);
        free(job.floats);
        return RA_ERR_NO_MEMORY;
    }
    for (job.row = 0; job.row < layer->rows; job.row++) {
        if (totals[job.row] < 0 || ra_cold_is_recalled(layer, job.row))
            continue;
        merge_row(&job, parallel);
        if (row_slots(layer, job.row) <= totals[job.row])
            keep_row(layer, job.row);
    }
    free(job.targets);
    free(job.floats);
    layer->times.evict_ns += ra_now_ns() - start;
    return RA_OK;
}

void ra_cold_separate(ra_layer *layer)
{
    if (!layer->cold)
        return;
    ra_cold *cold = layer->cold;
    ra_cold_forget(layer);
    if (!ra_cold_is_merged(layer))
        return;
    for (int64_t pair = 0; pair < ra_pairs(layer); pair++) {
        const ra_cold_block *block = cold->blocks[pair];
        const int32_t *positions = ra_positions_of(layer, pair);
        int32_t *kept = ra_kept_of(layer, pair);
        int64_t keep = 0, c = 0;
        layer->cut.cut[pair / layer->kv_heads] = cold->merged[pair / layer->kv_heads];
        for (int32_t slot = 0; layer->cut.cut[pair / layer->kv_heads] && slot < layer->slots[pair]; slot++) {
            c += run_below(block ? block->positions : NULL, c, ra_cold_count(block), positions[slot]);
            if (c == ra_cold_count(block) || block->positions[c] != positions[slot])
                kept[keep++] = slot;
        }
        layer->cut.keep[pair] = (int32_t)keep;
    }
    /* No page is shared, and scratch was taken before: it cannot fail. If it did, no token would be lost. */
    bool done = layer->pool->backend->apply(layer, NULL) == RA_OK;
    for (int64_t row = 0; row < layer->rows; row++) {
        if (cold->merged[row] && !done)
            keep_row(layer, row);
        cold->merged[row] = false;
    }
    memset(cold->recalled, 0, (size_t)ra_pairs(layer) * sizeof *cold->recalled);
}

/* ---- Retire ---- */

/* Of the `count` slots that go those that are stored come into goes[0, limit), the others behind them, both ascending.
 * protect: the first ones, which are stored before others. */
static ra_status best_of(const ra_layer *layer, int64_t pair, int32_t *goes, int64_t count, int64_t protect)
{
    int64_t limit = layer->cold->limit;
    const float *scores = ra_scores_of(layer, pair);
    float *floats = ra_new(2 * count, sizeof *floats);
    bool *flags = ra_new(count, sizeof *flags);
    int32_t *chosen = ra_new(limit, sizeof *chosen);
    ra_status status = floats && flags && chosen ? RA_OK : RA_ERR_NO_MEMORY;
    for (int64_t i = 0; status == RA_OK && i < count; i++)
        floats[count + i] = scores[goes[i]];
    if (status == RA_OK)
        status = ra_select_into(floats + count, count, limit, protect, floats, flags, chosen);
    int32_t *dropped = (int32_t *)(void *)floats;
    for (int64_t i = 0, c = 0, at = 0; status == RA_OK && i < count; i++) {
        if (c < limit && chosen[c] == i)
            goes[c++] = goes[i]; /* c <= i */
        else
            dropped[at++] = goes[i];
    }
    if (status == RA_OK)
        memcpy(goes + limit, dropped, (size_t)(count - limit) * sizeof *goes);
    free(floats);
    free(flags);
    free(chosen);
    return status;
}

static ra_status retire_head(ra_layer *layer, int64_t pair)
{
    ra_cold *cold = layer->cold;
    const ra_cold_block *old = cold->merged[pair / layer->kv_heads] ? cold->blocks[pair] : NULL;
    const int32_t *positions = ra_positions_of(layer, pair), *kept = ra_kept_of(layer, pair);
    int64_t n = layer->slots[pair], keep = layer->cut.keep[pair], count = n - keep, stored = count, stays_cold = 0;
    cold->recalled[pair] = ra_cold_count(old);
    if (!count || !cold->limit)
        return RA_OK;
    int32_t *goes = ra_new(count, sizeof *goes);
    if (!goes)
        return RA_ERR_NO_MEMORY;
    for (int64_t slot = 0, i = 0, at = 0, c = 0; slot < n; slot++) {
        if (i < keep && kept[i] == slot) {
            i++;
            continue;
        }
        goes[at++] = (int32_t)slot;
        c += run_below(old ? old->positions : NULL, c, ra_cold_count(old), positions[slot]);
        stays_cold += c < ra_cold_count(old) && old->positions[c] == positions[slot];
    }
    cold->recalled[pair] -= stays_cold;
    ra_status status = RA_OK;
    if (cold->limit >= 0 && count > cold->limit) {
        int64_t protect = 0;
        while (protect < count && positions[goes[protect]] < layer->cut.protect[pair / layer->kv_heads])
            protect++;
        status = best_of(layer, pair, goes, count, protect);
        stored = cold->limit;
    }
    ra_cold_block *block = NULL;
    if (status == RA_OK) {
        block = ra_cold_make(stored, (size_t)stored * cold->record_bytes);
        cold->fresh[pair] = block;
        bool made = block &&
                    ra_cold_save_statistics(layer, pair, goes + stored, count - stored, &cold->fresh_statistics[pair]);
        status = made ? RA_OK : RA_ERR_NO_MEMORY;
    }
    for (int64_t i = 0, c = 0; block && i < stored; i++) {
        int32_t position = block->positions[i] = positions[goes[i]];
        char *record = block->records + (size_t)i * cold->record_bytes;
        c += run_below(old ? old->positions : NULL, c, ra_cold_count(old), position);
        if (c < ra_cold_count(old) && old->positions[c] == position)
            memcpy(record, old->records + (size_t)c * cold->record_bytes, cold->record_bytes);
        else
            ra_cold_store(layer, pair, goes[i], record);
    }
    free(goes);
    return status;
}

typedef struct retire_job {
    ra_layer *layer;
    ra_status *status; /* [R, H] */
} retire_job;

static void retire_heads(int64_t begin, int64_t end, void *context)
{
    const retire_job *job = context;
    for (int64_t pair = begin; pair < end; pair++)
        if (job->layer->cut.cut[pair / job->layer->kv_heads])
            job->status[pair] = retire_head(job->layer, pair);
}

ra_status ra_cold_retire(ra_layer *layer, ra_parallel parallel)
{
    if (!layer->cold || layer->cold->retired)
        return RA_OK;
    int64_t pairs = ra_pairs(layer);
    retire_job job = {.layer = layer, .status = ra_new_zeroed(pairs, sizeof *job.status)};
    if (!job.status)
        return RA_ERR_NO_MEMORY;
    ra_run(parallel, pairs, 1, retire_heads, &job);
    ra_status status = RA_OK;
    for (int64_t pair = 0; pair < pairs && status == RA_OK; pair++)
        status = job.status[pair];
    free(job.status);
    layer->cold->retired = true;
    if (status != RA_OK)
        ra_cold_forget(layer);
    return status;
}

void ra_cold_forget(ra_layer *layer)
{
    for (int64_t pair = 0; layer->cold && layer->cold->retired && pair < ra_pairs(layer); pair++) {
        free(layer->cold->fresh[pair]);
        free(layer->cold->fresh_statistics[pair]);
        layer->cold->fresh[pair] = layer->cold->fresh_statistics[pair] = NULL;
    }
    if (layer->cold)
        layer->cold->retired = false;
}

void ra_cold_settle(ra_layer *layer)
{
    ra_cold *cold = layer->cold;
    for (int64_t row = 0; cold && row < layer->rows; row++) {
        if (cold->merged[row] && !layer->cut.cut[row]) /* it has room for all */
            keep_row(layer, row);
        for (int64_t head = 0; layer->cut.cut[row] && head < layer->kv_heads; head++) {
            int64_t pair = ra_pair(layer, row, head);
            ra_cold_put(layer, pair, cold->fresh[pair], cold->fresh_statistics[pair]);
            cold->fresh[pair] = cold->fresh_statistics[pair] = NULL;
        }
        cold->merged[row] = false;
    }
    if (cold)
        cold->retired = false;
}
