/* Logits of float32 queries against keys: on matrix units, where a query is the sum of as many 16-bit parts as it takes, or in
 * float32. */
#include <type_traits>

#include "score.cuh"

/* Which queries a job asks, and of how many slots. Those of one list stand side by side in a group; the largest counts. */
struct asked_queries {
    int token; /* of the first */
    int lists, group, limit;
};

RA_DEVICE asked_queries queries_of(const logits_job &j, int pair)
{
    const int row = pair / j.l.kv_heads, n = j.l.slots[pair];
    if (j.given)
        return {0, j.counts[2 * row], 1, j.counts[2 * row] ? n - j.counts[2 * row + 1] : 0};
    const int begin = j.l.q_begin[row], end = j.l.q_end[row];
    const int token = j.first == NEWEST ? end - 1 : begin + j.first, count = least(j.most, end - token);
    if (!j.cut[row] || token < begin || count < 1)
        return {0, 0, 0, 0};
    const int limit = j.older ? n - j.l.window : n;
    return j.heads ? asked_queries{token, count * j.l.group, 1, limit} : asked_queries{token, count, j.l.group, limit};
}
/* [group][D] of a list. */
RA_DEVICE const float *queries_of_list(const logits_job &j, int pair, const asked_queries &q, int list)
{
    if (j.given)
        return j.given + ((int64_t)pair * j.s.queries + list) * j.l.head_dim;
    const int row = pair / j.l.kv_heads, head = pair % j.l.kv_heads;
    if (!j.heads)
        return query_of(j.l, row, q.token + list, head);
    return query_of(j.l, row, q.token + list / j.l.group, head) + (int64_t)(list % j.l.group) * j.l.head_dim;
}

/* What is left of x without its nearest number of 16 bits. */
template <class T> RA_DEVICE float residual(float x)
{
    T near;
    narrow(x, &near);
    return x - widen(near);
}

/* How queries are given to the matrix units, the same for all of a head. */
struct split {
    float up, down; /* powers of two that bring them into the range of T and back */
    int parts;      /* numbers of T that make up one of theirs */
    bool finite;
};

/* scratch: a float a warp. */
template <class T>
RA_DEVICE split split_of(const logits_job &j, int pair, const asked_queries &q, shared<float> scratch)
{
    const int each = q.group * j.l.head_dim;
    float largest = 0, parts = 1;
    bool finite = true;
    for (int list = 0; list < q.lists; list++) {
        const float *x = queries_of_list(j, pair, q, list);
        for (int i = threadIdx.x; i < each; i += THREADS) {
            largest = fmaxf(largest, fabsf(x[i]));
            finite &= is_finite(x[i] * j.scale);
        }
    }
    split s = {1, 1, 0, true};
    largest = block_max(largest, scratch);
    s.finite = block_max(finite ? 0.0f : 1.0f, scratch) == 0;
    if (std::is_same<T, f16>::value) { /* the largest becomes 2^14 */
        int by = 127 + 14 - (int)(as_bits(largest) >> 23);
        by = most(-126, least(126, by));
        s.up = as_float((uint32_t)(127 + by) << 23);
        s.down = as_float((uint32_t)(127 - by) << 23);
    }
    for (int list = 0; list < q.lists; list++) {
        const float *x = queries_of_list(j, pair, q, list);
        for (int i = threadIdx.x; i < each; i += THREADS) {
            const float left = residual<T>(x[i] * s.up);
            parts = fmaxf(parts, left == 0 ? 1 : residual<T>(left) == 0 ? 2 : 3);
        }
    }
    s.parts = (int)block_max(parts, scratch);
    return s;
}

/* How a head's queries lie in tiles of 8: a group of up to 8 is filled up to a power of two, which changes no maximum; a larger
 * one takes several tiles, one after the other. */
struct tiling {
    int width;    /* queries of a list in a tile */
    int per_list; /* tiles of a list */
    int tiles;
};
RA_DEVICE tiling tiling_of(const asked_queries &q)
{
    tiling w = {1, (q.group + 7) / 8, 0};
    while (w.width < q.group && w.width < 8)
        w.width *= 2;
    w.tiles = w.per_list > 1 ? q.lists * w.per_list : (q.lists * w.width + 7) / 8;
    return w;
}
/* Column g of a tile. */
RA_DEVICE const float *query_of_tile(const logits_job &j, int pair, const asked_queries &q, const tiling &w, int tile, int g)
{
    const int list = w.per_list > 1 ? tile / w.per_list : least(tile * (8 / w.width) + g / w.width, q.lists - 1);
    const int member = w.per_list > 1 ? tile % w.per_list * 8 + g : g % w.width;
    return queries_of_list(j, pair, q, list) + (int64_t)least(member, q.group - 1) * j.l.head_dim;
}

/* Shared memory: words of reductions; queries as the matrix units want them, [part][k][tile][lane], of STAGED k-steps. */
constexpr int STAGED = 8, PARTS = 3;
constexpr size_t STAGED_AT = 64;
constexpr size_t logits_bytes(int tiles) { return STAGED_AT + (size_t)PARTS * STAGED * tiles * 32 * 8; }
template <int TILES> RA_DEVICE size_t staged_at(int part, int k, int n, int lane)
{
    return STAGED_AT + (size_t)(((part * STAGED + k) * TILES + n) * 32 + lane) * 8;
}

template <class T, int TILES>
RA_DEVICE void stage_queries(const logits_job &j, int pair, const asked_queries &q, const tiling &w, const split &by, int first,
                             int first_k)
{
    for (int item = threadIdx.x; item < STAGED * TILES * 32; item += THREADS) {
        const int lane = item % 32, n = item / 32 % TILES, k = item / 32 / TILES;
        const float *query = query_of_tile(j, pair, q, w, least(first + n, w.tiles - 1), lane / 4);
        float x[4];
        RA_UNROLL for (int m = 0; m < 4; m++)
        {
            const int c = 16 * (first_k + k) + 4 * m + lane % 4;
            x[m] = c < j.l.head_dim ? query[c] * by.up : 0;
        }
        RA_NO_UNROLL for (int part = 0; part < by.parts; part++)
        {
            const shared<uint32_t> to = shared_at<uint32_t>(staged_at<TILES>(part, k, n, lane));
            const uint32_t b[2] = {pack<T>(x[0], x[1]), pack<T>(x[2], x[3])};
            RA_UNROLL for (int i = 0; i < 2; i++) to[i] = b[i];
            RA_UNROLL for (int m = 0; m < 4; m++) x[m] -= unpack<T>(b[m / 2], m % 2);
        }
    }
}

/* TILES are taken at a time. grid_of_slots. */
template <class T, int TILES> RA_KERNEL(THREADS, 4) logits_matrix(logits_job j)
{
    const int pair = blockIdx.x, steps = (j.l.head_dim + 15) / 16, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const asked_queries q = queries_of(j, pair);
    const int start = blockIdx.y * BLOCK_SLOTS + threadIdx.x / 32 * 64;
    if ((int)blockIdx.y * BLOCK_SLOTS >= q.limit)
        return;
    const split by = split_of<T>(j, pair, q, shared_at<float>(0));
    const tiling w = tiling_of(q);
    const int width = w.width, per_list = w.per_list, tiles = w.tiles;
    const bool there = start < q.limit;
    key_chunk<T> keys;
    keys.find(j.l, pair, there ? (int)j.l.slots[pair] : 0, start, g);
    float *logits = j.s.logits + (int64_t)pair * j.s.queries * j.s.stride + keys.first;
    const float factor = by.finite ? j.scale : NAN;
    RA_NO_UNROLL for (int first = 0; first < tiles; first += TILES)
    {
        float s[TILES][4][4];
        RA_UNROLL for (int n = 0; n < TILES; n++)
            RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int c = 0; c < 4; c++) s[n][i][c] = 0;
        RA_NO_UNROLL for (int first_k = 0; first_k < steps; first_k += STAGED)
        {
            block_sync(); /* those before are read */
            stage_queries<T, TILES>(j, pair, q, w, by, first, first_k);
            block_sync();
            if (!there)
                continue;
            const int some = least(STAGED, steps - first_k);
            RA_UNROLL_BY(2) for (int k = 0; k < some; k++)
            {
                vec16 row[4];
                uint32_t a[4][4];
                keys.load(first_k + k, t, row);
                RA_UNROLL for (int i = 0; i < 4; i++) as_rows(row, i, a[i]);
                RA_UNROLL for (int n = 0; n < TILES; n++) RA_NO_UNROLL for (int part = 0; part < by.parts; part++)
                {
                    const shared<uint32_t> at = shared_at<uint32_t>(staged_at<TILES>(part, k, n, lane));
                    const uint32_t b[2] = {at[0], at[1]};
                    RA_UNROLL for (int i = 0; i < 4; i++) mma(T, s[n][i], a[i], b);
                }
            }
        }
        if (!there)
            continue;
        RA_UNROLL for (int n = 0; n < TILES; n++)
        {
            const int tile = first + n;
            RA_UNROLL for (int side = 0; side < 2; side++)
            {
                const int column = 2 * t + side; /* in the lane's hands */
                if (side && width > 1)
                    continue;
                vec16 out[2];
                RA_UNROLL for (int i = 0; i < 8; i++)
                {
                    float x = s[n][i % 4][i / 4 * 2 + side] * by.down * factor;
                    if (width >= 2)
                        x = fmaxf(x, s[n][i % 4][i / 4 * 2 + 1 - side] * by.down * factor);
                    if (width >= 4)
                        x = fmaxf(x, shuffle_xor(x, 1));
                    if (width >= 8)
                        x = fmaxf(x, shuffle_xor(x, 2));
                    out[i / 4].w[i % 4] = as_bits(x);
                }
                const int list = per_list > 1 ? tile / per_list : tile * (8 / width) + column / width;
                if (column % width || tile >= tiles || list >= q.lists || !keys.keys)
                    continue;
                float *to = logits + list * j.s.stride;
                const bool later = per_list > 1 && tile % per_list,
                           last = per_list == 1 || tile % per_list == per_list - 1;
                RA_UNROLL for (int half = 0; half < 2; half++)
                {
                    RA_UNROLL for (int i = 0; i < 4; i++)
                    {
                        float x = as_float(out[half].w[i]);
                        x = later ? fmaxf(x, to[4 * half + i]) : x;
                        out[half].w[i] = as_bits(last ? softcapped(x, j.softcap) : x);
                    }
                    store16(to + 4 * half, out[half]);
                }
            }
        }
    }
}

/* The same in float32, a slot a thread. grid_of_slots. */
RA_KERNEL(THREADS, 4) logits_plain(logits_job j)
{
    constexpr int TILE = 8;
    const shared<float> scratch = shared_at<float>(0);
    const int pair = blockIdx.x, d = j.l.head_dim, begin = blockIdx.y * BLOCK_SLOTS;
    const asked_queries q = queries_of(j, pair);
    if (begin >= q.limit)
        return;
    bool finite = true;
    for (int list = 0; list < q.lists; list++) {
        const float *x = queries_of_list(j, pair, q, list);
        for (int i = threadIdx.x; i < q.group * d; i += THREADS)
            finite &= is_finite(x[i] * j.scale);
    }
    finite = block_max(finite ? 0.0f : 1.0f, scratch) == 0;
    for (int i = begin + threadIdx.x; i < least(q.limit, begin + BLOCK_SLOTS); i += THREADS) {
        const char *keys = page_at(j.l, pair, i / PAGE);
        for (int list = 0; list < q.lists; list++) {
            const float *query = queries_of_list(j, pair, q, list);
            float best = finite ? -INFINITY : NAN;
            for (int first = 0; first < q.group && finite; first += TILE) {
                float dots[TILE];
                RA_UNROLL for (int g = 0; g < TILE; g++) dots[g] = 0;
                for (int c = 0; c < d; c++) {
                    const float key = load_element(keys, c * PAGE + i % PAGE, j.l.format);
                    RA_UNROLL for (int g = 0; g < TILE; g++) if (first + g < q.group)
                        dots[g] = fmaf(query[(first + g) * d + c] * j.scale, key, dots[g]);
                }
                RA_UNROLL for (int g = 0; g < TILE; g++) if (first + g < q.group) best =
                    dots[g] == dots[g] && best == best ? fmaxf(best, dots[g]) : NAN;
            }
            j.s.logits[((int64_t)pair * j.s.queries + list) * j.s.stride + i] = softcapped(best, j.softcap);
        }
    }
}

int ra_cuda_logits(const logits_job &job, void *stream)
{
    const dim3 grid = grid_of_slots(job.l, job.s);
    if (!has_matrix_units(job.l.format))
        return RA_LAUNCH(logits_plain, grid, THREADS, 64, stream, job);
    const bool few = (job.given ? job.s.queries : job.most * job.l.group) <= 8;
    if (job.l.format == RA_BF16)
        return few ? RA_LAUNCH((logits_matrix<bf16, 1>), grid, THREADS, (logits_bytes(1)), stream, job)
                   : RA_LAUNCH((logits_matrix<bf16, 4>), grid, THREADS, (logits_bytes(4)), stream, job);
    return few ? RA_LAUNCH((logits_matrix<f16, 1>), grid, THREADS, (logits_bytes(1)), stream, job)
               : RA_LAUNCH((logits_matrix<f16, 4>), grid, THREADS, (logits_bytes(4)), stream, job);
}
