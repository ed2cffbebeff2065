#ifndef RA_ACCUMULATED_H
#define RA_ACCUMULATED_H

#include <string.h>

#include "layer.h"

/* Attention that each slot has been given, [N]; NULL where the layer does not keep it. */
const float *ra_accumulated(const ra_layer *layer, int64_t pair);

#endif
