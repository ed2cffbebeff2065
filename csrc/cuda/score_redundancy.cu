/* R-KV's redundancy without the n x n matrix, as csrc/stat: column means are u_j . sum of the unit keys, less the diagonal and
 * the zeroed entries. Nothing is kept between cuts. */
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

/* ---- The newest similar key of each ---- */

/* As the C core computes it: no product of two long keys. */
RA_DEVICE float cosine(const ra_cuda_layer &l, int pair, int i, int j, float inverse_i, float inverse_j)
{
    float dot = 0;
    for (int c = 0; c < l.head_dim; c++)
        dot = fmaf(key_element(l, pair, j, c) * inverse_j, key_element(l, pair, i, c), dot);
    return dot * inverse_i;
}

/* Row i of the cosine matrix loses an entry. Whole numbers, so that their order does not matter. */
RA_DEVICE void remove_entry(const cut_scratch &s, int pair, int column, float entry)
{
    if (is_finite(entry)) /* else the means are no numbers either */
        global_add((unsigned long long *)&s.removed[pair * s.stride + column],
                   (unsigned long long)(long long)((double)entry * 0x1p40));
}

/* From the newest on, until one is found; where there is none it ends with slot 0. */
RA_DEVICE void search(const ra_cuda_layer &l, const cut_scratch &s, int pair, int n, int i, float threshold)
{
    const float *inverse = s.inverse + pair * s.stride;
    for (int j = n - 1;; j--) {
        const float x = j == i ? 0 : cosine(l, pair, i, j, inverse[i], inverse[j]); /* the diagonal is zero */
        if (x > threshold || j == 0)
            return remove_entry(s, pair, j, x);
    }
}

/* A warp takes 64 slots and goes through all, 64 at a time, from the newest, until each of its own has found one; of the
 * products only the last hit of each row is kept. grid_of_slots. */
template <class T> RA_KERNEL(THREADS, 2) similar_matrix(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const int pair = blockIdx.x, n = l.slots[pair], lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int start = blockIdx.y * BLOCK_SLOTS + threadIdx.x / 32 * 64, steps = (l.head_dim + 15) / 16;
    if (!cut.cut[pair / l.kv_heads] || start >= n)
        return;
    const float *inverse = s.inverse + pair * s.stride;
    key_chunk<T> own, other;
    own.find(l, pair, n, start, g);
    int found[4][2];
    float with[4][2], scale[4][2]; /* with: the cosine with it, with slot 0 where there is none */
    RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int half = 0; half < 2; half++)
    {
        const int slot = own.first + i + 4 * half;
        found[i][half] = -1;
        with[i][half] = 0;
        scale[i][half] = slot < n ? inverse[slot] : 0;
    }
    bool overflow = false;
    RA_NO_UNROLL for (int from = (n - 1) / 64 * 64; from >= 0; from -= 64)
    {
        other.find(l, pair, n, from, g);
        RA_UNROLL_BY(2) for (int pass = 0; pass < 2; pass++)
        { /* columns 4 to 7, then 0 to 3 of each chunk: fewer registers */
            const int part = 1 - pass;
            float dot[4][4][4];
            RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int c = 0; c < 4; c++)
                RA_UNROLL for (int j = 0; j < 4; j++) dot[i][c][j] = 0;
            RA_UNROLL_BY(2) for (int k = 0; k < steps; k++)
            {
                vec16 rows[4], columns[4];
                own.load(k, t, rows);
                other.load(k, t, columns);
                uint32_t a[4][4];
                RA_UNROLL for (int i = 0; i < 4; i++) as_rows(rows, i, a[i]);
                RA_UNROLL for (int c = 0; c < 4; c++)
                {
                    uint32_t b[2];
                    as_columns(columns, 4 * part + c, b);
                    RA_UNROLL for (int i = 0; i < 4; i++) mma(T, dot[i][c], a[i], b);
                }
            }
            /* The lane's columns: slots 4 part + c of chunks 2t and 2t + 1. */
            RA_UNROLL for (int c = 0; c < 4; c++) RA_UNROLL for (int side = 0; side < 2; side++)
            {
                const int column = from + (2 * t + side) * 8 + 4 * part + c;
                const float by = column < n ? inverse[column] : 0;
                RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int half = 0; half < 2; half++)
                {
                    const int slot = own.first + i + 4 * half;
                    const float product = dot[i][c][2 * half + side];
                    if (column >= n || slot >= n)
                        continue;
                    overflow |= !is_finite(product);
                    const float x = column == slot ? 0 : product * scale[i][half] * by; /* the diagonal is zero */
                    const bool similar = x > cut.threshold;
                    if (column > found[i][half] && (similar || column == 0)) {
                        found[i][half] = similar ? column : -1;
                        with[i][half] = x;
                    }
                }
            }
        }
        if (ballot(overflow)) { /* long keys, whose products float32 cannot hold */
            for (int i = start + lane; i < least(n, start + 64); i += 32)
                search(l, s, pair, n, i, cut.threshold);
            return;
        }
        bool wants = false; /* a lane sees a quarter of the columns: what the others found counts too */
        RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int half = 0; half < 2; half++)
        {
            RA_UNROLL for (int mask = 1; mask <= 2; mask *= 2)
            {
                const int theirs = shuffle_xor(found[i][half], mask);
                const float their_cosine = shuffle_xor(with[i][half], mask);
                if (theirs > found[i][half]) {
                    found[i][half] = theirs;
                    with[i][half] = their_cosine;
                }
            }
            wants |= found[i][half] < 0 && own.first + i + 4 * half < n;
        }
        if (!ballot(wants))
            break;
    }
    RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int half = 0; half < 2; half++)
    {
        const int slot = own.first + i + 4 * half;
        if (t == 0 && slot < n) /* lane t = 0 is the one that sees slot 0 */
            remove_entry(s, pair, most(0, found[i][half]), with[i][half]);
    }
}

/* The same in float32, a slot a thread. grid_of_slots. */
RA_KERNEL(THREADS, 4) similar_plain(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const int pair = blockIdx.x, n = l.slots[pair], begin = blockIdx.y * BLOCK_SLOTS;
    if (!cut.cut[pair / l.kv_heads])
        return;
    for (int i = begin + threadIdx.x; i < least(n, begin + BLOCK_SLOTS); i += THREADS)
        search(l, s, pair, n, i, cut.threshold);
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
    if (!error && !has_matrix_units(l.format))
        error = RA_LAUNCH(similar_plain, grid, THREADS, 0, stream, l, cut, s);
    else if (!error && l.format == RA_BF16)
        error = RA_LAUNCH(similar_matrix<bf16>, grid, THREADS, 0, stream, l, cut, s);
    else if (!error)
        error = RA_LAUNCH(similar_matrix<f16>, grid, THREADS, 0, stream, l, cut, s);
    return error ? error : RA_LAUNCH((column_means<T>), grid, THREADS, 0, stream, l, cut, s);
}

int ra_cuda_redundancy(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, void *stream)
{
    if (l.format == RA_F32)
        return redundancy<float>(l, cut, s, stream);
    return l.format == RA_BF16 ? redundancy<bf16>(l, cut, s, stream) : redundancy<f16>(l, cut, s, stream);
}
