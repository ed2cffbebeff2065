/* A head's score, by scorer. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "score.h"

static bool by_position(ra_scorer scorer) { return scorer == RA_SCORE_RECENCY || scorer == RA_SCORE_RANDOM; }

static ra_status check(const ra_score_config *c)
{
    if (!c || c->scorer < RA_SCORE_RKV || c->scorer > RA_SCORE_RKV_CENTRED || !(c->alpha >= 0 && c->alpha <= 1) ||
        isnan(c->threshold) || c->kernel < 1 || c->kernel % 2 == 0)
        return RA_ERR_ARGUMENT;
    return RA_OK;
}

/* alpha * importance - (1 - alpha) * redundancy, less the latter's mean if centred; redundancy may be NULL. */
static ra_status score_by_attention(const ra_span *span, const float *queries, int64_t count, int64_t group,
                                    int64_t older, const float *noted, ra_known *known, const ra_score_config *c,
                                    float *out, float *redundancy)
{
    ra_status status = noted ? ra_importance_from(noted, count, older, c->kernel, out)
                             : ra_importance(span, queries, count, group, older, c->kernel, out);
    if (status == RA_OK && c->scorer != RA_SCORE_IMPORTANCE) {
        float level = c->scorer == RA_SCORE_RKV_CENTRED ? 1 / (float)span->slots : 0;
        float *r = redundancy ? redundancy : ra_new(span->slots, sizeof *r);
        status = r ? ra_redundancy(span, known, c->threshold, r) : RA_ERR_NO_MEMORY;
        for (int64_t i = 0; status == RA_OK && i < older; i++)
            out[i] = c->alpha * out[i] - (1 - c->alpha) * (r[i] - level);
        if (!redundancy)
            free(r);
    }
    if (status == RA_OK && !ra_all_finite(RA_F32, out, older))
        status = RA_ERR_NOT_FINITE;
    return status;
}

/* splitmix64: the same token gets the same number in every row and batch. */
static float hash_to_unit(uint64_t seed, int64_t head, int32_t position)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15u * ((uint64_t)head * 0x100000001u + (uint64_t)position + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (float)((z ^ (z >> 31)) >> 40) * 0x1p-24f;
}

/* The row's window queries of one KV head, [count][group][D], times 1/sqrt(D). */
static float *scaled_queries(const ra_layer *layer, int64_t row, int64_t head)
{
    int64_t count = layer->q_end[row] - layer->q_begin[row], d = layer->pool->head_dim;
    float *queries = ra_new(count * layer->group * d, sizeof *queries);
    for (int64_t i = 0; queries && i < count; i++) {
        const float *held = layer->queries + ((row * layer->window + (layer->q_begin[row] + i) % layer->window) *
                                                  layer->query_heads +
                                              head * layer->group) *
                                                 d;
        memcpy(queries + i * layer->group * d, held, (size_t)(layer->group * d) * sizeof *queries);
    }
    if (queries)
        ra_kernels_get()->scale(queries, (size_t)(count * layer->group * d), 1 / sqrtf((float)d));
    return queries;
}

static ra_status score_head(const ra_layer *layer, int64_t row, int64_t head, const ra_score_config *c, float *out)
{
    ra_head *h = ra_head_at(layer, row, head);
    int64_t older = ra_max(0, h->slots - layer->window);
    if (!older)
        return RA_OK;
    if (by_position(c->scorer)) {
        for (int64_t i = 0; i < older; i++)
            out[i] = c->scorer == RA_SCORE_RECENCY ? (float)h->positions[i]
                                                   : hash_to_unit(c->seed, head, h->positions[i]);
        return RA_OK;
    }
    ra_span span = ra_span_of(layer, row, head);
    float *queries = scaled_queries(layer, row, head);
    if (!queries)
        return RA_ERR_NO_MEMORY;
    int64_t count = layer->q_end[row] - layer->q_begin[row];
    ra_status status = RA_ERR_NOT_FINITE; /* the max over the group would hide a NaN */
    if (ra_all_finite(RA_F32, queries, count * layer->group * span.d))
        status = score_by_attention(&span, queries, count, layer->group, older, ra_noted_importance(layer, row, h),
                                    &h->known, c, out, NULL);
    free(queries);
    return status;
}

typedef struct score_job {
    const ra_layer *layer;
    const ra_score_config *config;
    ra_score_task *tasks;
} score_job;

static void score_tasks(int64_t begin, int64_t end, void *context)
{
    const score_job *job = context;
    for (int64_t i = begin; i < end; i++)
        job->tasks[i].status =
            score_head(job->layer, job->tasks[i].row, job->tasks[i].head, job->config, job->tasks[i].out);
}

ra_status ra_score_run(const ra_layer *layer, const ra_score_config *config, ra_score_task *tasks, int64_t count,
                       ra_parallel parallel)
{
    ra_status status = check(config);
    if (status != RA_OK)
        return status;
    score_job job = {.layer = layer, .config = config, .tasks = tasks};
    ra_run(parallel, count, 1, score_tasks, &job);
    for (int64_t i = 0; i < count && status == RA_OK; i++)
        status = tasks[i].status;
    return status;
}

ra_status ra_layer_score(const ra_layer *layer, int64_t row, const ra_score_config *config, float *const *out,
                         ra_parallel parallel)
{
    if (row < 0 || row >= layer->rows || !out)
        return RA_ERR_ARGUMENT;
    ra_score_task *tasks = ra_new(layer->kv_heads, sizeof *tasks);
    if (!tasks)
        return RA_ERR_NO_MEMORY;
    for (int64_t h = 0; h < layer->kv_heads; h++)
        tasks[h] = (ra_score_task){.row = row, .head = h, .out = out[h]};
    ra_status status = ra_score_run(layer, config, tasks, layer->kv_heads, parallel);
    free(tasks);
    return status;
}

ra_status ra_score_dense(const float *queries, int64_t group, int64_t window, const float *keys, int64_t tokens,
                         int64_t head_dim, const ra_score_config *config, float *out, float *importance,
                         float *redundancy)
{
    ra_status status = check(config);
    if (status != RA_OK)
        return status;
    if (!queries || !keys || !out || group < 1 || window < 1 || tokens < window || head_dim < 1 ||
        head_dim > RA_MAX_HEAD_DIM || by_position(config->scorer))
        return RA_ERR_ARGUMENT;
    int64_t pages = ra_pages_for(tokens), page_floats = 2 * PAGE * head_dim, older = tokens - window;
    if (!ra_all_finite(RA_F32, keys, tokens * head_dim) || !ra_all_finite(RA_F32, queries, group * window * head_dim))
        return RA_ERR_NOT_FINITE;
    float *paged = calloc((size_t)(pages * page_floats), sizeof *paged);
    int32_t *ids = ra_new(pages, sizeof *ids);
    float *turned = ra_new(group * window * head_dim, sizeof *turned); /* [window][group][D], scaled */
    if (paged && ids && turned) {
        for (int64_t p = 0; p < pages; p++)
            ids[p] = (int32_t)p;
        for (int64_t i = 0; i < tokens; i++)
            ra_page_write(RA_F32, head_dim, paged + i / PAGE * page_floats, i % PAGE, keys + i * head_dim, keys + i * head_dim);
        for (int64_t g = 0; g < group; g++)
            for (int64_t w = 0; w < window; w++)
                memcpy(turned + (w * group + g) * head_dim, queries + (g * window + w) * head_dim,
                       (size_t)head_dim * sizeof *turned);
        ra_kernels_get()->scale(turned, (size_t)(group * window * head_dim), 1 / sqrtf((float)head_dim));
        ra_span span = {.kernels = &ra_kernels_get()->page[RA_F32], .dtype = RA_F32, .d = head_dim, .slots = tokens,
                        .base = paged, .ids = ids};
        ra_known known = {0};
        status = RA_OK;
        if (importance)
            status = ra_importance(&span, turned, window, group, older, config->kernel, importance);
        if (status == RA_OK)
            status = score_by_attention(&span, turned, window, group, older, NULL, &known, config, out, redundancy);
        ra_known_clear(&known);
    } else {
        status = RA_ERR_NO_MEMORY;
    }
    free(paged);
    free(ids);
    free(turned);
    return status;
}
