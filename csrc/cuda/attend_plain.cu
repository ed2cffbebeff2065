/* Attention in float32 multiply-adds, for float32 pages: a warp takes a page at a time. */
#include "attend_split.cuh"

/* Shared memory: queries; weights of a page for each warp; results of all; tops and sums; the flag. */
template <int D, int Q> struct plain_shared {
    static constexpr size_t flag = ((size_t)Q * D + WARPS * Q * 16 + (size_t)Q * D + 2 * WARPS * Q) * 4,
                            bytes = flag + 16;
};

template <class T, int D, int Q> RA_KERNEL(THREADS, 2) attend_plain(split_params p)
{
    constexpr int E = 16 / sizeof(T); /* elements of a vector: tokens of K, dimensions of V */
    constexpr int K_LANES = PAGE / E; /* lanes that share a dimension of K */
    constexpr int V_VECTORS = D / E;  /* vectors of a token's V */
    constexpr int V_PARTS = (V_VECTORS + 31) / 32;
    constexpr int V_ROWS = V_VECTORS >= 32 ? 1 : 32 / V_VECTORS; /* tokens that a warp reads at once */
    constexpr size_t flag_at = plain_shared<D, Q>::flag;
    const shared<float> q = shared_at<float>(0), weight = q + Q * D, result = weight + WARPS * Q * 16,
                        tops = result + Q * D, sums = tops + WARPS * Q;
    task w;
    if (!find_task(p, Q, &w))
        return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int32_t *table = pages_of(p.a.l, w.pair);
    void *const *memory = p.a.l.pool->memory;
    for (int item = threadIdx.x; item < Q * D; item += THREADS) {
        int query = item / D, c = item % D;
        float x = 0;
        if (query < w.count) {
            x = load_element(query_at(p.a, w.row, w.head, query_of_task(p, w, query)), c, p.a.s.queries.dtype);
        }
        q[item] = x;
        result[item] = 0;
    }
    block_sync();

    float acc[V_PARTS][Q][E], top[Q], sum[Q];
    int limit[Q];
    RA_UNROLL for (int g = 0; g < Q; g++)
    {
        top[g] = -INFINITY;
        sum[g] = 0;
        limit[g] = limit_of(p, w, g);
        RA_UNROLL for (int v = 0; v < V_PARTS; v++) RA_UNROLL for (int i = 0; i < E; i++) acc[v][g][i] = 0;
    }
    const int row = V_VECTORS >= 32 ? 0 : lane / V_VECTORS, column = V_VECTORS >= 32 ? lane : lane % V_VECTORS;
    for (int page = w.begin / PAGE + warp; page * PAGE < w.end; page += WARPS) {
        const T *keys = (const T *)memory[table[page]], *values = keys + D * PAGE;
        float s[Q][E];
        RA_UNROLL for (int g = 0; g < Q; g++) RA_UNROLL for (int i = 0; i < E; i++) s[g][i] = 0;
        RA_UNROLL for (int c = 0; c < D; c += 32 / K_LANES)
        {
            const int dim = c + lane / K_LANES;
            vec16 key = load16(keys + dim * PAGE + lane % K_LANES * E, dim < D);
            RA_UNROLL for (int g = 0; g < Q; g++)
            {
                float x = dim < D ? (float)q[g * D + dim] : 0;
                RA_UNROLL for (int i = 0; i < E; i++) s[g][i] = fmaf(x, element(key, i, T()), s[g][i]);
            }
        }
        /* Sums over the lanes that share tokens: each step halves the tokens of a lane, the rest are plain sums. */
        int token = lane % K_LANES * E;
        RA_UNROLL for (int half = E / 2, bit = 16; half >= 1; half /= 2, bit /= 2)
        {
            const bool upper = lane & bit;
            token += upper ? half : 0;
            RA_UNROLL for (int g = 0; g < Q; g++) RA_UNROLL for (int i = 0; i < half; i++)
            {
                float send = upper ? s[g][i] : s[g][i + half], keep = upper ? s[g][i + half] : s[g][i];
                s[g][i] = keep + shuffle_xor(send, bit);
            }
        }
        constexpr int rest = K_LANES; /* two lanes end with the same token */
        RA_UNROLL for (int g = 0; g < Q; g++) s[g][0] += shuffle_xor(s[g][0], rest);
        const bool counts = !(lane & rest);
        RA_UNROLL for (int g = 0; g < Q; g++)
        {
            float x = page * PAGE + token < least(limit[g], w.end) ? logit(p, s[g][0]) : -INFINITY, best = x;
            RA_UNROLL for (int mask = 16; mask; mask /= 2) best = fmaxf(best, shuffle_xor(best, mask));
            best = fmaxf(best, top[g]);
            float shrink = top[g] == -INFINITY ? 0 : exp2_fast(top[g] - best);
            float e = x == -INFINITY ? 0 : exp2_fast(x - best);
            top[g] = best;
            sum[g] = sum[g] * shrink + (counts ? e : 0);
            if (counts)
                weight[(warp * Q + g) * 16 + token] = e;
            RA_UNROLL for (int v = 0; v < V_PARTS; v++) RA_UNROLL for (int i = 0; i < E; i++) acc[v][g][i] *= shrink;
        }
        warp_sync();
        for (int first = 0; first < PAGE; first += V_ROWS) {
            const int slot = first + row;
            if (row < V_ROWS && slot < PAGE)
                RA_UNROLL for (int v = 0; v < V_PARTS; v++)
                {
                    const bool there = column + 32 * v < V_VECTORS && page * PAGE + slot < w.end;
                    vec16 value = load16(values + slot * D + (column + 32 * v) * E, there);
                    RA_UNROLL for (int g = 0; g < Q; g++)
                    {
                        float x = weight[(warp * Q + g) * 16 + slot];
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
        for (int other = 0; other < WARPS; other++) {
            float theirs = tops[other * Q + g];
            total[g] += theirs == -INFINITY ? 0 : sums[other * Q + g] * exp2_fast(theirs - best);
        }
        float own = top[g] == -INFINITY ? 0 : exp2_fast(top[g] - best);
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
        if (w.chunks == 1)
            write_result<T>(p, w, g, 8 * item, x, top[g], total[g]);
        else
            save_part<D>(p, w, Q, g, 8 * item, x, top[g], total[g]);
    }
    if (w.chunks > 1)
        merge_chunks<T, D>(p, w, Q, flag_at);
}

template <int D> static int run_size(const split_run &r)
{
    if (r.p.a.l.group * r.p.a.s.tokens == 1)
        return RA_LAUNCH((attend_plain<float, D, 1>), r.grid(1), THREADS, (plain_shared<D, 1>::bytes), r.stream, r.p);
    return RA_LAUNCH((attend_plain<float, D, 4>), r.grid(4), THREADS, (plain_shared<D, 4>::bytes), r.stream, r.p);
}

int ra_cuda_attend_plain(const split_run &r)
{
    switch (r.p.a.l.head_dim) {
#define RA_CASE(D)                                                                                                     \
    case D: return run_size<D>(r);
        RA_SIZES(RA_CASE)
#undef RA_CASE
    }
    return -1;
}
