/* Scores of one head that is given densely: its keys are laid out as pages first. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "scorer.h"

typedef struct dense {
    char *pages;
    int32_t *ids;
    float *queries; /* [window][group][D], scaled */
    ra_nearest nearest;
    ra_scratch rest;
} dense;

static dense take(ra_scratch *scratch, int64_t group, int64_t window, int64_t tokens, int64_t d)
{
    const ra_format *format = &ra_format_f32;
    int64_t pages = ra_pages_for(tokens);
    return (dense){.pages = ra_scratch_take(scratch, pages, format->page_bytes(d)),
                   .ids = ra_scratch_take(scratch, pages, sizeof(int32_t)),
                   .queries = ra_scratch_take(scratch, window * group * d, sizeof(float)),
                   .nearest = ra_nearest_in(scratch, tokens, d),
                   .rest = ra_scratch_part(scratch, ra_score_bytes(tokens, d, window, group))};
}

/* Whether everything that is asked for fits into memory at all. */
static bool sizes_are_good(int64_t group, int64_t window, int64_t tokens, int64_t d)
{
    int64_t queries, keys, logits;
    return group >= 1 && window >= 1 && tokens >= window && d >= 1 && d <= RA_MAX_HEAD_DIM &&
           tokens <= INT32_MAX - PAGE && ra_size_of(group, window, d, 64, &queries) &&
           ra_size_of(tokens, d, 64, 1, &keys) && ra_size_of(window, tokens, 64, 1, &logits);
}

ra_status ra_score_dense(const float *queries, int64_t group, int64_t window, const float *keys, int64_t tokens,
                         int64_t head_dim, const ra_score_config *config, float *out, float *importance,
                         float *redundancy)
{
    const int64_t d = head_dim;
    const ra_format *format = &ra_format_f32;
    if (!ra_score_config_is_good(config) || !queries || !keys || !out || !sizes_are_good(group, window, tokens, d) ||
        !config->scorer->dense)
        return RA_ERR_ARGUMENT;
    ra_scratch scratch = {0};
    (void)take(&scratch, group, window, tokens, d);
    size_t bytes = scratch.used + 64;
    scratch = (ra_scratch){0};
    if (!ra_scratch_grow(&scratch, bytes))
        return RA_ERR_NO_MEMORY;
    if (!ra_all_finite(RA_F32, keys, tokens * d) || !ra_all_finite(RA_F32, queries, group * window * d)) {
        free(scratch.memory);
        return RA_ERR_NOT_FINITE;
    }
    dense x = take(&scratch, group, window, tokens, d);
    memset(x.pages, 0, (size_t)ra_pages_for(tokens) * format->page_bytes(d));
    for (int64_t p = 0; p < ra_pages_for(tokens); p++)
        x.ids[p] = (int32_t)p;
    for (int64_t i = 0; i < tokens; i += PAGE) {
        const ra_rows rows = {.data = (const char *)(keys + i * d),
                              .stride = d * (int64_t)sizeof *keys,
                              .dtype = RA_F32};
        format->write(x.pages + (size_t)(i / PAGE) * format->page_bytes(d), 0, ra_min(PAGE, tokens - i), d, &rows,
                      &rows);
    }
    for (int64_t g = 0; g < group; g++)
        for (int64_t w = 0; w < window; w++)
            memcpy(x.queries + (w * group + g) * d, queries + (g * window + w) * d, (size_t)d * sizeof *x.queries);
    ra_kernels_get()->scale(x.queries, (size_t)(group * window * d), 1 / sqrtf((float)d));
    ra_score_view view = {.span = ra_span_with(format, d, tokens, x.ids),
                          .older = tokens - window,
                          .window = {.queries = x.queries, .count = window, .group = group},
                          .nearest = x.nearest,
                          .importance = importance,
                          .redundancy = redundancy};
    view.span.base = x.pages;
    ra_status status = config->scorer->score(&view, config, &x.rest, out);
    for (int64_t i = 0; status == RA_OK && importance && config->scorer->stat_count == 1 && i < view.older; i++)
        importance[i] = out[i];
    if (status == RA_OK && !ra_all_finite(RA_F32, out, view.older))
        status = RA_ERR_NOT_FINITE;
    free(scratch.memory);
    return status;
}
