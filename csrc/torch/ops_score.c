/* rkv_score, redundancy and importance: R-KV's score of each token (arXiv 2505.24133) and its two halves, in float32,
 * one KV head a task. */
#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "ops.h"
#include "torch_bridge.h"

typedef struct score_call {
    ra_score_config config;
    const float *queries; /* [Hq, W, D]; NULL: redundancy only */
    const float *keys;    /* [H, N, D] */
    int64_t kv_heads, group, window, tokens, head_dim;
    float *out; /* [H, N - W], or [H, N] for redundancy */
    atomic_int status;
} score_call;

static ra_status score_head(const score_call *call, int64_t head)
{
    const float *keys = call->keys + head * call->tokens * call->head_dim;
    if (call->queries != NULL) {
        const float *queries = call->queries + head * call->group * call->window * call->head_dim;
        return ra_score_dense(queries, call->group, call->window, keys, call->tokens, call->head_dim, &call->config,
                              call->out + head * (call->tokens - call->window), NULL, NULL);
    }
    /* The score itself is not wanted, and whatever query will do. */
    static const float no_query[RA_MAX_HEAD_DIM];
    float *scores = malloc((size_t)call->tokens * sizeof *scores);
    if (scores == NULL)
        return RA_ERR_NO_MEMORY;
    const ra_status status = ra_score_dense(no_query, 1, 1, keys, call->tokens, call->head_dim, &call->config, scores,
                                            NULL, call->out + head * call->tokens);
    free(scores);
    return status;
}

static void score_heads(int64_t begin, int64_t end, void *context)
{
    score_call *call = context;
    for (int64_t head = begin; head < end; head++) {
        const ra_status status = score_head(call, head);
        if (status != RA_OK)
            atomic_store(&call->status, (int)status);
    }
}

static bool score_all(score_call *call, ra_failure *failure)
{
    const ra_parallel parallel = ra_torch_parallel();
    atomic_init(&call->status, RA_OK);
    if (parallel != NULL)
        parallel(call->kv_heads, 1, score_heads, call);
    else
        score_heads(0, call->kv_heads, call);
    const ra_status status = (ra_status)atomic_load(&call->status);
    if (status == RA_ERR_NOT_FINITE)
        return ra_fail(failure, "%s hold NaN or infinity", call->queries != NULL ? "queries or keys" : "keys");
    return status == RA_OK || ra_fail_status(failure, status);
}

static bool view_keys(ra_stable_value value, int64_t head_dim, ra_place *place, score_call *call, ra_failure *failure)
{
    const int64_t size[] = {RA_ANY_SIZE, RA_ANY_SIZE, head_dim};
    ra_view keys;
    if (!ra_view_tensor(value, "keys", "[H, N, D]", 3, size, place, &keys, failure) ||
        !ra_expect_dtype(&keys, ra_torch.aoti_torch_dtype_float32(), failure))
        return false;
    call->keys = keys.data;
    call->kv_heads = keys.size[0];
    call->tokens = keys.size[1];
    call->head_dim = keys.size[2];
    if (call->head_dim < 1 || call->head_dim > RA_MAX_HEAD_DIM)
        return ra_fail(failure, "keys has head size %" PRId64 ", allowed are 1 to %d", call->head_dim, RA_MAX_HEAD_DIM);
    return true;
}

static bool view_both(const ra_stable_value *stack, ra_place *place, score_call *call, ra_failure *failure)
{
    static const int64_t any[] = {RA_ANY_SIZE, RA_ANY_SIZE, RA_ANY_SIZE};
    ra_view queries;
    if (!ra_view_tensor(stack[0], "queries", "[Hq, W, D]", 3, any, place, &queries, failure) ||
        !ra_expect_dtype(&queries, ra_torch.aoti_torch_dtype_float32(), failure) ||
        !view_keys(stack[1], queries.size[2], place, call, failure))
        return false;
    call->queries = queries.data;
    call->window = queries.size[1];
    if (call->kv_heads < 1 || queries.size[0] < 1 || queries.size[0] % call->kv_heads != 0)
        return ra_fail(failure, "queries has %" PRId64 " heads, which is no multiple of keys' %" PRId64,
                       queries.size[0], call->kv_heads);
    call->group = queries.size[0] / call->kv_heads;
    if (call->window < 1 || call->window > call->tokens)
        return ra_fail(failure, "queries has a window of %" PRId64 ", allowed are 1 to keys' %" PRId64 " tokens",
                       call->window, call->tokens);
    return true;
}

static bool check_config(const ra_score_config *config, ra_failure *failure)
{
    if (!(config->alpha >= 0 && config->alpha <= 1))
        return ra_fail(failure, "alpha is %g, allowed are 0 to 1", (double)config->alpha);
    if (isnan(config->threshold))
        return ra_fail(failure, "threshold is nan, expected a number");
    if (config->kernel < 1 || config->kernel % 2 == 0)
        return ra_fail(failure, "kernel is %" PRId64 ", allowed are odd widths from 1", config->kernel);
    return true;
}

/* Nobody waits: what is not finite comes as NaN. */
static bool score_on_device(ra_place *place, const score_call *call, ra_failure *failure)
{
    const bool importance = call->config.scorer == ra_scorer_find("importance");
    const ra_dense keys = {.queries = call->queries,
                           .keys = call->keys,
                           .kv_heads = call->kv_heads,
                           .query_heads = call->kv_heads * call->group,
                           .window = call->window,
                           .tokens = call->tokens,
                           .head_dim = call->head_dim,
                           .kernel = call->config.kernel,
                           .alpha = call->config.alpha,
                           .threshold = call->config.threshold,
                           .importance = importance};
    int64_t slots;
    if (__builtin_mul_overflow(call->tokens + RA_PAGE_TOKENS, call->kv_heads, &slots) || slots > INT32_MAX ||
        call->window * call->group > INT32_MAX || call->config.kernel > INT32_MAX)
        return ra_fail(failure, "its sizes are beyond what kernels count to, 2^31");
    if (!ra_place_enter(place, place->operators->score_bytes(&keys), failure))
        return false;
    const ra_status status = place->operators->score(&keys, call->out, place->memory, place->stream);
    ra_place_leave(place);
    return status == RA_OK || ra_fail_status(failure, status);
}

static bool run(score_call *call, int64_t scores, ra_place *place, ra_tensor_handle *out, ra_failure *failure)
{
    void *data = NULL;
    const int64_t size[] = {call->kv_heads, scores};
    if (!check_config(&call->config, failure) ||
        !ra_new_tensor(place, ra_torch.aoti_torch_dtype_float32(), 2, size, out, &data, failure))
        return false;
    if (call->kv_heads == 0 || scores == 0)
        return true;
    call->out = data;
    return place->operators ? score_on_device(place, call, failure) : score_all(call, failure);
}

bool ra_op_rkv_score(const ra_stable_value *stack, ra_place *place, ra_tensor_handle *out, ra_failure *failure)
{
    score_call call = {.config = {.scorer = ra_scorer_find("rkv"),
                                  .alpha = (float)ra_double_of(stack[2]),
                                  .threshold = (float)ra_double_of(stack[3]),
                                  .kernel = (int64_t)stack[4]}};
    return view_both(stack, place, &call, failure) && run(&call, call.tokens - call.window, place, out, failure);
}

bool ra_op_importance(const ra_stable_value *stack, ra_place *place, ra_tensor_handle *out, ra_failure *failure)
{
    score_call call = {.config = {.scorer = ra_scorer_find("importance"), .alpha = 1, .kernel = (int64_t)stack[2]}};
    return view_both(stack, place, &call, failure) && run(&call, call.tokens - call.window, place, out, failure);
}

bool ra_op_redundancy(const ra_stable_value *stack, ra_place *place, ra_tensor_handle *out, ra_failure *failure)
{
    score_call call = {
        .config = {.scorer = ra_scorer_find("rkv"), .threshold = (float)ra_double_of(stack[1]), .kernel = 1}};
    return view_keys(stack[0], RA_ANY_SIZE, place, &call, failure) && run(&call, call.tokens, place, out, failure);
}
