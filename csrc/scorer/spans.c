/* R-KV's score (arXiv 2505.24133), centred, shared by the tokens of a span: positions i and j are of one span if i / span and
 * j / span are the same number. So spans go whole, but for one a head, at the end of its budget. */
#include "scorer.h"

/* Each run of a span's tokens gets their mean or their largest score, whatever of the span is still there. */
static void share(const ra_score_view *view, int64_t span, bool average, float *scores)
{
    for (int64_t begin = 0, end; begin < view->older; begin = end) {
        int64_t number = view->positions[begin] / span;
        double sum = 0;
        float most = scores[begin];
        for (end = begin; end < view->older && view->positions[end] / span == number; end++) {
            sum += (double)scores[end];
            most = scores[end] > most ? scores[end] : most;
        }
        float span_score = average ? (float)(sum / (double)(end - begin)) : most;
        for (int64_t i = begin; i < end; i++)
            scores[i] = span_score;
    }
}

static ra_status score(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    ra_status status = ra_scorer_rkv_centred.score(view, config, scratch, out);
    if (status == RA_OK && config->span > 1)
        share(view, config->span, config->average, out);
    return status;
}

const ra_scorer ra_scorer_spans = {
    .name = "spans",
    .stat_count = 2,
    .stats = {RA_STAT_WINDOW_ATTENTION, RA_STAT_NEAREST_KEY},
    .score = score,
};
