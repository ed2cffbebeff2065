/* Torch's operators: pages and keys that the caller laid out become a layer in scratch, then the layer's kernels run. */
#include "operators.h"

#include "append.cuh"
#include "score.cuh"

struct paged_job {
    ra_paged g;
    ra_cuda_layer l;  /* in scratch, as are the rest */
    void **addresses; /* of pages, and of the blank one */
    char *blank;      /* a page whose keys are 0 and whose values are no numbers: what is wrong is seen in the answer */
    uint32_t *tickets;
    void *rest;
    uint32_t *fault;
    size_t ticket_count, bytes;
};

RA_DEVICE void flag_fault(uint32_t *fault, int byte) { ((volatile uint8_t *)fault)[byte] = 1; }

RA_HOST_DEVICE size_t page_bytes_of(const ra_paged &g)
{
    return (size_t)(2 * PAGE * g.head_dim) * (size_t)size_of(g.dtype);
}

/* Pages of a head's list: a head whose length is wrong gets one of its own. */
static int list_pages(const ra_paged &g)
{
    return most((int)g.table_pages, pages_for((int)g.tokens));
}

static ra_cuda_step step_of(const ra_paged &g)
{
    ra_cuda_step s = {};
    s.tokens = (int32_t)g.tokens;
    s.most_slots = list_pages(g) * PAGE;
    return s;
}

static paged_job lay_attend(const ra_paged &g, char *memory)
{
    paged_job x = {};
    size_t used = 0;
    const size_t pairs = (size_t)(g.rows * g.kv_heads);
    x.g = g;
    x.l.format = g.dtype, x.l.rows = (int32_t)g.rows, x.l.kv_heads = (int32_t)g.kv_heads;
    x.l.group = (int32_t)(g.query_heads / g.kv_heads), x.l.head_dim = (int32_t)g.head_dim;
    x.l.pages = list_pages(g);
    const ra_cuda_step step = step_of(g);
    x.ticket_count = ra_cuda_attend_tickets(&x.l, &step);
#define RA_TAKE(field, type, count)                                                                                    \
    field = (type *)(memory + used);                                                                                   \
    used += aligned((size_t)(count) * sizeof(type));
    RA_TAKE(x.l.pool, ra_cuda_pool, 1)
    RA_TAKE(x.addresses, void *, g.page_count + 1)
    RA_TAKE(x.blank, char, page_bytes_of(g))
    RA_TAKE(x.l.slots, int32_t, pairs)
    RA_TAKE(x.l.table, int32_t, pairs * (size_t)x.l.pages)
    RA_TAKE(x.tickets, uint32_t, x.ticket_count)
    RA_TAKE(x.rest, char, ra_cuda_attend_bytes(&x.l, &step))
    x.l.positions = x.l.table; /* without a mask nobody reads them */
    x.bytes = used;
    return x;
}

/* A head's length and list, checked: what is wrong leads to the blank page. */
RA_DEVICE void lay_head(const paged_job &x, int pair)
{
    const ra_paged &g = x.g;
    const int length = g.lengths[pair], M = (int)g.table_pages, T = (int)g.tokens;
    const bool fits = length >= T && length <= M * PAGE;
    const int used = pages_for(fits ? length : T);
    bool exist = true;
    for (int i = threadIdx.x; i < x.l.pages; i += THREADS) {
        int32_t id = (int32_t)g.page_count;
        if (fits && i < used) {
            const int32_t given = g.table[(int64_t)pair * M + i];
            exist &= given >= 0 && given < g.page_count;
            id = given >= 0 && given < g.page_count ? given : id;
        }
        x.l.table[(int64_t)pair * x.l.pages + i] = id;
    }
    if (threadIdx.x == 0)
        x.l.slots[pair] = fits ? length : T;
    if (threadIdx.x == 0 && !fits)
        flag_fault(x.fault, RA_FAULT_LENGTHS);
    if (!exist)
        flag_fault(x.fault, RA_FAULT_TABLE);
}

/* A block a head; all of them the rest. */
RA_KERNEL(THREADS, 4) lay_pages(paged_job x)
{
    lay_head(x, blockIdx.x);
    const int64_t first = (int64_t)blockIdx.x * THREADS + threadIdx.x, step = (int64_t)gridDim.x * THREADS;
    const int64_t half = PAGE * x.g.head_dim;
    for (int64_t i = first; i <= x.g.page_count; i += step)
        x.addresses[i] = i < x.g.page_count ? (char *)x.g.pages + i * (int64_t)page_bytes_of(x.g) : x.blank;
    for (int64_t i = first; i < 2 * half; i += step)
        store_element(x.blank, i, x.g.dtype, i < half ? 0 : NAN);
    for (int64_t i = first; i < (int64_t)x.ticket_count; i += step)
        x.tickets[i] = 0;
    if (first == 0)
        x.l.pool->memory = x.addresses;
}

extern "C" size_t ra_cuda_attend_paged_bytes(const ra_paged *pages) { return lay_attend(*pages, 0).bytes; }

extern "C" int ra_cuda_attend_paged(const ra_paged *pages, const void *queries, float scale, void *out,
                                    uint32_t *fault, void *scratch, void *stream)
{
    const ra_paged &g = *pages;
    paged_job x = lay_attend(g, (char *)scratch);
    x.fault = fault;
    int error = RA_LAUNCH(lay_pages, (unsigned)(g.rows * g.kv_heads), THREADS, 0, stream, x);
    if (error)
        return error;
    ra_cuda_step s = step_of(g);
    s.scale = scale;
    s.queries.data = queries, s.queries.dtype = g.dtype;
    s.queries.stride_token = g.head_dim, s.queries.stride_head = g.tokens * g.head_dim;
    s.queries.stride_row = g.query_heads * g.tokens * g.head_dim;
    s.out.data = out, s.out.dtype = g.dtype;
    s.out.stride_token = g.query_heads * g.head_dim, s.out.stride_row = g.tokens * g.query_heads * g.head_dim;
    return ra_cuda_attend(&x.l, &s, x.tickets, x.rest, stream);
}

/* ---- Append ---- */

struct append_paged_job {
    ra_paged g;
    const char *keys, *values;
    int32_t *bad; /* [R, H], bits */
    uint32_t *fault;
};

enum { BAD_LENGTH = 1, BAD_PAGE = 2, BAD_NUMBER = 4 };

RA_DEVICE bool row_is_finite(const char *row, int dtype, int c, int d)
{
    float x[8];
    bool finite = true;
    load8(row, dtype, c, d, x);
    RA_UNROLL for (int i = 0; i < 8; i++) finite &= is_finite(x[i]);
    return finite;
}

/* A block a head: what is wrong with it. */
RA_KERNEL(THREADS, 4) check_append(append_paged_job x)
{
    const shared<int> scratch = shared_at<int>(0);
    const ra_paged &g = x.g;
    const int pair = blockIdx.x, T = (int)g.tokens, M = (int)g.table_pages, d = (int)g.head_dim;
    const int length = g.lengths[pair], chunks = (d + 7) / 8;
    const bool fits = length >= 0 && length <= M * PAGE - T;
    int bad = fits ? 0 : BAD_LENGTH;
    for (int i = threadIdx.x; fits && i < pages_for(length + T); i += THREADS) {
        const int32_t id = g.table[(int64_t)pair * M + i];
        bad |= id < 0 || id >= g.page_count ? BAD_PAGE : 0;
    }
    for (int64_t item = threadIdx.x; item < (int64_t)T * chunks; item += THREADS) {
        const int64_t row = ((int64_t)pair * T + item / chunks) * d * size_of(g.dtype);
        const int c = (int)(item % chunks) * 8;
        if (!row_is_finite(x.keys + row, g.dtype, c, d) || !row_is_finite(x.values + row, g.dtype, c, d))
            bad |= BAD_NUMBER;
    }
    const int all = block_reduce(bad, scratch, [](int a, int b) { return a | b; });
    if (threadIdx.x == 0)
        x.bad[pair] = all;
    if (threadIdx.x == 0 && all & BAD_LENGTH)
        flag_fault(x.fault, RA_FAULT_LENGTHS);
    if (threadIdx.x == 0 && all & BAD_PAGE)
        flag_fault(x.fault, RA_FAULT_TABLE);
    if (threadIdx.x == 0 && all & BAD_NUMBER)
        flag_fault(x.fault, RA_FAULT_NOT_FINITE);
}

/* A block writes tokens of a head into one of its pages. Keys: a lane a token, so that a page's row is written at once. */
template <class E> RA_KERNEL(THREADS, 4) write_tokens(append_paged_job x)
{
    const shared<int> scratch = shared_at<int>(0);
    const ra_paged &g = x.g;
    const int pair = blockIdx.x, pairs = (int)(g.rows * g.kv_heads), d = (int)g.head_dim, chunks = (d + 7) / 8;
    int bad = 0;
    for (int other = threadIdx.x; other < pairs; other += THREADS)
        bad |= x.bad[other];
    if (block_reduce(bad, scratch, [](int a, int b) { return a | b; }))
        return;
    const int length = g.lengths[pair], end = length + (int)g.tokens;
    const int number = length / PAGE + (int)(blockIdx.z * gridDim.y + blockIdx.y);
    const int first = most(length, number * PAGE), count = least(end, (number + 1) * PAGE) - first;
    if (count < 1)
        return;
    const int64_t id = g.table[(int64_t)pair * g.table_pages + number];
    E *keys = (E *)((char *)g.pages + id * (int64_t)page_bytes_of(g)), *values = keys + PAGE * d;
    for (int item = threadIdx.x; item < 2 * PAGE * chunks; item += THREADS) {
        const int half = item / (PAGE * chunks), within = item % (PAGE * chunks);
        const int i = half ? within / chunks : within % PAGE, c = (half ? within % chunks : within / PAGE) * 8;
        if (i >= count)
            continue;
        const int slot = first % PAGE + i;
        const int64_t row = ((int64_t)pair * g.tokens + first - length + i) * d * (int64_t)sizeof(E);
        float y[8];
        load8((half ? x.values : x.keys) + row, g.dtype, c, d, y);
        eight<E> stored;
        stored.set(y);
        if (half) {
            stored.store_all(values + slot * d, c, d);
        } else {
            RA_UNROLL for (int k = 0; k < 8; k++) if (c + k < d) stored.store(k, keys + (c + k) * PAGE + slot);
        }
    }
}

extern "C" size_t ra_cuda_append_paged_bytes(const ra_paged *pages)
{
    return aligned((size_t)(pages->rows * pages->kv_heads) * sizeof(int32_t));
}

extern "C" int ra_cuda_append_paged(const ra_paged *pages, const void *keys, const void *values, uint32_t *fault,
                                    void *scratch, void *stream)
{
    const append_paged_job x = {*pages, (const char *)keys, (const char *)values, (int32_t *)scratch, fault};
    const unsigned pairs = (unsigned)(pages->rows * pages->kv_heads);
    const unsigned each = (unsigned)pages_for((int)pages->tokens + PAGE - 1), deep = (each + 65534) / 65535;
    const dim3 grid(pairs, (each + deep - 1) / deep, deep);
    const int error = RA_LAUNCH(check_append, pairs, THREADS, 64, stream, x);
    if (error)
        return error;
    if (pages->dtype == RA_BF16)
        return RA_LAUNCH(write_tokens<bf16>, grid, THREADS, 64, stream, x);
    if (pages->dtype == RA_F16)
        return RA_LAUNCH(write_tokens<f16>, grid, THREADS, 64, stream, x);
    return RA_LAUNCH(write_tokens<float>, grid, THREADS, 64, stream, x);
}

/* ---- Scores ---- */

struct dense_job {
    ra_dense g;
    ra_cuda_layer l; /* in scratch: one row, keys without values */
    void **addresses;
    char *pages;
    int32_t *cut; /* [1] */
    float *scores, *out;
    char *rest;
    size_t bytes;
};

static dense_job lay_keys(const ra_dense &g, char *memory)
{
    dense_job x = {};
    size_t used = 0;
    const int heads = (int)g.kv_heads, pages = pages_for((int)g.tokens);
    const size_t queries = (size_t)(g.queries ? g.query_heads * g.window : g.kv_heads);
    x.g = g;
    x.l.format = RA_F32, x.l.rows = 1, x.l.kv_heads = heads, x.l.pages = pages, x.l.head_dim = (int32_t)g.head_dim;
    x.l.group = (int32_t)(g.queries ? g.query_heads / g.kv_heads : 1), x.l.window = (int32_t)(g.queries ? g.window : 1);
    RA_TAKE(x.l.pool, ra_cuda_pool, 1)
    RA_TAKE(x.addresses, void *, heads * pages)
    RA_TAKE(x.pages, char, (size_t)heads * pages * PAGE * g.head_dim * sizeof(float))
    RA_TAKE(x.l.table, int32_t, heads * pages)
    RA_TAKE(x.l.slots, int32_t, heads)
    RA_TAKE(x.l.tokens, int32_t, 1)
    RA_TAKE(x.l.q_begin, int32_t, 1)
    RA_TAKE(x.l.q_end, int32_t, 1)
    RA_TAKE(x.l.queries, float, queries * g.head_dim)
    RA_TAKE(x.l.sinks, float, heads * x.l.group)
    RA_TAKE(x.cut, int32_t, 1)
    RA_TAKE(x.scores, float, (size_t)heads * pages * PAGE)
    RA_TAKE(x.rest, char, ra_cuda_cut_bytes(&x.l, (int32_t)g.tokens))
#undef RA_TAKE
    x.l.positions = x.l.table; /* these scores do not ask for them */
    x.bytes = used;
    return x;
}

/* A block a page. What is not finite is a fault; of a key it becomes NaN, which no maximum over products hides. */
RA_KERNEL(THREADS, 4) lay_keys_out(dense_job x)
{
    const ra_cuda_layer &l = x.l;
    const int page = blockIdx.x, head = page / l.pages, d = l.head_dim, n = (int)x.g.tokens, window = l.window;
    const int first = page % l.pages * PAGE;
    float *to = (float *)x.pages + (int64_t)page * PAGE * d;
    bool finite = true;
    for (int i = threadIdx.x; i < PAGE * d; i += THREADS) {
        const int slot = first + i % PAGE, c = i / PAGE;
        const float key = slot < n ? x.g.keys[((int64_t)head * n + slot) * d + c] : 0;
        finite &= is_finite(key);
        to[i] = is_finite(key) ? key : NAN;
    }
    if (threadIdx.x == 0) {
        x.addresses[page] = to;
        l.table[page] = page;
    }
    const int64_t start = (int64_t)blockIdx.x * THREADS + threadIdx.x, step = (int64_t)gridDim.x * THREADS;
    const int query_heads = l.kv_heads * l.group;
    for (int64_t i = start; x.g.queries && i < (int64_t)query_heads * window * d; i += step) {
        const int64_t h = i / ((int64_t)window * d), w = i / d % window, c = i % d;
        query_of(l, 0, n - window + w, 0)[h * d + c] = x.g.queries[i];
        finite &= is_finite(x.g.queries[i]);
    }
    if (!finite)
        set_fault(l, 0, RA_CUDA_FAULT_SCORES);
    for (int64_t i = start; i < query_heads; i += step)
        l.sinks[i] = -INFINITY;
    for (int64_t i = start; i < l.kv_heads; i += step)
        l.slots[i] = n;
    if (start == 0) {
        l.pool->memory = x.addresses;
        l.tokens[0] = l.q_end[0] = n;
        l.q_begin[0] = n - window;
        x.cut[0] = 1;
    }
}

/* The older slots' scores, without the room behind them. */
RA_KERNEL(THREADS, 4) copy_scores(dense_job x)
{
    const int64_t older = x.g.tokens - x.g.window, all = older * x.l.kv_heads;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < all; i += (int64_t)gridDim.x * THREADS)
        x.out[i] = x.scores[i / older * entries_of(x.l) + i % older];
}

/* Softmax of a head's column means, by a block. */
RA_KERNEL(THREADS, 4) softmax_means(dense_job x, cut_scratch s)
{
    const shared<float> scratch = shared_at<float>(0);
    const int head = blockIdx.x, n = (int)x.g.tokens;
    const float *mean = s.mean + head * s.stride;
    float *out = x.out + (int64_t)head * n, top = -INFINITY, sum = 0;
    bool finite = true;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        top = fmaxf(top, mean[i]);
        finite &= is_finite(mean[i]);
    }
    if (!finite)
        set_fault(x.l, 0, RA_CUDA_FAULT_SCORES);
    top = block_max(top, scratch);
    for (int i = threadIdx.x; i < n; i += THREADS)
        sum += expf(mean[i] - top);
    sum = block_sum(sum, scratch);
    for (int i = threadIdx.x; i < n; i += THREADS)
        out[i] = expf(mean[i] - top) / sum;
}

extern "C" size_t ra_cuda_score_dense_bytes(const ra_dense *keys) { return lay_keys(*keys, 0).bytes; }

extern "C" int ra_cuda_score_dense(const ra_dense *keys, float *out, uint32_t *fault, void *scratch, void *stream)
{
    const ra_dense &g = *keys;
    dense_job x = lay_keys(g, (char *)scratch);
    x.out = out;
    x.l.fault = fault; /* one row */
    int error = RA_LAUNCH(lay_keys_out, (unsigned)(x.l.kv_heads * x.l.pages), THREADS, 0, stream, x);
    ra_cuda_cut cut = {};
    cut.most_slots = (int32_t)g.tokens;
    cut.scorer = g.importance ? RA_CUDA_IMPORTANCE : RA_CUDA_RKV;
    cut.alpha = g.alpha, cut.threshold = g.threshold, cut.kernel = (int32_t)(g.queries ? g.kernel : 1);
    cut.scale = 1 / sqrtf((float)g.head_dim);
    cut.cut = x.cut, cut.scores = x.scores;
    const cut_scratch s = lay_scratch(x.l, cut.most_slots, x.rest);
    if (error)
        return error;
    if (!g.queries) {
        error = ra_cuda_redundancy(x.l, cut, s, stream);
        return error ? error : RA_LAUNCH(softmax_means, (unsigned)g.kv_heads, THREADS, 64, stream, x, s);
    }
    error = ra_cuda_score(&x.l, &cut, x.rest, stream);
    const unsigned blocks = (unsigned)((g.tokens * g.kv_heads + THREADS - 1) / THREADS);
    return error ? error : RA_LAUNCH(copy_scores, least((int)blocks, 4096), THREADS, 0, stream, x);
}
