/* SnapKV (arXiv 2404.14469) as published: each query head's softmax over all it sees, pooled; and weighted by the values'
 * norms (VATP, arXiv 2406.12335). */
#include "head_attention.h"
#include "value.h"

static ra_status score(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    return ra_head_attention(view, true, config->average, config->kernel, scratch, out);
}

static ra_status score_by_value(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    const float *norm = ra_value_norm(view->layer, view->pair, scratch);
    ra_status status = norm ? score(view, config, scratch, out) : RA_ERR_NO_MEMORY;
    for (int64_t i = 0; status == RA_OK && i < view->older; i++)
        out[i] *= norm[i];
    return status;
}

const ra_scorer ra_scorer_snapkv = {.name = "snapkv-published", .queries = true, .score = score};

const ra_scorer ra_scorer_vatp = {
    .name = "vatp",
    .queries = true,
    .stat_count = 1,
    .stats = {RA_STAT_VALUE_NORM},
    .score = score_by_value,
};
