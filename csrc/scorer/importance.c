/* SnapKV (arXiv 2404.14469): attention of the newest queries, max-pooled. */
#include "scorer.h"

static ra_status score(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    return ra_importance(&view->span, &view->window, view->attention, view->older, config->kernel, scratch, out);
}

const ra_scorer ra_scorer_importance = {
    .name = "importance",
    .dense = true,
    .stat_count = 1,
    .stats = {RA_STAT_WINDOW_ATTENTION},
    .score = score,
};
