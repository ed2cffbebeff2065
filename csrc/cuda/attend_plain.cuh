/* Attention in float32 multiply-adds, for float32 pages, queries of another dtype than the pages, and old GPUs: a warp takes
 * a page at a time, with 16-byte loads. */
#pragma once
#include "attend_split.cuh"

/* Shared memory: queries; weights of a page for each warp; results of all; tops and sums; the word of merge_chunks. */
template <int D, int Q> struct plain_shared {
    static constexpr size_t flag = ((size_t)Q * D + WARPS * Q * PAGE + (size_t)Q * D + 2 * WARPS * Q) * 4,
                            bytes = flag + 16;
};

template <class T, int D, int Q> RA_KERNEL(THREADS, 2) attend_plain(split_params p)
{
    constexpr int E = 16 / sizeof(T);                            /* elements of a vector: slots of K, dimensions of V */
    constexpr int K_LANES = PAGE / E;                            /* lanes that share a dimension of K */
    constexpr int V_VECTORS = D / E;                             /* vectors of a slot's V */
    constexpr int V_PARTS = (V_VECTORS + 31) / 32;               /* ... of a lane */
    constexpr int V_ROWS = V_VECTORS >= 32 ? 1 : 32 / V_VECTORS; /* slots that a warp reads at once */
    const shared<float> queries = shared_at<float>(0), weight = queries + Q * D, result = weight + WARPS * Q * PAGE,
                        tops = result + Q * D, sums = tops + WARPS * Q;
    work w;
    if (!find_work(p, Q, &w))
        return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int32_t *table = pages_of(p.a.l, w.pair), *positions = positions_of(p.a.l, w.pair);
    void *const *memory = p.a.l.pool->memory;
    for (int item = threadIdx.x; item < Q * D; item += THREADS) {
        const int query = item / D;
        queries[item] = query < w.count ? load_element(query_at(p.a, w.row, w.head, query_of(p, w, query)), item % D,
                                                       p.a.s.queries.dtype)
                                        : 0;
        result[item] = 0;
    }
    block_sync();

    float acc[V_PARTS][Q][E], top[Q], sum[Q];
    int limit[Q];
    RA_UNROLL for (int g = 0; g < Q; g++)
    {
        top[g] = -INFINITY;
        sum[g] = 0;
        limit[g] = g < w.count ? least(query_of(p, w, g).limit, w.end) : 0;
        RA_UNROLL for (int v = 0; v < V_PARTS; v++) RA_UNROLL for (int i = 0; i < E; i++) acc[v][g][i] = 0;
    }
    const int row = V_VECTORS >= 32 ? 0 : lane / V_VECTORS, column = V_VECTORS >= 32 ? lane : lane % V_VECTORS;
    for (int page = w.begin / PAGE + warp; page * PAGE < w.end; page += WARPS) {
        const T *keys = (const T *)memory[table[page]], *values = keys + D * PAGE;
        float s[Q][E];
        RA_UNROLL for (int g = 0; g < Q; g++) RA_UNROLL for (int i = 0; i < E; i++) s[g][i] = 0;
        RA_UNROLL_BY(8) for (int c = 0; c < D; c += 32 / K_LANES)
        {
            const int dim = c + lane / K_LANES;
            const vec16 key = load16(keys + dim * PAGE + lane % K_LANES * E, dim < D);
            RA_UNROLL for (int g = 0; g < Q; g++)
            {
                const float x = dim < D ? (float)queries[g * D + dim] : 0;
                RA_UNROLL for (int i = 0; i < E; i++) s[g][i] = fmaf(x, element(key, i, T()), s[g][i]);
            }
        }
        /* Sums over the lanes that share slots: each step halves the slots of a lane, the rest are plain sums. */
        int u = lane % K_LANES * E;
        RA_UNROLL for (int half = E / 2, bit = 16; half >= 1; half /= 2, bit /= 2)
        {
            const bool upper = lane & bit;
            u += upper ? half : 0;
            RA_UNROLL for (int g = 0; g < Q; g++) RA_UNROLL for (int i = 0; i < half; i++)
            {
                const float send = upper ? s[g][i] : s[g][i + half], keep = upper ? s[g][i + half] : s[g][i];
                s[g][i] = keep + shuffle_xor(send, bit);
            }
        }
        const bool counts = !(lane & K_LANES); /* two lanes end with the same slot */
        const int slot = page * PAGE + u;
        RA_UNROLL for (int g = 0; g < Q; g++)
        {
            const float dot = s[g][0] + shuffle_xor(s[g][0], K_LANES);
            const bool sees = slot < limit[g] && (!p.a.s.visible || shows(query_of(p, w, g), positions, slot));
            const float x = sees ? logit_log2(p, dot) : -INFINITY;
            float best = x;
            RA_UNROLL for (int mask = 16; mask; mask /= 2) best = fmaxf(best, shuffle_xor(best, mask));
            best = fmaxf(best, top[g]);
            const float shrink = weight_log2(top[g], best), e = weight_log2(x, best);
            top[g] = best;
            sum[g] = fmaf(sum[g], shrink, counts ? e : 0);
            if (counts)
                weight[(warp * Q + g) * PAGE + u] = e;
            RA_UNROLL for (int v = 0; v < V_PARTS; v++) RA_UNROLL for (int i = 0; i < E; i++) acc[v][g][i] *= shrink;
        }
        warp_sync();
        RA_UNROLL_BY(4) for (int first = 0; first < PAGE; first += V_ROWS)
        {
            const int u_v = first + row;
            if (row < V_ROWS && u_v < PAGE)
                RA_UNROLL for (int v = 0; v < V_PARTS; v++)
                {
                    const bool there = column + 32 * v < V_VECTORS && page * PAGE + u_v < w.end;
                    const vec16 value = load16(values + u_v * D + (column + 32 * v) * E, there);
                    RA_UNROLL for (int g = 0; g < Q; g++)
                    {
                        const float x = weight[(warp * Q + g) * PAGE + u_v];
                        RA_UNROLL for (int i = 0; i < E; i++)
                            acc[v][g][i] = fmaf(x, element(value, i, T()), acc[v][g][i]);
                    }
                }
        }
        warp_sync();
    }

    RA_UNROLL for (int g = 0; g < Q; g++)
    {
        RA_UNROLL for (int mask = 16; mask; mask /= 2) sum[g] += shuffle_xor(sum[g], mask);
        if (lane == 0) {
            tops[warp * Q + g] = top[g];
            sums[warp * Q + g] = sum[g];
        }
    }
    block_sync();
    float total[Q];
    RA_UNROLL for (int g = 0; g < Q; g++)
    {
        float best = -INFINITY;
        for (int other = 0; other < WARPS; other++)
            best = fmaxf(best, tops[other * Q + g]);
        total[g] = 0;
        for (int other = 0; other < WARPS; other++)
            total[g] = fmaf(sums[other * Q + g], weight_log2(tops[other * Q + g], best), total[g]);
        const float own = weight_log2(top[g], best);
        top[g] = best;
        RA_UNROLL for (int v = 0; v < V_PARTS; v++) RA_UNROLL for (int i = 0; i < E; i++) acc[v][g][i] *= own;
    }
    for (int turn = 0; turn < WARPS * V_ROWS; turn++) { /* one after the other: the same bits each time */
        if (turn == warp * V_ROWS + row && row < V_ROWS)
            RA_UNROLL for (int v = 0; v < V_PARTS; v++) if (column + 32 * v < V_VECTORS)
                RA_UNROLL for (int g = 0; g < Q; g++) RA_UNROLL for (int i = 0; i < E; i++)
                    result[g * D + (column + 32 * v) * E + i] += acc[v][g][i];
        block_sync();
    }
    RA_UNROLL for (int g = 0; g < Q; g++) for (int item = threadIdx.x; item < D / 8 && g < w.count; item += THREADS)
    {
        float x[8];
        RA_UNROLL for (int i = 0; i < 8; i++) x[i] = result[g * D + 8 * item + i];
        leave<D, Q>(p, w, g, 8 * item, x, top[g], total[g]);
    }
    merge_chunks<D, Q>(p, w, plain_shared<D, Q>::flag);
}

template <class T, int D, int Q> static int launch_plain(const split_params &p, void *stream)
{
    return RA_LAUNCH((attend_plain<T, D, Q>), split_grid(p, Q), THREADS, (plain_shared<D, Q>::bytes), stream, p);
}

/* One query at a time pays only where float32 models have no groups; 16-bit ones have matrix units for that. */
template <class T, int D> static int launch_plain_of_size(const split_params &p, void *stream)
{
    if constexpr (sizeof(T) == 4)
        if (p.a.l.group * p.a.s.tokens == 1)
            return launch_plain<T, D, 1>(p, stream);
    return launch_plain<T, D, 4>(p, stream);
}

template <class T> static int launch_plain_any_size(const split_params &p, void *stream)
{
    switch (p.a.l.head_dim) {
#define CASE(D)                                                                                                        \
    case D: return launch_plain_of_size<T, D>(p, stream);
        RA_HEAD_SIZES(CASE)
#undef CASE
    }
    return -1;
}
