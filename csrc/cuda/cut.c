/* A cut on the device: whole and without waiting, or phase by phase with the host in between. */
#include <math.h>
#include <string.h>

#include "../core/robustify.h"
#include "../scorer/scorer.h"
#include "backend.h"

typedef struct cut_pieces {
    float *scores;
    int32_t *kept;
    char *rest;
} cut_pieces;

static cut_pieces lay_cut(const ra_layer *layer, cuda_pieces *pieces)
{
    size_t entries = (size_t)ra_pairs(layer) * (size_t)layer->pages * PAGE;
    return (cut_pieces){.scores = ra_piece(pieces, entries, sizeof(float)),
                        .kept = ra_piece(pieces, entries, sizeof(int32_t)),
                        .rest = ra_piece(pieces, 0, 1)};
}

size_t ra_cuda_cut_scratch(const ra_layer *layer, int64_t slots)
{
    cuda_pieces count = {0};
    (void)lay_cut(layer, &count);
    return count.used + ra_cuda_cut_bytes(&ra_cuda_layer_of(layer)->lists, (int32_t)slots);
}

static const struct {
    const char *name;
    ra_cuda_scorer number;
} scorers[] = {
    {"rkv", RA_CUDA_RKV},
    {"rkv-centred", RA_CUDA_RKV_CENTRED},
    {"importance", RA_CUDA_IMPORTANCE},
    {"recency", RA_CUDA_RECENCY},
    {"random", RA_CUDA_RANDOM},
    {"h2o", RA_CUDA_H2O},
    {"lazy", RA_CUDA_LAZY},
    {"raas", RA_CUDA_RAAS},
    {"snapkv-published", RA_CUDA_SNAPKV},
    {"vatp", RA_CUDA_VATP},
    {"vase", RA_CUDA_VASE},
    {"spans", RA_CUDA_SPANS},
    {"dkv", RA_CUDA_DKV},
    {"triattention", RA_CUDA_TRIATTENTION},
};

bool ra_cuda_supports(const ra_scorer *scorer)
{
    for (size_t i = 0; i < sizeof scorers / sizeof scorers[0]; i++)
        if (!strcmp(scorers[i].name, scorer->name))
            return true;
    return false;
}

static ra_status set_scorer(ra_cuda_cut *job, const ra_score_config *config)
{
    for (size_t i = 0; i < sizeof scorers / sizeof scorers[0]; i++)
        if (!strcmp(scorers[i].name, config->scorer->name)) {
            job->scorer = scorers[i].number;
            job->alpha = config->alpha;
            job->threshold = config->threshold;
            job->kernel = (int32_t)ra_min(config->kernel, INT32_MAX); /* odd as well, and as wide as any */
            job->seed = config->seed;
            job->recent = config->recent;
            job->published_code = config->published_code;
            job->average = config->average;
            job->n_large = (int32_t)ra_min(config->n_large, INT32_MAX);
            job->n_sink = (int32_t)ra_min(config->n_sink, INT32_MAX);
            job->span = (int32_t)ra_min(config->span, INT32_MAX);
            return RA_OK;
        }
    return RA_ERR_ARGUMENT;
}

/* Limits or shares of heads, which seldom change, to where the kernel reads them. */
static ra_status send_per_head(ra_layer *layer, ra_route_config *route)
{
    cuda_layer *cuda = ra_cuda_layer_of(layer);
    void *stream = layer->pool->stream;
    size_t bytes = (size_t)layer->kv_heads * sizeof *cuda->per_head;
    if (!rb_by_figures(route->heads))
        return RA_OK;
    const void *given = route->heads == RA_HEADS_GIVEN ? (const void *)route->limits : route->shares;
    if (memcmp(cuda->sent_per_head, given, bytes)) {
        if (ra_device_is_capturing(stream))
            return RA_ERR_CAPTURE;
        memcpy(cuda->sent_per_head, given, bytes);
        if (ra_device_up(cuda->per_head, cuda->sent_per_head, bytes, stream))
            return RA_ERR_DEVICE;
    }
    route->limits = cuda->per_head;
    route->shares = (const double *)(const void *)cuda->per_head;
    return RA_OK;
}

/* Memory for a cut, and its arguments up. protect_below NULL: not wanted. */
static ra_status prepare(ra_layer *layer, const int64_t *totals, const int64_t *protect_below, ra_cuda_cut *job,
                         char **rest)
{
    ra_pool *pool = layer->pool;
    /* What is captured is replayed when heads have more slots: it covers all that was made ready. */
    int64_t slots = ra_device_is_capturing(pool->stream) ? layer->ready_slots : ra_most_slots(layer);
    if (job->scorer == RA_CUDA_TRIATTENTION && !layer->centres)
        return RA_ERR_ARGUMENT;
    ra_status status = ra_cuda_push(layer);
    if (status == RA_OK)
        status = ra_cuda_scratch(pool, ra_cuda_cut_scratch(layer, slots));
    if (status == RA_OK && !ra_cuda_has_sent(layer, totals, protect_below))
        status = ra_cuda_send(layer, totals, protect_below);
    if (status == RA_OK)
        status = send_per_head(layer, &job->route);
    if (status != RA_OK)
        return status;
    const cuda_layer *cuda = ra_cuda_layer_of(layer);
    cuda_pieces pieces = {.memory = ra_cuda_pool_of(pool)->scratch};
    cut_pieces at = lay_cut(layer, &pieces);
    job->most_slots = (int32_t)slots;
    job->totals = cuda->totals;
    job->protect_below = cuda->totals + layer->rows;
    job->scale = ra_scale_of(layer);
    job->softcap = layer->softcap;
    job->centres = cuda->centres;
    job->cut = cuda->there.cut;
    job->before = cuda->there.before;
    job->budgets = cuda->there.budgets;
    job->keep = cuda->there.keep;
    job->lost = cuda->there.lost;
    job->scores = at.scores;
    job->kept = at.kept;
    *rest = at.rest;
    return ra_cuda_status(ra_cuda_cut_begin(&cuda->lists, job, at.rest, pool->stream));
}

/* Figures will come; what heads hold then follows from them and from the tokens that come after. */
void ra_cuda_cut_again(ra_layer *layer)
{
    cuda_layer *cuda = ra_cuda_layer_of(layer);
    memcpy(cuda->sent + 2 * layer->rows, layer->tokens, (size_t)layer->rows * sizeof *layer->tokens);
    cuda->was_cut = cuda->folds = true;
}

static ra_status run(ra_layer *layer, const ra_cut *cut)
{
    ra_cuda_cut job = {.route = cut->route, .candidates = true};
    char *rest;
    ra_status status = set_scorer(&job, &cut->score);
    if (status == RA_OK)
        status = prepare(layer, cut->totals, cut->protect_below, &job, &rest);
    if (status != RA_OK)
        return status;
    cuda_layer *cuda = ra_cuda_layer_of(layer);
    const ra_cuda_layer *lists = &cuda->lists;
    void *stream = layer->pool->stream;
    /* The times are those of starting the work. */
    int64_t start = ra_now_ns();
    int error = ra_cuda_score(lists, &job, rest, stream);
    int64_t scored = ra_now_ns();
    if (!error)
        error = ra_cuda_allocate(lists, &job, rest, stream);
    int64_t allocated = ra_now_ns();
    if (!error)
        error = ra_cuda_choose(lists, &job, rest, stream);
    if (!error)
        error = ra_cuda_apply(lists, &job, rest, stream);
    layer->times.score_ns += scored - start;
    layer->times.route_ns += allocated - scored;
    layer->times.evict_ns += ra_now_ns() - allocated;
    if (!error) /* the figures lie in one piece, in both memories */
        error = ra_device_down_shared(cuda->here.lost, cuda->there.lost, cuda->figure_bytes, stream);
    if (!error)
        error = ra_device_mark(cuda->done, stream);
    ra_cuda_cut_again(layer);
    return ra_cuda_status(error);
}

RA_CUDA_HOOK(ra_cuda_cut_on, layer->pool, run(layer, cut), ra_layer *layer, const ra_cut *cut)

static ra_status fetch(const ra_layer *layer, const ra_figures *figures)
{
    const cuda_layer *cuda = ra_cuda_layer_of(layer);
    if (!cuda || !cuda->was_cut || cuda->rows != layer->rows) /* they are as long as the rows were */
        return RA_ERR_ARGUMENT;
    int error = ra_device_wait_for(cuda->done);
    const cuda_figures *here = &cuda->here;
    for (int64_t pair = 0; !error && pair < ra_pairs(layer); pair++) {
        int64_t row = pair / layer->kv_heads;
        figures->cut[row] = here->cut[row];
        if (figures->before)
            figures->before[pair] = here->before[pair];
        if (figures->after)
            figures->after[pair] = here->keep[pair];
        if (here->cut[row]) {
            figures->budgets[pair] = here->budgets[pair];
            figures->lost[pair] = here->lost[pair];
        }
    }
    return ra_cuda_status(error);
}

RA_CUDA_HOOK(ra_cuda_figures, layer->pool, fetch(layer, figures), ra_layer *layer, const ra_figures *figures)

bool ra_cuda_fold(ra_layer *layer)
{
    const cuda_layer *cuda = ra_cuda_layer_of(layer);
    if (!cuda || !cuda->folds || layer->lists != RA_LISTS_DEVICE)
        return false;
    const int64_t *then = cuda->sent + 2 * layer->rows;
    for (int64_t pair = 0; pair < ra_pairs(layer); pair++) {
        int64_t row = pair / layer->kv_heads;
        layer->slots[pair] = (int32_t)(cuda->here.keep[pair] + layer->tokens[row] - then[row]);
    }
    return true;
}

/* ---- Phase by phase: the host's lists are current, and so is layer->cut ---- */

static ra_status score(ra_layer *layer, const ra_score_config *config)
{
    ra_cuda_cut job = {.candidates = config->protect_below != NULL};
    char *rest;
    ra_status status = set_scorer(&job, config);
    if (status == RA_OK)
        status = prepare(layer, layer->cut.totals, config->protect_below, &job, &rest);
    if (status != RA_OK)
        return status;
    void *stream = layer->pool->stream;
    size_t row = (size_t)layer->pages * PAGE * sizeof(float), more = PAGE * sizeof(float);
    int error = ra_cuda_score(&ra_cuda_layer_of(layer)->lists, &job, rest, stream);
    if (!error)
        error = ra_device_down_runs(layer->cut.scores, row + more, job.scores, row, row, (size_t)ra_pairs(layer),
                                    stream);
    if (!error)
        error = ra_device_wait(stream);
    return error ? RA_ERR_DEVICE : ra_cuda_fault(layer);
}

RA_CUDA_HOOK(ra_cuda_score_on, layer->pool, ((void)parallel, score(layer, config)), ra_layer *layer,
             const ra_score_config *config, ra_parallel parallel)

static bool scores_are_finite(const ra_layer *layer)
{
    for (int64_t pair = 0; pair < ra_pairs(layer); pair++)
        for (int64_t i = 0; layer->cut.cut[pair / layer->kv_heads] && i < ra_older(layer, pair); i++)
            if (!isfinite(ra_scores_of(layer, pair)[i]))
                return false;
    return true;
}

static ra_status choose(ra_layer *layer, const int64_t *protect_below, const int64_t *budgets, double *lost)
{
    ra_cuda_cut job = {0};
    char *rest;
    if (!scores_are_finite(layer))
        return RA_ERR_NOT_FINITE;
    ra_status status = prepare(layer, layer->cut.totals, protect_below, &job, &rest);
    if (status != RA_OK)
        return status;
    const cuda_layer *cuda = ra_cuda_layer_of(layer);
    void *stream = layer->pool->stream;
    size_t pairs = (size_t)ra_pairs(layer), row = (size_t)layer->pages * PAGE * 4, more = PAGE * 4;
    for (size_t pair = 0; pair < pairs; pair++) /* of the rows that are not cut they may be anything */
        cuda->here.budgets[pair] = (int32_t)ra_max(0, ra_min(budgets[pair], INT32_MAX));
    int error = ra_device_up(job.budgets, cuda->here.budgets, pairs * sizeof(int32_t), stream);
    if (!error)
        error = ra_device_up_runs(job.scores, row, layer->cut.scores, row + more, row, pairs, stream);
    if (!error)
        error = ra_cuda_choose(&cuda->lists, &job, rest, stream);
    if (!error)
        error = ra_device_down_runs(layer->cut.kept, row + more, job.kept, row, row, pairs, stream);
    if (!error)
        error = ra_device_down(layer->cut.keep, job.keep, pairs * sizeof(int32_t), stream);
    if (!error)
        error = ra_device_down(cuda->here.lost, job.lost, pairs * sizeof(double), stream);
    if (!error)
        error = ra_device_wait(stream);
    for (size_t pair = 0; !error && lost && pair < pairs; pair++)
        if (layer->cut.cut[pair / (size_t)layer->kv_heads])
            lost[pair] = cuda->here.lost[pair];
    return error ? RA_ERR_DEVICE : ra_cuda_fault(layer);
}

RA_CUDA_HOOK(ra_cuda_choose_on, layer->pool, ((void)parallel, choose(layer, protect_below, budgets, lost)),
             ra_layer *layer, const int64_t *protect_below, const int64_t *budgets, double *lost, ra_parallel parallel)

int64_t ra_cuda_apply_pages(const ra_layer *layer)
{
    int64_t need = 0;
    for (int64_t pair = 0; pair < ra_pairs(layer); pair++)
        if (layer->cut.cut[pair / layer->kv_heads])
            need += ra_pages_for(layer->cut.keep[pair]);
    return need;
}

static ra_status apply(ra_layer *layer)
{
    ra_cuda_cut job = {0};
    char *rest;
    ra_status status = prepare(layer, layer->cut.totals, NULL, &job, &rest);
    if (status != RA_OK)
        return status;
    void *stream = layer->pool->stream;
    size_t pairs = (size_t)ra_pairs(layer), row = (size_t)layer->pages * PAGE * 4, more = PAGE * 4;
    for (size_t pair = 0; pair < pairs; pair++) /* nothing was chosen for rows that are not cut */
        if (!layer->cut.cut[pair / (size_t)layer->kv_heads])
            layer->cut.keep[pair] = layer->slots[pair];
    int error = ra_device_up(job.keep, layer->cut.keep, pairs * sizeof(int32_t), stream);
    if (!error)
        error = ra_device_up_runs(job.kept, row, layer->cut.kept, row + more, row, pairs, stream);
    if (!error)
        error = ra_cuda_apply(&ra_cuda_layer_of(layer)->lists, &job, rest, stream);
    return ra_cuda_status(error);
}

RA_CUDA_HOOK(ra_cuda_apply_on, layer->pool, ((void)parallel, apply(layer)), ra_layer *layer, ra_parallel parallel)
