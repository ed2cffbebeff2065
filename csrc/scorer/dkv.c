/* VaSE's DKV (arXiv 2606.03928, mode cur_resample_gauss of its code): |k M|^2 |v M|^2 as a share of the sum over the older
 * tokens, M a Gaussian matrix [D][RANK], another at each cut. The first n_sink slots have 2, more than any share.
 *
 * M depends on (seed, tokens of the row) alone, so that heads share it and a row is cut as it is alone. */
#include "gaussian.h"
#include "scorer.h"

enum { RANK = RA_DKV_RANK };

/* [RANK][d]. */
static void gaussian(uint64_t seed, int64_t tokens, int64_t d, float *out)
{
    for (int64_t i = 0; i < RANK * d / 2; i++)
        ra_gaussian_pair(seed, tokens, i, &out[2 * i], &out[2 * i + 1]);
}

/* sums[t] = sum over the rows of M of the squared products with lane t of a page of keys. */
static void squared(const ra_page_kernels *kernels, const float *matrix, const void *page, int64_t d, double *sums)
{
    float dots[RANK * PAGE];
    kernels->qk(matrix, RANK, page, (size_t)d, NULL, dots);
    for (int64_t t = 0; t < PAGE; t++) {
        sums[t] = 0;
        for (int64_t r = 0; r < RANK; r++)
            sums[t] += (double)dots[r * PAGE + t] * (double)dots[r * PAGE + t];
    }
}

size_t ra_dkv_bytes(int64_t slots, int64_t head_dim)
{
    ra_scratch count = {0};
    ra_scratch_take(&count, RANK * head_dim, sizeof(float));
    ra_scratch_take(&count, PAGE * head_dim, sizeof(float));
    ra_scratch_take(&count, slots, sizeof(double));
    return count.used + 64;
}

static ra_status score(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    const ra_span *span = &view->span;
    int64_t d = span->d;
    float *matrix = ra_scratch_take(scratch, RANK * d, sizeof *matrix);
    float *values = ra_scratch_take(scratch, PAGE * d, sizeof *values);
    double *product = ra_scratch_take(scratch, view->older, sizeof *product), all = 0;
    if (!matrix || !values || !product)
        return RA_ERR_NO_MEMORY;
    gaussian(config->seed, view->layer->tokens[view->pair / view->layer->kv_heads], d, matrix);
    for (int64_t page = 0; page * PAGE < view->older; page++) {
        double of_keys[PAGE], of_values[PAGE];
        float value[RA_MAX_HEAD_DIM] = {0};
        squared(span->kernels, matrix, ra_span_k(span, page), d, of_keys);
        for (int64_t t = 0; t < PAGE; t++) { /* as a page of keys of float32 */
            if (page * PAGE + t < view->older)
                span->format->read_value(ra_span_k(span, page), t, d, value);
            for (int64_t c = 0; c < d; c++)
                values[c * PAGE + t] = value[c];
        }
        squared(&ra_kernels_get()->page[RA_F32], matrix, values, d, of_values);
        for (int64_t t = 0; t < ra_min(PAGE, view->older - page * PAGE); t++)
            all += product[page * PAGE + t] = of_keys[t] * of_values[t];
    }
    for (int64_t i = 0; i < view->older; i++)
        out[i] = i < config->n_sink ? 2 : all > 0 ? (float)(product[i] / all) : 0;
    return RA_OK;
}

const ra_scorer ra_scorer_dkv = {.name = "dkv", .score = score};
