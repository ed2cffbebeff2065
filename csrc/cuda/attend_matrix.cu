/* Attention on matrix units, for bfloat16 and float16: each warp takes 64 slots, four pages, at a time and feeds the units
 * straight from global memory: K [D][16] and V [16][D] come as 16-byte vectors of 8 slots or 8 dimensions, and a byte
 * permutation of two vectors gives the pairs along the contracted dimension that mma.m16n8k16 wants. No shared memory, no
 * barrier in the loop. Slots are the rows of S^T = K Q^T, so 8 queries fill a tile and O^T = V^T P^T needs only an 8 x 8
 * transposition of P. P is split in two halves of its precision: the result is as exact as float32 arithmetic would be. */
#include "attend_split.cuh"

constexpr int SPAN = 64; /* slots of a warp's step */

/* Shared memory: queries in fragment order; two warps' results: accumulators, tops, sums; what each query sees; flag. */
template <int D, int N> struct matrix_shared {
    static constexpr size_t result = (size_t)N * 8 * D * 2, limits = result + 2 * (size_t)N * 8 * (D + 2) * 4,
                            flag = limits + N * 8 * 4, bytes = flag + 16;
};

/* N: tiles of 8 queries. Dimensions are taken in rounds of 64; lane = 4 g + t throughout. */
template <class T, int D, int N> RA_KERNEL(THREADS, 2) attend_matrix(split_params p)
{
    constexpr int K_STEPS = D / 16, ROUNDS = (D + 63) / 64;
    constexpr size_t result_at = matrix_shared<D, N>::result, flag_at = matrix_shared<D, N>::flag;
    task w;
    if (!find_task(p, 8 * N, &w))
        return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int32_t *table = pages_of(p.a.l, w.pair);
    void *const *memory = p.a.l.pool->memory;

    /* Queries into shared memory in the order in which lanes want them: [k][n][lane][4] with dims t, t+4, t+8, t+12. */
    shared<uint16_t> q = shared_at<uint16_t>(0);
    for (int item = threadIdx.x; item < 8 * N * (D / 8); item += THREADS) {
        int query = item / (D / 8), c = item % (D / 8) * 8;
        const char *from = query < w.count ? query_at(p.a, w.row, w.head, query_of_task(p, w, query)) : 0;
        vec16 v = load16(from + c * sizeof(T), query < w.count);
        RA_UNROLL for (int i = 0; i < 8; i++)
        {
            int dim = (c + i) % 16, k = c / 16, to = ((k * N + query / 8) * 32 + query % 8 * 4 + dim % 4) * 4 + dim / 4;
            q[to] = (uint16_t)(v.w[i / 2] >> i % 2 * 16);
        }
    }
    const shared<int> limit = shared_at<int>(matrix_shared<D, N>::limits);
    if (threadIdx.x < 8 * N)
        limit[threadIdx.x] = limit_of(p, w, threadIdx.x);
    block_sync();

    float acc[N][ROUNDS][4][4], top[N][2], sum[N][2];
    RA_UNROLL for (int n = 0; n < N; n++)
    {
        RA_UNROLL for (int r = 0; r < ROUNDS; r++) RA_UNROLL for (int j = 0; j < 4; j++)
            RA_UNROLL for (int i = 0; i < 4; i++) acc[n][r][j][i] = 0;
        RA_UNROLL for (int i = 0; i < 2; i++)
        {
            top[n][i] = -INFINITY;
            sum[n][i] = 0;
        }
    }

    for (int start = w.begin + warp * SPAN; start < w.end; start += WARPS * SPAN) {
        const int k_page = start / PAGE + g / 2, v_page = start / PAGE + t;
        const bool k_there = k_page * PAGE < w.end, v_there = v_page * PAGE < w.end;
        const T *keys = k_there ? (const T *)memory[table[k_page]] + g % 2 * 8 : 0;
        const T *values = v_there ? (const T *)memory[table[v_page]] + D * PAGE : 0;

        /* S^T: row g of m-tile i is token i of the lane's 8, row g + 8 token i + 4. */
        float s[N][4][4];
        RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int i = 0; i < 4; i++)
            RA_UNROLL for (int j = 0; j < 4; j++) s[n][i][j] = 0;
        RA_UNROLL_BY((D > 128 ? 2 : 4)) for (int k = 0; k < K_STEPS; k++)
        { /* 16 loads in flight */
            vec16 row[4];
            RA_UNROLL for (int m = 0; m < 4; m++) row[m] = load16(keys + (16 * k + 4 * m + t) * PAGE, k_there);
            RA_UNROLL for (int n = 0; n < N; n++)
            {
                uint32_t b[2];
                shared<uint32_t> at = shared_at<uint32_t>((size_t)((k * N + n) * 32 + lane) * 8);
                b[0] = at[0];
                b[1] = at[1];
                RA_UNROLL for (int i = 0; i < 4; i++)
                {
                    uint32_t a[4] = {pair_at(row[0], row[1], i), pair_at(row[0], row[1], i + 4),
                                     pair_at(row[2], row[3], i), pair_at(row[2], row[3], i + 4)};
                    mma(T, s[n][i], a, b);
                }
            }
        }

        /* Softmax: the lane's columns are queries 2t and 2t + 1. */
        const int token = start + g / 2 * PAGE + g % 2 * 8;
        uint32_t high[N][4][2], low[N][4][2];
        RA_UNROLL for (int n = 0; n < N; n++)
        {
            float best[2] = {-INFINITY, -INFINITY};
            int see[2];
            RA_UNROLL for (int c = 0; c < 2; c++) see[c] = k_there ? (int)limit[8 * n + 2 * t + c] - token : 0;
            RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int j = 0; j < 4; j++)
            {
                bool sees = i + j / 2 * 4 < see[j % 2];
                s[n][i][j] = sees ? logit(p, s[n][i][j]) : -INFINITY;
                best[j % 2] = fmaxf(best[j % 2], s[n][i][j]);
            }
            RA_UNROLL for (int c = 0; c < 2; c++)
            {
                RA_UNROLL for (int mask = 4; mask < 32; mask *= 2) best[c] = fmaxf(best[c], shuffle_xor(best[c], mask));
                best[c] = fmaxf(best[c], top[n][c]);
                float shrink = top[n][c] == -INFINITY ? 0 : exp2_fast(top[n][c] - best[c]);
                top[n][c] = best[c];
                sum[n][c] *= shrink;
                RA_UNROLL for (int r = 0; r < ROUNDS; r++) RA_UNROLL for (int j = 0; j < 4; j++)
                {
                    acc[n][r][j][c] *= shrink;
                    acc[n][r][j][2 + c] *= shrink;
                }
            }
            RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int half = 0; half < 2; half++)
            {
                float x[2];
                RA_UNROLL for (int c = 0; c < 2; c++)
                {
                    x[c] = best[c] == -INFINITY ? 0 : exp2_fast(s[n][i][2 * half + c] - best[c]);
                    sum[n][c] += x[c];
                }
                uint32_t packed = pack<T>(x[0], x[1]);
                high[n][i][half] = transpose(packed);
                low[n][i][half] = transpose(pack<T>(x[0] - unpack<T>(packed, 0), x[1] - unpack<T>(packed, 1)));
            }
        }

        /* O^T: k-step i takes of the lane's page tokens i, i + 8, i + 4, i + 12; row g of m-tile j is dimension j of the
         * lane's 8, row g + 8 dimension j + 4. */
        RA_UNROLL for (int i = 0; i < 4; i++)
        {
            if (D > 128)
                warp_sync(); /* keeps the compiler from loading more than the registers hold */
            RA_UNROLL for (int r = 0; r < ROUNDS; r++)
            {
                const int c = 64 * r + 8 * g;
                vec16 row[4];
                RA_UNROLL for (int m = 0; m < 4; m++)
                {
                    const int slot = i + m % 2 * 8 + m / 2 * 4;
                    row[m] = load16(values + slot * D + c, v_page * PAGE + slot < w.end && c < D);
                }
                RA_UNROLL for (int j = 0; j < 4; j++)
                {
                    uint32_t a[4] = {pair_at(row[0], row[1], j), pair_at(row[0], row[1], j + 4),
                                     pair_at(row[2], row[3], j), pair_at(row[2], row[3], j + 4)};
                    RA_UNROLL for (int n = 0; n < N; n++)
                    {
                        mma(T, acc[n][r][j], a, high[n][i]);
                        mma(T, acc[n][r][j], a, low[n][i]);
                    }
                }
            }
        }
    }

    RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int c = 0; c < 2; c++)
        RA_UNROLL for (int mask = 4; mask < 32; mask *= 2) sum[n][c] += shuffle_xor(sum[n][c], mask);

    /* Warps 2 and 3 give what they have to 0 and 1, then 1 to 0. */
    for (int givers = 2; givers >= 1; givers--) {
        const int at = warp % givers * N * 8 * (D + 2);
        shared<float> result = shared_at<float>(result_at);
        if (warp >= givers && warp < 2 * givers) {
            RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int c = 0; c < 2; c++)
            {
                const int to = at + (8 * n + 2 * t + c) * (D + 2);
                RA_UNROLL for (int r = 0; r < ROUNDS; r++) if (64 * r + 8 * g < D) RA_UNROLL for (int j = 0; j < 4; j++)
                {
                    result[to + 64 * r + 8 * g + j] = acc[n][r][j][c];
                    result[to + 64 * r + 8 * g + 4 + j] = acc[n][r][j][2 + c];
                }
                if (g == 0) {
                    result[to + D] = top[n][c];
                    result[to + D + 1] = sum[n][c];
                }
            }
        }
        block_sync();
        if (warp < givers) {
            RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int c = 0; c < 2; c++)
            {
                const int from = at + (8 * n + 2 * t + c) * (D + 2);
                float their_top = result[from + D], best = fmaxf(top[n][c], their_top);
                float own = top[n][c] == -INFINITY ? 0 : exp2_fast(top[n][c] - best);
                float theirs = their_top == -INFINITY ? 0 : exp2_fast(their_top - best);
                top[n][c] = best;
                sum[n][c] = sum[n][c] * own + result[from + D + 1] * theirs;
                RA_UNROLL for (int r = 0; r < ROUNDS; r++) if (64 * r + 8 * g < D) RA_UNROLL for (int j = 0; j < 4; j++)
                {
                    float x = result[from + 64 * r + 8 * g + j], y = result[from + 64 * r + 8 * g + 4 + j];
                    acc[n][r][j][c] = acc[n][r][j][c] * own + x * theirs;
                    acc[n][r][j][2 + c] = acc[n][r][j][2 + c] * own + y * theirs;
                }
            }
        }
        block_sync();
    }

    if (warp == 0) {
        RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int c = 0; c < 2; c++)
        {
            const int query = 8 * n + 2 * t + c;
            RA_UNROLL for (int r = 0; r < ROUNDS; r++)
            {
                const int at = 64 * r + 8 * g;
                float x[8];
                RA_UNROLL for (int j = 0; j < 8; j++) x[j] = acc[n][r][j % 4][j / 4 * 2 + c];
                if (query >= w.count || at >= D)
                    continue;
                if (w.chunks == 1)
                    write_result<T>(p, w, query, at, x, top[n][c], sum[n][c]);
                else
                    save_part<D>(p, w, 8 * N, query, at, x, top[n][c], sum[n][c]);
            }
        }
    }
    if (w.chunks > 1)
        merge_chunks<T, D>(p, w, 8 * N, flag_at);
}

/* Queries of a tile: 16 where their accumulators fit the registers without spills. */
RA_HOST_DEVICE constexpr bool takes_16(int d) { return d == 64 || d == 128; }

template <class T, int D> static int run_size(const split_run &r)
{
    if constexpr (takes_16(D))
        if (r.p.a.l.group * r.p.a.s.tokens > 8)
            return RA_LAUNCH((attend_matrix<T, D, 2>), r.grid(16), THREADS, (matrix_shared<D, 2>::bytes), r.stream,
                             r.p);
    return RA_LAUNCH((attend_matrix<T, D, 1>), r.grid(8), THREADS, (matrix_shared<D, 1>::bytes), r.stream, r.p);
}

template <class T> static int run_type(const split_run &r)
{
    switch (r.p.a.l.head_dim) {
#define RA_CASE(D)                                                                                                     \
    case D: return run_size<T, D>(r);
        RA_SIZES(RA_CASE)
#undef RA_CASE
    }
    return -1;
}

int ra_cuda_attend_matrix(const split_run &r)
{
    return r.p.a.l.format == RA_BF16 ? run_type<bf16>(r) : run_type<f16>(r);
}
