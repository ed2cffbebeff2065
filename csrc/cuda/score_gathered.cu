/* Scores by what attention has gathered of each slot: scorer/h2o.c, scorer/lazy.c. */
#include "score.cuh"

RA_DEVICE double twice_sigmoid(double x) { return 2 / (1 + exp(-x)); }

/* The paper's form, or that of the published code. */
RA_DEVICE float lazy(bool published_code, double idle, double gap)
{
    const double later = gap > 0 ? twice_sigmoid(1 - gap) : 0;
    if (published_code)
        return (float)(twice_sigmoid(-1 - idle / (gap + 1e-5)) + later);
    return (float)(gap > 0 ? twice_sigmoid(-idle / gap) + later : 0);
}

/* A block a head. */
RA_KERNEL(COMBINE, 2) score_gathered(ra_cuda_layer l, ra_cuda_cut cut)
{
    const int pair = blockIdx.x, row = pair / l.kv_heads, n = l.slots[pair], older = n - l.window;
    if (!cut.cut[row])
        return;
    float *score = cut.scores + pair * entries_of(l);
    const float *sum = l.accumulated ? l.accumulated + pair * entries_of(l) : 0;
    const int32_t *last = l.recurrence ? l.recurrence + 2 * pair * entries_of(l) : 0,
                  *gap = last ? last + entries_of(l) : 0;
    const int64_t share = cut.totals[row] / l.kv_heads, recent = (int64_t)(cut.recent * (float)share);
    float most_given = (float)l.group * (float)l.tokens[row];
    if (cut.scorer == RA_CUDA_H2O) { /* cropped queries have given, too */
        float largest = 0;
        for (int i = threadIdx.x; i < older; i += COMBINE)
            largest = fmaxf(largest, sum[i]);
        most_given = fmaxf(most_given, block_max(largest, shared_at<float>(0)));
    }
    for (int i = threadIdx.x; i < older; i += COMBINE) {
        if (cut.scorer == RA_CUDA_H2O)
            score[i] = i < n - recent ? sum[i] : most_given + (float)(i + 1);
        else if (cut.scorer == RA_CUDA_LAZY) /* cropped queries may have come later */
            score[i] = lazy(cut.published_code, (double)most(0, l.tokens[row] - 1 - last[i]), (double)gap[i]);
        else
            score[i] = (float)last[i];
    }
    flag_not_finite(l, row, score, older);
}

int ra_cuda_score_gathered(const ra_cuda_layer &l, const ra_cuda_cut &cut, void *stream)
{
    return RA_LAUNCH(score_gathered, l.rows * l.kv_heads, COMBINE, 128, stream, l, cut);
}
