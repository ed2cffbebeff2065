/* One attention call over the pages of many heads, whoever owns them. */
#ifndef RA_ATTEND_H
#define RA_ATTEND_H

#include "layer.h"

typedef struct ra_attend_job {
    const ra_span *spans; /* [rows][kv_heads] */
    int64_t rows, kv_heads, group, head_dim;
    const int64_t *begin, *index; /* as in ra_step */
    int64_t tokens;
    ra_tokens queries;
    float scale, softcap;
    const float *sinks;     /* [kv_heads * group] or NULL */
    const uint8_t *visible; /* as in ra_step; needs positions */
    int64_t visible_stride;
    const int32_t *const *positions; /* [rows][kv_heads], or NULL */
    ra_output out;
    /* NULL, or for each (row, head) NULL or a place for the logits of its one new token, [group][slots, whole pages] */
    float *const *logits;
} ra_attend_job;

/* Row r's new tokens, and the number of the first. */
static inline int64_t ra_attend_tokens(const ra_attend_job *job, int64_t row)
{
    return job->begin ? job->begin[row + 1] - job->begin[row] : job->tokens;
}
static inline int64_t ra_attend_first(const ra_attend_job *job, int64_t row)
{
    return job->begin ? job->begin[row] : row * job->tokens;
}

/* Scratch for heads of at most `slots` slots, rows of at most `tokens` new tokens, at most `total` of them together. */
size_t ra_attend_bytes(int64_t pairs, int64_t group, int64_t head_dim, int64_t slots, int64_t tokens);
ra_status ra_attend_run(const ra_attend_job *job, ra_scratch *scratch, ra_parallel parallel);

#endif
