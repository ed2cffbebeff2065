/* TriAttention, as scorer/triattention.c: a head's keys against synthetic queries, one a query head and offset, and their
 * pairs' lengths; standardised for each query head, then the group's largest or mean. */
#include "score.cuh"

constexpr int TOGETHER = 4; /* query heads that share a pass over the keys */

/* [TOGETHER][D]: means of query heads from `query_head` on, turned by `position` and, `by_turn`, the mean over the offsets;
 * zeros past `heads`. */
RA_DEVICE void turn_means(const ra_cuda_centres &c, int d, int query_head, int heads, double position, bool by_turn,
                          shared<float> out)
{
    for (int i = threadIdx.x; i < TOGETHER * c.pairs; i += blockDim.x) {
        const int h = i / c.pairs, f = i % c.pairs, x = f * c.step, y = x + c.apart;
        if (h >= heads) {
            out[h * d + x] = 0;
            out[h * d + y] = 0;
            continue;
        }
        const float *mean = c.mean + (int64_t)(query_head + h) * d;
        const double turns = c.frequency[f] * position / 6.283185307179586;
        double re, im;
        sine_of_turns(turns - rint(turns), &im, &re);
        if (by_turn) {
            const double whole = re * c.turn[2 * f] - im * c.turn[2 * f + 1];
            im = re * c.turn[2 * f + 1] + im * c.turn[2 * f];
            re = whole;
        }
        out[h * d + x] = (float)((double)mean[x] * re - (double)mean[y] * im);
        out[h * d + y] = (float)((double)mean[x] * im + (double)mean[y] * re);
    }
    const int turned = 2 * c.pairs, rest = d - turned; /* dimensions that are not */
    for (int i = threadIdx.x; i < TOGETHER * rest; i += blockDim.x) {
        const int h = i / rest, x = turned + i % rest;
        out[h * d + x] = h < heads ? c.mean[(int64_t)(query_head + h) * d + x] : 0;
    }
}

/* s.logits: a list of scores for each query head. grid_of_slots; a slot a thread. Shared memory: TOGETHER * D floats. */
RA_KERNEL(BLOCK_SLOTS, 2) score_heads(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const shared<float> queries = shared_at<float>(0);
    const ra_cuda_centres &c = cut.centres;
    const int pair = blockIdx.x, row = pair / l.kv_heads, d = l.head_dim, older = l.slots[pair] - l.window;
    const int slot = blockIdx.y * BLOCK_SLOTS + threadIdx.x;
    if (!cut.cut[row] || (int)blockIdx.y * BLOCK_SLOTS >= older)
        return;
    const char *page = slot < older ? page_at(l, pair, slot / PAGE) : 0;
    const double now = (double)l.tokens[row];
    for (int begin = 0; begin < l.group; begin += TOGETHER) {
        const int heads = least(TOGETHER, l.group - begin), query_head = pair % l.kv_heads * l.group + begin;
        float best[TOGETHER] = {}, norms[TOGETHER];
        for (int o = 0; o < (c.largest ? c.offsets : 1); o++) {
            block_sync(); /* those before are read */
            turn_means(c, d, query_head, heads, c.largest ? now + (double)(1 << o) : now, !c.largest, queries);
            block_sync();
            float dots[TOGETHER];
            RA_UNROLL for (int h = 0; h < TOGETHER; h++) dots[h] = 0;
            for (int x = 0; x < d && page; x++) {
                const float key = load_element(page, (int64_t)x * PAGE + slot % PAGE, l.format);
                RA_UNROLL for (int h = 0; h < TOGETHER; h++) dots[h] = fmaf(queries[h * d + x], key, dots[h]);
            }
            RA_UNROLL for (int h = 0; h < TOGETHER; h++) best[h] = o == 0 || dots[h] > best[h] ? dots[h] : best[h];
        }
        RA_UNROLL for (int h = 0; h < TOGETHER; h++) norms[h] = 0;
        const float *spread = c.spread + (int64_t)query_head * c.pairs;
        for (int f = 0; f < c.pairs && page; f++) {
            const int64_t at = (int64_t)f * c.step * PAGE + slot % PAGE;
            const float a = load_element(page, at, l.format);
            const float b = load_element(page, at + (int64_t)c.apart * PAGE, l.format), norm = sqrtf(fmaf(a, a, b * b));
            RA_UNROLL for (int h = 0; h < TOGETHER; h++) if (h < heads)
                norms[h] = fmaf(spread[(int64_t)h * c.pairs + f], norm, norms[h]);
        }
        RA_UNROLL for (int h = 0; h < TOGETHER; h++) if (page && h < heads)
            s.logits[((int64_t)pair * s.queries + begin + h) * s.stride + slot] = best[h] + norms[h];
    }
}

/* A block a head. */
RA_KERNEL(COMBINE, 2) join_heads(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const shared<double> scratch = shared_at<double>(0);
    const int pair = blockIdx.x, row = pair / l.kv_heads, older = l.slots[pair] - l.window;
    if (!cut.cut[row] || older < 1)
        return;
    float *score = cut.scores + pair * entries_of(l);
    int first = cut.candidates ? protected_slots(positions_of(l, pair), cut.protect_below[row], older) : 0;
    first = first < older ? first : 0; /* no candidates: their order does not matter to what stays */
    for (int g = 0; g < l.group; g++) {
        const float *query_logits = s.logits + ((int64_t)pair * s.queries + g) * s.stride;
        double mean = 0, square = 0;
        for (int i = first + threadIdx.x; i < older; i += COMBINE)
            mean += (double)query_logits[i];
        mean = block_sum(mean, scratch) / (double)(older - first);
        for (int i = first + threadIdx.x; i < older; i += COMBINE)
            square += ((double)query_logits[i] - mean) * ((double)query_logits[i] - mean);
        const double deviation = fmax(sqrt(block_sum(square, scratch) / (double)(older - first)), 1e-6);
        flag_not_finite(l, row, query_logits, older);
        for (int i = threadIdx.x; i < older; i += COMBINE) {
            const float x = (float)(((double)query_logits[i] - mean) / deviation), so_far = g ? score[i] : x;
            score[i] = cut.centres.group_mean ? (g ? so_far + x : x) : so_far > x ? so_far : x;
        }
    }
    for (int i = threadIdx.x; i < older && cut.centres.group_mean; i += COMBINE)
        score[i] *= 1 / (float)l.group;
}

int ra_cuda_score_triattention(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, void *stream)
{
    const size_t bytes = TOGETHER * l.head_dim * sizeof(float);
    const int error = RA_LAUNCH(score_heads, grid_of_slots(l, s), BLOCK_SLOTS, bytes, stream, l, cut, s);
    return error ? error : RA_LAUNCH(join_heads, (unsigned)(l.rows * l.kv_heads), COMBINE, 128, stream, l, cut, s);
}
