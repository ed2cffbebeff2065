/* Scores for any head size and format, in float32: what scorer/ and stat/ of the C core define, a block a head, a slot a
 * thread. Nothing is kept between cuts. */
#include <float.h>

#include "cut.cuh"
#include "score.cuh"

constexpr float NORM_FLOOR = 1e-8f;

RA_DEVICE float key_element(const ra_cuda_layer &l, int pair, int slot, int c)
{
    return load_element(page_at(l, pair, slot / PAGE), c * PAGE + slot % PAGE, l.format);
}

/* logits[w][slot]: the largest of the group, soft-capped, of the older slots. */
RA_KERNEL(THREADS, 4) window_logits(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    constexpr int TILE = 8;
    const int pair = blockIdx.x, row = pair / l.kv_heads, head = pair % l.kv_heads, d = l.head_dim, n = l.slots[pair];
    const int older = n - l.window, count = l.q_end[row] - l.q_begin[row];
    if (!cut.cut[row])
        return;
    const int64_t S = entries_of(l);
    float *logits = s.logits + pair * S * most(l.window, 2);
    bool finite = true;
    for (int i = blockIdx.y * THREADS + threadIdx.x; i < older; i += gridDim.y * THREADS) {
        const char *keys = page_at(l, pair, i / PAGE);
        for (int w = 0; w < count; w++) {
            const float *query = query_of(l, row, l.q_begin[row] + w, head);
            float best = -INFINITY;
            for (int first = 0; first < l.group; first += TILE) {
                float dots[TILE];
                RA_UNROLL for (int g = 0; g < TILE; g++) dots[g] = 0;
                for (int c = 0; c < d; c++) {
                    float key = load_element(keys, c * PAGE + i % PAGE, l.format);
                    RA_UNROLL for (int g = 0; g < TILE; g++) if (first + g < l.group)
                        dots[g] = fmaf(query[(first + g) * d + c] * cut.scale, key, dots[g]);
                }
                RA_UNROLL for (int g = 0; g < TILE; g++) if (first + g < l.group)
                {
                    best = fmaxf(best, dots[g]);
                    finite &= is_finite(dots[g]); /* the maximum would hide what is no number */
                }
            }
            logits[w * S + i] = softcapped(best, cut.softcap);
        }
    }
    if (!finite)
        set_fault(l, row, RA_CUDA_FAULT_SCORES);
}

/* 1 / (|k| + floor) of every slot. */
RA_KERNEL(THREADS, 4) inverse_norms(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const int pair = blockIdx.x, row = pair / l.kv_heads, n = l.slots[pair];
    if (!cut.cut[row])
        return;
    for (int i = blockIdx.y * THREADS + threadIdx.x; i < n; i += gridDim.y * THREADS) {
        float squares = 0;
        for (int c = 0; c < l.head_dim; c++) {
            float x = key_element(l, pair, i, c);
            squares = fmaf(x, x, squares);
        }
        float norm = sqrtf(squares);
        if (!(squares <= FLT_MAX)) { /* squares that float32 cannot hold */
            double wide = 0;
            for (int c = 0; c < l.head_dim; c++)
                wide += (double)key_element(l, pair, i, c) * (double)key_element(l, pair, i, c);
            norm = (float)sqrt(wide);
            if (!(norm <= FLT_MAX))
                set_fault(l, row, RA_CUDA_FAULT_SCORES);
        }
        s.inverse[pair * entries_of(l) + i] = 1 / (norm + NORM_FLOOR);
    }
}

/* The newest similar slot of each slot, and the cosine with it: from the newest on, until one is found. */
RA_KERNEL(THREADS, 4) newest_similar(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const int pair = blockIdx.x, row = pair / l.kv_heads, n = l.slots[pair], d = l.head_dim;
    if (!cut.cut[row])
        return;
    const float *inverse = s.inverse + pair * entries_of(l);
    for (int i = blockIdx.y * THREADS + threadIdx.x; i < n; i += gridDim.y * THREADS) {
        const char *own = page_at(l, pair, i / PAGE);
        int found = -1;
        float with = 0;
        for (int j = n - 1; j >= 0 && found < 0; j--) {
            if (j == i) { /* the diagonal is zero */
                found = 0 > cut.threshold ? i : -1;
                continue;
            }
            const char *other = page_at(l, pair, j / PAGE);
            float dot = 0;
            for (int c = 0; c < d; c++)
                dot = fmaf(load_element(other, c * PAGE + j % PAGE, l.format) * inverse[j],
                           load_element(own, c * PAGE + i % PAGE, l.format), dot);
            with = dot * inverse[i];
            found = with > cut.threshold ? j : -1;
        }
        s.similar[pair * entries_of(l) + i] = found;
        s.cosine[pair * entries_of(l) + i] = found == i || found < 0 ? 0 : with;
    }
}

/* removed[j]: the zeroed entries of column j, summed as whole numbers, so that their order does not matter. */
RA_DEVICE void remove_entries(const ra_cuda_layer &l, int pair, int n, const cut_scratch &s)
{
    const int64_t S = entries_of(l);
    unsigned long long *removed = (unsigned long long *)s.removed + pair * S;
    const float *inverse = s.inverse + pair * S;
    for (int i = threadIdx.x; i < n; i += THREADS)
        removed[i] = 0;
    device_fence();
    block_sync();
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const int similar = s.similar[pair * S + i];
        if (similar < 0 && !i)
            continue; /* entry 0 of row 0 is the diagonal */
        float cosine = s.cosine[pair * S + i];
        if (similar < 0) {
            float dot = 0;
            for (int c = 0; c < l.head_dim; c++)
                dot = fmaf(key_element(l, pair, 0, c) * inverse[0], key_element(l, pair, i, c), dot);
            cosine = dot * inverse[i];
        }
        global_add(&removed[most(0, similar)], (unsigned long long)(int64_t)((double)cosine * 0x1p40));
    }
    device_fence();
    block_sync();
}

/* mean[j]: softmax over the n slots of the column means of the cosine matrix. sum: [D] of shared memory. */
RA_DEVICE void redundancy(const ra_cuda_layer &l, int pair, int n, const cut_scratch &s, shared<double> sum,
                          shared<float> scratch)
{
    const int64_t S = entries_of(l);
    const float *inverse = s.inverse + pair * S;
    float *mean = s.mean + pair * S;
    for (int c = threadIdx.x; c < l.head_dim; c += THREADS) {
        double total = 0;
        for (int i = 0; i < n; i++)
            total += (double)(key_element(l, pair, i, c) * inverse[i]);
        sum[c] = total;
    }
    remove_entries(l, pair, n, s); /* and the sum is there for all */
    float top = -INFINITY, total = 0;
    for (int j = threadIdx.x; j < n; j += THREADS) {
        float dot = 0;
        for (int c = 0; c < l.head_dim; c++)
            dot = fmaf((float)sum[c], key_element(l, pair, j, c), dot);
        double self = 1 - (double)NORM_FLOOR * (double)inverse[j];
        double removed = (double)load_fresh(&s.removed[pair * S + j]) * 0x1p-40;
        mean[j] = (float)(((double)dot * (double)inverse[j] - self * self - removed) / (double)n);
        top = fmaxf(top, mean[j]);
    }
    top = block_max(top, scratch);
    for (int j = threadIdx.x; j < n; j += THREADS)
        total += mean[j] = expf(mean[j] - top);
    total = block_sum(total, scratch);
    for (int j = threadIdx.x; j < n; j += THREADS)
        mean[j] *= 1 / total;
}

/* score[i] of the older slots: mean of the softmaxes, max-pooled. */
RA_DEVICE void importance(const ra_cuda_layer &l, const ra_cuda_cut &cut, int pair, int older, const cut_scratch &s,
                          shared<float> scratch, float *score)
{
    const int row = pair / l.kv_heads, count = l.q_end[row] - l.q_begin[row], half = least(cut.kernel / 2, older);
    const int64_t S = entries_of(l);
    float *logits = s.logits + pair * S * most(l.window, 2), *sum = logits;
    if (count < 1) { /* nothing was observed: no token matters more than another */
        for (int i = threadIdx.x; i < older; i += THREADS)
            score[i] = 1 / (float)older;
        return;
    }
    for (int w = 0; w < count; w++) {
        float *own = logits + w * S, top = -INFINITY, total = 0;
        for (int i = threadIdx.x; i < older; i += THREADS)
            top = fmaxf(top, own[i]);
        top = block_max(top, scratch);
        for (int i = threadIdx.x; i < older; i += THREADS)
            total += own[i] = expf(own[i] - top);
        total = 1 / block_sum(total, scratch);
        for (int i = threadIdx.x; i < older; i += THREADS)
            sum[i] = (w ? sum[i] : 0) + own[i] * total;
    }
    device_fence();
    block_sync();
    for (int i = threadIdx.x; i < older; i += THREADS) {
        float best = -INFINITY;
        for (int j = most(0, i - half); j <= least(older - 1, i + half); j++)
            best = fmaxf(best, sum[j]);
        score[i] = best * (1 / (float)count);
    }
}

/* splitmix64, as scorer/random.c. */
RA_DEVICE float hash_to_unit(uint64_t seed, int64_t head, int32_t position)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15u * ((uint64_t)head * 0x100000001u + (uint64_t)position + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (float)((z ^ (z >> 31)) >> 40) * 0x1p-24f;
}

RA_KERNEL(THREADS, 2) combine_scores(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const shared<float> scratch = shared_at<float>(0);
    const shared<double> sum = shared_at<double>(64);
    const int pair = blockIdx.x, row = pair / l.kv_heads, n = l.slots[pair], older = most(0, n - l.window);
    if (!cut.cut[row] || !older)
        return;
    float *score = cut.scores + pair * entries_of(l);
    const int32_t *positions = positions_of(l, pair);
    if (cut.scorer == RA_CUDA_RECENCY || cut.scorer == RA_CUDA_RANDOM) {
        for (int i = threadIdx.x; i < older; i += THREADS)
            score[i] = cut.scorer == RA_CUDA_RECENCY ? (float)positions[i]
                                                     : hash_to_unit(cut.seed, pair % l.kv_heads, positions[i]);
        return;
    }
    importance(l, cut, pair, older, s, scratch, score);
    if (cut.scorer != RA_CUDA_IMPORTANCE) {
        redundancy(l, pair, n, s, sum, scratch);
        const float level = cut.scorer == RA_CUDA_RKV_CENTRED ? 1 / (float)n : 0;
        const float *mean = s.mean + pair * entries_of(l);
        block_sync();
        for (int i = threadIdx.x; i < older; i += THREADS)
            score[i] = cut.alpha * score[i] - (1 - cut.alpha) * (mean[i] - level);
    }
    bool finite = true;
    for (int i = threadIdx.x; i < older; i += THREADS)
        finite &= is_finite(score[i]);
    if (!finite)
        set_fault(l, row, RA_CUDA_FAULT_SCORES);
}

int ra_cuda_score_any(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream)
{
    const unsigned pairs = layer->rows * layer->kv_heads;
    const dim3 grid(pairs, most(1, least(256, cut->most_slots / THREADS)));
    const cut_scratch s = lay_scratch(*layer, scratch);
    const bool asks = cut->scorer != RA_CUDA_RECENCY && cut->scorer != RA_CUDA_RANDOM;
    int error = asks ? RA_LAUNCH(window_logits, grid, THREADS, 0, stream, *layer, *cut, s) : 0;
    if (!error && asks && cut->scorer != RA_CUDA_IMPORTANCE) {
        error = RA_LAUNCH(inverse_norms, grid, THREADS, 0, stream, *layer, *cut, s);
        if (!error)
            error = RA_LAUNCH(newest_similar, grid, THREADS, 0, stream, *layer, *cut, s);
    }
    return error ? error
                 : RA_LAUNCH(combine_scores, pairs, THREADS, 64 + layer->head_dim * sizeof(double), stream, *layer,
                             *cut, s);
}
