/* What attention gathers of each slot (stat/accumulated.c, stat/recurrence.c), after the step's attention.
 *
 * Logits of a row's one new token attention may have stored, with what makes weights of them. Others are computed once more, in
 * tiles of tokens, so that memory grows with the slots alone; then come their softmaxes. Last the columns, a slot a thread,
 * query by query in order. What becomes of a query depends neither on its tile nor on other rows, so that a row gives the same
 * bits in any batch. */
#include "score.cuh"

constexpr int TILE_QUERIES = 256;               /* of a head in a tile, where its token has no more */
constexpr size_t TILE_BYTES = (size_t)128 << 20; /* of logits, likewise */

enum which_rows { ALL, STORED, OTHERS }; /* STORED: those whose logits attention has stored */

struct gather_job {
    ra_cuda_layer l;
    ra_cuda_step s;
    ra_cuda_gathering how;
    which_rows which;
    int first, tokens; /* of the tile, among the queries of a row that are taken in */
    int queries;       /* of a head: room */
    int64_t stride;    /* S of logits */
    int32_t *counts;   /* [R][2] queries of a head; newest slots that none of them sees */
    float *scaled_queries;      /* [R, H, queries, D], scaled by powers of two */
    float *scales;     /* [R, H, queries] by which logits are brought back */
    float *ends;       /* [R, H, queries][2] tops, and one over the sums */
    float *logits;     /* [R, H, queries, S]; -INFINITY where the query does not see the slot */
};

/* A row's queries that are taken in: its newest `count` tokens'. */
struct taking {
    int fresh, count;
    bool kept; /* they come from the ring, not from the step */
    bool anew; /* what was known of its slots is forgotten */
};
RA_DEVICE taking taking_of(const gather_job &j, int row)
{
    taking t = {fresh_of(j.s, row), 0, false, false};
    t.count = t.fresh;
    if (t.fresh && j.how.prompt && j.how.prompt[row] && j.how.config.prompt != RA_PROMPT_ALL) {
        t.kept = t.anew = true;
        t.count = j.how.config.prompt == RA_PROMPT_WINDOW ? j.l.q_end[row] - j.l.q_begin[row] : 0;
    }
    if (j.which != ALL && (j.which == STORED) != (t.fresh == 1 && !t.anew))
        t.fresh = t.count = 0;
    return t;
}
/* Queries of a head in the tile. */
RA_DEVICE int queries_here(const gather_job &j, const taking &t)
{
    return most(0, least(j.tokens, t.count - j.first)) * j.l.group;
}
/* Number of a query's token among the step's new ones of its row; negative: it came before. */
RA_DEVICE int fresh_place(const taking &t, int token) { return t.fresh - t.count + token; }
RA_DEVICE int number_of(const gather_job &j, int row, int place)
{
    return (j.s.begin ? j.s.begin[row] : row * j.s.tokens) + place;
}

/* Grid: heads, tokens of a tile. A warp takes a query. */
RA_KERNEL(THREADS, 4) load_queries(gather_job j)
{
    const int pair = blockIdx.x, row = pair / j.l.kv_heads, head = pair % j.l.kv_heads, d = j.l.head_dim;
    const int lane = threadIdx.x % 32, group = j.l.group;
    const taking t = taking_of(j, row);
    const int here = queries_here(j, t), token = j.first + blockIdx.y;
    if (head == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
        j.counts[2 * row] = here;
        j.counts[2 * row + 1] = t.count - j.first - here / group;
    }
    if ((int)blockIdx.y * group >= here)
        return;
    for (int g = threadIdx.x / 32; g < group; g += WARPS) {
        const int64_t to = (int64_t)pair * j.queries + blockIdx.y * group + g;
        const float *ring = query_of(j.l, row, j.l.tokens[row] - t.count + token, head) + g * d;
        const ra_tokens &q = j.s.queries;
        const char *from = (const char *)q.data;
        if (!t.kept) {
            const int at = fresh_place(t, token), place = j.s.index ? j.s.index[number_of(j, row, at)] : at;
            from += (row * q.stride_row + (head * group + g) * q.stride_head + place * q.stride_token) * size_of(q.dtype);
        }
        float *out = j.scaled_queries + to * d, largest = 0;
        for (int c = lane; c < d; c += 32) {
            out[c] = t.kept ? ring[c] : load_element(from, c, q.dtype);
            largest = fmaxf(largest, fabsf(out[c]));
        }
        for (int mask = 16; mask; mask /= 2)
            largest = fmaxf(largest, shuffle_xor(largest, mask));
        /* Into the range of float16 each by itself: as a whole head's it would depend on the others of the tile. */
        int by = 0;
        if (j.l.format == RA_F16 && largest > 0)
            by = most(-126, least(126, 127 + 14 - (int)(as_bits(largest) >> 23)));
        const float up = as_float((uint32_t)(127 + by) << 23);
        for (int c = lane; c < d && by; c += 32)
            out[c] *= up;
        if (lane == 0)
            j.scales[to] = as_float((uint32_t)(127 - by) << 23);
    }
}

/* Grid: heads, queries of a tile. */
RA_KERNEL(THREADS, 4) softmax_ends(gather_job j)
{
    const shared<float> scratch = shared_at<float>(0);
    const int pair = blockIdx.x, row = pair / j.l.kv_heads, query = blockIdx.y, group = j.l.group;
    const taking t = taking_of(j, row);
    if (query >= queries_here(j, t))
        return;
    const int token = j.first + query / group, sees = j.l.slots[pair] - (t.count - 1 - token),
              place = fresh_place(t, token);
    const int64_t at = (int64_t)pair * j.queries + query;
    const uint8_t *visible =
        j.s.visible && place >= 0 ? j.s.visible + number_of(j, row, place) * j.s.visible_stride : 0;
    const int32_t *positions = positions_of(j.l, pair);
    float *logits = j.logits + at * j.stride;
    const float back = j.scales[at], sink = j.l.sinks[pair % j.l.kv_heads * group + query % group];
    float top = sink, sum = 0;
    for (int i = threadIdx.x; i < sees; i += THREADS) {
        const bool shown = !visible || visible[positions[i]];
        logits[i] = shown ? softcapped(logits[i] * back * j.s.scale, j.s.softcap) : -INFINITY;
        top = fmaxf(top, logits[i]);
    }
    top = block_max(top, scratch);
    for (int i = threadIdx.x; i < sees; i += THREADS) /* the thread's own */
        sum += logits[i] == -INFINITY ? 0 : expf(logits[i] - top);
    sum = block_sum(sum, scratch);
    sum += sink == -INFINITY ? 0 : expf(sink - top);
    if (threadIdx.x == 0) {
        j.ends[2 * at] = top;
        j.ends[2 * at + 1] = sum == 0 ? 0 : 1 / sum; /* no number stays one */
    }
}

/* Grid: heads, slots. */
RA_KERNEL(THREADS, 4) fill_columns(gather_job j)
{
    const int pair = blockIdx.x, row = pair / j.l.kv_heads, n = j.l.slots[pair], group = j.l.group;
    const int i = blockIdx.y * THREADS + threadIdx.x;
    const taking t = taking_of(j, row);
    const ra_stat_config &config = j.how.config;
    if (i >= n || !t.fresh)
        return;
    float *sums = j.l.accumulated ? j.l.accumulated + pair * entries_of(j.l) : 0;
    int32_t *lasts = j.l.recurrence ? j.l.recurrence + 2 * pair * entries_of(j.l) : 0;
    float sum = 0;
    int last = 0, gap = 0;
    if (j.first == 0 && (t.anew || i >= n - t.fresh)) {
        const int32_t *positions = positions_of(j.l, pair);
        last = positions[i] - config.birth;
        if (t.anew && config.birth && config.prompt == RA_PROMPT_NONE)
            last = positions[n - 1];
    } else {
        sum = sums ? sums[i] : 0;
        last = lasts ? lasts[i] : 0;
        gap = lasts ? lasts[entries_of(j.l) + i] : 0;
    }
    const int here = queries_here(j, t) / group;
    const int64_t at = (int64_t)pair * j.queries;
    for (int token = 0; token < here; token++) {
        const int later = t.count - 1 - (j.first + token);
        if (i >= n - later)
            continue;
        float all = 0, largest = 0;
        for (int g = 0; g < group; g++) {
            const int64_t query = at + token * group + g;
            const float w = softmaxed(j.logits[query * j.stride + i], j.ends + 2 * query);
            all += w;
            largest = fmaxf(largest, w);
        }
        sum = config.decay * sum + all;
        const int now = j.l.tokens[row] - 1 - later;
        if (largest >= config.activation / (config.relative ? (float)(n - later) : 1)) {
            gap = most(gap, now - last);
            last = now;
        }
    }
    if (sums)
        sums[i] = sum;
    if (lasts) {
        lasts[i] = last;
        lasts[entries_of(j.l) + i] = gap;
    }
}

/* ---- Launches ---- */

/* Room: no less for more tokens or longer heads. */
static size_t lay(gather_job *j, void *memory)
{
    char *at = (char *)memory;
    size_t used = 0;
    const size_t pairs = (size_t)j->l.rows * j->l.kv_heads, d = j->l.head_dim, group = j->l.group;
    j->stride = list_room(j->s.most_slots);
    const size_t token = pairs * group * j->stride * sizeof(float), room = token > TILE_BYTES ? token : TILE_BYTES;
    const int some = least(most(1, j->how.tokens), most(1, TILE_QUERIES / (int)group));
    const size_t most_queries = some * group, bytes = some * token < room ? some * token : room;
    j->tokens = (int)(bytes / token);
    j->queries = j->tokens * (int)group;
#define RA_LAY(field, type, size)                                                                                      \
    j->field = (type *)(at + used);                                                                                    \
    used += aligned(size);
    RA_LAY(counts, int32_t, 2 * j->l.rows * sizeof(int32_t))
    RA_LAY(scaled_queries, float, pairs *most_queries *d * sizeof(float))
    RA_LAY(scales, float, pairs *most_queries * sizeof(float))
    RA_LAY(ends, float, 2 * pairs * most_queries * sizeof(float))
    RA_LAY(logits, float, bytes)
#undef RA_LAY
    return used;
}

/* With the logits there. any: their softmaxes are not. */
static int weigh_tile(const gather_job &j, bool any, void *stream)
{
    const unsigned pairs = j.l.rows * j.l.kv_heads, parts = (unsigned)((j.stride + THREADS - 1) / THREADS);
    const int error = any ? RA_LAUNCH(softmax_ends, dim3(pairs, j.queries), THREADS, 64, stream, j) : 0;
    return error ? error : RA_LAUNCH(fill_columns, dim3(pairs, parts), THREADS, 0, stream, j);
}

static int take_stored(gather_job j, void *stream)
{
    j.which = STORED;
    j.tokens = 1;
    j.queries = j.l.group;
    j.stride = list_room(j.s.most_slots);
    j.logits = j.s.logits;
    j.ends = j.logits + (int64_t)j.l.rows * j.l.kv_heads * j.queries * j.stride;
    return weigh_tile(j, false, stream);
}

extern "C" size_t ra_cuda_gather_bytes(const ra_cuda_layer *layer, const ra_cuda_step *step, const ra_cuda_gathering *how)
{
    gather_job j = {};
    j.l = *layer, j.s = *step, j.how = *how;
    return lay(&j, 0);
}

extern "C" int ra_cuda_gather(const ra_cuda_layer *layer, const ra_cuda_step *step, const ra_cuda_gathering *how,
                              void *scratch, void *stream)
{
    const unsigned pairs = layer->rows * layer->kv_heads;
    gather_job j = {};
    j.l = *layer, j.s = *step, j.how = *how;
    if (!pairs || step->tokens < 1)
        return 0;
    int error = step->logits ? take_stored(j, stream) : 0;
    if (error || how->tokens < 0)
        return error;
    j.which = step->logits ? OTHERS : ALL;
    lay(&j, scratch);
    logits_job keys = {*layer, 0, {}, 1, 0, 0, 0, false, false, j.scaled_queries, j.counts};
    keys.s.stride = j.stride, keys.s.queries = j.queries, keys.s.logits = j.logits;
    keys.s.parts = (int32_t)((j.stride + BLOCK_SLOTS - 1) / BLOCK_SLOTS);
    do { /* once at least: new slots get their first entries */
        if (how->tokens > 0)
            error = RA_LAUNCH(load_queries, dim3(pairs, j.tokens), THREADS, 0, stream, j);
        if (how->tokens > 0 && !error)
            error = ra_cuda_logits(keys, stream);
        if (!error)
            error = weigh_tile(j, how->tokens > 0, stream);
        j.first += j.tokens;
    } while (!error && j.first < how->tokens);
    return error;
}
