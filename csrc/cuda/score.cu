/* What begins a cut, and its scores: what scorer/ and stat/ of the C core define. */
#include "../scorer/hash.h"
#include "score.cuh"

RA_KERNEL(THREADS, 4) begin_cut(ra_cuda_layer l, ra_cuda_cut cut)
{
    for (int row = blockIdx.x * THREADS + threadIdx.x; row < l.rows; row += gridDim.x * THREADS) {
        int64_t slots = 0;
        for (int head = 0; head < l.kv_heads; head++) {
            cut.before[row * l.kv_heads + head] = l.slots[row * l.kv_heads + head];
            slots += l.slots[row * l.kv_heads + head];
        }
        cut.cut[row] = cut.totals[row] >= 0 && slots > cut.totals[row];
    }
}

/* score[i] of the older slots: mean of the window's softmaxes, max-pooled. */
RA_DEVICE void importance(const ra_cuda_layer &l, const ra_cuda_cut &cut, int pair, int older, const cut_scratch &s,
                          float *score)
{
    const int row = pair / l.kv_heads, count = l.q_end[row] - l.q_begin[row], half = least(cut.kernel / 2, older);
    float *logits = s.logits + (int64_t)pair * s.queries * s.stride, *sum = logits; /* in the first list's place */
    float *softmaxes = s.softmaxes + (int64_t)pair * s.queries * 2;
    if (count < 1) { /* nothing was observed: no token matters more than another */
        for (int i = threadIdx.x; i < older; i += COMBINE)
            score[i] = 1 / (float)older;
        return;
    }
    for (int w = threadIdx.x / 32; w < count; w += COMBINE / 32)
        softmax_of(logits + w * s.stride, older, -INFINITY, softmaxes + 2 * w);
    device_fence();
    block_sync();
    for (int i = threadIdx.x; i < older; i += COMBINE) {
        float all = 0;
        for (int w = 0; w < count; w++)
            all += softmaxed(logits[w * s.stride + i], softmaxes + 2 * w);
        sum[i] = all;
    }
    device_fence();
    block_sync();
    for (int i = threadIdx.x; i < older; i += COMBINE)
        score[i] = pooled(sum, older, i, half, false) * (1 / (float)count);
}

/* Subtracts (1 - alpha) (redundancy - level) of alpha * score: redundancy is the softmax of the column means over all slots. */
RA_DEVICE void weigh(const ra_cuda_cut &cut, int pair, int n, int older, const cut_scratch &s, shared<float> scratch,
                     float *score)
{
    const float *mean = s.mean + pair * s.stride;
    float top = -INFINITY, sum = 0;
    for (int i = threadIdx.x; i < n; i += COMBINE)
        top = fmaxf(top, mean[i]);
    top = block_max(top, scratch);
    for (int i = threadIdx.x; i < n; i += COMBINE)
        sum += expf(mean[i] - top);
    sum = 1 / block_sum(sum, scratch);
    const float level = cut.scorer != RA_CUDA_RKV ? 1 / (float)n : 0;
    for (int i = threadIdx.x; i < older; i += COMBINE)
        score[i] = cut.alpha * score[i] - (1 - cut.alpha) * (expf(mean[i] - top) * sum - level);
}

/* Tokens of a span share their mean or largest score, as scorer/spans.c: a thread takes those whose oldest is its own. */
RA_DEVICE void share(const ra_cuda_cut &cut, const int32_t *positions, int older, float *score)
{
    block_sync(); /* all scores are there */
    for (int begin = threadIdx.x; begin < older; begin += COMBINE) {
        const int number = positions[begin] / cut.span;
        if (begin && positions[begin - 1] / cut.span == number)
            continue;
        double sum = 0;
        float best = score[begin];
        int end = begin;
        for (; end < older && positions[end] / cut.span == number; end++) {
            sum += (double)score[end];
            best = fmaxf(best, score[end]);
        }
        const float span_score = cut.average ? (float)(sum / (double)(end - begin)) : best;
        for (int i = begin; i < end; i++)
            score[i] = span_score;
    }
    block_sync();
}

RA_HOST_DEVICE bool has_redundancy(ra_cuda_scorer scorer)
{
    return scorer == RA_CUDA_RKV || scorer == RA_CUDA_RKV_CENTRED || scorer == RA_CUDA_SPANS;
}

/* A block a head. */
RA_KERNEL(COMBINE, 2) combine_scores(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const shared<float> scratch = shared_at<float>(0);
    const int pair = blockIdx.x, row = pair / l.kv_heads, n = l.slots[pair], older = n - l.window;
    if (!cut.cut[row])
        return;
    if (l.cached && threadIdx.x == 0 && has_redundancy(cut.scorer)) {
        l.cached[pair] = n;
        l.cached_threshold[pair] = cut.threshold;
    }
    if (older < 1)
        return;
    float *score = cut.scores + pair * entries_of(l);
    const int32_t *positions = positions_of(l, pair);
    if (cut.scorer == RA_CUDA_RECENCY || cut.scorer == RA_CUDA_RANDOM) {
        for (int i = threadIdx.x; i < older; i += COMBINE)
            score[i] = cut.scorer == RA_CUDA_RECENCY
                           ? (float)positions[i]
                           : ra_unit_float(ra_hash(cut.seed, pair % l.kv_heads, positions[i]));
        return;
    }
    importance(l, cut, pair, older, s, score);
    if (cut.scorer != RA_CUDA_IMPORTANCE)
        weigh(cut, pair, n, older, s, scratch, score); /* each thread its own slots */
    flag_not_finite(l, row, score, older); /* before a maximum hides what is no number */
    if (cut.scorer == RA_CUDA_SPANS && cut.span > 1)
        share(cut, positions, older, score);
}

extern "C" int ra_cuda_cut_begin(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream)
{
    (void)scratch;
    return RA_LAUNCH(begin_cut, (layer->rows + THREADS - 1) / THREADS, THREADS, 0, stream, *layer, *cut);
}

extern "C" size_t ra_cuda_cut_bytes(const ra_cuda_layer *layer, int32_t most_slots)
{
    return lay_scratch(*layer, most_slots, 0).bytes;
}

extern "C" int ra_cuda_score(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream)
{
    if (cut->scorer == RA_CUDA_H2O || cut->scorer == RA_CUDA_LAZY || cut->scorer == RA_CUDA_RAAS)
        return ra_cuda_score_gathered(*layer, *cut, stream);
    const cut_scratch s = lay_scratch(*layer, cut->most_slots, scratch);
    int error = 0;
    if (cut->scorer == RA_CUDA_SNAPKV || cut->scorer == RA_CUDA_VATP || cut->scorer == RA_CUDA_VASE)
        return ra_cuda_score_attention(*layer, *cut, s, stream);
    if (cut->scorer == RA_CUDA_DKV)
        return ra_cuda_score_dkv(*layer, *cut, s, stream);
    if (cut->scorer == RA_CUDA_TRIATTENTION)
        return ra_cuda_score_triattention(*layer, *cut, s, stream);
    if (cut->scorer != RA_CUDA_RECENCY && cut->scorer != RA_CUDA_RANDOM)
        error = ra_cuda_logits({*layer, cut->cut, s, cut->scale, cut->softcap, 0, layer->window, false, true}, stream);
    if (!error && has_redundancy(cut->scorer))
        error = ra_cuda_redundancy(*layer, *cut, s, stream);
    return error ? error
                 : RA_LAUNCH(combine_scores, layer->rows * layer->kv_heads, COMBINE, 64, stream, *layer, *cut, s);
}
