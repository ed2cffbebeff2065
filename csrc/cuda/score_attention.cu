/* Attention of the window's queries with a softmax for each query head, as scorer/head_attention.c: SnapKV's as published, and
 * weighed by values. */
#include "score.cuh"

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

/* A block a head. */
RA_KERNEL(COMBINE, 2) attention_scores(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const int pair = blockIdx.x, row = pair / l.kv_heads, older = l.slots[pair] - l.window;
    if (!cut.cut[row] || older < 1)
        return;
    float *score = cut.scores + pair * entries_of(l);
    pool_attention(l, cut, pair, older, s, cut.average, score);
    if (cut.scorer == RA_CUDA_VATP)
        for (int i = threadIdx.x; i < older; i += COMBINE)
            score[i] *= s.values[pair * s.stride + i];
    tell_faults(l, row, score, older);
}

int ra_cuda_score_attention(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, void *stream)
{
    const unsigned pairs = (unsigned)(l.rows * l.kv_heads);
    const int some = queries_at_a_time(l, s);
    const bool everything = true;
    int error = 0;
    for (int first = 0; !error && first < l.window; first += some) {
        error = ra_cuda_logits({l, cut.cut, s, cut.scale, cut.softcap, first, some, true, !everything}, stream);
        if (!error)
            error = RA_LAUNCH(add_softmaxes, pairs, COMBINE, 0, stream, l, cut, s, first, some, everything);
    }
    if (!error && cut.scorer == RA_CUDA_VATP)
        error = ra_cuda_measure_values(l, cut, s, false, stream);
    return error ? error : RA_LAUNCH(attention_scores, pairs, COMBINE, 64, stream, l, cut, s);
}
