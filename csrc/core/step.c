/* Room for a step, and its arguments: what a host can know without looking at what heads hold. */
#include <math.h>

#include "backend.h"

static int64_t fresh_tokens(const int64_t *begin, int64_t tokens, int64_t row)
{
    return begin ? begin[row + 1] - begin[row] : tokens;
}

static bool begins_well(const ra_layer *layer, const int64_t *begin, int64_t tokens)
{
    if (!begin)
        return tokens >= 0 && tokens <= INT32_MAX;
    if (begin[0])
        return false;
    for (int64_t row = 0; row < layer->rows; row++)
        if (begin[row + 1] < begin[row] || begin[row + 1] - begin[row] > INT32_MAX)
            return false;
    return true;
}

/* What a step needs, as far as the host knows. */
typedef struct needs {
    int64_t pages;  /* that appending takes; -1 where a row cannot have these tokens */
    int64_t slots;  /* most of a head afterwards */
    int64_t tokens; /* most of a row that are new */
} needs;

static needs needs_of(const ra_layer *layer, const int64_t *begin, int64_t tokens)
{
    needs need = {0};
    for (int64_t row = 0; row < layer->rows; row++) {
        int64_t fresh = fresh_tokens(begin, tokens, row);
        if (layer->tokens[row] > INT32_MAX - PAGE - fresh)
            return (needs){.pages = -1};
        need.tokens = ra_max(need.tokens, fresh);
        for (int64_t head = 0; head < layer->kv_heads; head++) {
            int64_t pair = ra_pair(layer, row, head), slots = layer->slots[pair];
            need.slots = ra_max(need.slots, slots + fresh);
            if (fresh && slots && !layer->tokens[row])
                return (needs){.pages = -1}; /* a row that is only half restored */
            if (fresh && !layer->pool->backend->device)
                need.pages += ra_pages_for(slots + fresh) - ra_pages_for(slots) + ra_tail_is_shared(layer, pair);
        }
    }
    if (layer->pool->backend->device)
        need.pages = ra_max(0, ra_lists_pages(layer, begin, tokens) - layer->promised);
    return need;
}

/* Lists and scratch are there for it. */
static bool is_ready(const ra_layer *layer, const needs *need)
{
    return need->tokens <= layer->ready_tokens && need->slots <= layer->ready_slots &&
           ra_pages_for(need->slots) <= layer->pages && layer->ready_bytes <= layer->pool->scratch.size;
}

static ra_status make_ready(ra_layer *layer, const needs *need, int64_t ahead)
{
    ra_pool *pool = layer->pool;
    int64_t slots = need->slots + ra_min(ahead, INT32_MAX - PAGE - need->slots);
    size_t bytes = pool->backend->step_bytes(layer, need->tokens, slots);
    ra_status status = ra_pages_for(slots) > layer->pages ? ra_lists_write(layer) : RA_OK;
    if (status == RA_OK && (!ra_layer_make_room(layer, ra_pages_for(slots)) || !ra_pool_scratch(pool, bytes)))
        status = RA_ERR_NO_MEMORY;
    if (status == RA_OK && pool->backend->device)
        status = pool->backend->device->reserve(layer, need->tokens, slots);
    if (status != RA_OK)
        return status;
    layer->ready_changes += slots > layer->ready_slots;
    layer->ready_tokens = need->tokens;
    layer->ready_slots = slots;
    layer->ready_bytes = bytes;
    return RA_OK;
}

enum { GRAPH_AHEAD = 4096 };

/* Room for a step, or for `replays` of them one after the other, of one token each. totals: of the cuts among these, which
 * nobody asks for pages then; NULL: none. */
static ra_status reserve(ra_layer *layer, const int64_t *begin, int64_t tokens, int64_t replays, int64_t ahead,
                         const int64_t *totals, int64_t *missing)
{
    ra_pool *pool = layer->pool;
    *missing = 0;
    ra_layer_unreserve(layer);
    if (layer->cold)
        ra_cut_abandon(layer); /* its slots are counted without those that a cut has recalled */
    ra_status fault = pool->backend->device ? pool->backend->device->fault(layer) : RA_OK;
    if (fault != RA_OK)
        return fault;
    needs need = needs_of(layer, begin, replays ? replays : tokens);
    if (need.pages < 0)
        return RA_ERR_ARGUMENT;
    need.tokens = replays ? 1 : need.tokens;
    if (replays &&
        !is_ready(layer, &need)) { /* a graph ends where room is made: perhaps only the bounds are too wide */
        ra_status status = ra_layer_wait(layer);
        if (status != RA_OK)
            return status;
        need = needs_of(layer, begin, replays);
        need.tokens = 1;
    }
    if (!is_ready(layer, &need)) {
        /* Graphs end with the room: budgets of heads drift apart at first. */
        ra_status status = make_ready(layer, &need, replays ? ra_max(ahead, ra_min(need.slots, GRAPH_AHEAD)) : ahead);
        if (status != RA_OK)
            return status;
        need = needs_of(layer, begin, replays ? replays : tokens); /* a device may have been looked at */
    }
    if (layer->ready_bytes > pool->scratch_need)
        pool->scratch_need = layer->ready_bytes;
    int64_t all = need.pages + (totals ? ra_cut_fresh_pages(layer, totals, replays) : 0);
    if (all > ra_pool_spare(pool)) {
        *missing = all - ra_pool_spare(pool);
        return RA_ERR_NO_PAGES;
    }
    pool->reserved += need.pages;
    layer->reserved = need.pages;
    layer->replays = replays;
    layer->pending = true;
    return RA_OK;
}

ra_status ra_layer_reserve(ra_layer *layer, const int64_t *begin, int64_t tokens, int64_t ahead, int64_t *missing)
{
    if (!layer || !missing || ahead < 0 || ahead > INT32_MAX || !begins_well(layer, begin, tokens))
        return RA_ERR_ARGUMENT;
    return reserve(layer, begin, tokens, 0, ahead, NULL, missing);
}

/* ---- Graphs ---- */

ra_status ra_layer_prepare(ra_layer *layer, int64_t steps, int64_t ahead, const int64_t *totals,
                           const int64_t *protect_below, int64_t *missing)
{
    if (!layer || !missing || steps < 1 || steps > INT32_MAX || ahead < 0 || ahead > INT32_MAX ||
        (protect_below && !totals) || !layer->pool->backend->device)
        return RA_ERR_ARGUMENT;
    const ra_device *device = layer->pool->backend->device;
    if (device->capturing(layer->pool))
        return RA_ERR_CAPTURE;
    ra_status status = reserve(layer, NULL, 1, steps, ahead, totals, missing);
    if (status == RA_OK)
        status = device->push(layer);
    return status == RA_OK && totals ? device->send(layer, totals, protect_below) : status;
}

ra_status ra_layer_replayed(ra_layer *layer, int64_t steps)
{
    if (!layer || !layer->pool->backend->device || !layer->pending || steps < 1 || steps > layer->replays)
        return RA_ERR_ARGUMENT;
    ra_pool *pool = layer->pool;
    ra_cut_abandon(layer);
    ra_lists_stepped(layer, NULL, steps);
    layer->replays -= steps;
    int64_t left = layer->replays ? ra_max(0, ra_lists_pages(layer, NULL, layer->replays) - layer->promised) : 0;
    pool->reserved += left - layer->reserved;
    layer->reserved = left;
    layer->pending = layer->replays > 0;
    return RA_OK;
}

ra_status ra_layer_replayed_cut(ra_layer *layer, const int64_t *totals)
{
    if (!layer || !totals || !layer->pool->backend->device ||
        !layer->pool->backend->device->has_sent(layer, totals, NULL))
        return RA_ERR_ARGUMENT;
    layer->pool->backend->device->cut_again(layer);
    ra_lists_cut(layer, totals);
    return RA_OK;
}

int64_t ra_layer_generation(const ra_layer *layer)
{
    const ra_device *device = layer->pool->backend->device;
    return device ? device->generation(layer) + layer->ready_changes : 0;
}

static bool indexes_well(const ra_layer *layer, const ra_step *step)
{
    for (int64_t row = 0; step->index && row < layer->rows; row++)
        for (int64_t i = step->begin[row]; i < step->begin[row + 1]; i++)
            if (step->index[i] < 0 || (i > step->begin[row] && step->index[i] <= step->index[i - 1]))
                return false;
    return true;
}

static bool tokens_are_good(const ra_tokens *tokens) { return tokens->data && ra_dtype_size(tokens->dtype); }

/* Every new key and value can be stored. */
static bool all_finite(const ra_layer *layer, const ra_step *step)
{
    const ra_format *format = layer->pool->format;
    const ra_tokens *both[] = {&step->keys, &step->values};
    for (int which = 0; which < 2; which++) {
        const ra_tokens *t = both[which];
        int64_t size = (int64_t)ra_dtype_size(t->dtype);
        for (int64_t row = 0; row < layer->rows; row++) {
            int64_t begin = step->begin ? step->begin[row] : 0, fresh = fresh_tokens(step->begin, step->tokens, row);
            for (int64_t i = 0; i < fresh; i++) {
                int64_t place = step->index ? step->index[begin + i] : i;
                const char *token = (const char *)t->data + (row * t->stride_row + place * t->stride_token) * size;
                for (int64_t head = 0; head < layer->kv_heads; head++)
                    if (!format->holds(t->dtype, token + head * t->stride_head * size, layer->pool->head_dim))
                        return false;
            }
        }
    }
    return true;
}

/* Whether statistics take a row's new tokens otherwise than a decoded one's, because they are of its prompt. */
static bool treats_prompts(const ra_layer *layer, const ra_step *step)
{
    bool any = false;
    for (int64_t row = 0; step->prompt && row < layer->rows; row++)
        any |= step->prompt[row];
    return any && layer->stats.prompt != RA_PROMPT_ALL && ra_stats_gather(layer);
}

ra_status ra_layer_step(ra_layer *layer, const ra_step *step, ra_parallel parallel)
{
    if (!layer || !step || !begins_well(layer, step->begin, step->tokens) || (step->index && !step->begin) ||
        !indexes_well(layer, step) || !isfinite(step->scale) || step->scale == 0 || !isfinite(step->softcap) ||
        step->softcap < 0 || (step->visible && step->visible_stride < 0))
        return RA_ERR_ARGUMENT;
    int64_t total = step->begin ? step->begin[layer->rows] : layer->rows * ra_min(step->tokens, 1);
    if (!total)
        return RA_OK;
    if (!tokens_are_good(&step->queries) || !tokens_are_good(&step->keys) || !tokens_are_good(&step->values) ||
        (step->out.data && !ra_dtype_size(step->out.dtype)))
        return RA_ERR_ARGUMENT;
    ra_pool *pool = layer->pool;
    const bool looks = !pool->backend->device; /* a device looks itself */
    if (looks && step->sinks && !ra_all_finite(RA_F32, step->sinks, layer->query_heads))
        return RA_ERR_NOT_FINITE;
    needs need = needs_of(layer, step->begin, step->tokens);
    if (!layer->pending || need.pages < 0 || need.pages > layer->reserved || !is_ready(layer, &need))
        return RA_ERR_ARGUMENT; /* nothing was reserved for it */
    if (looks && !all_finite(layer, step))
        return RA_ERR_NOT_FINITE;
    if (!looks && pool->backend->device->capturing(pool) &&
        (need.tokens != 1 || step->begin || step->visible || treats_prompts(layer, step) ||
         !ra_lists_fit_capture(layer)))
        return RA_ERR_CAPTURE;
    ra_cut_abandon(layer);
    ra_layer_unreserve(layer);
    layer->scale = step->scale;
    layer->softcap = step->softcap;
    ra_status status = pool->backend->step(layer, step, parallel);
    if (status == RA_OK && pool->backend->device)
        ra_lists_stepped(layer, step->begin, step->tokens);
    return status;
}
