/* Head budgets, the same integers as the C core's: compiled without fused arithmetic. */
#include "../core/robustify.h"
#include "cut.cuh"
#include "select.cuh"

constexpr int ROW_THREADS = 512;

/* What every head evicts last is not shared out: as `spared` of core/cut.c. scratch: an int a warp. */
RA_DEVICE int spared(const ra_cuda_layer &l, const ra_cuda_cut &cut, int row, int64_t total, shared<int> scratch)
{
    const int64_t room = total / l.kv_heads - l.window;
    int base = room < 0 ? 0 : room < INT32_MAX ? (int)room : INT32_MAX;
    for (int h = threadIdx.x; h < l.kv_heads; h += ROW_THREADS) {
        const int pair = row * l.kv_heads + h;
        base = least(base, protected_slots(positions_of(l, pair), cut.protect_below[row], l.slots[pair] - l.window));
    }
    for (int mask = 16; mask; mask /= 2)
        base = least(base, shuffle_xor(base, mask));
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = base;
    block_sync();
    for (int w = 0; w < ROW_THREADS / 32; w++)
        base = least(base, scratch[w]);
    return base;
}

/* A block a row. Rows whose scores are no numbers are cut by age, so that they hold no more than the host takes them to; those
 * whose total has no room for the windows are not: the host has looked for that. */
RA_KERNEL(ROW_THREADS, 1) allocate_row(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const shared<int> counts = shared_at<int>(0);
    const int row = blockIdx.x, H = l.kv_heads;
    int32_t *budgets = cut.budgets + row * H;
    if (!cut.cut[row]) {
        for (int h = threadIdx.x; h < H; h += ROW_THREADS)
            budgets[h] = l.slots[row * H + h];
        return;
    }
    const int64_t total = cut.totals[row];
    const bool by_scores = cut.route.heads == RA_HEADS_ROUTE || cut.route.heads == RA_HEADS_POOLED;
    /* slots that nobody allocates */
    const int base = rb_by_figures(cut.route.heads) ? 0 : spared(l, cut, row, total, counts);
    const int64_t rest = total - (int64_t)H * base, chosen = rest - (int64_t)H * l.window;
    int64_t all = 0;
    int wrong = 0, found;
    for (int h = 0; h < H; h++) {
        const int pair = row * H + h, older = most(0, l.slots[pair] - l.window);
        const float *score = cut.scores + pair * entries_of(l);
        all += older - base;
        for (int i = threadIdx.x; i < older; i += ROW_THREADS)
            wrong |= !is_finite(score[i]);
    }
    block_prefix(wrong, counts, &found);
    if (chosen < 0) {
        for (int h = threadIdx.x; h < H; h += ROW_THREADS)
            budgets[h] = l.slots[row * H + h];
        if (threadIdx.x == 0) {
            set_fault(l, row, RA_CUDA_FAULT_INFEASIBLE);
            cut.cut[row] = 0;
        }
        return;
    }
    if (found) {
        for (int h = 0; h < H; h++)
            for (int i = threadIdx.x; i < l.slots[row * H + h] - l.window; i += ROW_THREADS)
                cut.scores[(row * H + h) * entries_of(l) + i] = (float)i;
        for (int h = threadIdx.x; h < H; h += ROW_THREADS)
            budgets[h] = (int)(total / H + (h < total % H));
        if (threadIdx.x == 0)
            set_fault(l, row, RA_CUDA_FAULT_SCORES);
        return;
    }
    double *claims = s.claims + (int64_t)row * H * 5, *y = claims + H;
    rb_remainder *parts = (rb_remainder *)(claims + 2 * H);
    if (by_scores) {
        float tau = -INFINITY;
        if (chosen > 0 && chosen < all)
            tau = kth_largest(
                      [&](auto take) {
                          for (int h = 0; h < H; h++)
                              for (int i = base + threadIdx.x; i < l.slots[row * H + h] - l.window; i += ROW_THREADS)
                                  take(cut.scores[(row * H + h) * entries_of(l) + i]);
                      },
                      (int)chosen, counts)
                      .tau;
        for (int h = threadIdx.x / 32; h < H; h += ROW_THREADS / 32) { /* a warp a head */
            const float *score = cut.scores + (row * H + h) * entries_of(l);
            int above = 0;
            for (int i = base + threadIdx.x % 32; chosen > 0 && i < l.slots[row * H + h] - l.window; i += 32)
                above += score[i] >= tau;
            for (int mask = 16; mask; mask /= 2)
                above += shuffle_xor(above, mask);
            if (threadIdx.x % 32 == 0)
                claims[h] = (double)l.window + (double)above;
        }
        block_sync();
    }
    if (threadIdx.x)
        return;
    int64_t *out = (int64_t *)(claims + 4 * H);
    if (cut.route.heads == RA_HEADS_GIVEN) {
        const bool fits = rb_given(cut.route.limits, H, l.window, total, out);
        for (int h = 0; h < H; h++)
            budgets[h] = fits ? (int32_t)out[h] : l.slots[row * H + h];
        if (!fits) {
            set_fault(l, row, RA_CUDA_FAULT_INFEASIBLE);
            cut.cut[row] = 0;
        }
        return;
    }
    const ra_route_config &route = cut.route;
    const double mean = (double)rest / (double)H, window = (double)l.window;
    if (route.heads == RA_HEADS_ROUTE) {
        rb_robustify(claims, H, rest, route.gamma, route.lo, route.hi, fmax(route.mu * mean, window), y, parts, out);
    } else if (route.heads == RA_HEADS_POOLED) {
        rb_safeguard(claims, H, rest, route.safeguard);
        rb_robustify(claims, H, rest, 1, 0, (double)H, fmax(floor(route.safeguard * mean), window), y, parts, out);
    } else if (route.heads == RA_HEADS_SHARES) {
        rb_shares(route.shares, H, l.window, cut.protect_below[row], total, route.lo, route.hi, y, parts, out);
    }
    for (int h = 0; h < H; h++)
        budgets[h] = base + (int)(route.heads == RA_HEADS_UNIFORM ? rest / H + (h < rest % H) : out[h]);
}

extern "C" int ra_cuda_allocate(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream)
{
    return RA_LAUNCH(allocate_row, layer->rows, ROW_THREADS, SELECT_INTS * 4, stream, *layer, *cut,
                     lay_scratch(*layer, cut->most_slots, scratch));
}
