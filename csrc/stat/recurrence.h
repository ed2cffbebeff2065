#ifndef RA_RECURRENCE_H
#define RA_RECURRENCE_H

#include "layer.h"

/* Of each slot, [N] each: position of the query for which it was active last, and its longest gap (ra_stat_config). NULL
 * where the layer does not keep them. */
const int32_t *ra_last_active(const ra_layer *layer, int64_t pair);
const int32_t *ra_longest_gap(const ra_layer *layer, int64_t pair);

#endif
