/* A hash of (seed, head, position): what any method must beat. */
#include "hash.h"
#include "scorer.h"

static ra_status score(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    (void)scratch;
    for (int64_t i = 0; i < view->older; i++)
        out[i] = ra_unit_float(ra_hash(config->seed, view->head, view->positions[i]));
    return RA_OK;
}

const ra_scorer ra_scorer_random = {.name = "random", .score = score};
