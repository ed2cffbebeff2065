/* One attention call over the pages of many heads, whoever owns them. */
#ifndef RA_ATTEND_H
#define RA_ATTEND_H

#include "layer.h"

/* Slots of a head that one task of a decode step takes. */
#define RA_CHUNK_PAGES 16

/* Where the softmax of a head's one new token is stored for statistics (ra_weights). */
typedef struct ra_stored_weights {
    float *parts;   /* [group][slots, whole pages], NULL: not wanted */
    float *factors; /* [chunks of RA_CHUNK_PAGES][group]: first the chunks' maxima */
    float *ends;    /* [2][group]: maximum and sum over all chunks and the sink */
} ra_stored_weights;

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
    const ra_stored_weights *weights; /* NULL, or for each (row, head) */
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
/* What is stored of a head's new token; its factors are made of the maxima, once. */
ra_weights ra_attend_weights(const ra_attend_job *job, int64_t pair);
/* Floats that are stored for a head of that many slots, or the places of the three in so many at `memory`. */
int64_t ra_stored_floats(int64_t group, int64_t slots);
ra_stored_weights ra_stored_in(float *memory, int64_t group, int64_t slots);
/* One more logit in a softmax's sum, with no value (attention sinks of GPT-OSS): *top and *sum follow. Returns what sums
 * over the others are scaled by. */
float ra_add_sink(float sink, float *top, float *sum);

#endif
