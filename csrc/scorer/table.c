/* Scorers by name, and the view of a head that they are given. */
#include <math.h>
#include <string.h>

#include "head_attention.h"
#include "scorer.h"
#include "triattention.h"

static const ra_scorer *const scorers[] = {
    &ra_scorer_rkv,  &ra_scorer_rkv_centred, &ra_scorer_importance,   &ra_scorer_recency, &ra_scorer_random,
    &ra_scorer_h2o,  &ra_scorer_lazy,        &ra_scorer_raas,         &ra_scorer_snapkv,  &ra_scorer_vatp,
    &ra_scorer_vase, &ra_scorer_dkv,         &ra_scorer_triattention, &ra_scorer_spans};

enum { COUNT = sizeof scorers / sizeof scorers[0] };

const ra_scorer *ra_scorer_find(const char *name)
{
    for (size_t i = 0; name && i < COUNT; i++)
        if (!strcmp(scorers[i]->name, name))
            return scorers[i];
    return NULL;
}

const char *ra_scorer_name(size_t index) { return index < COUNT ? scorers[index]->name : NULL; }

bool ra_scorer_gathers(const ra_scorer *scorer)
{
    for (int i = 0; scorer && i < scorer->stat_count; i++)
        if (ra_stats[scorer->stats[i]]->add)
            return true;
    return false;
}

bool ra_scorer_fits(const ra_scorer *scorer, const ra_layer *layer)
{
    for (int i = 0; i < scorer->stat_count; i++)
        if (ra_stats[scorer->stats[i]]->lasting && !layer->columns[scorer->stats[i]])
            return false;
    return ra_backend_supports(layer->pool->backend, scorer);
}

bool ra_score_config_is_good(const ra_score_config *c)
{
    return c && c->scorer && c->alpha >= 0 && c->alpha <= 1 && !isnan(c->threshold) && c->kernel >= 1 &&
           c->kernel % 2 == 1 && c->n_large >= -1 && c->n_sink >= 0 && c->recent >= 0 && c->recent <= 1 && c->span >= 0;
}

size_t ra_score_bytes(int64_t slots, int64_t head_dim, int64_t window, int64_t group)
{
    ra_scratch count = {0};
    int64_t queries;
    if (!ra_size_of(window, group, head_dim, (int64_t)sizeof(float), &queries))
        return SIZE_MAX / 4;
    ra_scratch_take(&count, queries, 1);
    ra_scratch_take(&count, slots, sizeof(float)); /* redundancy */
    for (int i = 0; i < 5; i++)                    /* ranges, and their choice */
        ra_scratch_take(&count, slots, sizeof(float));
    ra_nearest_in(&count, slots, head_dim);
    size_t most = count.used + 64 + ra_importance_bytes(slots, window) + ra_redundancy_bytes(slots, head_dim) +
                  ra_head_attention_bytes(slots) + ra_dkv_bytes(slots, head_dim);
    size_t triattention = ra_triattention_bytes(slots, group);
    return most > triattention ? most : triattention;
}

static bool keeps(const ra_layer *layer, int stat) { return layer->columns[stat] != NULL; }

static bool uses(const ra_scorer *scorer, int stat)
{
    for (int i = 0; i < scorer->stat_count; i++)
        if (scorer->stats[i] == stat)
            return true;
    return false;
}

bool ra_window_of(const ra_layer *layer, int64_t pair, ra_scratch *scratch, ra_window *out)
{
    int64_t row = pair / layer->kv_heads, head = pair % layer->kv_heads, d = layer->pool->head_dim;
    int64_t count = layer->q_end[row] - layer->q_begin[row], each = layer->group * d;
    float *queries = ra_scratch_take(scratch, count * each, sizeof *queries);
    for (int64_t i = 0; queries && i < count; i++)
        memcpy(queries + i * each, ra_query(layer, row, layer->q_begin[row] + i) + head * each,
               (size_t)each * sizeof *queries);
    if (queries)
        ra_kernels_get()->scale(queries, (size_t)(count * each), ra_layer_scale(layer));
    *out = (ra_window){.queries = queries, .count = count, .group = layer->group, .softcap = layer->softcap};
    return queries != NULL;
}

ra_status ra_score_head(ra_layer *layer, int64_t pair, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    const ra_scorer *scorer = config->scorer;
    ra_score_view view = {.span = ra_span_of(layer, pair),
                          .positions = ra_positions_of(layer, pair),
                          .head = pair % layer->kv_heads,
                          .older = ra_older(layer, pair),
                          .share = layer->cut.totals[pair / layer->kv_heads] / layer->kv_heads,
                          .layer = layer,
                          .pair = pair};
    if (!view.older)
        return RA_OK;
    if (scorer->queries || uses(scorer, RA_STAT_WINDOW_ATTENTION)) {
        if (!ra_window_of(layer, pair, scratch, &view.window))
            return RA_ERR_NO_MEMORY;
        int64_t floats = view.window.count * view.window.group * view.span.d;
        if (!ra_all_finite(RA_F32, view.window.queries, floats))
            return RA_ERR_NOT_FINITE; /* the max over the group would hide a NaN */
        view.attention = ra_window_attention(layer, pair);
    }
    if (uses(scorer, RA_STAT_NEAREST_KEY)) {
        view.nearest = keeps(layer, RA_STAT_NEAREST_KEY) ? ra_nearest_of(layer, pair)
                                                         : ra_nearest_in(scratch, view.span.slots, view.span.d);
        if (!view.nearest.state)
            return RA_ERR_NO_MEMORY;
    }
    ra_status status = scorer->score(&view, config, scratch, out);
    return status == RA_OK && !ra_all_finite(RA_F32, out, view.older) ? RA_ERR_NOT_FINITE : status;
}
