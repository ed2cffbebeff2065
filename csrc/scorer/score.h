/* Scores of many heads at once, for compress.c. */
#ifndef RA_SCORE_H
#define RA_SCORE_H

#include "reasonalloc.h"

typedef struct ra_score_task {
    int64_t row, head;
    float *out; /* [older] */
    ra_status status;
} ra_score_task;

ra_status ra_score_run(const ra_layer *layer, const ra_score_config *config, ra_score_task *tasks, int64_t count,
                       ra_parallel parallel);

#endif
