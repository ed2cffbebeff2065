/* VaSE (arXiv 2606.03928): the slots with the largest value range stay, of the rest a sample by attention; written as
 * scores whose best are that choice, however many of them are kept.
 *
 * Sampling without replacement by weights p is keeping the smallest E / p, E independent exponential numbers: the Gumbel
 * top-k of log p, monotonically transformed, and what torch.multinomial computes. Those scores, -E / p, are below 0,
 * ranges are not. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "hash.h"
#include "head_attention.h"
#include "value.h"

/* The published number: 200, and 256 at a budget of 512; half the budget where it is smaller. */
static int64_t large_of(const ra_score_config *config, int64_t share)
{
    return config->n_large >= 0 ? config->n_large : share <= 512 ? share / 2 : 200;
}

/* To 12 bits. In layer 0 a token that comes again has the value that it had before: then the newer one is to stay, not the
 * one whose range the batch happened to round up. */
static float coarse(float range)
{
    uint32_t bits;
    memcpy(&bits, &range, sizeof bits);
    bits = (bits + 0x800u) & ~0xfffu;
    memcpy(&range, &bits, sizeof bits);
    return fminf(range, FLT_MAX);
}

/* The n_large largest ranges; the first n_sink slots, whether they are among these or not, stand above all. */
static ra_status put_large(const ra_score_view *view, const ra_score_config *config, const float *exact,
                           ra_scratch *scratch, float *out)
{
    int64_t older = view->older, large = ra_min(older, large_of(config, view->share));
    float *range = ra_scratch_take(scratch, older, sizeof *range), top = 0;
    float *floats = ra_scratch_take(scratch, older, sizeof *floats);
    bool *flags = ra_scratch_take(scratch, older, sizeof *flags);
    int32_t *chosen = ra_scratch_take(scratch, older, sizeof *chosen);
    if (!range || !floats || !flags || !chosen)
        return RA_ERR_NO_MEMORY;
    for (int64_t i = 0; i < older; i++)
        range[i] = coarse(exact[i]);
    ra_status status = ra_select_into(range, older, large, config->n_sink, floats, flags, chosen);
    for (int64_t i = 0; status == RA_OK && i < large; i++) {
        out[chosen[i]] = range[chosen[i]];
        top = fmaxf(top, range[chosen[i]]);
    }
    for (int64_t i = 0; status == RA_OK && i < ra_min(older, config->n_sink); i++)
        out[i] = fminf(2 * top + 1, FLT_MAX);
    return status;
}

static ra_status score(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    const float *range = ra_value_range(view->layer, view->pair, scratch);
    if (!range)
        return RA_ERR_NO_MEMORY;
    ra_status status = ra_head_attention(view, false, true, config->kernel, scratch, out);
    if (status != RA_OK)
        return status;
    int64_t tokens = view->layer->tokens[view->pair / view->layer->kv_heads];
    for (int64_t i = 0; i < view->older; i++) {
        uint64_t hash = ra_hash_at(ra_hash(config->seed, view->head, view->positions[i]), tokens);
        out[i] = (float)-fmin(-log(ra_unit(hash)) / (double)out[i], (double)FLT_MAX);
    }
    return put_large(view, config, range, scratch, out);
}

const ra_scorer ra_scorer_vase = {
    .name = "vase",
    .queries = true,
    .stat_count = 1,
    .stats = {RA_STAT_VALUE_RANGE},
    .score = score,
};
