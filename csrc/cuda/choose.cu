/* Which slots stay: the protected ones first, then by score, ties to the newer, and the window; and the attention that is
 * lost with the others. */
#include "score.cuh"
#include "select.cuh"

RA_KERNEL(THREADS, 4) choose_slots(ra_cuda_layer l, ra_cuda_cut cut)
{
    const shared<int> counts = shared_at<int>(0);
    const int pair = blockIdx.x, row = pair / l.kv_heads, n = l.slots[pair];
    if (!cut.cut[row]) {
        if (threadIdx.x == 0)
            cut.keep[pair] = n;
        return;
    }
    const int window = least(l.window, n), older = n - window, keep = most(window, least(n, cut.budgets[pair]));
    const float *score = cut.scores + pair * entries_of(l);
    int32_t *kept = cut.kept + pair * entries_of(l);
    const int protect = protected_slots(positions_of(l, pair), cut.protect_below[row], older), chosen = keep - window;
    take_best([&](int i) { return score[i]; }, older, protect, chosen, counts, [&](int i, int place) { kept[place] = i; });
    for (int i = threadIdx.x; i < window; i += THREADS)
        kept[chosen + i] = older + i;
    if (threadIdx.x == 0)
        cut.keep[pair] = keep;
}

/* Mass of the newest query, mean over the group, on the slots that go. */
RA_KERNEL(THREADS, 4) lost_mass(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const shared<float> scratch = shared_at<float>(0);
    const shared<double> sums = shared_at<double>(64);
    const int pair = blockIdx.x, row = pair / l.kv_heads, head = pair % l.kv_heads, n = l.slots[pair];
    if (!cut.cut[row])
        return;
    const int keep = cut.keep[pair];
    if (keep == n || l.q_end[row] == l.q_begin[row]) {
        if (threadIdx.x == 0)
            cut.lost[pair] = 0;
        return;
    }
    const int32_t *kept = cut.kept + pair * entries_of(l);
    const float *logits = s.logits + (int64_t)pair * s.queries * s.stride;
    double lost = 0;
    for (int g = 0; g < l.group; g++, logits += s.stride) {
        const float sink = l.sinks[head * l.group + g];
        float top = sink;
        for (int i = threadIdx.x; i < n; i += THREADS)
            top = fmaxf(top, logits[i]);
        top = block_max(top, scratch);
        double all = 0, stays = 0;
        for (int i = threadIdx.x; i < n; i += THREADS)
            all += (double)expf(logits[i] - top);
        for (int i = threadIdx.x; i < keep; i += THREADS)
            stays += (double)expf(logits[kept[i]] - top);
        all = block_sum(all, sums);
        stays = block_sum(stays, sums);
        lost += (all - stays) / (all + (sink == -INFINITY ? 0 : (double)expf(sink - top)));
    }
    if (threadIdx.x == 0)
        cut.lost[pair] = fmax(0.0, lost / (double)l.group);
}

extern "C" int ra_cuda_choose(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream)
{
    const unsigned pairs = layer->rows * layer->kv_heads;
    const cut_scratch s = lay_scratch(*layer, cut->most_slots, scratch);
    int error = RA_LAUNCH(choose_slots, pairs, THREADS, SELECT_INTS * 4, stream, *layer, *cut);
    if (!error)
        error = ra_cuda_logits({*layer, cut->cut, s, cut->scale, cut->softcap, NEWEST, 1, true, false}, stream);
    return error ? error : RA_LAUNCH(lost_mass, pairs, THREADS, 128, stream, *layer, *cut, s);
}
