/* LazyEviction (arXiv 2506.15969): t - TS against MRI, and MRI itself; RaaS (arXiv 2502.11147): TS. */
#include <math.h>

#include "recurrence.h"
#include "scorer.h"

static double twice_sigmoid(double x) { return 2 / (1 + exp(-x)); }

/* H1 + H2. A token that was never active after it came has no interval and scores 0: the newer of two such stays. */
static double paper(double idle, double gap)
{
    return gap > 0 ? twice_sigmoid(-idle / gap) + twice_sigmoid(1 - gap) : 0;
}

/* What the published code computes: H1 is at most 0.538, and 1e-5 stands for no interval. */
static double code(double idle, double gap)
{
    return twice_sigmoid(-1 - idle / (gap + 1e-5)) + (gap > 0 ? twice_sigmoid(1 - gap) : 0);
}

static ra_status score(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    (void)scratch;
    const int32_t *last = ra_last_active(view->layer, view->pair), *gap = ra_longest_gap(view->layer, view->pair);
    int64_t now = view->layer->tokens[view->pair / view->layer->kv_heads] - 1;
    for (int64_t i = 0; i < view->older; i++) {
        double idle = (double)ra_max(0, now - last[i]); /* cropped queries may have come later */
        out[i] = (float)(config->published_code ? code : paper)(idle, (double)gap[i]);
    }
    return RA_OK;
}

static ra_status score_last(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    (void)config, (void)scratch;
    const int32_t *last = ra_last_active(view->layer, view->pair);
    for (int64_t i = 0; i < view->older; i++)
        out[i] = (float)last[i];
    return RA_OK;
}

const ra_scorer ra_scorer_lazy = {
    .name = "lazy",
    .stat_count = 2,
    .stats = {RA_STAT_RECURRENCE, RA_STAT_NEWEST_MASS},
    .score = score,
};

const ra_scorer ra_scorer_raas = {
    .name = "raas",
    .stat_count = 2,
    .stats = {RA_STAT_RECURRENCE, RA_STAT_NEWEST_MASS},
    .score = score_last,
};
