/* H2O (arXiv 2306.14048): accumulated attention; the newest stay. The paper gives them half of the budget. */
#include "accumulated.h"
#include "scorer.h"

/* A slot's sum is at most what all queries together have given away: `group` each, and what those that were cropped gave. The
 * newest stand above that, by age, so that heads with less than their even share lose the older ones of them first. */
static ra_status score(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    (void)scratch;
    const float *sum = ra_accumulated(view->layer, view->pair);
    int64_t slots = view->span.slots, recent = (int64_t)(config->recent * (float)view->share);
    float most = (float)view->layer->group * (float)view->layer->tokens[view->pair / view->layer->kv_heads];
    for (int64_t i = 0; i < view->older; i++)
        most = sum[i] > most ? sum[i] : most;
    for (int64_t i = 0; i < view->older; i++)
        out[i] = i < slots - recent ? sum[i] : most + (float)(i + 1);
    return RA_OK;
}

const ra_scorer ra_scorer_h2o = {
    .name = "h2o",
    .stat_count = 2,
    .stats = {RA_STAT_ACCUMULATED, RA_STAT_NEWEST_MASS},
    .score = score,
};
