/* Attention of the window's queries with a softmax for each query head, as scorer/head_attention.c: SnapKV's as published,
 * weighed by values, and VaSE's draw. */
#include <float.h>

#include "../scorer/hash.h"
#include "score.cuh"
#include "select.cuh"

/* Queries of the window whose heads' logits there is room for at a time. */
static int queries_at_a_time(const ra_cuda_layer &l, const cut_scratch &s) { return s.queries / l.group; }

/* s.attention = what was there (first: nothing) and the softmaxes of the queries from `first` on, whose logits are in
 * s.logits. everything: over all that a query sees and its sink, else over the older slots. A block a head. */
RA_KERNEL(COMBINE, 2) add_softmaxes(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s, int first, int some, bool everything)
{
    const int pair = blockIdx.x, row = pair / l.kv_heads, head = pair % l.kv_heads, n = l.slots[pair];
    const int older = n - l.window, count = l.q_end[row] - l.q_begin[row], lists = least(some, count - first) * l.group;
    if (!cut.cut[row] || older < 1 || lists < 1)
        return;
    const float *logits = s.logits + (int64_t)pair * s.queries * s.stride;
    float *softmaxes = s.softmaxes + (int64_t)pair * s.queries * 2, *sum = s.attention + pair * s.stride;
    for (int list = threadIdx.x / 32; list < lists; list += COMBINE / 32) {
        const int later = count - 1 - (first + list / l.group); /* tokens that this query does not see */
        softmax_of(logits + list * s.stride, everything ? n - later : older,
                   everything ? l.sinks[head * l.group + list % l.group] : -INFINITY, softmaxes + 2 * list);
    }
    device_fence();
    block_sync();
    for (int i = threadIdx.x; i < older; i += COMBINE) {
        float all = first ? sum[i] : 0;
        for (int list = 0; list < lists; list++)
            all += softmaxed(logits[list * s.stride + i], softmaxes + 2 * list);
        sum[i] = all;
    }
}

/* score[i] of the older slots: mean of the softmaxes, pooled. */
RA_DEVICE void pool_attention(const ra_cuda_layer &l, const ra_cuda_cut &cut, int pair, int older, const cut_scratch &s,
                              bool average, float *score)
{
    const int row = pair / l.kv_heads, count = l.q_end[row] - l.q_begin[row], half = least(cut.kernel / 2, older);
    const float *sum = s.attention + pair * s.stride;
    const float factor = 1 / (float)((int64_t)count * l.group * (average ? cut.kernel : 1));
    for (int i = threadIdx.x; i < older; i += COMBINE) /* where nothing was observed, no token matters more than another */
        score[i] = count < 1 ? 1 / (float)older : pooled(sum, older, i, half, average) * factor;
}

/* ---- VaSE, as scorer/vase.c ---- */

/* The published number. */
RA_DEVICE int large_of(const ra_cuda_cut &cut, int64_t share, int older)
{
    const int64_t large = cut.n_large >= 0 ? cut.n_large : share <= 512 ? share / 2 : 200;
    return large < older ? (int)large : older;
}
/* To 12 bits. */
RA_DEVICE float coarse(float range) { return fminf(as_float((as_bits(range) + 0x800u) & ~0xfffu), FLT_MAX); }

/* Keeping the smallest -log(u) / p is drawing by the weights p without replacement. score: p, then below 0; what is
 * no number stays so. */
RA_DEVICE void draw(const ra_cuda_layer &l, const ra_cuda_cut &cut, int pair, int older, float *score)
{
    const int row = pair / l.kv_heads;
    const int32_t *positions = positions_of(l, pair);
    for (int i = threadIdx.x; i < older; i += COMBINE) {
        const uint64_t hash = ra_hash_at(ra_hash(cut.seed, pair % l.kv_heads, positions[i]), l.tokens[row]);
        const double drawn = -log(ra_unit(hash)) / (double)score[i];
        score[i] = drawn == drawn ? (float)-fmin(drawn, (double)FLT_MAX) : NAN;
    }
}
/* The largest ranges in place of what was drawn, and above all the first n_sink slots. counts: SELECT_INTS of shared memory. */
RA_DEVICE void put_large(const ra_cuda_layer &l, const ra_cuda_cut &cut, int pair, int older, const float *range,
                         shared<int> counts, shared<float> scratch, float *score)
{
    const int large = large_of(cut, cut.totals[pair / l.kv_heads] / l.kv_heads, older), sinks = least(cut.n_sink, older);
    float top = 0;
    block_sync(); /* what was drawn is there */
    take_best([&](int i) { return coarse(range[i]); }, older, sinks, large, counts, [&](int i, int) {
        score[i] = coarse(range[i]);
        top = fmaxf(top, coarse(range[i]));
    });
    top = block_max(top, scratch); /* and all that is written */
    for (int i = threadIdx.x; i < sinks; i += COMBINE)
        score[i] = fminf(2 * top + 1, FLT_MAX);
}

constexpr size_t COUNTS_AT = 64;

/* A block a head. */
RA_KERNEL(COMBINE, 2) attention_scores(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const int pair = blockIdx.x, row = pair / l.kv_heads, older = l.slots[pair] - l.window;
    if (!cut.cut[row] || older < 1)
        return;
    float *score = cut.scores + pair * entries_of(l);
    const float *values = s.values + pair * s.stride;
    pool_attention(l, cut, pair, older, s, cut.average || cut.scorer == RA_CUDA_VASE, score);
    flag_not_finite(l, row, score, older); /* before ranges are in their place */
    if (cut.scorer == RA_CUDA_VASE) {
        draw(l, cut, pair, older, score);
        put_large(l, cut, pair, older, values, shared_at<int>(COUNTS_AT), shared_at<float>(0), score);
        return;
    }
    if (cut.scorer == RA_CUDA_VATP)
        for (int i = threadIdx.x; i < older; i += COMBINE)
            score[i] *= values[i];
    flag_not_finite(l, row, score, older);
}

int ra_cuda_score_attention(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, void *stream)
{
    const unsigned pairs = (unsigned)(l.rows * l.kv_heads);
    const int some = queries_at_a_time(l, s);
    const bool everything = cut.scorer != RA_CUDA_VASE;
    int error = 0;
    for (int first = 0; !error && first < l.window; first += some) {
        error = ra_cuda_logits({l, cut.cut, s, cut.scale, cut.softcap, first, some, true, !everything}, stream);
        if (!error)
            error = RA_LAUNCH(add_softmaxes, pairs, COMBINE, 0, stream, l, cut, s, first, some, everything);
    }
    if (!error && cut.scorer != RA_CUDA_SNAPKV)
        error = ra_cuda_measure_values(l, cut, s, cut.scorer == RA_CUDA_VASE, stream);
    return error ? error
                 : RA_LAUNCH(attention_scores, pairs, COMBINE, COUNTS_AT + SELECT_INTS * 4, stream, l, cut, s);
}
