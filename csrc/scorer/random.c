/* A hash of (seed, head, position): what any method must beat. */
#include "scorer.h"

/* splitmix64: the same token gets the same number in every row and batch. */
static float hash_to_unit(uint64_t seed, int64_t head, int32_t position)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15u * ((uint64_t)head * 0x100000001u + (uint64_t)position + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (float)((z ^ (z >> 31)) >> 40) * 0x1p-24f;
}

static ra_status score(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    (void)scratch;
    for (int64_t i = 0; i < view->older; i++)
        out[i] = hash_to_unit(config->seed, view->head, view->positions[i]);
    return RA_OK;
}

const ra_scorer ra_scorer_random = {.name = "random", .score = score};
