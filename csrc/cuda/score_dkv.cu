/* VaSE's DKV, as scorer/dkv.c: |k M|^2 |v M|^2 as a share of the sum over the older slots, M a Gaussian matrix [RANK][D] that
 * depends on (seed, tokens of the row). */
#include "../scorer/gaussian.h"
#include "score.cuh"

constexpr int RANK = RA_DKV_RANK, COLUMNS = 32; /* of M in shared memory at a time */

/* Columns `first` on of the matrix, [RANK][COLUMNS]. */
RA_DEVICE void draw_columns(uint64_t seed, int64_t tokens, int d, int first, int some, shared<float> out)
{
    for (int i = threadIdx.x; i < RANK * some; i += blockDim.x) {
        const int row = i / some, at = row * d + first + i % some;
        float even, odd;
        ra_gaussian_pair(seed, tokens, at / 2, &even, &odd);
        out[row * COLUMNS + i % some] = at % 2 ? odd : even;
    }
}

/* Sum of the squares. */
RA_DEVICE double squared(const float *dots)
{
    double sum = 0;
    RA_UNROLL for (int r = 0; r < RANK; r++) sum += (double)dots[r] * (double)dots[r];
    return sum;
}

/* grid_of_slots; a slot a thread. */
RA_KERNEL(BLOCK_SLOTS, 2) multiply_slots(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const shared<float> matrix = shared_at<float>(0);
    const int pair = blockIdx.x, row = pair / l.kv_heads, d = l.head_dim, older = l.slots[pair] - l.window;
    const int slot = blockIdx.y * BLOCK_SLOTS + threadIdx.x;
    if (!cut.cut[row] || (int)blockIdx.y * BLOCK_SLOTS >= older)
        return;
    char *page = slot < older ? page_at(l, pair, slot / PAGE) : 0;
    const char *values = page ? values_in(l, page) : 0;
    float of_key[RANK], of_value[RANK];
    RA_UNROLL for (int r = 0; r < RANK; r++) of_key[r] = of_value[r] = 0;
    for (int first = 0; first < d; first += COLUMNS) {
        const int some = least(COLUMNS, d - first);
        block_sync(); /* those before are read */
        draw_columns(cut.seed, l.tokens[row], d, first, some, matrix);
        block_sync();
        for (int c = 0; c < some && page; c++) {
            const float key = load_element(page, (int64_t)(first + c) * PAGE + slot % PAGE, l.format);
            const float value = load_element(values, (int64_t)(slot % PAGE) * d + first + c, l.format);
            RA_UNROLL for (int r = 0; r < RANK; r++)
            {
                const float m = matrix[r * COLUMNS + c];
                of_key[r] = fmaf(m, key, of_key[r]);
                of_value[r] = fmaf(m, value, of_value[r]);
            }
        }
    }
    if (page)
        s.products[pair * s.stride + slot] = squared(of_key) * squared(of_value);
}

/* A block a head. */
RA_KERNEL(COMBINE, 2) share_products(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const int pair = blockIdx.x, row = pair / l.kv_heads, older = l.slots[pair] - l.window;
    if (!cut.cut[row] || older < 1)
        return;
    const double *product = s.products + pair * s.stride;
    float *score = cut.scores + pair * entries_of(l);
    double all = 0;
    for (int i = threadIdx.x; i < older; i += COMBINE)
        all += product[i];
    all = block_sum(all, shared_at<double>(0));
    for (int i = threadIdx.x; i < older; i += COMBINE)
        score[i] = i < cut.n_sink ? 2 : all > 0 ? (float)(product[i] / all) : 0;
    flag_not_finite(l, row, score, older);
}

int ra_cuda_score_dkv(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, void *stream)
{
    const size_t bytes = RANK * COLUMNS * sizeof(float);
    const int error = RA_LAUNCH(multiply_slots, grid_of_slots(l, s), BLOCK_SLOTS, bytes, stream, l, cut, s);
    return error ? error
                 : RA_LAUNCH(share_products, (unsigned)(l.rows * l.kv_heads), COMBINE, 128, stream, l, cut, s);
}
