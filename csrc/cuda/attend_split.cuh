/* Attention whose slots are split over blocks, and the merge of their parts, in one launch.
 *
 * A block takes one chunk of one (row, KV head) and a tile of its queries (group x new tokens, numbered token-major).
 * How long chunks are follows from the head's length alone, so that a row gives the same bits in any batch. The grid
 * covers the longest head that there may be; blocks past a head's end return at once. Of the blocks that share a head
 * the last to finish merges their parts, in order. */
#pragma once
#include "attend.cuh"

constexpr float LOG2_E = 1.44269504088896341f;

/* Slots of a chunk: at most 1 part in 32 of the bytes read goes into partial results. */
RA_HOST_DEVICE int chunk_slots(int slots) { return slots <= 4096 ? 512 : 1024; }
RA_HOST_DEVICE int chunks_of(int slots)
{
    int chunk = chunk_slots(slots);
    return slots <= chunk ? 1 : (slots + chunk - 1) / chunk;
}
RA_HOST_DEVICE int most_chunks(int most_slots)
{
    int all = chunks_of(most_slots); /* not monotone where the chunk grows */
    return most_slots > 4096 ? most(all, chunks_of(4096)) : all;
}

struct split_params {
    attend_params a;
    int most_chunks;
    float *partial; /* [pairs][tiles][chunks]: [queries of a tile][D], then their tops and sums, in (D + 4) floats a query */
    uint32_t *tickets;
};

/* What a block works on. */
struct task {
    int pair, row, head, fresh, first, count, n, begin, end, chunk, chunks;
};

RA_DEVICE bool find_task(const split_params &p, int tile, task *w)
{
    w->pair = blockIdx.y;
    w->row = w->pair / p.a.l.kv_heads;
    w->head = w->pair % p.a.l.kv_heads;
    w->fresh = fresh_of(p.a.s, w->row);
    w->first = blockIdx.z * tile;
    w->count = least(tile, p.a.l.group * w->fresh - w->first);
    w->n = p.a.l.slots[w->pair];
    w->chunk = blockIdx.x;
    w->chunks = chunks_of(w->n);
    int chunk = chunk_slots(w->n);
    w->begin = w->chunk * chunk;
    w->end = least(w->begin + chunk, w->n);
    return w->chunk < w->chunks && w->count > 0;
}
RA_DEVICE asked query_of_task(const split_params &p, const task &w, int query)
{
    return query_number(p.a, w.row, w.n, w.fresh, w.first + query);
}
/* Slots that a query of the tile sees; 0 past the last one. */
RA_DEVICE int limit_of(const split_params &p, const task &w, int query)
{
    return query < w.count ? query_of_task(p, w, query).limit : 0;
}

/* A logit, times log2 e, so that softmax is made of powers of two. */
RA_DEVICE float logit(const split_params &p, float product)
{
    float x = product * p.a.s.scale;
    return (p.a.s.softcap > 0 ? softcapped(x, p.a.s.softcap) : x) * LOG2_E;
}

/* Eight numbers as they leave; `to` is aligned to 16 bytes. */
template <class T> RA_DEVICE void store8(void *to, const float *x, float by)
{
    vec16 v[2];
    if constexpr (sizeof(T) == 4) {
        RA_UNROLL for (int i = 0; i < 8; i++) v[i / 4].w[i % 4] = as_bits(x[i] * by);
        store16((char *)to + 16, v[1]);
    } else {
        RA_UNROLL for (int i = 0; i < 4; i++) v[0].w[i] = pack<T>(x[2 * i] * by, x[2 * i + 1] * by);
    }
    store16(to, v[0]);
}

/* The result of a query, dimensions c to c + 7, once its largest logit and its sum are those of all its slots. */
template <class T>
RA_DEVICE void write_result(const split_params &p, const task &w, int query, int c, const float *x, float top,
                            float sum)
{
    const asked q = query_of_task(p, w, query);
    const float sink = sink_of(p.a, w.head, q) * LOG2_E, best = fmaxf(top, sink);
    const float own = top == -INFINITY ? 0 : exp2_fast(top - best);
    sum = sum * own + (sink == -INFINITY ? 0 : exp2_fast(sink - best));
    store8<T>(out_at(p.a, w.row, w.head, q) + c * sizeof(T), x, sum > 0 ? own / sum : 0);
}

/* The parts of a head lie in scratch; the last block to come merges them. flag: a word of shared memory. */
template <class T, int D> RA_DEVICE void merge_chunks(const split_params &p, const task &w, int tile, size_t flag_at)
{
    shared<unsigned> flag = shared_at<unsigned>(flag_at);
    const int64_t place = (int64_t)w.pair * gridDim.z + blockIdx.z;
    device_fence();
    block_sync();
    if (threadIdx.x == 0) {
        unsigned came = global_add(&p.tickets[place], 1u);
        flag[0] = came + 1 == (unsigned)w.chunks;
        if (came + 1 == (unsigned)w.chunks)
            p.tickets[place] = 0; /* ready for the next launch */
    }
    block_sync();
    if (!flag[0])
        return;
    device_fence();
    const int part_floats = tile * (D + 4);
    const float *parts = p.partial + place * p.most_chunks * part_floats;
    for (int item = threadIdx.x; item < w.count * (D / 8); item += THREADS) {
        int query = item / (D / 8), c = item % (D / 8) * 8;
        float top = -INFINITY, sum = 0, acc[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        RA_NO_UNROLL for (int chunk = 0; chunk < w.chunks; chunk++)
            top = fmaxf(top, load_fresh(&parts[chunk * part_floats + tile * D + 2 * query]));
        RA_NO_UNROLL for (int chunk = 0; chunk < w.chunks; chunk++)
        {
            const float *part = parts + chunk * part_floats, *ends = part + tile * D + 2 * query;
            float by = top == -INFINITY ? 0 : exp2_fast(load_fresh(&ends[0]) - top);
            sum += load_fresh(&ends[1]) * by;
            RA_UNROLL for (int i = 0; i < 8; i += 4)
            {
                float4 x = load_fresh((const float4 *)(part + query * D + c + i));
                acc[i] += x.x * by;
                acc[i + 1] += x.y * by;
                acc[i + 2] += x.z * by;
                acc[i + 3] += x.w * by;
            }
        }
        write_result<T>(p, w, query, c, acc, top, sum);
    }
}

template <int D>
RA_DEVICE void save_part(const split_params &p, const task &w, int tile, int query, int c, const float *x, float top,
                         float sum)
{
    const int64_t place = ((int64_t)w.pair * gridDim.z + blockIdx.z) * p.most_chunks + w.chunk;
    float *part = p.partial + place * tile * (D + 4);
    store8<float>(part + query * D + c, x, 1);
    if (c == 0) {
        part[tile * D + 2 * query] = top;
        part[tile * D + 2 * query + 1] = sum;
    }
}

/* ---- Launching ---- */

#ifndef RA_SIZES
#define RA_SIZES(X) X(64) X(80) X(96) X(128) X(256)
#endif

struct split_run {
    split_params p;
    void *stream;
    dim3 grid(int tile) const
    {
        const ra_cuda_layer &l = p.a.l;
        return dim3(p.most_chunks, l.rows * l.kv_heads, (l.group * p.a.s.tokens + tile - 1) / tile);
    }
};
