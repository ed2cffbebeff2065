/* When a slot was active last, and how long it has been idle at most between two times: the timestamp (TS) and maximum
 * recurrence interval (MRI) of LazyEviction (arXiv 2506.15969); RaaS (arXiv 2502.11147) has the first alone. Counters are
 * integers: the published code keeps them in the model's float16, which is exact up to 2048 only. */
#include "recurrence.h"

enum { LAST, GAP, FIELDS }; /* columns */

static int32_t *column(const ra_layer *layer, int field, int64_t pair)
{
    return ra_column_of(layer, RA_STAT_RECURRENCE, field, pair);
}

static void append(ra_layer *layer, int64_t pair, int64_t from)
{
    const int32_t *positions = ra_positions_of(layer, pair);
    int32_t *last = column(layer, LAST, pair), *gap = column(layer, GAP, pair);
    for (int64_t i = from; i < layer->slots[pair]; i++) {
        last[i] = positions[i] - (layer->stats.birth ? 1 : 0);
        gap[i] = 0;
    }
}

/* The published code's time starts with the first decoded token. */
static void restart(ra_layer *layer, int64_t pair)
{
    int64_t slots = layer->slots[pair];
    append(layer, pair, 0);
    if (!layer->stats.birth || layer->stats.prompt != RA_PROMPT_NONE || !slots)
        return;
    int32_t *last = column(layer, LAST, pair), end = ra_positions_of(layer, pair)[slots - 1];
    for (int64_t i = 0; i < slots; i++)
        last[i] = end;
}

static void add(ra_layer *layer, int64_t pair, int64_t cut_in, const ra_weights *weights, int64_t now, float *floats)
{
    (void)cut_in;
    const ra_stat_config *config = &layer->stats;
    float bound = config->activation / (config->relative ? (float)weights->slots : 1);
    ra_weights_max(weights, floats);
    ra_kernels_get()->recur(floats, (size_t)ra_pages_for(weights->slots), bound, (int32_t)now,
                            column(layer, LAST, pair), column(layer, GAP, pair));
}

static bool holds(int64_t slots, const int32_t *columns)
{
    for (int64_t i = 0; i < slots; i++)
        if (columns[i] < -1 || columns[slots + i] < 0)
            return false;
    return true;
}

const ra_stat ra_stat_recurrence = {
    .name = "recurrence",
    .fields = FIELDS,
    .lasting = true,
    .head_bytes = ra_stat_no_state,
    .append = append,
    .restart = restart,
    .add = add,
    .holds = holds,
};

static const int32_t *kept_column(const ra_layer *layer, int field, int64_t pair)
{
    return layer->columns[RA_STAT_RECURRENCE] ? column(layer, field, pair) : NULL;
}

const int32_t *ra_last_active(const ra_layer *layer, int64_t pair) { return kept_column(layer, LAST, pair); }
const int32_t *ra_longest_gap(const ra_layer *layer, int64_t pair) { return kept_column(layer, GAP, pair); }
