/* Weights of a prompt's queries, and of those of steps of several tokens: a tile of queries of one head at a time, so that
 * memory grows with the slots alone. Each query is added by itself, in order: results do not depend on how a prompt was
 * split into steps, but for rounding. */
#include "gather.h"

#include <math.h>
#include <string.h>

#include "attend.h"
#include "window_attention.h"

enum { HEADS_AT_ONCE = 8 };

static int64_t fresh_of(const ra_step *step, int64_t row)
{
    return step->begin ? step->begin[row + 1] - step->begin[row] : step->tokens;
}

static bool is_prompt(const ra_step *step, int64_t row) { return step->prompt && step->prompt[row]; }

bool ra_attention_gathers(const ra_layer *layer, const ra_step *step, int64_t row)
{
    return step->out.data && fresh_of(step, row) == 1 &&
           (!is_prompt(step, row) || layer->stats.prompt == RA_PROMPT_ALL);
}

/* Scratch of one head. */
typedef struct room {
    float *parts, *floats, *queries; /* queries [rows][D], then a factor of each */
} room;

/* Queries that stand side by side in `parts`. */
static int64_t most_rows(const ra_layer *layer) { return ra_max(layer->group, RA_TILE_ROWS); }

static room take_room(const ra_layer *layer, int64_t slots, ra_scratch *scratch)
{
    int64_t entries = ra_pages_for(slots) * PAGE;
    return (room){.parts = ra_scratch_take(scratch, entries, (size_t)most_rows(layer) * sizeof(float)),
                  .floats = ra_scratch_take(scratch, entries, sizeof(float)),
                  .queries = ra_scratch_take(scratch, most_rows(layer) * (layer->pool->head_dim + 1), sizeof(float))};
}

size_t ra_gather_bytes(const ra_layer *layer, int64_t slots)
{
    int64_t bytes, pairs = ra_min(HEADS_AT_ONCE, ra_pairs(layer));
    ra_scratch count = {0};
    if (!ra_size_of(ra_pages_for(slots) * PAGE, most_rows(layer) + 1, sizeof(float), pairs, &bytes))
        return SIZE_MAX / 4;
    for (int64_t i = 0; i < pairs; i++)
        (void)take_room(layer, slots, &count);
    ra_scratch_take(&count, pairs, sizeof(room));
    return count.used + 256;
}

typedef struct gather_job {
    ra_layer *layer;
    const ra_step *step;
    int64_t first; /* of the heads that are worked on now */
    room *rooms;
} gather_job;

/* One head's queries that are taken in: the row's newest `count` tokens. */
typedef struct head {
    ra_layer *layer;
    const ra_step *step;
    ra_span span;
    int64_t pair, row, number, tokens, count;
    bool kept; /* they come from the layer's ring, not from the step */
} head;

/* Token i of the head's queries. */
static int64_t limit_of(const head *h, int64_t i) { return h->span.slots - (h->count - 1 - i); }

/* Its place among the step's new tokens, negative if it came before. */
static int64_t fresh_place(const head *h, int64_t i) { return i - h->count + fresh_of(h->step, h->row); }

static void load_query(const head *h, int64_t i, int64_t g, float *to)
{
    const ra_layer *layer = h->layer;
    size_t d = (size_t)h->span.d;
    int64_t query_head = h->number * layer->group + g;
    if (h->kept) {
        memcpy(to, ra_query(layer, h->row, h->tokens - h->count + i) + query_head * h->span.d, d * sizeof *to);
    } else {
        const ra_tokens *q = &h->step->queries;
        int64_t at = fresh_place(h, i), place = h->step->index ? h->step->index[h->step->begin[h->row] + at] : at;
        int64_t element = h->row * q->stride_row + query_head * q->stride_head + place * q->stride_token;
        ra_kernels_get()->page[q->dtype].to_float((const char *)q->data + element * (int64_t)ra_dtype_size(q->dtype), d,
                                                  to);
    }
    ra_kernels_get()->scale(to, d, layer->scale);
}

/* Hides what the step's mask hides from token i, of a page's 16 logits. */
static void hide(const head *h, int64_t i, int64_t page, float *logits)
{
    const ra_step *step = h->step;
    int64_t at = fresh_place(h, i), limit = limit_of(h, i);
    if (!step->visible || at < 0)
        return;
    int64_t token = (step->begin ? step->begin[h->row] : h->row * step->tokens) + at;
    const uint8_t *visible = step->visible + token * step->visible_stride;
    const int32_t *positions = ra_positions_of(h->layer, h->pair) + page * PAGE;
    for (int64_t lane = 0; lane < PAGE && page * PAGE + lane < limit; lane++)
        if (!visible[positions[lane]])
            logits[lane] = -INFINITY;
}

/* Softmaxes of rows [0, m) of a tile over the pages of its last token: their numerators to parts [pages][m][PAGE], what
 * they are divided by to factors. Row i is query (first + i) % group of token (first + i) / group. */
static void softmax_rows(const head *h, const float *queries, int64_t first, int64_t m, float *parts, float *factors)
{
    const ra_layer *layer = h->layer;
    const ra_kernels *kernels = ra_kernels_get();
    float top[RA_TILE_ROWS], sums[RA_TILE_ROWS * PAGE] = {0}, shrink[RA_TILE_ROWS];
    int64_t pages = ra_pages_for(limit_of(h, (first + m - 1) / layer->group));
    for (int64_t i = 0; i < m; i++)
        top[i] = -INFINITY;
    for (int64_t page = 0; page < pages; page++) {
        float *p = parts + page * m * PAGE;
        h->span.kernels->qk(queries, (size_t)m, ra_span_k(&h->span, page), (size_t)h->span.d, NULL, p);
        ra_softcap(p, m * PAGE, layer->softcap);
        for (int64_t i = 0; i < m; i++) {
            int64_t token = (first + i) / layer->group, seen = ra_min(PAGE, limit_of(h, token) - page * PAGE);
            hide(h, token, page, p + i * PAGE);
            if (seen > 0) {
                float high = kernels->max(p + i * PAGE, (size_t)seen);
                top[i] = high > top[i] ? high : top[i];
            }
        }
    }
    for (int64_t page = 0; page < pages; page++) {
        size_t visible[RA_TILE_ROWS];
        for (int64_t i = 0; i < m; i++)
            visible[i] = (size_t)ra_max(0, ra_min(PAGE, limit_of(h, (first + i) / layer->group) - page * PAGE));
        kernels->softmax_page(parts + page * m * PAGE, (size_t)m, visible, top, sums, shrink);
    }
    for (int64_t i = 0; i < m; i++) {
        float sum = 0, own = 1, sink = layer->sinks[h->number * layer->group + (first + i) % layer->group];
        for (int64_t lane = 0; lane < PAGE; lane++)
            sum += sums[i * PAGE + lane];
        if (sink > -INFINITY)
            own = ra_add_sink(sink, &top[i], &sum);
        factors[i] = sum > 0 ? own / sum : 0;
    }
}

/* Tokens [i, i + count) of the head: those that one tile of queries takes, or one whose group takes several. */
static void add_tokens(const head *h, int64_t i, int64_t count, int64_t cut_in, const room *r)
{
    ra_layer *layer = h->layer;
    int64_t group = layer->group, rows = count * group, height = ra_tile_rows(h->span.d), d = h->span.d;
    float *factors = r->queries + most_rows(layer) * d;
    for (int64_t q = 0; q < rows; q++)
        load_query(h, i + q / group, q % group, r->queries + q * d);
    for (int64_t first = 0; first < rows; first += height)
        softmax_rows(h, r->queries + first * d, i * group + first, ra_min(height, rows - first),
                     r->parts + first * ra_pages_for(limit_of(h, i)) * PAGE, factors + first);
    for (int64_t k = 0; k < count; k++) {
        int64_t slots = limit_of(h, i + k);
        const ra_weights weights = {.parts = r->parts + k * group * PAGE,
                                    .factors = factors + k * group,
                                    .slots = slots,
                                    .group = group,
                                    .height = height,
                                    .stride = rows,
                                    .chunk_pages = ra_pages_for(slots)};
        bool last = i + k == h->count - 1;
        ra_stats_add(layer, h->pair, last ? cut_in : -1, &weights, h->tokens - h->count + i + k, r->floats);
    }
}

static void gather_head(const gather_job *job, int64_t pair, const room *r)
{
    ra_layer *layer = job->layer;
    const ra_step *step = job->step;
    int64_t row = pair / layer->kv_heads, fresh = fresh_of(step, row);
    bool prompt = is_prompt(step, row);
    head h = {.layer = layer,
              .step = step,
              .span = ra_span_of(layer, pair),
              .pair = pair,
              .row = row,
              .number = pair % layer->kv_heads,
              .tokens = layer->tokens[row],
              .count = fresh};
    if (!fresh || ra_attention_gathers(layer, step, row))
        return;
    if (prompt && layer->stats.prompt != RA_PROMPT_ALL) {
        ra_stats_restart(layer, pair);
        h.kept = true;
        h.count = layer->stats.prompt == RA_PROMPT_WINDOW ? layer->q_end[row] - layer->q_begin[row] : 0;
    }
    int64_t at_once = ra_max(1, ra_tile_rows(h.span.d) / layer->group);
    for (int64_t i = 0; i < h.count; i += at_once)
        add_tokens(&h, i, ra_min(at_once, h.count - i), step->cut_in && !step->visible ? step->cut_in[row] : -1, r);
}

static void gather_heads(int64_t begin, int64_t end, void *context)
{
    const gather_job *job = context;
    for (int64_t i = begin; i < end; i++)
        gather_head(job, job->first + i, &job->rooms[i]);
}

ra_status ra_gather_anew(ra_layer *layer, const ra_step *step, ra_parallel parallel)
{
    int64_t pairs = ra_pairs(layer), heads = ra_min(HEADS_AT_ONCE, pairs), start = ra_now_ns();
    bool any = false;
    for (int64_t row = 0; row < layer->rows; row++)
        any |= fresh_of(step, row) && !ra_attention_gathers(layer, step, row);
    if (!any)
        return RA_OK;
    ra_scratch *scratch = &layer->pool->scratch;
    scratch->used = 0;
    gather_job job = {.layer = layer, .step = step, .rooms = ra_scratch_take(scratch, heads, sizeof *job.rooms)};
    for (int64_t i = 0; job.rooms && i < heads; i++) {
        job.rooms[i] = take_room(layer, ra_most_slots(layer), scratch);
        if (!job.rooms[i].parts || !job.rooms[i].floats || !job.rooms[i].queries)
            return RA_ERR_NO_MEMORY;
    }
    if (!job.rooms)
        return RA_ERR_NO_MEMORY;
    for (job.first = 0; job.first < pairs; job.first += heads)
        ra_run(parallel, ra_min(heads, pairs - job.first), 1, gather_heads, &job);
    layer->times.attend_ns += ra_now_ns() - start;
    return RA_OK;
}
