/* What begins a cut, and which kernels serve its scores. */
#include "cut.cuh"
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

extern "C" int ra_cuda_cut_begin(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream)
{
    (void)scratch;
    return RA_LAUNCH(begin_cut, (layer->rows + THREADS - 1) / THREADS, THREADS, 0, stream, *layer, *cut);
}

extern "C" size_t ra_cuda_cut_bytes(const ra_cuda_layer *layer, int32_t most_slots)
{
    (void)most_slots;
    return lay_scratch(*layer, 0).bytes;
}

extern "C" int ra_cuda_score(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream)
{
    return ra_cuda_score_any(layer, cut, scratch, stream);
}
