/* Score, route and evict in one call: what the cache does every `interval` tokens. */
#include <stdlib.h>

#include "internal.h"
#include "score.h"

static int64_t row_slots(const ra_layer *layer, int64_t row)
{
    int64_t slots = 0;
    for (int64_t h = 0; h < layer->kv_heads; h++)
        slots += ra_head_at(layer, row, h)->slots;
    return slots;
}

static int64_t older_tokens(const ra_layer *layer, int64_t row, int64_t head)
{
    return ra_max(0, ra_head_at(layer, row, head)->slots - layer->window);
}

/* Lists the heads to score and points their results into one buffer; returns the number of heads. */
static int64_t list_tasks(const ra_layer *layer, const int64_t *totals, ra_score_task *tasks, float *buffer)
{
    int64_t count = 0;
    for (int64_t row = 0; row < layer->rows; row++) {
        if (totals[row] < 0 || row_slots(layer, row) <= totals[row])
            continue;
        for (int64_t h = 0; h < layer->kv_heads; h++) {
            tasks[count++] = (ra_score_task){.row = row, .head = h, .out = buffer};
            buffer += older_tokens(layer, row, h);
        }
    }
    return count;
}

/* The tokens that every head of the row evicts last and still holds, as far as `total` has room for them. Routing shares
 * out what is beyond them: a head must not lose the prompt because others score higher. */
static int64_t spared(const ra_layer *layer, int64_t row, int64_t total, int64_t protect_below)
{
    int64_t least = total / layer->kv_heads - layer->window;
    for (int64_t h = 0; h < layer->kv_heads && least > 0; h++) {
        int64_t most = ra_min(least, older_tokens(layer, row, h));
        least = ra_protected(ra_head_at(layer, row, h), protect_below, most);
    }
    return ra_max(0, least);
}

static ra_status cut_row(ra_layer *layer, const ra_score_task *tasks, int64_t total, int64_t protect_below,
                         const ra_route_config *route, int64_t *budgets, double *lost, ra_parallel parallel,
                         int64_t *missing)
{
    int64_t H = layer->kv_heads, row = tasks[0].row, start = ra_now_ns();
    int64_t base = spared(layer, row, total, protect_below);
    const float **scores = ra_new(H, sizeof *scores);
    int64_t *counts = ra_new(H, sizeof *counts), *fresh = ra_new(H, sizeof *fresh);
    ra_status status = scores && counts && fresh ? RA_OK : RA_ERR_NO_MEMORY;
    if (status == RA_OK) {
        for (int64_t h = 0; h < H; h++) {
            scores[h] = tasks[h].out + base;
            counts[h] = older_tokens(layer, row, h) - base;
        }
        status = ra_route(scores, counts, H, layer->window, total - H * base, route, fresh);
        for (int64_t h = 0; h < H; h++) {
            scores[h] = tasks[h].out;
            fresh[h] += base;
        }
        layer->times.route_ns += ra_now_ns() - start;
    }
    if (status == RA_OK)
        status = ra_layer_evict(layer, row, fresh, scores, protect_below, lost, parallel, missing);
    for (int64_t h = 0; status == RA_OK && h < H; h++)
        budgets[h] = fresh[h];
    free(scores);
    free(counts);
    free(fresh);
    return status;
}

ra_status ra_layer_compress(ra_layer *layer, const int64_t *totals, const int64_t *protect_below,
                            const ra_score_config *score, const ra_route_config *route, int64_t *budgets, double *lost,
                            bool *cut, ra_parallel parallel, int64_t *missing)
{
    if (!totals || !protect_below || !score || !route || !budgets || !lost || !cut || !missing)
        return RA_ERR_ARGUMENT;
    int64_t H = layer->kv_heads, slots = 0, start = ra_now_ns();
    *missing = 0;
    for (int64_t i = 0; i < layer->rows * H; i++)
        slots += layer->heads[i].slots;
    ra_score_task *tasks = ra_new(layer->rows * H, sizeof *tasks);
    float *buffer = ra_new(slots, sizeof *buffer);
    ra_status status = tasks && buffer ? RA_OK : RA_ERR_NO_MEMORY;
    int64_t count = 0;
    if (status == RA_OK) {
        count = list_tasks(layer, totals, tasks, buffer);
        status = count ? ra_score_run(layer, score, tasks, count, parallel) : RA_OK;
        layer->times.score_ns += ra_now_ns() - start;
    }
    for (int64_t i = 0; status == RA_OK && i < count; i += H) {
        int64_t row = tasks[i].row;
        status = cut_row(layer, &tasks[i], totals[row], protect_below[row], route, budgets + row * H, lost + row * H,
                         parallel, missing);
        if (status == RA_OK)
            cut[row] = true;
    }
    free(tasks);
    free(buffer);
    return status;
}
