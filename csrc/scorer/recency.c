/* StreamingLLM (arXiv 2309.17453): the position itself. */
#include "scorer.h"

static ra_status score(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    (void)config, (void)scratch;
    for (int64_t i = 0; i < view->older; i++)
        out[i] = (float)view->positions[i];
    return RA_OK;
}

const ra_scorer ra_scorer_recency = {.name = "recency", .score = score};
