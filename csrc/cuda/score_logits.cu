/* Logits of float32 queries against keys: on matrix units, where a query is the sum of as many 16-bit parts as it takes, or in
 * float32. */
#include <type_traits>

#include "score.cuh"

/* Which queries a job asks, and of how many slots. Those of one list stand side by side in a group; the largest counts. */
struct asked_queries {
    const float *at; /* of the first */
    int lists, group, limit;
};

RA_DEVICE asked_queries queries_of(const logits_job &j, int pair)
{
    const int row = pair / j.l.kv_heads, head = pair % j.l.kv_heads, n = j.l.slots[pair];
    const int count = j.l.q_end[row] - j.l.q_begin[row];
    if (!j.cut[row] || count < 1)
        return {0, 0, 0, 0};
    if (j.newest)
        return {query_of(j.l, row, j.l.q_end[row] - 1, head), j.l.group, 1, n};
    return {0, count, j.l.group, n - j.l.window};
}
/* [group][D] of a list. */
RA_DEVICE const float *queries_of_list(const logits_job &j, int pair, const asked_queries &q, int list)
{
    if (j.newest)
        return q.at + (int64_t)list * j.l.head_dim;
    const int row = pair / j.l.kv_heads;
    return query_of(j.l, row, j.l.q_begin[row] + list, pair % j.l.kv_heads);
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

/* TILES are taken at a time. A tile is 8 queries: a group of up to 8 is filled up to a power of two, which changes no maximum; a larger one takes several
 * tiles, one after the other. grid_of_slots. */
template <class T, int TILES> RA_KERNEL(THREADS, 2) logits_matrix(logits_job j)
{
    const int pair = blockIdx.x, d = j.l.head_dim, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const asked_queries q = queries_of(j, pair);
    const int start = blockIdx.y * BLOCK_SLOTS + threadIdx.x / 32 * 64;
    if ((int)blockIdx.y * BLOCK_SLOTS >= q.limit)
        return;
    const split by = split_of<T>(j, pair, q, shared_at<float>(0));
    if (start >= q.limit)
        return;
    int width = 1; /* queries of a list in a tile */
    while (width < q.group && width < 8)
        width *= 2;
    const int per_list = (q.group + 7) / 8, tiles = per_list > 1 ? q.lists * per_list : (q.lists * width + 7) / 8;
    key_chunk<T> keys;
    keys.find(j.l, pair, j.l.slots[pair], start, g);
    float *logits = j.s.logits + (int64_t)pair * j.s.queries * j.s.stride + keys.first;
    const float factor = by.finite ? j.scale : NAN;
    RA_NO_UNROLL for (int first = 0; first < tiles; first += TILES)
    {
        const float *query[TILES];
        float s[TILES][4][4];
        RA_UNROLL for (int n = 0; n < TILES; n++)
        {
            const int tile = least(first + n, tiles - 1);
            const int list = per_list > 1 ? tile / per_list : least(tile * (8 / width) + g / width, q.lists - 1);
            const int member = per_list > 1 ? tile % per_list * 8 + g : g % width;
            query[n] = queries_of_list(j, pair, q, list) + (int64_t)least(member, q.group - 1) * d;
            RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int c = 0; c < 4; c++) s[n][i][c] = 0;
        }
        RA_UNROLL_BY(2) for (int k = 0; k < (d + 15) / 16; k++)
        {
            vec16 row[4];
            uint32_t a[4][4];
            keys.load(k, t, row);
            RA_UNROLL for (int i = 0; i < 4; i++) as_rows(row, i, a[i]);
            RA_UNROLL for (int n = 0; n < TILES; n++)
            {
                float x[4];
                RA_UNROLL for (int m = 0; m < 4; m++)
                {
                    const int c = 16 * k + 4 * m + t;
                    x[m] = c < d ? query[n][c] * by.up : 0;
                }
                RA_NO_UNROLL for (int part = 0; part < by.parts; part++)
                {
                    const uint32_t b[2] = {pack<T>(x[0], x[1]), pack<T>(x[2], x[3])};
                    RA_UNROLL for (int i = 0; i < 4; i++) mma(T, s[n][i], a[i], b);
                    RA_UNROLL for (int m = 0; m < 4; m++) x[m] -= unpack<T>(b[m / 2], m % 2);
                }
            }
        }
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
                RA_UNROLL for (int g = 0; g < TILE; g++) if (first + g < q.group) best = fmaxf(best, dots[g]);
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
    const bool few = job.newest || job.l.window * job.l.group <= 8;
    if (job.l.format == RA_BF16)
        return few ? RA_LAUNCH((logits_matrix<bf16, 1>), grid, THREADS, 64, stream, job)
                   : RA_LAUNCH((logits_matrix<bf16, 4>), grid, THREADS, 64, stream, job);
    return few ? RA_LAUNCH((logits_matrix<f16, 1>), grid, THREADS, 64, stream, job)
               : RA_LAUNCH((logits_matrix<f16, 4>), grid, THREADS, 64, stream, job);
}
