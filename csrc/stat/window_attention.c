/* The newest `window` queries before a cut are those of the last `window` decoded tokens. Which tokens will then count as
 * older is known at each of these steps, so that each query's softmax over them can be taken on the spot. */
#include "window_attention.h"

#include <math.h>
#include <string.h>

enum { ATTENTION, MASS, FIELDS }; /* columns */

typedef struct state {
    int64_t queries, older; /* that `attention` sums up, and its length */
    int64_t mass_slots;     /* length of `mass` */
    int64_t end;            /* tokens that the row had been given when they were gathered */
} state;

static size_t head_bytes(int64_t head_dim)
{
    (void)head_dim;
    return sizeof(state);
}

static state *state_of(const ra_layer *layer, int64_t pair)
{
    return ra_state_of(layer, RA_STAT_WINDOW_ATTENTION, pair);
}

static float *column(const ra_layer *layer, int field, int64_t pair)
{
    return ra_column_of(layer, RA_STAT_WINDOW_ATTENTION, field, pair);
}

/* Tokens that will be older than the window at the cut. */
static int64_t older_then(const ra_layer *layer, int64_t pair, int64_t cut_in)
{
    return layer->slots[pair] + cut_in - layer->window;
}

/* Whether the queries gathered so far are the ones just before this one, for the same cut. */
static bool continues(const ra_layer *layer, int64_t pair, int64_t cut_in)
{
    const state *s = state_of(layer, pair);
    return s->queries && s->end == layer->tokens[pair / layer->kv_heads] - 1 &&
           s->queries == layer->window - 1 - cut_in && s->older == older_then(layer, pair, cut_in);
}

static bool wants(const ra_layer *layer, int64_t pair, int64_t cut_in)
{
    if (cut_in < 0 || cut_in >= layer->window || older_then(layer, pair, cut_in) < 1)
        return false;
    return cut_in == 0 || cut_in == layer->window - 1 || continues(layer, pair, cut_in);
}

/* Softmax over the older tokens of the maximum over the group, added to the sum. */
static void add_attention(const ra_layer *layer, int64_t pair, const float *logits, int64_t stride, float *row)
{
    state *s = state_of(layer, pair);
    float *sum = column(layer, ATTENTION, pair);
    memcpy(row, logits, (size_t)s->older * sizeof *row);
    for (int64_t g = 1; g < layer->group; g++)
        for (int64_t i = 0; i < s->older; i++)
            row[i] = logits[g * stride + i] > row[i] ? logits[g * stride + i] : row[i];
    ra_softmax(row, s->older, -INFINITY);
    for (int64_t i = 0; i < s->older; i++)
        sum[i] = (s->queries ? sum[i] : 0) + row[i];
    s->queries++;
}

/* Mean over the group of the softmaxes of its logits, which are overwritten. */
static void mean_mass(float *logits, int64_t stride, int64_t slots, int64_t group, const float *sinks, float *out)
{
    for (int64_t g = 0; g < group; g++) {
        ra_softmax(logits + g * stride, slots, sinks ? sinks[g] : -INFINITY);
        for (int64_t i = 0; i < slots; i++)
            out[i] = (g ? out[i] : 0) + logits[g * stride + i];
    }
    ra_kernels_get()->scale(out, (size_t)slots, 1 / (float)group);
}

static void gather(ra_layer *layer, int64_t pair, int64_t cut_in, float *logits, int64_t stride, const float *sinks,
                   float *floats)
{
    state *s = state_of(layer, pair);
    bool first = cut_in == layer->window - 1;
    if (first || !continues(layer, pair, cut_in))
        *s = (state){0};
    if (first)
        s->older = older_then(layer, pair, cut_in);
    if (first || s->queries)
        add_attention(layer, pair, logits, stride, floats);
    if (cut_in == 0) {
        s->mass_slots = layer->slots[pair];
        mean_mass(logits, stride, s->mass_slots, layer->group, sinks, column(layer, MASS, pair));
    }
    s->end = layer->tokens[pair / layer->kv_heads];
}

/* Slots that move, come or go make it useless: it was for the cut that has been. */
static void forget(ra_layer *layer, int64_t pair, int64_t slots)
{
    (void)slots;
    *state_of(layer, pair) = (state){0};
}

static void move(ra_layer *layer, int64_t pair, const int32_t *kept, int64_t keep, int64_t before, int32_t *places)
{
    (void)kept, (void)keep, (void)before, (void)places;
    forget(layer, pair, 0);
}

const ra_stat ra_stat_window_attention = {
    .name = "window-attention",
    .fields = FIELDS,
    .head_bytes = head_bytes,
    .wants = wants,
    .gather = gather,
    .move = move,
    .crop = forget,
};

const float *ra_window_attention(const ra_layer *layer, int64_t pair)
{
    int64_t row = pair / layer->kv_heads;
    if (!layer->states[RA_STAT_WINDOW_ATTENTION])
        return NULL;
    const state *s = state_of(layer, pair);
    bool whole = s->queries == layer->window && s->end == layer->tokens[row] && s->older == ra_older(layer, pair) &&
                 layer->q_end[row] == layer->tokens[row] && layer->q_end[row] - layer->q_begin[row] == layer->window;
    return whole ? column(layer, ATTENTION, pair) : NULL;
}

const float *ra_window_mass(const ra_layer *layer, int64_t pair)
{
    if (!layer->states[RA_STAT_WINDOW_ATTENTION])
        return NULL;
    const state *s = state_of(layer, pair);
    bool fits = s->mass_slots && s->mass_slots == layer->slots[pair] && s->end == layer->tokens[pair / layer->kv_heads];
    return fits ? column(layer, MASS, pair) : NULL;
}

/* ---- Computed from the queries ---- */

void ra_softcap(float *x, int64_t n, float cap)
{
    for (int64_t i = 0; cap > 0 && i < n; i++)
        x[i] = cap * tanhf(x[i] / cap);
}

void ra_softmax(float *x, int64_t n, float sink)
{
    if (n < 1)
        return;
    const ra_kernels *kernels = ra_kernels_get();
    float top = kernels->max(x, (size_t)n);
    top = sink > top ? sink : top;
    float sum = kernels->exp_sum(x, (size_t)n, top);
    if (sink > -INFINITY)
        sum += expf(sink - top);
    kernels->scale(x, (size_t)n, 1 / sum);
}

/* logits[w][older]: max over the group of q.k, a page at a time. */
static void group_logits(const ra_span *span, const ra_window *window, int64_t older, float *logits)
{
    float dots[RA_TILE_ROWS * PAGE];
    int64_t d = span->d, rows = window->count * window->group;
    for (int64_t i = 0; i < window->count * older; i++)
        logits[i] = -INFINITY;
    for (int64_t start = 0; start < older; start += PAGE) {
        int64_t tokens = ra_min(PAGE, older - start);
        for (int64_t first = 0; first < rows; first += RA_TILE_ROWS) {
            int64_t m = ra_min(RA_TILE_ROWS, rows - first);
            span->kernels->qk(window->queries + first * d, (size_t)m, ra_span_k(span, start / PAGE), (size_t)d, NULL,
                              dots);
            for (int64_t i = 0; i < m; i++) {
                float *row = &logits[(first + i) / window->group * older + start];
                for (int64_t t = 0; t < tokens; t++)
                    row[t] = dots[i * PAGE + t] > row[t] ? dots[i * PAGE + t] : row[t];
            }
        }
    }
    ra_softcap(logits, window->count * older, window->softcap); /* it rises, so the maximum stays the maximum */
}

/* out[i] = max of x[i - kernel/2 .. i + kernel/2]; x has kernel/2 numbers of room on both sides and is overwritten.
 * Maxima over twice as many neighbours are taken until two of them cover the kernel, so that wide kernels cost little
 * more, and in loops that vectorise. */
static void max_pool(float *x, int64_t n, int64_t kernel, float *out)
{
    int64_t half = kernel / 2, width = 1;
    float *start = x - half;
    for (int64_t i = 0; i < half; i++)
        start[i] = x[n + i] = -INFINITY;
    for (; 2 * width <= kernel; width *= 2)
        for (int64_t i = 0; i + width < n + 2 * half; i++)
            start[i] = start[i + width] > start[i] ? start[i + width] : start[i];
    const float *later = start + kernel - width;
    for (int64_t i = 0; i < n; i++)
        out[i] = later[i] > start[i] ? later[i] : start[i];
}

size_t ra_importance_bytes(int64_t slots, int64_t window)
{
    ra_scratch count = {0};
    ra_scratch_take(&count, window * slots, sizeof(float));
    ra_scratch_take(&count, 3 * slots, sizeof(float));
    return count.used + 64;
}

ra_status ra_importance(const ra_span *span, const ra_window *window, const float *sum, int64_t older, int64_t kernel,
                        ra_scratch *scratch, float *out)
{
    if (older < 1)
        return RA_OK;
    if (window->count < 1) { /* nothing was observed: no token matters more than another */
        for (int64_t i = 0; i < older; i++)
            out[i] = 1 / (float)older;
        return RA_OK;
    }
    int64_t half = ra_min(kernel / 2, older); /* wider covers everything too */
    float *room = ra_scratch_take(scratch, older + 2 * half, sizeof *room);
    if (!room)
        return RA_ERR_NO_MEMORY;
    if (!sum) {
        float *logits = ra_scratch_take(scratch, window->count * older, sizeof *logits);
        if (!logits)
            return RA_ERR_NO_MEMORY;
        group_logits(span, window, older, logits);
        for (int64_t w = 0; w < window->count; w++) {
            ra_softmax(logits + w * older, older, -INFINITY);
            for (int64_t i = 0; w && i < older; i++)
                logits[i] += logits[w * older + i];
        }
        sum = logits;
    }
    memcpy(room + half, sum, (size_t)older * sizeof *room);
    ra_kernels_get()->scale(room + half, (size_t)older, 1 / (float)window->count);
    max_pool(room + half, older, 2 * half + 1, out);
    return RA_OK;
}

void ra_newest_mass(const ra_span *span, const ra_window *window, const float *sinks, float *logits, float *out)
{
    const float *query = window->queries + (window->count - 1) * window->group * span->d;
    for (int64_t g = 0; g < window->group; g++) {
        for (int64_t page = 0; page * PAGE < span->slots; page++)
            span->kernels->qk(query + g * span->d, 1, ra_span_k(span, page), (size_t)span->d, NULL,
                              logits + page * PAGE);
        ra_softcap(logits, span->slots, window->softcap);
        ra_softmax(logits, span->slots, sinks ? sinks[g] : -INFINITY);
        for (int64_t i = 0; i < span->slots; i++)
            out[i] = (g ? out[i] : 0) + logits[i];
    }
    ra_kernels_get()->scale(out, (size_t)span->slots, 1 / (float)window->group);
}
