/* R-KV (arXiv 2505.24133): alpha * importance - (1 - alpha) * redundancy; centred: redundancy counts from its mean 1 / N. */
#include "scorer.h"

static ra_status combine(ra_score_view *view, const ra_score_config *config, float level, ra_scratch *scratch,
                         float *out)
{
    float *redundancy = view->redundancy ? view->redundancy
                                         : ra_scratch_take(scratch, view->span.slots, sizeof *redundancy);
    if (!redundancy)
        return RA_ERR_NO_MEMORY;
    ra_status status = ra_importance(&view->span, &view->window, view->attention, view->older, config->kernel, scratch,
                                     out);
    for (int64_t i = 0; status == RA_OK && view->importance && i < view->older; i++)
        view->importance[i] = out[i];
    if (status == RA_OK)
        status = ra_redundancy(&view->span, &view->nearest, config->threshold, scratch, redundancy);
    for (int64_t i = 0; status == RA_OK && i < view->older; i++)
        out[i] = config->alpha * out[i] - (1 - config->alpha) * (redundancy[i] - level);
    return status;
}

static ra_status score(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    return combine(view, config, 0, scratch, out);
}

static ra_status score_centred(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    return combine(view, config, 1 / (float)view->span.slots, scratch, out);
}

const ra_scorer ra_scorer_rkv = {
    .name = "rkv",
    .dense = true,
    .stat_count = 2,
    .stats = {RA_STAT_WINDOW_ATTENTION, RA_STAT_NEAREST_KEY},
    .score = score,
};

const ra_scorer ra_scorer_rkv_centred = {
    .name = "rkv-centred",
    .dense = true,
    .stat_count = 2,
    .stats = {RA_STAT_WINDOW_ATTENTION, RA_STAT_NEAREST_KEY},
    .score = score_centred,
};
