/* H2O's heavy hitters (arXiv 2306.14048): the attention that a slot has been given, summed over the group and over all
 * queries since it came. In float32: half precision, as in the published code, loses what is below 2^-11 of the sum. */
#include "accumulated.h"

static float *sum_of(const ra_layer *layer, int64_t pair) { return ra_column_of(layer, RA_STAT_ACCUMULATED, 0, pair); }

static void append(ra_layer *layer, int64_t pair, int64_t from)
{
    memset(sum_of(layer, pair) + from, 0, (size_t)(layer->slots[pair] - from) * sizeof(float));
}

static void restart(ra_layer *layer, int64_t pair) { append(layer, pair, 0); }

static void add(ra_layer *layer, int64_t pair, int64_t cut_in, const ra_weights *weights, int64_t now, float *floats)
{
    (void)cut_in, (void)now, (void)floats;
    ra_weights_sum(weights, layer->stats.decay, sum_of(layer, pair));
}

static bool holds(int64_t slots, const int32_t *columns)
{
    for (int64_t i = 0; i < slots; i++) {
        float sum;
        memcpy(&sum, columns + i, sizeof sum);
        if (!(sum >= 0) || isinf(sum))
            return false;
    }
    return true;
}

const ra_stat ra_stat_accumulated = {
    .name = "accumulated",
    .fields = 1,
    .lasting = true,
    .head_bytes = ra_stat_no_state,
    .append = append,
    .restart = restart,
    .add = add,
    .holds = holds,
};

const float *ra_accumulated(const ra_layer *layer, int64_t pair)
{
    return layer->columns[RA_STAT_ACCUMULATED] ? sum_of(layer, pair) : NULL;
}
