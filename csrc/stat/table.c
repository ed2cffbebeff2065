/* The statistics by number, and what happens to all of a head's. */
#include "layer.h"

const ra_stat *const ra_stats[RA_STATS] = {
    [RA_STAT_WINDOW_ATTENTION] = &ra_stat_window_attention,
    [RA_STAT_NEAREST_KEY] = &ra_stat_nearest_key,
};

void ra_stats_crop(ra_layer *layer, int64_t pair, int64_t slots)
{
    for (int s = 0; s < RA_STATS; s++)
        if (layer->columns[s])
            ra_stats[s]->crop(layer, pair, slots);
}

void ra_stats_clear(ra_layer *layer, int64_t pair) { ra_stats_crop(layer, pair, 0); }
