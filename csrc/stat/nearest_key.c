/* Column means of the cosine matrix, and what is kept for the next time. */
#include "nearest_key.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "window_attention.h"

#define NORM_FLOOR 1e-8f
/* The sum of the unit keys is kept while tokens come and go, and computed afresh once this many times as many unit keys
 * as there are slots have been added or taken off. Each rounds off at most 16 * 2^-24 a dimension (a page's part is
 * summed in float32, the rest in float64), hence a column mean by at most 4 * 16 * 2^-24 * sqrt(D): 4e-5 at D = 128,
 * below 1e-7 in practice. */
#define DRIFT 4

enum { INVERSE, SIMILAR, COSINE, FIELDS }; /* columns */

static size_t head_bytes(int64_t head_dim) { return sizeof(ra_nearest_state) + (size_t)head_dim * sizeof(double); }

ra_nearest ra_nearest_of(const ra_layer *layer, int64_t pair)
{
    return (ra_nearest){.state = ra_state_of(layer, RA_STAT_NEAREST_KEY, pair),
                        .inverse = ra_column_of(layer, RA_STAT_NEAREST_KEY, INVERSE, pair),
                        .similar = ra_column_of(layer, RA_STAT_NEAREST_KEY, SIMILAR, pair),
                        .cosine = ra_column_of(layer, RA_STAT_NEAREST_KEY, COSINE, pair)};
}

ra_nearest ra_nearest_in(ra_scratch *scratch, int64_t slots, int64_t head_dim)
{
    int64_t entries = ra_pages_for(slots) * PAGE;
    ra_nearest made = {.state = ra_scratch_take(scratch, (int64_t)head_bytes(head_dim), 1),
                       .inverse = ra_scratch_take(scratch, entries, sizeof(float)),
                       .similar = ra_scratch_take(scratch, entries, sizeof(int32_t)),
                       .cosine = ra_scratch_take(scratch, entries, sizeof(float))};
    if (!made.state || !made.inverse || !made.similar || !made.cosine)
        return (ra_nearest){0};
    if (scratch->memory)
        memset(made.state, 0, sizeof *made.state);
    return made;
}

/* Adds weight[t] times the page's keys to the sum. */
static void add_page(ra_nearest_state *state, const ra_span *span, int64_t page, const float *weight)
{
    float part[RA_MAX_HEAD_DIM];
    memset(part, 0, (size_t)span->d * sizeof *part);
    span->kernels->weighted_sum(ra_span_k(span, page), weight, (size_t)span->d, part);
    for (int64_t c = 0; c < span->d; c++)
        state->sum[c] += (double)part[c];
}

/* The norm of a key whose squares float32 cannot hold. */
static float large_norm(const ra_span *span, int64_t slot)
{
    float key[RA_MAX_HEAD_DIM];
    double squares = 0;
    ra_span_key(span, slot, key);
    for (int64_t c = 0; c < span->d; c++)
        squares += (double)key[c] * (double)key[c];
    return (float)sqrt(squares);
}

/* Inverse norms of the new keys, and their part of the sum; false if a norm overflows. */
static bool add_new(ra_nearest *nearest, const ra_span *span)
{
    ra_nearest_state *state = nearest->state;
    bool finite = true;
    for (int64_t page = state->slots / PAGE; page * PAGE < span->slots; page++) {
        float squares[PAGE], weight[PAGE] = {0};
        span->kernels->square_norms(ra_span_k(span, page), (size_t)span->d, squares);
        for (int64_t t = 0; t < ra_min(PAGE, span->slots - page * PAGE); t++) {
            int64_t slot = page * PAGE + t;
            if (slot < state->slots)
                continue;
            float norm = squares[t] <= FLT_MAX ? sqrtf(squares[t]) : large_norm(span, slot);
            nearest->inverse[slot] = weight[t] = 1 / (norm + NORM_FLOOR);
            finite &= norm <= FLT_MAX;
        }
        add_page(state, span, page, weight);
    }
    state->moved += span->slots - state->slots;
    return finite;
}

static void sum_afresh(ra_nearest *nearest, const ra_span *span)
{
    memset(nearest->state->sum, 0, (size_t)span->d * sizeof *nearest->state->sum);
    for (int64_t page = 0; page * PAGE < span->slots; page++) {
        float weight[PAGE] = {0};
        memcpy(weight, nearest->inverse + page * PAGE,
               (size_t)ra_min(PAGE, span->slots - page * PAGE) * sizeof *weight);
        add_page(nearest->state, span, page, weight);
    }
    nearest->state->moved = 0;
}

/* ---- What happens when slots go or move ---- */

static void leave(ra_layer *layer, int64_t pair, int64_t page, const bool *goes)
{
    ra_nearest nearest = ra_nearest_of(layer, pair);
    ra_span span = ra_span_of(layer, pair);
    float weight[PAGE] = {0};
    int64_t count = 0;
    for (int64_t t = 0; t < PAGE && page * PAGE + t < nearest.state->slots; t++)
        if (goes[t]) {
            weight[t] = -nearest.inverse[page * PAGE + t];
            count++;
        }
    if (count)
        add_page(nearest.state, &span, page, weight);
    nearest.state->moved += count;
}

static void move(ra_layer *layer, int64_t pair, const int32_t *kept, int64_t keep, int64_t before, int32_t *places)
{
    (void)before;
    ra_nearest nearest = ra_nearest_of(layer, pair);
    int64_t cached = nearest.state->slots, survivors = 0;
    if (!cached)
        return;
    for (int64_t slot = 0; slot < cached; slot++) { /* places[slot]: survivors before it */
        while (survivors < keep && kept[survivors] < slot)
            survivors++;
        places[slot] = (int32_t)survivors;
    }
    while (survivors < keep && kept[survivors] < cached)
        survivors++;
    places[cached] = (int32_t)survivors;
    for (int64_t i = 0; i < survivors; i++) {
        int32_t similar = nearest.similar[kept[i]];
        if (similar >= 0)
            similar = places[similar] < keep && kept[places[similar]] == similar ? places[similar]
                                                                                 : ra_similar_before(places[similar]);
        else if (similar != RA_NONE_SIMILAR)
            similar = ra_similar_before(places[ra_similar_bound(similar)]);
        nearest.similar[i] = similar; /* i <= kept[i]: nothing that is still to be read */
        nearest.cosine[i] = nearest.cosine[kept[i]];
        nearest.inverse[i] = nearest.inverse[kept[i]];
    }
    nearest.state->slots = survivors;
}

static void crop(ra_layer *layer, int64_t pair, int64_t slots)
{
    ra_nearest_state *state = ra_state_of(layer, RA_STAT_NEAREST_KEY, pair);
    if (state->slots > slots || !slots)
        memset(state, 0, head_bytes(layer->pool->head_dim)); /* the sum holds keys that are gone */
}

static int64_t cached(const ra_layer *layer, int64_t pair)
{
    const ra_nearest_state *state = ra_state_of(layer, RA_STAT_NEAREST_KEY, pair);
    return state->slots;
}

const ra_stat ra_stat_nearest_key = {
    .name = "nearest-key",
    .fields = FIELDS,
    .head_bytes = head_bytes,
    .leave = leave,
    .move = move,
    .crop = crop,
    .cached = cached,
};

/* ---- Redundancy ---- */

/* Sum over each column of its zeroed entries. */
static void zeroed_entries(const ra_nearest *nearest, const ra_span *span, double *removed)
{
    float first[RA_MAX_HEAD_DIM], dots[PAGE];
    ra_span_key(span, 0, first);
    ra_kernels_get()->scale(first, (size_t)span->d, nearest->inverse[0]);
    memset(removed, 0, (size_t)span->slots * sizeof *removed);
    for (int64_t page = 0; page * PAGE < span->slots; page++) {
        bool have_dots = false;
        for (int64_t i = page * PAGE; i < ra_min(page * PAGE + PAGE, span->slots); i++) {
            if (nearest->similar[i] >= 0) {
                removed[nearest->similar[i]] += (double)nearest->cosine[i];
            } else if (i) { /* no similar key: entry 0, which for row 0 is the diagonal */
                if (!have_dots)
                    span->kernels->qk(first, 1, ra_span_k(span, page), (size_t)span->d, NULL, dots);
                have_dots = true;
                removed[0] += (double)(dots[i % PAGE] * nearest->inverse[i]);
            }
        }
    }
}

/* Forgets what does not fit any more; a state that knows nothing has a sum of zeros. */
static void prepare(ra_nearest_state *state, const ra_span *span, float threshold)
{
    if (!state->slots || state->slots > span->slots || state->threshold != threshold)
        memset(state, 0, head_bytes(span->d));
    state->threshold = threshold;
}

size_t ra_redundancy_bytes(int64_t slots, int64_t head_dim)
{
    ra_scratch count = {0};
    ra_scratch_take(&count, slots, sizeof(double));
    return count.used + 64 + ra_find_similar_bytes(slots, head_dim);
}

ra_status ra_redundancy(const ra_span *span, ra_nearest *nearest, float threshold, ra_scratch *scratch, float *out)
{
    int64_t n = span->slots;
    if (n < 1)
        return RA_OK;
    double *removed = ra_scratch_take(scratch, n, sizeof *removed);
    if (!removed)
        return RA_ERR_NO_MEMORY;
    ra_nearest_state *state = nearest->state;
    prepare(state, span, threshold);
    ra_status status = add_new(nearest, span) ? RA_OK : RA_ERR_NOT_FINITE;
    if (status == RA_OK && state->moved > DRIFT * n)
        sum_afresh(nearest, span);
    if (status == RA_OK)
        status = ra_find_similar(nearest, span, threshold, scratch, out);
    if (status != RA_OK) {
        state->slots = 0; /* the sum holds keys that `slots` does not count */
        return status;
    }
    state->slots = n;
    zeroed_entries(nearest, span, removed);
    for (int64_t j = 0; j < n; j++) {
        double inverse = (double)nearest->inverse[j];
        double self = 1 - (double)NORM_FLOOR * inverse; /* |k| / (|k| + floor) */
        out[j] = (float)(((double)out[j] * inverse - self * self - removed[j]) / (double)n);
    }
    ra_softmax(out, n, -INFINITY);
    return RA_OK;
}
