/* Attention of a layer, with what it notes on the way. */
#include <math.h>
#include <stdlib.h>

#include "attend.h"

typedef struct note_job {
    ra_layer *layer;
    float *const *logits;
    int64_t cut_in;
} note_job;

static void note_heads(int64_t begin, int64_t end, void *context)
{
    const note_job *job = context;
    for (int64_t i = begin; i < end; i++)
        if (job->logits[i])
            ra_noted_take(job->layer, i / job->layer->kv_heads, &job->layer->heads[i], job->cut_in, job->logits[i],
                          ra_pages_for(job->layer->heads[i].slots) * PAGE);
}

/* Logits that head number `pair` wants to have noted: floats, 0 for none. */
static int64_t logits_wanted(const ra_layer *layer, int64_t pair, const bool *real, int64_t cut_in)
{
    int64_t row = pair / layer->kv_heads;
    const ra_head *head = &layer->heads[pair];
    bool wants = (!real || real[row]) && ra_noted_wants(layer, row, head, cut_in);
    return wants ? layer->group * ra_pages_for(head->slots) * PAGE : 0;
}

/* Room for the logits of the heads that want them, in one block that *out_block owns; NULL where none does or memory is
 * short: then scores compute them again. */
static float **room_for_logits(const ra_layer *layer, const bool *real, int64_t cut_in, float **out_block)
{
    int64_t pairs = layer->rows * layer->kv_heads, floats = 0;
    for (int64_t i = 0; i < pairs; i++)
        floats += logits_wanted(layer, i, real, cut_in);
    *out_block = floats ? ra_new(floats, sizeof **out_block) : NULL;
    float **logits = *out_block ? ra_new(pairs, sizeof *logits) : NULL, *at = *out_block;
    for (int64_t i = 0; logits && i < pairs; i++) {
        int64_t wanted = logits_wanted(layer, i, real, cut_in);
        logits[i] = wanted ? at : NULL;
        at += wanted;
    }
    return logits;
}

ra_status ra_layer_attend(ra_layer *layer, ra_tokens queries, int64_t tokens, const bool *real, float scale,
                          int64_t cut_in, void *out, ra_parallel parallel)
{
    if (!queries.data || !out || tokens < 1 || !isfinite(scale))
        return RA_ERR_ARGUMENT;
    int64_t start = ra_now_ns(), pairs = layer->rows * layer->kv_heads;
    ra_span few[64], *spans = pairs <= 64 ? few : ra_new(pairs, sizeof *spans);
    if (!spans)
        return RA_ERR_NO_MEMORY;
    for (int64_t i = 0; i < pairs; i++)
        spans[i] = ra_span_of(layer, i / layer->kv_heads, i % layer->kv_heads);
    float *block = NULL, **logits = NULL;
    bool scale_of_scores = fabsf(scale * sqrtf((float)layer->pool->head_dim) - 1) < 1e-6f;
    if (tokens == 1 && cut_in >= 0 && scale_of_scores)
        logits = room_for_logits(layer, real, cut_in, &block);
    ra_attend_job job = {.spans = spans, .queries = queries, .real = real, .rows = layer->rows,
                         .kv_heads = layer->kv_heads, .group = layer->group, .tokens = tokens, .scale = scale,
                         .out = out, .logits = logits};
    ra_status status = ra_attend_run(&job, parallel);
    if (status == RA_OK && logits) {
        note_job note = {.layer = layer, .logits = logits, .cut_in = cut_in};
        ra_run(parallel, pairs, 4, note_heads, &note);
    }
    free(logits);
    free(block);
    if (spans != few)
        free(spans);
    layer->times.attend_ns += ra_now_ns() - start;
    return status;
}
