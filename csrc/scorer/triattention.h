/* What the "triattention" scorer keeps of a layer: where its queries lie, as measured beforehand. */
#ifndef RA_TRIATTENTION_H
#define RA_TRIATTENTION_H

#include "util.h"

/* Offsets 1, 2, 4, ... up to 2^(RA_OFFSETS - 1). */
enum { RA_OFFSETS = 17 };

/* One allocation, shared by the copies of a layer; a pool's layers are used by one thread at a time. */
typedef struct ra_centres {
    int64_t owners;
    int64_t pairs, step, apart; /* pair f: dimensions f * step and f * step + apart */
    bool largest, group_mean;
    /* In one piece of ra_centres_bytes: */
    double *frequency; /* [pairs] radians a position */
    double *turn;      /* [pairs][2] mean over the offsets of e^(i frequency offset) */
    float *mean;       /* [Hq][D] */
    float *spread;     /* [Hq][pairs] E|q_f| - |E q_f| */
} ra_centres;

static inline size_t ra_centres_bytes(int64_t pairs, int64_t query_heads, int64_t head_dim)
{
    return 3 * (size_t)pairs * sizeof(double) + (size_t)(query_heads * (head_dim + pairs)) * sizeof(float);
}

ra_centres *ra_centres_share(ra_centres *centres);
void ra_centres_drop(ra_centres *centres);
/* Scratch for the scores of a head. */
size_t ra_triattention_bytes(int64_t slots, int64_t group);

#endif
