/* Head budgets, the same integers as the C core's: compiled without fused arithmetic. */
#include "../core/robustify.h"
#include "cut.cuh"
#include "select.cuh"

/* What every head evicts last is not shared out: as `spared` of core/cut.c. */
RA_DEVICE int spared(const ra_cuda_layer &l, const ra_cuda_cut &cut, int row, int64_t total)
{
    int64_t base = total / l.kv_heads - l.window;
    for (int h = 0; h < l.kv_heads && base > 0; h++) {
        const int pair = row * l.kv_heads + h, older = most(0, l.slots[pair] - l.window);
        base = protected_slots(positions_of(l, pair), cut.protect_below[row], base < older ? (int)base : older);
    }
    return base > 0 ? (int)base : 0;
}

/* A block a row. Rows whose scores are no numbers, or whose total has no room for the windows, are not cut. */
RA_KERNEL(THREADS, 1) allocate_row(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const shared<int> counts = shared_at<int>(0);
    const int row = blockIdx.x, H = l.kv_heads;
    int32_t *budgets = cut.budgets + row * H;
    if (!cut.cut[row]) {
        for (int h = threadIdx.x; h < H; h += THREADS)
            budgets[h] = l.slots[row * H + h];
        return;
    }
    const int64_t total = cut.totals[row];
    const int base = spared(l, cut, row, total);
    const int64_t rest = total - (int64_t)H * base, chosen = rest - (int64_t)H * l.window;
    int64_t all = 0;
    int wrong = 0, found;
    for (int h = 0; h < H; h++) {
        const int pair = row * H + h, older = most(0, l.slots[pair] - l.window);
        const float *score = cut.scores + pair * entries_of(l);
        all += older - base;
        for (int i = threadIdx.x; i < older; i += THREADS)
            wrong |= !is_finite(score[i]);
    }
    block_prefix(wrong, counts, &found);
    if (found || chosen < 0) {
        for (int h = threadIdx.x; h < H; h += THREADS)
            budgets[h] = l.slots[row * H + h];
        if (threadIdx.x == 0) {
            set_fault(l, row, found ? RA_CUDA_FAULT_SCORES : RA_CUDA_FAULT_INFEASIBLE);
            cut.cut[row] = 0;
        }
        return;
    }
    double *claims = s.claims + (int64_t)row * H * 5, *y = claims + H;
    rb_remainder *parts = (rb_remainder *)(claims + 2 * H);
    if (cut.route.heads != RA_HEADS_UNIFORM) {
        float tau = -INFINITY;
        int above;
        if (chosen > 0 && chosen < all)
            tau = kth_largest(
                [&](auto take) {
                    for (int h = 0; h < H; h++)
                        for (int i = base + threadIdx.x; i < l.slots[row * H + h] - l.window; i += THREADS)
                            take(cut.scores[(row * H + h) * entries_of(l) + i]);
                },
                (int)chosen, counts, &above);
        for (int h = 0; h < H; h++) {
            const int pair = row * H + h;
            int own = 0;
            for (int i = base + threadIdx.x; chosen > 0 && i < l.slots[pair] - l.window; i += THREADS)
                own += cut.scores[pair * entries_of(l) + i] >= tau;
            block_prefix(own, counts, &found);
            if (threadIdx.x == 0)
                claims[h] = (double)l.window + (double)found;
        }
    }
    if (threadIdx.x)
        return;
    int64_t *out = (int64_t *)(claims + 4 * H);
    const ra_route_config &route = cut.route;
    const double mean = (double)rest / (double)H, window = (double)l.window;
    if (route.heads == RA_HEADS_ROUTE) {
        rb_robustify(claims, H, rest, route.gamma, route.lo, route.hi, fmax(route.mu * mean, window), y, parts, out);
    } else if (route.heads == RA_HEADS_POOLED) {
        rb_safeguard(claims, H, rest, route.safeguard);
        rb_robustify(claims, H, rest, 1, 0, (double)H, fmax(floor(route.safeguard * mean), window), y, parts, out);
    }
    for (int h = 0; h < H; h++)
        budgets[h] = base + (int)(route.heads == RA_HEADS_UNIFORM ? rest / H + (h < rest % H) : out[h]);
}

extern "C" int ra_cuda_allocate(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream)
{
    return RA_LAUNCH(allocate_row, layer->rows, THREADS, SELECT_INTS * 4, stream, *layer, *cut,
                     lay_scratch(*layer, scratch));
}
