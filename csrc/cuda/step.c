/* A step on the device: the host's arguments go up, kernels do the rest. */
#include "backend.h"

/* Where the small arrays of a step lie in scratch, in front of what kernels need. */
typedef struct step_pieces {
    int32_t *begin, *index;
    uint8_t *visible, *prompt;
    char *rest;
} step_pieces;

static int64_t fresh_of(const ra_step *step, int64_t row)
{
    return step->begin ? step->begin[row + 1] - step->begin[row] : step->tokens;
}

/* Whether attention gathers something for the layer. */
static bool gathers(const ra_layer *layer)
{
    const ra_cuda_layer *lists = &ra_cuda_layer_of(layer)->lists;
    return lists->accumulated || lists->recurrence;
}

static int64_t total_of(const ra_layer *layer, const ra_step *step)
{
    return step->begin ? step->begin[layer->rows] : layer->rows * step->tokens;
}

/* Whether a row's new tokens are of its prompt, and statistics do not take all of that in. */
static bool begins_anew(const ra_layer *layer, const ra_step *step, int64_t row)
{
    return step->prompt && step->prompt[row] && layer->stats.prompt != RA_PROMPT_ALL;
}

static bool takes_prompt(const ra_layer *layer, const ra_step *step)
{
    bool any = false;
    for (int64_t row = 0; row < layer->rows; row++)
        any |= begins_anew(layer, step, row);
    return any && gathers(layer);
}

/* Whether attention can store a row's logits for its statistics. */
static bool stores_logits(const ra_layer *layer, const ra_step *step, int64_t row)
{
    return fresh_of(step, row) == 1 && !begins_anew(layer, step, row);
}

/* Whether it does of any row: where its kernel can, and there is one. */
static bool any_stores(const ra_layer *layer, const ra_step *step, const ra_cuda_step *job)
{
    bool any = false;
    for (int64_t row = 0; row < layer->rows; row++)
        any |= stores_logits(layer, step, row);
    return any && gathers(layer) && step->out.data && ra_cuda_logits_bytes(&ra_cuda_layer_of(layer)->lists, job);
}

/* Most queries of a row that its statistics take in; stored: of those rows whose logits attention does not store, -1 where
 * there are none. */
static int64_t most_queries(const ra_layer *layer, const ra_step *step, bool stored)
{
    int64_t most = -1;
    for (int64_t row = 0; row < layer->rows; row++) {
        int64_t queries = fresh_of(step, row);
        if (!queries || (stored && stores_logits(layer, step, row)))
            continue;
        if (begins_anew(layer, step, row))
            queries = layer->stats.prompt == RA_PROMPT_WINDOW ? layer->window : 0;
        most = ra_max(most, queries);
    }
    return most;
}

static step_pieces lay_step(const ra_layer *layer, const ra_step *step, cuda_pieces *pieces)
{
    size_t total = (size_t)total_of(layer, step);
    step_pieces out = {0};
    if (step->begin)
        out.begin = ra_piece(pieces, (size_t)layer->rows + 1, sizeof(int32_t));
    if (step->index)
        out.index = ra_piece(pieces, total, sizeof(int32_t));
    if (step->visible)
        out.visible = ra_piece(pieces, total, (size_t)step->visible_stride);
    if (takes_prompt(layer, step))
        out.prompt = ra_piece(pieces, (size_t)layer->rows, 1);
    out.rest = ra_piece(pieces, 0, 1);
    return out;
}

/* Where in scratch attention stores logits: behind its own. */
static size_t logits_at(const ra_cuda_layer *lists, const ra_cuda_step *step)
{
    return (ra_cuda_attend_bytes(lists, step) + 255) / 256 * 256;
}

static size_t kernel_bytes(const ra_cuda_layer *lists, const ra_cuda_step *step, const ra_cuda_gathering *how)
{
    size_t bytes = ra_cuda_append_bytes(lists, step), attend = ra_cuda_attend_bytes(lists, step);
    size_t gather = how ? ra_cuda_gather_bytes(lists, step, how) : 0;
    if (how)
        attend = logits_at(lists, step) + ra_cuda_logits_bytes(lists, step);
    bytes = attend > bytes ? attend : bytes;
    return gather > bytes ? gather : bytes;
}

static int64_t most_tokens(const ra_layer *layer, const ra_step *step)
{
    int64_t most = step->begin ? 0 : step->tokens;
    for (int64_t row = 0; step->begin && row < layer->rows; row++)
        most = ra_max(most, fresh_of(step, row));
    return most;
}

static ra_status reserve(ra_layer *layer, int64_t tokens, int64_t slots)
{
    ra_status status = ra_cuda_push(layer);
    if (status != RA_OK)
        return status;
    const ra_cuda_layer *lists = &ra_cuda_layer_of(layer)->lists;
    /* Any strides will do: sizes do not depend on them. */
    ra_cuda_step one = {.tokens = 1, .queries.dtype = lists->format, .most_slots = (int32_t)slots}, many = one;
    many.tokens = (int32_t)tokens;
    ra_cuda_gathering few = {.tokens = 1}, all = {.tokens = (int32_t)tokens};
    if (layer->stats.prompt == RA_PROMPT_WINDOW && tokens > 1) /* a prompt's last part may be shorter */
        all.tokens = (int32_t)ra_max(tokens, layer->window);
    bool kept = gathers(layer);
    size_t bytes = kernel_bytes(lists, &one, kept ? &few : NULL),
           other = kernel_bytes(lists, &many, kept ? &all : NULL), cut = ra_cuda_cut_scratch(layer, slots);
    size_t tickets = ra_cuda_attend_tickets(lists, &one), more = ra_cuda_attend_tickets(lists, &many);
    bytes = other > bytes ? other : bytes;
    bytes = cut > bytes ? cut : bytes;
    status = ra_cuda_scratch(layer->pool, bytes);
    return status == RA_OK ? ra_cuda_tickets(layer->pool, more > tickets ? more : tickets) : status;
}

RA_CUDA_HOOK(ra_cuda_reserve, layer->pool, reserve(layer, tokens, slots), ra_layer *layer, int64_t tokens,
             int64_t slots)

static ra_status run(ra_layer *layer, const ra_step *step)
{
    ra_pool *pool = layer->pool;
    cuda_pool *cuda = ra_cuda_pool_of(pool);
    void *stream = pool->stream;
    ra_status status = ra_cuda_push(layer);
    if (status != RA_OK)
        return status;
    const ra_cuda_layer *lists = &ra_cuda_layer_of(layer)->lists;
    int64_t tokens = most_tokens(layer, step);
    /* What is captured is replayed when heads have more slots: it covers all that was made ready. */
    int64_t slots = ra_device_is_capturing(stream) ? layer->ready_slots : ra_most_slots(layer) + tokens;
    ra_cuda_step job = {.tokens = (int32_t)tokens,
                        .queries = step->queries,
                        .keys = step->keys,
                        .values = step->values,
                        .scale = step->scale,
                        .softcap = step->softcap,
                        .sinks = step->sinks,
                        .visible_stride = step->visible_stride,
                        .out = step->out,
                        .most_slots = (int32_t)slots};
    bool kept = gathers(layer), stored = any_stores(layer, step, &job);
    ra_cuda_gathering how = {.config = layer->stats, .tokens = (int32_t)most_queries(layer, step, stored)};
    cuda_pieces pieces = {0};
    (void)lay_step(layer, step, &pieces);
    status = ra_cuda_scratch(pool, pieces.used + kernel_bytes(lists, &job, kept ? &how : NULL));
    if (status == RA_OK)
        status = ra_cuda_tickets(pool, ra_cuda_attend_tickets(lists, &job));
    if (status != RA_OK)
        return status;
    pieces = (cuda_pieces){.memory = cuda->scratch};
    step_pieces at = lay_step(layer, step, &pieces);
    int error = 0;
    if (at.begin)
        error = ra_cuda_up_narrow(at.begin, step->begin, layer->rows + 1, stream);
    if (at.index && !error)
        error = ra_cuda_up_narrow(at.index, step->index, total_of(layer, step), stream);
    if (at.visible && !error)
        error = ra_device_up(at.visible, step->visible, (size_t)total_of(layer, step) * (size_t)step->visible_stride,
                             stream);
    if (at.prompt && !error)
        error = ra_device_up(at.prompt, step->prompt, (size_t)layer->rows, stream);
    how.prompt = at.prompt;
    job.logits = stored ? (float *)(void *)(at.rest + logits_at(lists, &job)) : NULL;
    job.begin = at.begin;
    job.index = at.index;
    job.visible = at.visible;
    if (!error)
        error = ra_cuda_append(lists, &job, at.rest, stream);
    int64_t start = ra_now_ns();
    if (!error && step->out.data)
        error = ra_cuda_attend(lists, &job, cuda->tickets, at.rest, stream);
    if (!error && kept)
        error = ra_cuda_gather(lists, &job, &how, at.rest, stream);
    layer->times.attend_ns += ra_now_ns() - start;
    return ra_cuda_status(error);
}

RA_CUDA_HOOK(ra_cuda_step_on, layer->pool, ((void)parallel, run(layer, step)), ra_layer *layer, const ra_step *step,
             ra_parallel parallel)
