/* The statistics by number, and what happens to all of a head's. */
#include <string.h>

#include "backend.h"

const ra_stat *const ra_stats[RA_STATS] = {
    [RA_STAT_WINDOW_ATTENTION] = &ra_stat_window_attention,
    [RA_STAT_NEAREST_KEY] = &ra_stat_nearest_key,
    [RA_STAT_ACCUMULATED] = &ra_stat_accumulated,
    [RA_STAT_RECURRENCE] = &ra_stat_recurrence,
    [RA_STAT_NEWEST_MASS] = &ra_stat_newest_mass,
    [RA_STAT_VALUE_RANGE] = &ra_stat_value_range,
    [RA_STAT_VALUE_NORM] = &ra_stat_value_norm,
};

ra_stat_config ra_stat_defaults(void)
{
    return (ra_stat_config){.prompt = RA_PROMPT_ALL, .decay = 1, .activation = 1e-4f};
}

bool ra_stat_config_is_good(const ra_stat_config *c)
{
    return c->prompt >= RA_PROMPT_ALL && c->prompt <= RA_PROMPT_NONE && c->decay >= 0 && c->decay <= 1 &&
           c->activation > 0 && isfinite(c->activation);
}

void ra_stats_crop(ra_layer *layer, int64_t pair, int64_t slots)
{
    for (int s = 0; s < RA_STATS; s++)
        if (layer->columns[s] && ra_stats[s]->crop)
            ra_stats[s]->crop(layer, pair, slots);
}

void ra_stats_clear(ra_layer *layer, int64_t pair) { ra_stats_crop(layer, pair, 0); }

void ra_stats_append(ra_layer *layer, int64_t pair, int64_t from)
{
    for (int s = 0; s < RA_STATS; s++)
        if (layer->columns[s] && ra_stats[s]->append)
            ra_stats[s]->append(layer, pair, from);
}

void ra_stats_restart(ra_layer *layer, int64_t pair)
{
    for (int s = 0; s < RA_STATS; s++)
        if (layer->columns[s] && ra_stats[s]->restart)
            ra_stats[s]->restart(layer, pair);
}

void ra_stats_add(ra_layer *layer, int64_t pair, int64_t cut_in, const ra_weights *weights, int64_t now, float *floats)
{
    for (int s = 0; s < RA_STATS; s++)
        if (layer->columns[s] && ra_stats[s]->add)
            ra_stats[s]->add(layer, pair, cut_in, weights, now, floats);
}

bool ra_stats_gather(const ra_layer *layer)
{
    for (int s = 0; s < RA_STATS; s++)
        if (layer->columns[s] && ra_stats[s]->add)
            return true;
    return false;
}

size_t ra_stat_no_state(int64_t head_dim)
{
    (void)head_dim;
    return 0;
}

void ra_stat_move(ra_layer *layer, int stat, int64_t pair, const int32_t *kept, int64_t keep, int64_t before,
                  int32_t *places)
{
    if (ra_stats[stat]->move) {
        ra_stats[stat]->move(layer, pair, kept, keep, before, places);
        return;
    }
    for (int field = 0; field < ra_stats[stat]->fields; field++) {
        int32_t *entries = ra_column_of(layer, stat, field, pair);
        for (int64_t i = 0; i < keep; i++)
            entries[i] = entries[kept[i]];
    }
}

/* ---- Saved and restored ---- */

int64_t ra_layer_columns(const ra_layer *layer, int64_t row, int64_t head, int32_t *out)
{
    if (!layer || row < 0 || row >= layer->rows || head < 0 || head >= layer->kv_heads)
        return -1;
    int64_t pair = ra_pair(layer, row, head), slots = layer->slots[pair], fields = 0;
    for (int s = 0; s < RA_STATS; s++)
        for (int field = 0; layer->columns[s] && ra_stats[s]->lasting && field < ra_stats[s]->fields; field++) {
            if (out)
                memcpy(out + fields * slots, ra_column_of(layer, s, field, pair), (size_t)slots * sizeof *out);
            fields++;
        }
    return fields;
}

ra_status ra_layer_restore_columns(ra_layer *layer, int64_t row, int64_t head, const int32_t *columns)
{
    int64_t fields = ra_layer_columns(layer, row, head, NULL);
    if (fields < 0 || (fields && !columns))
        return RA_ERR_ARGUMENT;
    ra_status status = ra_lists_write(layer);
    if (status != RA_OK)
        return status;
    int64_t pair = ra_pair(layer, row, head), slots = layer->slots[pair];
    const int32_t *from = columns;
    for (int s = 0; s < RA_STATS; s++) {
        if (!layer->columns[s] || !ra_stats[s]->lasting)
            continue;
        if (ra_stats[s]->holds && !ra_stats[s]->holds(slots, from))
            return RA_ERR_ARGUMENT;
        from += ra_stats[s]->fields * slots;
    }
    for (int s = 0; s < RA_STATS; s++)
        for (int field = 0; layer->columns[s] && ra_stats[s]->lasting && field < ra_stats[s]->fields; field++) {
            memcpy(ra_column_of(layer, s, field, pair), columns, (size_t)slots * sizeof *columns);
            columns += slots;
        }
    ra_lists_changed(layer);
    return RA_OK;
}
