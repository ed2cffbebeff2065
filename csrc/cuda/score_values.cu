/* Of each older slot what its stored value says alone, as stat/value.c. */
#include <float.h>

#include "score.cuh"

/* ---- A row of a page's values, by LANES lanes: 16 bytes at a time where rows are whole vectors ---- */

constexpr int LANES = 8;

template <class T, class Visit> RA_DEVICE void visit_value(const T *value, int d, Visit visit)
{
    constexpr int EACH = 16 / sizeof(T);
    const int lane = threadIdx.x % LANES;
    if (d % EACH) {
        for (int c = lane; c < d; c += LANES)
            visit(widen(value[c]));
        return;
    }
    RA_UNROLL_BY(2) for (int c = lane * EACH; c < d; c += LANES * EACH)
    {
        const vec16 v = load16(value + c, true);
        RA_UNROLL for (int i = 0; i < EACH; i++) visit(element(v, i, T()));
    }
}

/* grid_of_slots; a page at a time. */
template <class T> RA_KERNEL(THREADS, 8) measure_values(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s, bool range)
{
    static_assert(THREADS / LANES == PAGE, "the block takes a page");
    const int pair = blockIdx.x, older = l.slots[pair] - l.window, slot = threadIdx.x / LANES;
    if (!cut.cut[pair / l.kv_heads])
        return;
    const int begin = blockIdx.y * BLOCK_SLOTS, end = least(older, begin + BLOCK_SLOTS);
    for (int first = begin; first < end; first += PAGE) {
        const bool there = first + slot < end;
        float high = -INFINITY, low = INFINITY, sum = 0;
        if (there)
            visit_value((const T *)values_in(l, page_at(l, pair, first / PAGE)) + slot * l.head_dim, l.head_dim,
                        [&](float x) {
                            high = fmaxf(high, x);
                            low = fminf(low, x);
                            sum += fabsf(x);
                        });
        RA_UNROLL for (int mask = 1; mask < LANES; mask *= 2)
        {
            high = fmaxf(high, shuffle_xor(high, mask));
            low = fminf(low, shuffle_xor(low, mask));
            sum += shuffle_xor(sum, mask);
        }
        if (there && threadIdx.x % LANES == 0)
            s.values[pair * s.stride + first + slot] = fminf(range ? high - low : sum, FLT_MAX);
    }
}

int ra_cuda_measure_values(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, bool range, void *stream)
{
    const dim3 grid = grid_of_slots(l, s);
    if (l.format == RA_F32)
        return RA_LAUNCH(measure_values<float>, grid, THREADS, 0, stream, l, cut, s, range);
    return l.format == RA_BF16 ? RA_LAUNCH(measure_values<bf16>, grid, THREADS, 0, stream, l, cut, s, range)
                               : RA_LAUNCH(measure_values<f16>, grid, THREADS, 0, stream, l, cut, s, range);
}
