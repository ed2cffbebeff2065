/* Attention weights of one new token over a head's slots, for each query of the group, as attention leaves them behind. */
#ifndef RA_WEIGHTS_H
#define RA_WEIGHTS_H

#include "util.h"

/* The weight of query g for slot i is a part times a factor that a chunk of slots shares, so that parts are the numbers
 * which the online softmax had in hand anyway. Queries lie in tiles of at most `height`; a tile's parts are [pages][m][PAGE]
 * for its m queries, or [pages][stride][PAGE] where the tile holds those of more tokens. */
typedef struct ra_weights {
    const float *parts, *factors; /* factors: [chunks][group] */
    int64_t slots, group, height, stride, chunk_pages;
} ra_weights;

/* out[i] = keep * out[i] + sum of slot i's weights over the group; keep 0: out is only written. out: whole pages. */
void ra_weights_sum(const ra_weights *weights, float keep, float *out);
/* out[i] = the largest of slot i's weights. */
void ra_weights_max(const ra_weights *weights, float *out);

#endif
