/* Range and norm of values, computed as tokens are appended. */
#include "value.h"

#include <float.h>

typedef float (*measure)(const float *x, size_t n);

/* Of slots `from` on. */
static void fill(const ra_layer *layer, int64_t pair, int64_t from, measure of, float *out)
{
    ra_span span = ra_span_of(layer, pair);
    float value[RA_MAX_HEAD_DIM];
    for (int64_t slot = from; slot < span.slots; slot++) {
        span.format->read_value(ra_span_k(&span, slot / PAGE), slot % PAGE, span.d, value);
        out[slot] = fminf(of(value, (size_t)span.d), FLT_MAX);
    }
}

static float *column(const ra_layer *layer, int stat, int64_t pair) { return ra_column_of(layer, stat, 0, pair); }

static void append_range(ra_layer *layer, int64_t pair, int64_t from)
{
    fill(layer, pair, from, ra_kernels_get()->spread, column(layer, RA_STAT_VALUE_RANGE, pair));
}

static void append_norm(ra_layer *layer, int64_t pair, int64_t from)
{
    fill(layer, pair, from, ra_kernels_get()->abs_sum, column(layer, RA_STAT_VALUE_NORM, pair));
}

const ra_stat ra_stat_value_range = {
    .name = "value-range",
    .fields = 1,
    .of_pages = true,
    .head_bytes = ra_stat_no_state,
    .append = append_range,
};

const ra_stat ra_stat_value_norm = {
    .name = "value-norm",
    .fields = 1,
    .of_pages = true,
    .head_bytes = ra_stat_no_state,
    .append = append_norm,
};

static const float *kept_or_computed(const ra_layer *layer, int64_t pair, int stat, measure of, ra_scratch *scratch)
{
    if (layer->columns[stat])
        return column(layer, stat, pair);
    float *made = ra_scratch_take(scratch, layer->slots[pair], sizeof *made);
    if (made)
        fill(layer, pair, 0, of, made);
    return made;
}

const float *ra_value_range(const ra_layer *layer, int64_t pair, ra_scratch *scratch)
{
    return kept_or_computed(layer, pair, RA_STAT_VALUE_RANGE, ra_kernels_get()->spread, scratch);
}

const float *ra_value_norm(const ra_layer *layer, int64_t pair, ra_scratch *scratch)
{
    return kept_or_computed(layer, pair, RA_STAT_VALUE_NORM, ra_kernels_get()->abs_sum, scratch);
}
