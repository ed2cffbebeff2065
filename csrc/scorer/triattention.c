/* TriAttention (arXiv 2604.04921, eq. 6 to 10): what queries of the calibrated distribution will find, near and far ahead.
 *
 * For query head h and a key k at position j, now being p (the next token's), over the rotated pairs f:
 *     S_trig(o) = sum_f |c_f| |k_f| cos(w_f (p - j + o) + arg c_f - arg k_f),  c_f = E q_f, both unrotated
 *     S_norm    = sum_f (E|q_f| - |c_f|) |k_f|
 * and S = mean over the offsets o of S_trig(o), + S_norm. Rotation keeps lengths, and S_trig is linear in c_f e^(i w_f (p + o)):
 * so the stored, rotated key needs no unrotation, and S_trig is its dot product with one synthetic query a query head.
 * Each query head's scores are standardised over the candidates (those not protected; population deviation, at least
 * 1e-6), then the group's largest counts. Published code: `per_layer_per_head` of WeianMao/triattention c3744ee6, which
 * adds 1e-6 times noise against ties, whereas ties go to the newer token here, and knows no dimensions without rotation:
 * those count as E[q] k, the mean of what they give to a logit. */
#include "triattention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "scorer.h"

/* Query heads that share a pass over the keys. */
enum { HEADS = 4 };

/* ---- What is kept of a layer ---- */

ra_centres *ra_centres_share(ra_centres *centres)
{
    if (centres)
        centres->owners++;
    return centres;
}

void ra_centres_drop(ra_centres *centres)
{
    if (centres && --centres->owners == 0)
        free(centres);
}

static bool is_good(const ra_query_centres *given, const ra_layer *layer)
{
    int64_t d = layer->pool->head_dim;
    if (!given->mean || given->pairs < 0 || given->pairs > d / 2 ||
        (given->pairs && (!given->frequency || !given->length)))
        return false;
    for (int64_t f = 0; f < given->pairs; f++)
        if (!isfinite(given->frequency[f]))
            return false;
    for (int64_t i = 0; i < layer->query_heads * given->pairs; i++)
        if (!(given->length[i] >= 0))
            return false;
    return ra_all_finite(RA_F32, given->mean, layer->query_heads * d) &&
           (!given->pairs || ra_all_finite(RA_F32, given->length, layer->query_heads * given->pairs));
}

static void set_turn(ra_centres *c)
{
    for (int64_t f = 0; f < c->pairs; f++) {
        double re = 0, im = 0;
        for (int o = 0; o < RA_OFFSETS; o++) {
            re += cos(c->frequency[f] * (double)(1 << o));
            im += sin(c->frequency[f] * (double)(1 << o));
        }
        c->turn[2 * f] = re / RA_OFFSETS;
        c->turn[2 * f + 1] = im / RA_OFFSETS;
    }
}

ra_status ra_layer_set_centres(ra_layer *layer, const ra_query_centres *given)
{
    if (!layer || !given || !is_good(given, layer))
        return RA_ERR_ARGUMENT;
    int64_t d = layer->pool->head_dim, heads = layer->query_heads, pairs = given->pairs;
    size_t head = (sizeof(ra_centres) + 15) / 16 * 16;
    ra_centres *c = ra_new(1, head + ra_centres_bytes(pairs, heads, d));
    if (!c)
        return RA_ERR_NO_MEMORY;
    double *numbers = (double *)(void *)((char *)c + head);
    *c = (ra_centres){.owners = 1,
                      .pairs = pairs,
                      .step = given->interleaved ? 2 : 1,
                      .apart = given->interleaved ? 1 : pairs,
                      .largest = given->largest,
                      .group_mean = given->group_mean,
                      .frequency = numbers,
                      .turn = numbers + pairs,
                      .mean = (float *)(void *)(numbers + 3 * pairs)};
    c->spread = c->mean + heads * d;
    if (pairs)
        memcpy(c->frequency, given->frequency, (size_t)pairs * sizeof *c->frequency);
    memcpy(c->mean, given->mean, (size_t)(heads * d) * sizeof *c->mean);
    for (int64_t h = 0; h < heads; h++)
        for (int64_t f = 0; f < pairs; f++) {
            const float *mean = c->mean + h * d + f * c->step;
            float spread = given->length[h * pairs + f] - hypotf(mean[0], mean[c->apart]);
            c->spread[h * pairs + f] = spread > 0 ? spread : 0; /* below 0 by rounding alone */
        }
    set_turn(c);
    ra_centres_drop(layer->centres);
    layer->centres = c;
    layer->centres_set++;
    return RA_OK;
}

/* ---- Scores ---- */

/* The synthetic query [D] of a query head: its mean turned by `position` and by each pair's `turn`; NULL: by nothing more. */
static void synthetic(const ra_centres *c, const float *mean, int64_t d, double position, const double *turn,
                      float *out)
{
    memcpy(out, mean, (size_t)d * sizeof *out);
    for (int64_t f = 0; f < c->pairs; f++) {
        int64_t x = f * c->step, y = x + c->apart;
        double re = cos(c->frequency[f] * position), im = sin(c->frequency[f] * position);
        if (turn) {
            double whole = re * turn[2 * f] - im * turn[2 * f + 1];
            im = re * turn[2 * f + 1] + im * turn[2 * f];
            re = whole;
        }
        out[x] = (float)((double)mean[x] * re - (double)mean[y] * im);
        out[y] = (float)((double)mean[x] * im + (double)mean[y] * re);
    }
}

/* scores[i][older] = the larger of what is there and q_i.k; first: q_i.k. */
static void add_dots(const ra_span *span, const float *queries, int64_t heads, int64_t older, bool first, float *scores)
{
    float dots[HEADS * PAGE];
    for (int64_t start = 0; start < older; start += PAGE) {
        int64_t count = ra_min(PAGE, older - start);
        span->kernels->qk(queries, (size_t)heads, ra_span_k(span, start / PAGE), (size_t)span->d, NULL, dots);
        for (int64_t i = 0; i < heads; i++)
            for (int64_t t = 0; t < count; t++) {
                float *score = &scores[i * older + start + t];
                *score = first || dots[i * PAGE + t] > *score ? dots[i * PAGE + t] : *score;
            }
    }
}

static void add_norms(const ra_span *span, const ra_centres *c, const float *spread, int64_t heads, int64_t older,
                      float *scores)
{
    float norms[HEADS * PAGE];
    for (int64_t start = 0; start < older; start += PAGE) {
        int64_t count = ra_min(PAGE, older - start);
        span->kernels->pair_norms(ra_span_k(span, start / PAGE), spread, (size_t)heads, (size_t)c->pairs,
                                  (size_t)c->step, (size_t)c->apart, norms);
        for (int64_t i = 0; i < heads; i++)
            for (int64_t t = 0; t < count; t++)
                scores[i * older + start + t] += norms[i * PAGE + t];
    }
}

/* Standardised by the mean and the deviation of the candidates, x[first .. n). */
static void standardise(float *x, int64_t n, int64_t first)
{
    double mean = 0, square = 0;
    for (int64_t i = first; i < n; i++)
        mean += (double)x[i];
    mean /= (double)(n - first);
    for (int64_t i = first; i < n; i++)
        square += ((double)x[i] - mean) * ((double)x[i] - mean);
    double deviation = fmax(sqrt(square / (double)(n - first)), 1e-6);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(((double)x[i] - mean) / deviation);
}

size_t ra_triattention_bytes(int64_t slots, int64_t group)
{
    ra_scratch count = {0};
    ra_scratch_take(&count, ra_min(group, HEADS) * slots, sizeof(float));
    ra_scratch_take(&count, HEADS * RA_MAX_HEAD_DIM, sizeof(float));
    return count.used + 64;
}

static ra_status score(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out)
{
    const ra_layer *layer = view->layer;
    const ra_centres *c = layer->centres;
    if (!c)
        return RA_ERR_ARGUMENT;
    const int64_t d = view->span.d, older = view->older, group = layer->group, row = view->pair / layer->kv_heads;
    float *scores = ra_scratch_take(scratch, ra_min(group, HEADS) * older, sizeof *scores);
    float *queries = ra_scratch_take(scratch, HEADS * d, sizeof *queries);
    if (!scores || !queries)
        return RA_ERR_NO_MEMORY;
    int64_t below = config->protect_below ? config->protect_below[row] : 0;
    int64_t first = ra_protected(layer, view->pair, below, older);
    first = first < older ? first : 0; /* no candidates: their order does not matter to what stays */
    double now = (double)layer->tokens[row];
    for (int64_t begin = 0; begin < group; begin += HEADS) {
        int64_t heads = ra_min(HEADS, group - begin), query_head = view->head * group + begin;
        for (int o = 0; o < (c->largest ? RA_OFFSETS : 1); o++) {
            double position = c->largest ? now + (double)(1 << o) : now;
            for (int64_t i = 0; i < heads; i++)
                synthetic(c, c->mean + (query_head + i) * d, d, position, c->largest ? NULL : c->turn, queries + i * d);
            add_dots(&view->span, queries, heads, older, o == 0, scores);
        }
        if (c->pairs)
            add_norms(&view->span, c, c->spread + query_head * c->pairs, heads, older, scores);
        for (int64_t i = 0; i < heads; i++) {
            float *one = scores + i * older;
            if (!ra_all_finite(RA_F32, one, older))
                return RA_ERR_NOT_FINITE;
            standardise(one, older, first);
            for (int64_t t = 0; t < older; t++) {
                float sum = begin + i ? out[t] + one[t] : one[t];
                out[t] = c->group_mean ? sum : begin + i && out[t] > one[t] ? out[t] : one[t];
            }
        }
    }
    if (c->group_mean)
        ra_kernels_get()->scale(out, (size_t)older, 1 / (float)group);
    return RA_OK;
}

const ra_scorer ra_scorer_triattention = {.name = "triattention", .score = score};
