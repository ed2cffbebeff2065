/* One attention call over the pages of many heads, whoever holds them. */
#ifndef RA_ATTEND_H
#define RA_ATTEND_H

#include "internal.h"

typedef struct ra_attend_job {
    const ra_span *spans; /* [rows][kv_heads] */
    ra_tokens queries;    /* [rows, kv_heads * group, tokens, D] */
    const bool *real;     /* [rows][tokens] or NULL */
    int64_t rows, kv_heads, group, tokens;
    float scale;
    char *out; /* [rows, tokens, kv_heads * group, D] */
    /* NULL, or for each (row, head) NULL or a place for scale * q.k of one token, [group][slots, whole pages] */
    float *const *logits;
} ra_attend_job;

/* ---- noted.c: what attention leaves behind for the next cut ---- */

/* Whether the step `cut_in` steps before a cut has anything to note for a head, which holds the new token by then. */
bool ra_noted_wants(const ra_layer *layer, int64_t row, const ra_head *head, int64_t cut_in);
/* Takes a decoded token's scale * q.k, [group][stride], and may overwrite them. Without memory it notes nothing. */
void ra_noted_take(const ra_layer *layer, int64_t row, ra_head *head, int64_t cut_in, float *logits, int64_t stride);

ra_status ra_attend_run(const ra_attend_job *job, ra_parallel parallel);

#endif
