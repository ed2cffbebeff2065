#ifndef RA_NEWEST_MASS_H
#define RA_NEWEST_MASS_H

#include "layer.h"

/* Attention mass of the newest query, mean over the group, [N], if it has been kept; else NULL. */
const float *ra_newest_mass_of(const ra_layer *layer, int64_t pair);

#endif
