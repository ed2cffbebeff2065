/* R-KV's redundancy without the n x n matrix, as csrc/stat: column means are u_j . sum of the unit keys, less the diagonal and
 * the zeroed entries. */
#include <float.h>

#include "score.cuh"

constexpr float NORM_FLOOR = 1e-8f;

/* ---- A page of keys, each lane 16 bytes at a time: slots of one dimension ---- */

template <class T> struct page_lane {
    static constexpr int SLOTS = 16 / sizeof(T), CHUNKS = PAGE / SLOTS, DIMS = 32 / CHUNKS;
    int chunk, dim; /* slots from chunk * SLOTS on; dimensions dim, dim + DIMS, ... */
    RA_MEMBER page_lane() : chunk(threadIdx.x % CHUNKS), dim(threadIdx.x % 32 / CHUNKS) {}
    RA_MEMBER vec16 load(const char *page, int c, bool really) const
    {
        return load16_again(page + ((int64_t)c * PAGE + chunk * SLOTS) * (int)sizeof(T), really);
    }
};
/* Sum over the lanes that hold the same slots, or the same dimensions. */
template <class T, class F> RA_DEVICE F sum_of_dims(F x)
{
    RA_UNROLL for (int mask = page_lane<T>::CHUNKS; mask < 32; mask *= 2) x += shuffle_xor(x, mask);
    return x;
}
template <class T> RA_DEVICE float sum_of_chunks(float x)
{
    RA_UNROLL for (int mask = 1; mask < page_lane<T>::CHUNKS; mask *= 2) x += shuffle_xor(x, mask);
    return x;
}

constexpr int PAGES = BLOCK_SLOTS / PAGE / WARPS; /* of a warp */

/* Inverse norms, NaN where float32 cannot hold the norm, and each block's sum of unit keys. Shared memory: WARPS * D floats. */
template <class T> RA_KERNEL(THREADS, 4) measure_keys(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    constexpr int SLOTS = page_lane<T>::SLOTS, DIMS = page_lane<T>::DIMS;
    const page_lane<T> lane;
    const shared<float> sums = shared_at<float>(0);
    const int pair = blockIdx.x, n = l.slots[pair], d = l.head_dim, warp = threadIdx.x / 32;
    const int start = blockIdx.y * BLOCK_SLOTS + warp * PAGES * PAGE;
    if (!cut.cut[pair / l.kv_heads] || (int)blockIdx.y * BLOCK_SLOTS >= n)
        return;
    float inverse[PAGES][SLOTS];
    const char *page[PAGES];
    RA_UNROLL for (int p = 0; p < PAGES; p++)
    {
        const bool there = start + p * PAGE < n;
        page[p] = there ? page_at(l, pair, start / PAGE + p) : 0;
        float squares[SLOTS];
        RA_UNROLL for (int i = 0; i < SLOTS; i++) squares[i] = 0;
        RA_UNROLL_BY(4) for (int c = lane.dim; c < d + lane.dim; c += DIMS)
        {
            const vec16 v = lane.load(page[p], c, there && c < d);
            RA_UNROLL for (int i = 0; i < SLOTS; i++) squares[i] =
                fmaf(element(v, i, T()), element(v, i, T()), squares[i]);
        }
        bool overflow = false;
        RA_UNROLL for (int i = 0; i < SLOTS; i++)
        {
            squares[i] = sqrtf(sum_of_dims<T>(squares[i]));
            overflow |= start + p * PAGE + lane.chunk * SLOTS + i < n && !(squares[i] <= FLT_MAX);
        }
        if (ballot(overflow)) /* squares that float32 cannot hold */
            RA_UNROLL for (int i = 0; i < SLOTS; i++)
            {
                double wide = 0;
                for (int c = lane.dim; c < d + lane.dim; c += DIMS) {
                    const double x = (double)element(lane.load(page[p], c, there && c < d), i, T());
                    wide += x * x;
                }
                squares[i] = (float)sqrt(sum_of_dims<T>(wide));
            }
        RA_UNROLL for (int i = 0; i < SLOTS; i++)
        {
            const int slot = start + p * PAGE + lane.chunk * SLOTS + i;
            const float norm = squares[i];
            inverse[p][i] = slot >= n ? 0 : norm <= FLT_MAX ? 1 / (norm + NORM_FLOOR) : NAN;
            if (slot < n && lane.dim == 0) {
                s.inverse[pair * s.stride + slot] = inverse[p][i];
                s.removed[pair * s.stride + slot] = 0;
            }
        }
    }
    RA_NO_UNROLL for (int c = lane.dim; c < d + lane.dim; c += DIMS)
    {
        float sum = 0;
        RA_UNROLL for (int p = 0; p < PAGES; p++)
        {
            const vec16 v = lane.load(page[p], c, page[p] != 0 && c < d);
            RA_UNROLL for (int i = 0; i < SLOTS; i++) sum += inverse[p][i] != 0 ? element(v, i, T()) * inverse[p][i] : 0;
        }
        sum = sum_of_chunks<T>(sum);
        if (lane.chunk == 0 && c < d)
            sums[warp * d + c] = sum;
    }
    block_sync();
    for (int c = threadIdx.x; c < d; c += THREADS) {
        float sum = 0;
        for (int w = 0; w < WARPS; w++)
            sum += sums[w * d + c];
        s.unit_parts[((int64_t)pair * s.parts + blockIdx.y) * d + c] = sum;
    }
}

/* In their order. A block a head. */
RA_KERNEL(THREADS, 4) sum_units(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const int pair = blockIdx.x, d = l.head_dim, parts = (l.slots[pair] + BLOCK_SLOTS - 1) / BLOCK_SLOTS;
    if (!cut.cut[pair / l.kv_heads])
        return;
    for (int c = threadIdx.x; c < d; c += THREADS) {
        double sum = 0;
        for (int part = 0; part < parts; part++)
            sum += (double)s.unit_parts[((int64_t)pair * s.parts + part) * d + c];
        s.unit_sum[(int64_t)pair * d + c] = (float)sum;
    }
}

/* ---- Column means ---- */

/* grid_of_slots. */
template <class T> RA_KERNEL(THREADS, 4) column_means(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    constexpr int SLOTS = page_lane<T>::SLOTS, DIMS = page_lane<T>::DIMS;
    const page_lane<T> lane;
    const int pair = blockIdx.x, n = l.slots[pair], d = l.head_dim;
    if (!cut.cut[pair / l.kv_heads])
        return;
    const float *sum = s.unit_sum + (int64_t)pair * d;
    RA_NO_UNROLL for (int p = 0; p < PAGES; p++)
    {
        const int number = blockIdx.y * (BLOCK_SLOTS / PAGE) + p * WARPS + threadIdx.x / 32;
        if (number * PAGE >= n)
            return;
        const char *page = page_at(l, pair, number);
        float dot[SLOTS];
        RA_UNROLL for (int i = 0; i < SLOTS; i++) dot[i] = 0;
        RA_UNROLL_BY(4) for (int c = lane.dim; c < d + lane.dim; c += DIMS)
        {
            const vec16 v = lane.load(page, c, c < d);
            const float by = c < d ? sum[c] : 0;
            RA_UNROLL for (int i = 0; i < SLOTS; i++) dot[i] = fmaf(by, element(v, i, T()), dot[i]);
        }
        RA_UNROLL for (int i = 0; i < SLOTS; i++)
        {
            dot[i] = sum_of_dims<T>(dot[i]);
            const int slot = number * PAGE + lane.chunk * SLOTS + i;
            if (lane.dim == i % DIMS && slot < n) {
                const double inverse = (double)s.inverse[pair * s.stride + slot];
                const double self = 1 - (double)NORM_FLOOR * inverse; /* |k| / (|k| + floor) */
                const double removed = (double)s.removed[pair * s.stride + slot] * 0x1p-40;
                s.mean[pair * s.stride + slot] = (float)(((double)dot[i] * inverse - self * self - removed) / (double)n);
            }
        }
    }
}

template <class T>
static int redundancy(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, void *stream)
{
    const dim3 grid = grid_of_slots(l, s);
    int error = RA_LAUNCH((measure_keys<T>), grid, THREADS, WARPS * l.head_dim * sizeof(float), stream, l, cut, s);
    if (!error)
        error = RA_LAUNCH(sum_units, grid.x, THREADS, 0, stream, l, cut, s);
    if (!error)
        error = ra_cuda_similar(l, cut, s, stream);
    return error ? error : RA_LAUNCH((column_means<T>), grid, THREADS, 0, stream, l, cut, s);
}

int ra_cuda_redundancy(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, void *stream)
{
    if (l.format == RA_F32)
        return redundancy<float>(l, cut, s, stream);
    return l.format == RA_BF16 ? redundancy<bf16>(l, cut, s, stream) : redundancy<f16>(l, cut, s, stream);
}
