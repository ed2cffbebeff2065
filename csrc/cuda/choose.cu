/* Which slots stay: the protected ones first, then by score, ties to the newer, and the window; and the attention that is
 * lost with the others. */
#include "cut.cuh"
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
    int at = 0;
    for (int part = 0; part < 2; part++) {
        const int begin = part ? protect : 0, end = part ? older : protect;
        const int wanted = part ? chosen - least(chosen, protect) : least(chosen, protect);
        if (wanted <= 0)
            continue;
        int above, ties = 0, seen = 0, total;
        const float tau = kth_largest(
            [&](auto take) {
                for (int i = begin + threadIdx.x; i < end; i += THREADS)
                    take(score[i]);
            },
            wanted, counts, &above);
        for (int first = begin; first < end; first += THREADS) {
            const int i = first + threadIdx.x;
            block_prefix(i < end && score[i] == tau, counts, &total);
            ties += total;
        }
        const int passed_over = ties - (wanted - above); /* the oldest of those with the score tau */
        for (int first = begin; first < end; first += THREADS) {
            const int i = first + threadIdx.x;
            const bool tie = i < end && score[i] == tau;
            const int before = block_prefix(tie, counts, &total) + seen;
            seen += total;
            const bool stays = i < end && (score[i] > tau || (tie && before >= passed_over));
            const int to = block_prefix(stays, counts, &total) + at;
            if (stays)
                kept[to] = i;
            at += total;
        }
    }
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
    const int pair = blockIdx.x, row = pair / l.kv_heads, head = pair % l.kv_heads, n = l.slots[pair], d = l.head_dim;
    if (!cut.cut[row])
        return;
    const int keep = cut.keep[pair];
    if (keep == n || l.q_end[row] == l.q_begin[row]) {
        if (threadIdx.x == 0)
            cut.lost[pair] = 0;
        return;
    }
    const int64_t S = entries_of(l);
    float *logits = s.logits + pair * S * most(l.window, 2), *mass = logits + S;
    const int32_t *kept = cut.kept + pair * S;
    const float *query = query_of(l, row, l.q_end[row] - 1, head);
    for (int g = 0; g < l.group; g++) {
        const float sink = l.sinks[head * l.group + g];
        float top = sink, sum = 0;
        for (int i = threadIdx.x; i < n; i += THREADS) {
            const char *keys = page_at(l, pair, i / PAGE);
            float x = 0;
            for (int c = 0; c < d; c++)
                x = fmaf(query[g * d + c], load_element(keys, c * PAGE + i % PAGE, l.format), x);
            logits[i] = x = softcapped(x * cut.scale, cut.softcap);
            top = fmaxf(top, x);
        }
        top = block_max(top, scratch);
        for (int i = threadIdx.x; i < n; i += THREADS)
            sum += logits[i] = expf(logits[i] - top);
        sum = block_sum(sum, scratch) + (sink == -INFINITY ? 0 : expf(sink - top));
        for (int i = threadIdx.x; i < n; i += THREADS)
            mass[i] = (g ? mass[i] : 0) + logits[i] / sum;
    }
    double all = 0, stays = 0;
    for (int i = threadIdx.x; i < n; i += THREADS)
        all += (double)mass[i];
    all = block_sum(all, sums);
    device_fence();
    block_sync(); /* what others have written of `mass` is read */
    for (int i = threadIdx.x; i < keep; i += THREADS)
        stays += (double)mass[kept[i]];
    stays = block_sum(stays, sums);
    if (threadIdx.x == 0)
        cut.lost[pair] = fmax(0.0, (all - stays) / l.group);
}

extern "C" int ra_cuda_choose(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream)
{
    const unsigned pairs = layer->rows * layer->kv_heads;
    int error = RA_LAUNCH(choose_slots, pairs, THREADS, SELECT_INTS * 4, stream, *layer, *cut);
    return error ? error
                 : RA_LAUNCH(lost_mass, pairs, THREADS, 128, stream, *layer, *cut, lay_scratch(*layer, scratch));
}
