/* Attention with the split over a head's length and its merge in one launch: what attend_matrix.cuh and attend_plain.cuh share.
 *
 * A block takes one chunk of one (row, KV head) and a tile of its queries (group x new tokens, numbered token-major).
 * How long chunks are follows from the head's length and its row's new tokens alone, so that a row gives the same bits in
 * any batch. The grid covers the longest head that there may be; blocks past a head's end return at once. Of the blocks that
 * share a head and tile the last to finish merges their parts, in order. */
#pragma once
#include "attend.cuh"

constexpr int SPLIT_TOKENS = 8; /* rows with more new tokens fill the machine without a split */
constexpr float LOG2_E = 1.44269504088896341f, LN_2 = 0.693147180559945309f;

/* Slots of a chunk; the last one has from two thirds to five thirds as many. So what goes into partial results and comes back
 * is less than a tenth of the bytes read, for groups of up to 8. */
constexpr int SHORT_HEAD = 2048, LONG_HEAD = 16384;
RA_HOST_DEVICE int chunk_bits(int slots) { return slots <= SHORT_HEAD ? 8 : slots <= LONG_HEAD ? 9 : 10; }
/* bits: of the slots of a chunk. */
RA_HOST_DEVICE int chunks_of(int slots, int bits)
{
    const int chunk = 1 << bits;
    return slots <= chunk ? 1 : (slots + chunk / 3) >> bits;
}

/* Shared memory of a block of attend_matrix.cuh, at most. */
RA_HOST_DEVICE constexpr size_t matrix_shared_bytes(int head_dim) { return (size_t)(head_dim > 128 ? 136 : 72) << 10; }

struct split_params {
    attend_params a;
    int most_chunks;                 /* of a head */
    int split_queries;               /* most queries of a head that is split, in whole tiles */
    bool query_vectors, out_vectors; /* aligned for 16 bytes at a time */
    float factor, cap_log2; /* logit * log2(e) = factor * q.k, or cap_log2 * tanh(factor * q.k) where that is above 0 */
    float *
        partial; /* [pairs][tiles][chunks]: [queries of a tile][D] accumulators, then [queries][4] of which two are tops and sums */
    uint32_t *tickets; /* [pairs][tiles] */
};

/* What a block works on. */
struct work {
    int pair, row, head, slots, fresh;
    int tile, first, count;        /* queries */
    int chunk, chunks, begin, end; /* slots */
};

/* False: nothing to do. */
RA_DEVICE bool find_work(const split_params &p, int tile_queries, work *w)
{
    w->pair = blockIdx.x / p.most_chunks;
    w->chunk = blockIdx.x % p.most_chunks;
    w->tile = blockIdx.z * gridDim.y + blockIdx.y;
    w->row = w->pair / p.a.l.kv_heads;
    w->head = w->pair % p.a.l.kv_heads;
    w->fresh = fresh_of(p.a.s, w->row);
    w->first = w->tile * tile_queries;
    const int queries = p.a.l.group * w->fresh;
    if (w->first >= queries)
        return false;
    w->count = least(tile_queries, queries - w->first);
    w->slots = p.a.l.slots[w->pair];
    /* The tile's last query sees most. */
    const int seen = w->slots - (w->fresh - 1 - (w->first + w->count - 1) / p.a.l.group);
    const int bits = chunk_bits(w->slots);
    w->chunks = w->fresh > SPLIT_TOKENS ? 1 : chunks_of(seen, bits);
    w->begin = w->chunk << bits;
    w->end = w->chunk == w->chunks - 1 ? seen : w->begin + (1 << bits);
    return w->chunk < w->chunks;
}

RA_DEVICE query_ref query_of(const split_params &p, const work &w, int query)
{
    return query_number(p.a, w.row, w.slots, w.fresh, w.first + query);
}
RA_DEVICE bool shows(const query_ref &q, const int32_t *positions, int slot) { return q.visible[positions[slot]] != 0; }

RA_DEVICE float capped_log2(const split_params &p, float dot) { return p.cap_log2 * tanhf(dot * p.factor); }
RA_DEVICE float logit_log2(const split_params &p, float dot) { return p.cap_log2 > 0 ? capped_log2(p, dot) : dot * p.factor; }
/* Tops are logits in base 2, -INFINITY where nothing is seen. */
RA_DEVICE float weight_log2(float logit, float top) { return logit == -INFINITY ? 0 : exp2_fast(logit - top); }

/* What a finished query's accumulators are multiplied with. */
RA_DEVICE float divisor_of(const split_params &p, const work &w, const query_ref &q, float top, float sum)
{
    const float sink = sink_of(p.a, w.head, q);
    if (top == -INFINITY)
        return 0;
    if (sink > -INFINITY)
        sum += exp2_fast(sink * LOG2_E - top);
    return 1 / sum;
}

/* Eight of a query's numbers as they leave, from dimension c on. */
RA_DEVICE void store_out(const split_params &p, const work &w, const query_ref &q, int c, const float *x, float by)
{
    const int dtype = p.a.s.out.dtype;
    char *to = out_at(p.a, w.row, w.head, q) + c * size_of(dtype);
    if (!p.out_vectors) {
        RA_UNROLL for (int i = 0; i < 8; i++) store_element(to, i, dtype, x[i] * by);
        return;
    }
    vec16 v[2];
    if (dtype == RA_F32) {
        RA_UNROLL for (int i = 0; i < 8; i++) v[i / 4].w[i % 4] = as_bits(x[i] * by);
        store16(to + 16, v[1]);
    } else if (dtype == RA_BF16) {
        RA_UNROLL for (int i = 0; i < 4; i++) v[0].w[i] = pack<bf16>(x[2 * i] * by, x[2 * i + 1] * by);
    } else {
        RA_UNROLL for (int i = 0; i < 4; i++) v[0].w[i] = pack<f16>(x[2 * i] * by, x[2 * i + 1] * by);
    }
    store16(to, v[0]);
}

/* What makes weights of a query's logits where these are in step.logits (attend_matrix.cuh), behind all lists: its top, and what
 * is multiplied with. */
RA_DEVICE void leave_ends(const split_params &p, const work &w, int query, float top, float by)
{
    const int64_t queries = (int64_t)p.a.l.rows * p.a.l.kv_heads * p.a.l.group;
    float *ends = p.a.s.logits + queries * list_room(p.a.s.most_slots);
    ends += 2 * ((int64_t)w.pair * p.a.l.group + w.first + query);
    ends[0] = top * LN_2;
    ends[1] = by;
}

/* Eight accumulators of a query that is done, from dimension c on. LOGITS: its logits are in step.logits. */
template <bool LOGITS>
RA_DEVICE void finish(const split_params &p, const work &w, int query, int c, const float *x, float top, float sum)
{
    const query_ref q = query_of(p, w, query);
    const float by = divisor_of(p, w, q, top, sum);
    store_out(p, w, q, c, x, by);
    if (LOGITS && w.fresh == 1 && c == 0)
        leave_ends(p, w, query, top, by);
}

/* ---- Parts of a head that is split ---- */

RA_DEVICE int64_t tile_place(const split_params &p, const work &w, int tile_queries)
{
    return (int64_t)w.pair * (p.split_queries / tile_queries) + w.tile;
}
template <int D, int TILE> RA_DEVICE float *part_of(const split_params &p, const work &w, int chunk)
{
    return p.partial + (tile_place(p, w, TILE) * p.most_chunks + chunk) * TILE * (D + 4);
}

/* Eight accumulators of a query, and beside the first ones its top and sum; a head that is not split is done with that. */
template <int D, int TILE, bool LOGITS = false>
RA_DEVICE void leave(const split_params &p, const work &w, int query, int c, const float *x, float top, float sum)
{
    if (w.chunks == 1) {
        finish<LOGITS>(p, w, query, c, x, top, sum);
        return;
    }
    float *part = part_of<D, TILE>(p, w, w.chunk);
    vec16 v[2];
    RA_UNROLL for (int i = 0; i < 8; i++) v[i / 4].w[i % 4] = as_bits(x[i]);
    store16(part + query * D + c, v[0]);
    store16(part + query * D + c + 4, v[1]);
    if (c == 0) {
        part[TILE * D + 2 * query] = top;
        part[TILE * D + 2 * query + 1] = sum;
    }
}

/* The last block to come merges. flag_at: where shared memory has a word for it. */
template <int D, int TILE, bool LOGITS = false>
RA_DEVICE void merge_chunks(const split_params &p, const work &w, size_t flag_at)
{
    if (w.chunks == 1)
        return;
    const shared<unsigned> last = shared_at<unsigned>(flag_at);
    device_fence();
    block_sync();
    if (threadIdx.x == 0) {
        uint32_t *ticket = &p.tickets[tile_place(p, w, TILE)];
        const bool all = global_add(ticket, 1u) + 1 == (unsigned)w.chunks;
        last[0] = all;
        if (all)
            *ticket = 0; /* ready for the next launch */
    }
    block_sync();
    if (!last[0])
        return;
    device_fence();
    constexpr int FLOATS = TILE * (D + 4), SOME = 4; /* parts whose loads are under way together */
    const float *parts = part_of<D, TILE>(p, w, 0);
    for (int item = threadIdx.x; item < w.count * (D / 8); item += THREADS) {
        const int query = item / (D / 8), c = item % (D / 8) * 8;
        float top = -INFINITY, sum = 0, acc[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        RA_NO_UNROLL for (int first = 0; first < w.chunks; first += SOME)
        {
            float2 ends[SOME];
            float4 x[SOME][2];
            RA_UNROLL for (int i = 0; i < SOME; i++)
            {
                ends[i] = {-INFINITY, 0};
                x[i][0] = x[i][1] = {0, 0, 0, 0};
                if (first + i >= w.chunks)
                    continue;
                const float *part = parts + (int64_t)(first + i) * FLOATS;
                ends[i] = load_fresh((const float2 *)(part + TILE * D + 2 * query));
                RA_UNROLL for (int j = 0; j < 2; j++) x[i][j] =
                    load_fresh((const float4 *)(part + query * D + c + 4 * j));
            }
            float best = top;
            RA_UNROLL for (int i = 0; i < SOME; i++) best = fmaxf(best, ends[i].x);
            const float shrink = weight_log2(top, best);
            top = best;
            sum *= shrink;
            RA_UNROLL for (int i = 0; i < 8; i++) acc[i] *= shrink;
            RA_UNROLL for (int i = 0; i < SOME; i++)
            {
                const float by = weight_log2(ends[i].x, top);
                sum = fmaf(ends[i].y, by, sum);
                RA_UNROLL for (int j = 0; j < 2; j++)
                {
                    acc[4 * j] = fmaf(x[i][j].x, by, acc[4 * j]);
                    acc[4 * j + 1] = fmaf(x[i][j].y, by, acc[4 * j + 1]);
                    acc[4 * j + 2] = fmaf(x[i][j].z, by, acc[4 * j + 2]);
                    acc[4 * j + 3] = fmaf(x[i][j].w, by, acc[4 * j + 3]);
                }
            }
        }
        finish<LOGITS>(p, w, query, c, acc, top, sum);
    }
}

/* ---- Launches ---- */

/* Blocks of a launch with tiles of so many queries. */
static inline dim3 split_grid(const split_params &p, int tile_queries)
{
    const int64_t queries = (int64_t)p.a.l.group * p.a.s.tokens;
    const unsigned tiles = (unsigned)((queries + tile_queries - 1) / tile_queries), deep = (tiles + 65534) / 65535;
    return dim3((unsigned)(p.a.l.rows * p.a.l.kv_heads * p.most_chunks), (tiles + deep - 1) / deep, deep);
}

/* The kernels by element of the pages: -1 where the head size has none. */
int ra_attend_matrix_bf16(const split_params &p, void *stream);
int ra_attend_matrix_f16(const split_params &p, void *stream);
/* The same that also fill step.logits. */
int ra_attend_matrix_logits_bf16(const split_params &p, void *stream);
int ra_attend_matrix_logits_f16(const split_params &p, void *stream);
int ra_attend_plain_f32(const split_params &p, void *stream);
int ra_attend_plain_bf16(const split_params &p, void *stream);
int ra_attend_plain_f16(const split_params &p, void *stream);

#ifndef RA_HEAD_SIZES /* head sizes with kernels of their own; attend_any serves the rest */
#define RA_HEAD_SIZES(X) X(64) X(80) X(96) X(128) X(256)
#endif
