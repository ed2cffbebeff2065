/* Attention of new tokens for statistics alone, where the step's own attention has stored none. */
#ifndef RA_GATHER_H
#define RA_GATHER_H

#include "backend.h"

/* Whether a row's new token is taken in as the step's attention leaves it. */
bool ra_attention_gathers(const ra_layer *layer, const ra_step *step, int64_t row);
/* The other rows': prompts, and steps of several tokens. What was stored and observed is the step's. */
ra_status ra_gather_anew(ra_layer *layer, const ra_step *step, ra_parallel parallel);
/* Scratch of ra_gather_anew for heads of at most that many slots. */
size_t ra_gather_bytes(const ra_layer *layer, int64_t slots);

#endif
