/* Of each slot what its stored value says alone: functions of the page, kept so that a cut need not read all values. */
#ifndef RA_VALUE_H
#define RA_VALUE_H

#include "layer.h"

/* Of each slot, [N]: max(v) - min(v) (VaSE, arXiv 2606.03928), and the sum of |v| (VATP, arXiv 2406.12335); where a sum
 * overflows, FLT_MAX. A layer that does not keep them computes the same bits into scratch memory; NULL without it. */
const float *ra_value_range(const ra_layer *layer, int64_t pair, ra_scratch *scratch);
const float *ra_value_norm(const ra_layer *layer, int64_t pair, ra_scratch *scratch);

#endif
