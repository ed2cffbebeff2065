/* Attention on matrix units, for 16-bit pages and queries of the same dtype.
 *
 * Each warp takes 64 slots, four pages, at a time. It copies their keys to shared memory behind its own back, in the order in
 * which they lie, which is what the memory is quick at, and then their values into the same place. K [D][16] and V [16][D] are
 * read as 16-byte vectors of 8 slots or 8 dimensions, and a byte permutation of two vectors gives the pairs along the contracted
 * dimension that mma.m16n8k16 wants. No barrier of the block is passed in the loop. Slots are the rows of S^T = K Q^T, so 8
 * queries fill a tile and O^T = V^T P^T needs only an 8 x 8 transposition of P. P is split in two halves of its precision: the
 * result is as exact as float32 arithmetic would be. */
#pragma once
#include "attend_split.cuh"

constexpr int STEP = 64; /* slots of a warp's step */

/* Where a warp's pages lie in shared memory, in vectors. Keys and values have a place each if they are small, so that the next
 * ones come earlier. A page begins two vectors further than the one before ends: lanes read from four pages at a time. */
template <int D> struct page_places {
    static constexpr int half = PAGE * D / 8, stride = half + 2, places = D <= 64 ? 2 : 1, all = places * 4 * stride,
                         values = (places - 1) * 4 * stride;
};

/* Shared memory: queries in fragment order; what each query sees; the word of merge_chunks; the warps' pages. After the loop
 * the pages' place is that of the warps' results. */
template <int D, int N> struct matrix_shared {
    static constexpr size_t limits = (size_t)N * 8 * D * 2, flag = limits + N * 8 * 4, pages = flag + 16,
                            bytes = pages + WARPS * page_places<D>::all * 16;
    static constexpr int query_vectors = D / 4 + 1; /* of a query's result */
    static_assert(N * 8 * query_vectors <= page_places<D>::all, "a warp's results fit where its pages were");
    static_assert(bytes <= matrix_shared_bytes(D), "");
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

/* The page of a step that a lane sees to, number lane / 8; NULL past the end. */
RA_DEVICE const char *page_of_step(void *const *memory, const int32_t *table, int start, int end)
{
    const int page = start / PAGE + (int)threadIdx.x % 32 / 8;
    return page * PAGE < end ? (const char *)memory[table[page]] : 0;
}

/* Keys (offset 0) or values of a step's pages begin to come. All lanes have read what lies there. */
template <int D> RA_DEVICE void copy_half(const char *page, int offset, shared<vec16> to)
{
    const int lane = threadIdx.x % 32;
    warp_sync();
    RA_UNROLL for (int i = 0; i < 4; i++)
    {
        const char *from = (const char *)shuffle((unsigned long long)page, 8 * i);
        if (from)
            RA_UNROLL for (int at = 0; at < page_places<D>::half; at += 32)
                copy_async(to, i * page_places<D>::stride + at + lane, from + offset + 16 * (at + lane));
    }
    copy_commit();
}
template <int D> RA_DEVICE void wait_for_half()
{
    copy_wait<page_places<D>::places - 1>();
    warp_sync();
}

/* Blocks that an SM is to hold, as its shared memory can: one copies while another begins or merges. */
RA_HOST_DEVICE constexpr int blocks_for(int dims, int tiles)
{
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
    return 2;
#else
    return dims <= 128 && tiles == 1 && dims % 64 == 0 ? 3 : 2;
#endif
}

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
    typedef page_places<D> place;
    constexpr int K_STEPS = D / 16, ROUNDS = (D + 63) / 64, TILE = 8 * N, VALUES = PAGE * D * (int)sizeof(T);
    constexpr bool ROLLED = D > 128 || N == 2 || (LOGITS && D > 64); /* the loop over values: registers are few */
    constexpr size_t flag_at = matrix_shared<D, N>::flag;
    void *const *memory = p.a.l.pool->memory;
    work w;
    if (!has_async_copies() || !find_work(p, TILE, &w))
        return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int32_t *table = pages_of(p.a.l, w.pair);
    const shared<vec16> keys = shared_at<vec16>(matrix_shared<D, N>::pages + warp * place::all * 16), values = keys + place::values;
    const char *page = page_of_step(memory, table, w.begin + warp * STEP, w.end);
    copy_half<D>(page, 0, keys);
    if (place::places == 2)
        copy_half<D>(page, VALUES, values);
    else
        prefetch_page(page ? page + VALUES : 0, VALUES);

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
        const char *next_page = page_of_step(memory, table, start + WARPS * STEP, w.end);
        const bool k_there = page != 0;

        /* S^T: row g of m-tile i is slot i of the lane's 8, row g + 8 slot i + 4. */
        float s[N][4][4];
        RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int i = 0; i < 4; i++)
            RA_UNROLL for (int j = 0; j < 4; j++) s[n][i][j] = 0;
        wait_for_half<D>();
        prefetch_page(next_page, 2 * VALUES);
        RA_UNROLL_BY(4) for (int k = 0; k < K_STEPS; k++)
        {
            vec16 row[4];
            RA_UNROLL for (int m = 0; m < 4; m++)
                row[m] = shared_or_zeros(keys, g / 2 * place::stride + 2 * (16 * k + 4 * m + t) + g % 2, k_there);
            RA_UNROLL for (int n = 0; n < N; n++)
            {
                const uint64_t pairs = shared_at<uint64_t>(0)[(k * N + n) * 32 + lane];
                const uint32_t b[2] = {(uint32_t)pairs, (uint32_t)(pairs >> 32)};
                RA_UNROLL for (int i = 0; i < 4; i++)
                {
                    const uint32_t a[4] = {pair_at(row[0], row[1], i), pair_at(row[0], row[1], i + 4),
                                           pair_at(row[2], row[3], i), pair_at(row[2], row[3], i + 4)};
                    mma(T, s[n][i], a, b);
                }
            }
        }
        if (place::places == 2)
            copy_half<D>(next_page, 0, keys);
        else
            copy_half<D>(page, VALUES, values);
        if (p.cap_log2 > 0) /* one branch for all, not one each */
            RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int i = 0; i < 4; i++)
                RA_UNROLL for (int j = 0; j < 4; j++) s[n][i][j] = capped_log2(p, s[n][i][j]);
        else
            RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int i = 0; i < 4; i++)
                RA_UNROLL for (int j = 0; j < 4; j++) s[n][i][j] *= p.factor;

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
                s[n][i][j] = sees ? s[n][i][j] : -INFINITY;
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
        wait_for_half<D>();
        const int slots = w.end - (start / PAGE + t) * PAGE; /* of the lane's page */
        RA_UNROLL_BY(ROLLED ? 1 : 4) for (int i = 0; i < 4; i++)
        {
            const int own = ROLLED ? 0 : i;
            RA_UNROLL for (int r = 0; r < ROUNDS; r++)
            {
                vec16 row[4];
                RA_UNROLL for (int m = 0; m < 4; m++)
                {
                    const int u = i + m % 2 * 8 + m / 2 * 4, c = 64 * r + 8 * g;
                    row[m] = shared_or_zeros(values, t * place::stride + (u * D + c) / 8, u < slots && c < D);
                }
                RA_UNROLL for (int j = 0; j < 4; j++)
                {
                    const uint32_t a[4] = {pair_at(row[0], row[1], j), pair_at(row[0], row[1], j + 4),
                                           pair_at(row[2], row[3], j), pair_at(row[2], row[3], j + 4)};
                    RA_UNROLL for (int n = 0; n < N; n++)
                    {
                        mma(T, acc[n][r][j], a, high[n][own]);
                        mma(T, acc[n][r][j], a, low[n][own]);
                    }
                }
            }
            /* Where the loop stays one, the next ones come to the front: registers have no index. */
            if (ROLLED)
                RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int after = 0; after < 3; after++)
                    RA_UNROLL for (int half = 0; half < 2; half++)
                {
                    high[n][after][half] = high[n][after + 1][half];
                    low[n][after][half] = low[n][after + 1][half];
                }
        }
        if (place::places == 2)
            copy_half<D>(next_page, VALUES, values);
        else
            copy_half<D>(next_page, 0, keys);
        page = next_page;
    }

    RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int c = 0; c < 2; c++)
        RA_UNROLL for (int mask = 4; mask < 32; mask *= 2) sum[n][c] += shuffle_xor(sum[n][c], mask);

    /* What the warps have of each query, its accumulators and then top and sum, and all of them together. */
    constexpr int VECTORS = matrix_shared<D, N>::query_vectors;
    const shared<vec16> results = shared_at<vec16>(matrix_shared<D, N>::pages);
    copy_wait<0>();
    block_sync(); /* all have read their pages */
    RA_UNROLL for (int n = 0; n < N; n++) RA_UNROLL for (int c = 0; c < 2; c++)
    {
        const int to = (warp * TILE + 8 * n + 2 * t + c) * VECTORS;
        RA_UNROLL for (int r = 0; r < ROUNDS; r++) if (64 * r + 8 * g < D) RA_UNROLL for (int half = 0; half < 2; half++)
        {
            vec16 v;
            RA_UNROLL for (int j = 0; j < 4; j++) v.w[j] = as_bits(acc[n][r][j][half * 2 + c]);
            results[to + 16 * r + 2 * g + half] = v;
        }
        if (g == 0)
            results[to + VECTORS - 1] = vec16{{as_bits(top[n][c]), as_bits(sum[n][c]), 0, 0}};
    }
    block_sync();
    RA_NO_UNROLL for (int item = threadIdx.x; item < w.count * (D / 8); item += THREADS)
    {
        const int query = item / (D / 8), c = item % (D / 8) * 8;
        float x[8] = {0, 0, 0, 0, 0, 0, 0, 0}, tops[WARPS], best = -INFINITY, all = 0;
        RA_UNROLL for (int i = 0; i < WARPS; i++)
        {
            tops[i] = as_float(((vec16)results[(i * TILE + query + 1) * VECTORS - 1]).w[0]);
            best = fmaxf(best, tops[i]);
        }
        RA_UNROLL for (int i = 0; i < WARPS; i++)
        {
            const int from = (i * TILE + query) * VECTORS;
            const float by = weight_log2(tops[i], best);
            all = fmaf(as_float(((vec16)results[from + VECTORS - 1]).w[1]), by, all);
            RA_UNROLL for (int half = 0; half < 2; half++)
            {
                const vec16 v = results[from + c / 4 + half];
                RA_UNROLL for (int j = 0; j < 4; j++) x[4 * half + j] = fmaf(as_float(v.w[j]), by, x[4 * half + j]);
            }
        }
        leave<D, TILE, LOGITS>(p, w, query, c, x, best, all);
    }
    merge_chunks<D, TILE, LOGITS>(p, w, flag_at);
}

template <class T, int D, int N, bool LOGITS> static int launch_matrix(const split_params &p, void *stream)
{
    constexpr size_t bytes = matrix_shared<D, N>::bytes;
    const int error = allow_shared(attend_matrix<T, D, N, LOGITS>, bytes);
    return error ? error : RA_LAUNCH((attend_matrix<T, D, N, LOGITS>), split_grid(p, 8 * N), THREADS, bytes, stream, p);
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
