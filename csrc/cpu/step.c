/* A step: append the new tokens, remember their queries, attend, and gather what the next cut wants. */
#include "step.h"

#include <math.h>
#include <string.h>

#include "attend.h"
#include "gather.h"

static int64_t fresh_of(const ra_step *step, int64_t row)
{
    return step->begin ? step->begin[row + 1] - step->begin[row] : step->tokens;
}

static int64_t place_of(const ra_step *step, int64_t row, int64_t i)
{
    return step->index ? step->index[step->begin[row] + i] : i;
}

static const char *token_at(const ra_tokens *tokens, int64_t row, int64_t head, int64_t place)
{
    int64_t at = row * tokens->stride_row + head * tokens->stride_head + place * tokens->stride_token;
    return (const char *)tokens->data + at * (int64_t)ra_dtype_size(tokens->dtype);
}

static ra_rows rows_at(const ra_tokens *tokens, int64_t row, int64_t head, int64_t place)
{
    return (ra_rows){.data = token_at(tokens, row, head, place),
                     .stride = tokens->stride_token * (int64_t)ra_dtype_size(tokens->dtype),
                     .dtype = tokens->dtype};
}

/* ---- Append ---- */

/* Pages for the new tokens: the host saw to it that the pool has them. In the order of heads, whatever the threads. */
static void take_pages(ra_layer *layer, const ra_step *step)
{
    ra_pool *pool = layer->pool;
    for (int64_t pair = 0; pair < ra_pairs(layer); pair++) {
        int64_t fresh = fresh_of(step, pair / layer->kv_heads), slots = layer->slots[pair];
        int32_t *pages = ra_pages_of(layer, pair);
        if (fresh && ra_tail_is_shared(layer, pair)) {
            int32_t copy = ra_pool_take(pool), tail = pages[slots / PAGE];
            memcpy(pool->memory[copy], pool->memory[tail], pool->page_bytes);
            ra_pool_drop(pool, tail);
            pages[slots / PAGE] = copy;
        }
        for (int64_t p = ra_pages_for(slots); p < ra_pages_for(slots + fresh); p++)
            pages[p] = ra_pool_take(pool);
    }
}

typedef struct step_job {
    ra_layer *layer;
    const ra_step *step;
    float *const *logits; /* [R, H], for gathering */
    float *floats;        /* scratch of gathering, [R, H][most] */
    int64_t most;         /* slots of a head, whole pages */
    const ra_attend_job *attention;
} step_job;

/* New tokens from number i on that stand side by side and go into one page. */
static int64_t run_of(const ra_step *step, int64_t row, int64_t i, int64_t fresh, int64_t slot)
{
    int64_t most = ra_min(fresh - i, PAGE - slot % PAGE), run = 1, first = place_of(step, row, i);
    if (!step->index)
        return most;
    while (run < most && place_of(step, row, i + run) == first + run)
        run++;
    return run;
}

static void append_heads(int64_t begin, int64_t end, void *context)
{
    const step_job *job = context;
    ra_layer *layer = job->layer;
    const ra_pool *pool = layer->pool;
    for (int64_t pair = begin; pair < end; pair++) {
        int64_t row = pair / layer->kv_heads, head = pair % layer->kv_heads, fresh = fresh_of(job->step, row);
        int64_t slot = layer->slots[pair];
        int32_t *positions = ra_positions_of(layer, pair);
        for (int64_t i = 0, run; i < fresh; i += run, slot += run) {
            int64_t place = place_of(job->step, row, i);
            ra_rows keys = rows_at(&job->step->keys, row, head, place),
                    values = rows_at(&job->step->values, row, head, place);
            run = run_of(job->step, row, i, fresh, slot);
            pool->format->write(pool->memory[ra_pages_of(layer, pair)[slot / PAGE]], slot % PAGE, run, pool->head_dim,
                                &keys, &values);
            for (int64_t t = 0; t < run; t++)
                positions[slot + t] = (int32_t)(layer->tokens[row] + i + t);
        }
        int64_t before = layer->slots[pair];
        layer->slots[pair] = (int32_t)slot;
        if (fresh)
            ra_stats_append(layer, pair, before);
    }
}

/* ---- Observe ---- */

static void observe(ra_layer *layer, const ra_step *step)
{
    const ra_tokens *queries = &step->queries;
    size_t d = (size_t)layer->pool->head_dim;
    for (int64_t row = 0; row < layer->rows; row++) {
        int64_t fresh = fresh_of(step, row), end = layer->tokens[row], first = end - fresh;
        if (!fresh)
            continue;
        for (int64_t i = ra_max(0, fresh - layer->window); i < fresh; i++)
            for (int64_t head = 0; head < layer->query_heads; head++)
                ra_kernels_get()->page[queries->dtype].to_float(token_at(queries, row, head, place_of(step, row, i)), d,
                                                                ra_query(layer, row, first + i) + (size_t)head * d);
        layer->q_end[row] = end;
        layer->q_begin[row] = ra_max(layer->q_begin[row], end - layer->window);
    }
    for (int64_t head = 0; head < layer->query_heads; head++)
        layer->sinks[head] = step->sinks ? step->sinks[head] : -INFINITY;
}

/* ---- Attend, and gather ---- */

/* Steps of one token before the row's cut, if this one is of one token and leaves anything behind; else negative. */
static int64_t cut_in(const ra_step *step, int64_t row)
{
    return step->cut_in && !step->visible && fresh_of(step, row) == 1 ? step->cut_in[row] : -1;
}

static bool is_wanted(const ra_layer *layer, const ra_step *step, int64_t pair)
{
    int64_t in = cut_in(step, pair / layer->kv_heads);
    for (int s = 0; in >= 0 && s < RA_STATS; s++)
        if (layer->columns[s] && ra_stats[s]->wants && ra_stats[s]->wants(layer, pair, in))
            return true;
    return false;
}

static void gather_heads(int64_t begin, int64_t end, void *context)
{
    const step_job *job = context;
    ra_layer *layer = job->layer;
    const ra_stored_weights *weights = job->attention->weights;
    for (int64_t pair = begin; pair < end; pair++) {
        int64_t in = cut_in(job->step, pair / layer->kv_heads), head = pair % layer->kv_heads;
        float *floats = job->floats + pair * job->most;
        for (int s = 0; job->logits && job->logits[pair] && s < RA_STATS; s++)
            if (layer->columns[s] && ra_stats[s]->wants && ra_stats[s]->wants(layer, pair, in))
                ra_stats[s]->gather(layer, pair, in, job->logits[pair], ra_pages_for(layer->slots[pair]) * PAGE,
                                    layer->sinks + head * layer->group, floats);
        if (weights && weights[pair].parts) {
            ra_weights stored = ra_attend_weights(job->attention, pair);
            ra_stats_add(layer, pair, in, &stored, layer->tokens[pair / layer->kv_heads] - 1, floats);
        }
    }
}

/* Room for the logits of the heads that leave something behind; NULL where none does. */
static float **room_for_logits(const ra_layer *layer, const ra_step *step, ra_scratch *scratch)
{
    int64_t pairs = ra_pairs(layer), wanted = 0;
    for (int64_t pair = 0; pair < pairs; pair++)
        wanted += is_wanted(layer, step, pair);
    float **logits = wanted ? ra_scratch_take(scratch, pairs, sizeof *logits) : NULL;
    for (int64_t pair = 0; logits && pair < pairs; pair++) {
        int64_t floats = layer->group * ra_pages_for(layer->slots[pair]) * PAGE;
        logits[pair] = is_wanted(layer, step, pair) ? ra_scratch_take(scratch, floats, sizeof **logits) : NULL;
    }
    return logits;
}

/* Room for the weights of the heads whose one new token statistics take in; NULL where there is none. */
static ra_stored_weights *room_for_weights(const ra_layer *layer, const ra_step *step, ra_scratch *scratch)
{
    if (!ra_stats_gather(layer))
        return NULL;
    int64_t pairs = ra_pairs(layer);
    ra_stored_weights *weights = ra_scratch_take(scratch, pairs, sizeof *weights);
    for (int64_t pair = 0; weights && pair < pairs; pair++) {
        int64_t slots = layer->slots[pair];
        float *memory = NULL;
        if (ra_attention_gathers(layer, step, pair / layer->kv_heads))
            memory = ra_scratch_take(scratch, ra_stored_floats(layer->group, slots), sizeof *memory);
        weights[pair] = memory ? ra_stored_in(memory, layer->group, slots) : (ra_stored_weights){0};
    }
    return weights;
}

static ra_status attend(step_job *job, ra_parallel parallel)
{
    ra_layer *layer = job->layer;
    const ra_step *step = job->step;
    ra_scratch *scratch = &layer->pool->scratch;
    int64_t pairs = ra_pairs(layer), start = ra_now_ns();
    ra_span *spans = ra_scratch_take(scratch, pairs, sizeof *spans);
    const int32_t **positions = ra_scratch_take(scratch, pairs, sizeof *positions);
    if (!spans || !positions)
        return RA_ERR_NO_MEMORY;
    for (int64_t pair = 0; pair < pairs; pair++) {
        spans[pair] = ra_span_of(layer, pair);
        positions[pair] = ra_positions_of(layer, pair);
        job->most = ra_max(job->most, ra_pages_for(layer->slots[pair]) * PAGE);
    }
    job->logits = room_for_logits(layer, step, scratch);
    ra_stored_weights *weights = room_for_weights(layer, step, scratch);
    bool gathers = job->logits || weights;
    job->floats = gathers ? ra_scratch_take(scratch, pairs * job->most, sizeof *job->floats) : NULL;
    ra_attend_job attention = {.spans = spans,
                               .rows = layer->rows,
                               .kv_heads = layer->kv_heads,
                               .group = layer->group,
                               .head_dim = layer->pool->head_dim,
                               .begin = step->begin,
                               .index = step->index,
                               .tokens = step->tokens,
                               .queries = step->queries,
                               .scale = step->scale,
                               .softcap = step->softcap,
                               .sinks = step->sinks,
                               .visible = step->visible,
                               .visible_stride = step->visible_stride,
                               .positions = positions,
                               .out = step->out,
                               .logits = job->logits,
                               .weights = weights};
    job->attention = &attention;
    ra_status status = ra_attend_run(&attention, scratch, parallel);
    if (status == RA_OK && gathers && job->floats)
        ra_run(parallel, pairs, 4, gather_heads, job);
    layer->times.attend_ns += ra_now_ns() - start;
    return status;
}

size_t ra_cpu_step_bytes(const ra_layer *layer, int64_t tokens, int64_t slots)
{
    int64_t pairs = ra_pairs(layer), d = layer->pool->head_dim;
    ra_scratch count = {0};
    int64_t floats; /* logits, and one row of floats a head */
    if (!ra_size_of(pairs, layer->group + 1, ra_pages_for(slots) * PAGE + 64, sizeof(float), &floats) ||
        !ra_scratch_take(&count, pairs, sizeof(ra_span)) || !ra_scratch_take(&count, 2 * pairs, sizeof(void *)) ||
        !ra_scratch_take(&count, floats, 1))
        return SIZE_MAX / 4;
    size_t attention = ra_attend_bytes(pairs, layer->group, d, slots, 1), many = 0;
    if (tokens > 1)
        many = ra_attend_bytes(pairs, layer->group, d, slots, tokens);
    size_t step = count.used + 256 + attention + many, cut = ra_cpu_cut_bytes(layer, slots);
    if (ra_stats_gather(layer)) {
        int64_t stored;
        if (!ra_size_of(pairs, ra_stored_floats(layer->group, slots) + 64, sizeof(float), 1, &stored))
            return SIZE_MAX / 4;
        step += (size_t)stored + (size_t)pairs * sizeof(ra_stored_weights) + 256;
        size_t anew = ra_gather_bytes(layer, slots);
        step = step > anew ? step : anew;
    }
    return step > cut ? step : cut;
}

ra_status ra_cpu_step(ra_layer *layer, const ra_step *step, ra_parallel parallel)
{
    step_job job = {.layer = layer, .step = step};
    layer->pool->scratch.used = 0;
    take_pages(layer, step);
    int64_t fresh = step->begin ? step->begin[layer->rows] : layer->rows * step->tokens;
    int64_t grain = ra_max(1, 32768 * layer->rows / ra_max(1, fresh * layer->pool->head_dim));
    ra_run(parallel, ra_pairs(layer), grain, append_heads, &job);
    for (int64_t row = 0; row < layer->rows; row++)
        layer->tokens[row] += fresh_of(step, row);
    observe(layer, step);
    ra_status status = step->out.data ? attend(&job, parallel) : RA_OK;
    return status == RA_OK && ra_stats_gather(layer) ? ra_gather_anew(layer, step, parallel) : status;
}
