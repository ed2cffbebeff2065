/* Attention on matrix units, for 16-bit pages and queries of the same dtype.
 *
 * Each warp takes 64 slots, four pages, at a time and feeds the matrix units straight from global memory: K [D][16] and
 * V [16][D] come as 16-byte vectors of 8 slots or 8 dimensions, and a byte permutation of two vectors gives the pairs along
 * the contracted dimension that mma.m16n8k16 wants. No shared memory is written, and no barrier passed, in the loop. Slots
 * are the rows of S^T = K Q^T, so 8 queries fill a tile and O^T = V^T P^T needs only an 8 x 8 transposition of P. P is split
 * in two halves of its precision: the result is as exact as float32 arithmetic would be. */
#pragma once
#include <type_traits>

#include "attend_split.cuh"

constexpr int STEP = 64; /* slots of a warp's step */

/* Shared memory: queries in fragment order; two warps' results, which are accumulators, tops, sums; what each query sees;
 * the word of merge_chunks. */
template <int D, int N> struct matrix_shared {
    static constexpr size_t result = (size_t)N * 8 * D * 2, limits = result + 2 * (size_t)N * 8 * (D + 2) * 4,
                            flag = limits + N * 8 * 4, bytes = flag + 16;
};

/* Which of the lane's 8 slots from `slot` on the mask shows to its two queries of each tile: bit 16 n + 2 slot + query. */
template <int N>
RA_DEVICE uint32_t shown_slots(const split_params &p, const work &w, int slot, int t, shared<int> limit)
{
    const int32_t *positions = positions_of(p.a.l, w.pair);
    uint32_t shown = 0;
    RA_NO_UNROLL for (int column = 0; column < 2 * N; column++)
    {
        const int query = column / 2 * 8 + 2 * t + column % 2, see = least(8, (int)limit[query] - slot);
        if (query >= w.count)
            continue;
        const query_ref q = query_of(p, w, query);
        RA_NO_UNROLL for (int i = 0; i < see; i++) shown |= (uint32_t)shows(q, positions, slot + i)
                                                            << (column / 2 * 16 + 2 * i + column % 2);
    }
    return shown;
}

/* Whether the architecture has the instructions; where it has not, nothing is compiled, and no launcher asks for it. */
template <class T> RA_DEVICE constexpr bool has_matrix_units()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    return !std::is_same<T, bf16>::value;
#else
    return true;
#endif
}

/* Id of the page of a step that a lane sees to, number lane / 8, which is on its way to the cache; -1 past the end. */
RA_DEVICE int32_t coming_page(const split_params &p, const int32_t *table, int start, int end, int page_bytes)
{
    const int lane = threadIdx.x % 32, page = start / PAGE + lane / 8;
    if (page * PAGE >= end)
        return -1;
    const char *at = (const char *)p.a.l.pool->memory[table[page]] + lane % 8 * CACHE_LINE;
    RA_UNROLL_BY(2) for (int line = 0; line < page_bytes / CACHE_LINE; line += 8) prefetch(at + line * CACHE_LINE);
    return table[page];
}

/* Blocks that an SM is to hold: what hides the latency of the first loads and of the merge. */
constexpr int blocks_for(int dims, int tiles) { return dims <= 128 && tiles == 1 ? 3 : 2; }

/* The lane's logits of queries first + 2t and first + 2t + 1 of the tile, of 8 slots from `slot` on, to step.logits. */
RA_DEVICE void leave_logits(const split_params &p, const work &w, int first, int t, int slot, const float (&s)[4][4])
{
    RA_UNROLL for (int c = 0; c < 2; c++)
    {
        const int query = first + 2 * t + c;
        if (query >= w.count)
            continue;
        float *to = p.a.s.logits + ((int64_t)w.pair * p.a.l.group + w.first + query) * list_room(p.a.s.most_slots) + slot;
        RA_UNROLL for (int half = 0; half < 2; half++)
        {
            vec16 v;
            RA_UNROLL for (int i = 0; i < 4; i++) v.w[i] = as_bits(s[i][2 * half + c] * LN_2);
            store16(to + 4 * half, v);
        }
    }
}

/* N: tiles of 8 queries. Dimensions are taken in rounds of 64; lane = 4 g + t throughout. LOGITS: see step.logits. */
template <class T, int D, int N, bool LOGITS> RA_KERNEL(THREADS, blocks_for(D, N)) attend_matrix(split_params p)
{
    constexpr int K_STEPS = D / 16, ROUNDS = (D + 63) / 64, TILE = 8 * N;
    constexpr int V_STEPS = D > 128 ? 1 : D > 64 && N == 1 ? 2 : 4; /* of 4, loaded together: what registers hold */
    constexpr size_t result_at = matrix_shared<D, N>::result, flag_at = matrix_shared<D, N>::flag;
    work w;
    if (!has_matrix_units<T>() || !find_work(p, TILE, &w))
        return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int32_t *table = pages_of(p.a.l, w.pair);
    void *const *memory = p.a.l.pool->memory;
    constexpr int PAGE_BYTES = 2 * PAGE * D * (int)sizeof(T);
    int32_t coming = coming_page(p, table, w.begin + warp * STEP, w.end, PAGE_BYTES);

    /* Queries into shared memory in the order in which lanes want them: [k][n][lane][4] with dims t, t+4, t+8, t+12. */
    const shared<uint16_t> queries = shared_at<uint16_t>(0);
    for (int item = threadIdx.x; item < TILE * (D / 8); item += THREADS) {
        const int query = item / (D / 8), c = item % (D / 8) * 8;
        vec16 v = {{0, 0, 0, 0}};
        if (query < w.count) {
            const uint16_t *from = (const uint16_t *)query_at(p.a, w.row, w.head, query_of(p, w, query)) + c;
            if (p.query_vectors)
                v = load16(from, true);
            else
                RA_UNROLL for (int i = 0; i < 4; i++) v.w[i] = from[2 * i] | (uint32_t)from[2 * i + 1] << 16;
        }
        RA_UNROLL for (int i = 0; i < 8; i++)
        {
            const int dim = (c + i) % 16, k = c / 16;
            queries[((k * N + query / 8) * 32 + query % 8 * 4 + dim % 4) * 4 + dim / 4] = (uint16_t)(v.w[i / 2] >>
                                                                                                     i % 2 * 16);
        }
    }
    const shared<int> limit = shared_at<int>(matrix_shared<D, N>::limits);
    if (threadIdx.x < TILE)
        limit[threadIdx.x] = (int)threadIdx.x < w.count ? query_of(p, w, threadIdx.x).limit : 0;
    block_sync();

    float acc[N][ROUNDS][4][4], top[N][2], sum[N][2];
    RA_UNROLL for (int n = 0; n < N; n++)
    {
        RA_UNROLL for (int r = 0; r < ROUNDS; r++) RA_UNROLL for (int j = 0; j < 4; j++)
            RA_UNROLL for (int i = 0; i < 4; i++) acc[n][r][j][i] = 0;
        RA_UNROLL for (int c = 0; c < 2; c++)
        {
            top[n][c] = -INFINITY;
            sum[n][c] = 0;
        }
    }

    for (int start = w.begin + warp * STEP; start < w.end; start += WARPS * STEP) {
        const int v_page = start / PAGE + t;
        const int32_t v_id = shuffle(coming, 8 * t);
        const bool k_there = coming >= 0;
        const T *keys = k_there ? (const T *)memory[coming] + g % 2 * 8 : 0;
        const T *values = v_id >= 0 ? (const T *)memory[v_id] + D * PAGE : 0;
        coming = coming_page(p, table, start + WARPS * STEP, w.end, PAGE_BYTES);

        /* S^T: row g of m-tile i is slot i of the lane's 8, row g + 8 slot i + 4. */
        float s[N][4][4];
        RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int i = 0; i < 4; i++)
            RA_UNROLL for (int j = 0; j < 4; j++) s[n][i][j] = 0;
        RA_UNROLL_BY(N == 1 ? 2 : 4) for (int k = 0; k < K_STEPS; k++)
        {
            vec16 row[4];
            RA_UNROLL for (int m = 0; m < 4; m++) row[m] = load16(keys + (16 * k + 4 * m + t) * PAGE, k_there);
            RA_UNROLL for (int n = 0; n < N; n++)
            {
                const shared<uint32_t> at = shared_at<uint32_t>((size_t)((k * N + n) * 32 + lane) * 8);
                const uint32_t b[2] = {at[0], at[1]};
                RA_UNROLL for (int i = 0; i < 4; i++)
                {
                    const uint32_t a[4] = {pair_at(row[0], row[1], i), pair_at(row[0], row[1], i + 4),
                                           pair_at(row[2], row[3], i), pair_at(row[2], row[3], i + 4)};
                    mma(T, s[n][i], a, b);
                }
            }
        }

        /* Softmax: the lane's columns are queries 2t and 2t + 1. */
        const int slot = start + g / 2 * PAGE + g % 2 * 8;
        const uint32_t shown = p.a.s.visible && k_there ? shown_slots<N>(p, w, slot, t, limit) : 0xffffffffu;
        uint32_t high[N][4][2], low[N][4][2];
        RA_UNROLL for (int n = 0; n < N; n++)
        {
            float best[2] = {-INFINITY, -INFINITY}, shrink[2], more[2] = {0, 0};
            int see[2];
            RA_UNROLL for (int c = 0; c < 2; c++) see[c] = k_there ? (int)limit[8 * n + 2 * t + c] - slot : 0;
            RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int j = 0; j < 4; j++)
            {
                const int own = i + j / 2 * 4, c = j % 2;
                const bool sees = own < see[c] && (shown >> (16 * n + 2 * own + c) & 1);
                s[n][i][j] = sees ? logit_log2(p, s[n][i][j]) : -INFINITY;
                best[c] = fmaxf(best[c], s[n][i][j]);
            }
            if constexpr (LOGITS)
                if (w.fresh == 1 && k_there)
                    leave_logits(p, w, 8 * n, t, slot, s[n]);
            RA_UNROLL for (int c = 0; c < 2; c++)
            {
                RA_UNROLL for (int mask = 4; mask < 32; mask *= 2) best[c] = fmaxf(best[c], shuffle_xor(best[c], mask));
                best[c] = fmaxf(best[c], top[n][c]);
                shrink[c] = weight_log2(top[n][c], best[c]);
                top[n][c] = best[c];
                RA_UNROLL for (int r = 0; r < ROUNDS; r++) RA_UNROLL for (int j = 0; j < 4; j++)
                {
                    acc[n][r][j][c] *= shrink[c];
                    acc[n][r][j][2 + c] *= shrink[c];
                }
            }
            RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int half = 0; half < 2; half++)
            {
                float x[2];
                RA_UNROLL for (int c = 0; c < 2; c++)
                {
                    x[c] = best[c] == -INFINITY ? 0 : exp2_fast(s[n][i][2 * half + c] - best[c]);
                    more[c] += x[c];
                }
                const uint32_t packed = pack<T>(x[0], x[1]);
                high[n][i][half] = transpose(packed);
                low[n][i][half] = transpose(pack<T>(x[0] - unpack<T>(packed, 0), x[1] - unpack<T>(packed, 1)));
            }
            RA_UNROLL for (int c = 0; c < 2; c++) sum[n][c] = fmaf(sum[n][c], shrink[c], more[c]);
        }

        /* O^T: k-step i takes of the lane's page slots i, i + 8, i + 4, i + 12; row g of m-tile j is dimension j of the
         * lane's 8, row g + 8 dimension j + 4. */
        RA_NO_UNROLL for (int first = 0; first < 4; first += V_STEPS)
        {
            RA_UNROLL for (int i = 0; i < V_STEPS; i++) RA_UNROLL for (int r = 0; r < ROUNDS; r++)
            {
                const int c = 64 * r + 8 * g;
                vec16 row[4];
                RA_UNROLL for (int m = 0; m < 4; m++)
                {
                    const int u = first + i + m % 2 * 8 + m / 2 * 4;
                    row[m] = load16(values + u * D + c, v_page * PAGE + u < w.end && c < D);
                }
                RA_UNROLL for (int j = 0; j < 4; j++)
                {
                    const uint32_t a[4] = {pair_at(row[0], row[1], j), pair_at(row[0], row[1], j + 4),
                                           pair_at(row[2], row[3], j), pair_at(row[2], row[3], j + 4)};
                    RA_UNROLL for (int n = 0; n < N; n++)
                    {
                        mma(T, acc[n][r][j], a, high[n][i]);
                        mma(T, acc[n][r][j], a, low[n][i]);
                    }
                }
            }
            /* The next ones come to the front: registers have no index. */
            RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int next = 0; next < 4 - V_STEPS; next++)
                RA_UNROLL for (int half = 0; half < 2; half++)
            {
                high[n][next][half] = high[n][next + V_STEPS][half];
                low[n][next][half] = low[n][next + V_STEPS][half];
            }
        }
    }

    RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int c = 0; c < 2; c++)
        RA_UNROLL for (int mask = 4; mask < 32; mask *= 2) sum[n][c] += shuffle_xor(sum[n][c], mask);

    /* Warps 2 and 3 give what they have to 0 and 1, then 1 to 0, then 0 to all. */
    const shared<float> result = shared_at<float>(result_at);
    RA_NO_UNROLL for (int givers = 2;; givers /= 2)
    {
        const int at = givers == 2 ? warp % 2 * TILE * (D + 2) : 0;
        if (warp >= givers && warp < most(1, 2 * givers)) {
            RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int c = 0; c < 2; c++)
            {
                const int to = at + (8 * n + 2 * t + c) * (D + 2);
                RA_UNROLL for (int r = 0; r < ROUNDS; r++) if (64 * r + 8 * g < D) RA_UNROLL for (int j = 0; j < 8; j++)
                    result[to + 64 * r + 8 * g + j] = acc[n][r][j % 4][j / 4 * 2 + c];
                if (g == 0) {
                    result[to + D] = top[n][c];
                    result[to + D + 1] = sum[n][c];
                }
            }
        }
        block_sync();
        if (givers == 0)
            break;
        if (warp < givers) {
            RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int c = 0; c < 2; c++)
            {
                const int from = at + (8 * n + 2 * t + c) * (D + 2);
                const float their_top = result[from + D], best = fmaxf(top[n][c], their_top);
                const float own = weight_log2(top[n][c], best), theirs = weight_log2(their_top, best);
                top[n][c] = best;
                sum[n][c] = fmaf(result[from + D + 1], theirs, sum[n][c] * own);
                RA_UNROLL for (int r = 0; r < ROUNDS; r++) if (64 * r + 8 * g < D) RA_UNROLL for (int j = 0; j < 8; j++)
                {
                    float &x = acc[n][r][j % 4][j / 4 * 2 + c];
                    x = fmaf(result[from + 64 * r + 8 * g + j], theirs, x * own);
                }
            }
        }
        block_sync();
    }

    RA_NO_UNROLL for (int item = threadIdx.x; item < w.count * (D / 8); item += THREADS)
    {
        const int query = item / (D / 8), c = item % (D / 8) * 8, from = query * (D + 2);
        float x[8];
        RA_UNROLL for (int i = 0; i < 8; i++) x[i] = result[from + c + i];
        leave<D, TILE, LOGITS>(p, w, query, c, x, result[from + D], result[from + D + 1]);
    }
    merge_chunks<D, TILE, LOGITS>(p, w, flag_at);
}

template <class T, int D, int N, bool LOGITS> static int launch_matrix(const split_params &p, void *stream)
{
    return RA_LAUNCH((attend_matrix<T, D, N, LOGITS>), split_grid(p, 8 * N), THREADS, (matrix_shared<D, N>::bytes), stream, p);
}

/* 16 queries at a time where their accumulators fit the registers; bits do not depend on it. */
template <class T, int D, bool LOGITS> static int launch_matrix_of_size(const split_params &p, void *stream)
{
    if constexpr (D == 64 || (D == 128 && !LOGITS))
        if (p.a.l.group * p.a.s.tokens > 8)
            return launch_matrix<T, D, 2, LOGITS>(p, stream);
    return launch_matrix<T, D, 1, LOGITS>(p, stream);
}

template <class T, bool LOGITS> static int launch_matrix_any_size(const split_params &p, void *stream)
{
    switch (p.a.l.head_dim) {
#define CASE(D)                                                                                                        \
    case D: return launch_matrix_of_size<T, D, LOGITS>(p, stream);
        RA_HEAD_SIZES(CASE)
#undef CASE
    }
    return -1;
}
