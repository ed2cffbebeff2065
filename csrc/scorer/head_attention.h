/* Attention of the newest queries as SnapKV (arXiv 2404.14469) and VaSE (arXiv 2606.03928) have it: a softmax for each query
 * head, where "importance" takes one of the maximum over the group. */
#ifndef RA_HEAD_ATTENTION_H
#define RA_HEAD_ATTENTION_H

#include "scorer.h"

/* Mean over the window's queries and the group of their softmaxes, then pooled, [older]. everything: softmax over all that a
 * query sees, attention sinks too; else over the older tokens. Pooled by the maximum of `kernel` tokens, or by their sum
 * divided by `kernel`, at the ends too. */
ra_status ra_head_attention(const ra_score_view *view, bool everything, bool average, int64_t kernel,
                            ra_scratch *scratch, float *out);
size_t ra_head_attention_bytes(int64_t slots);

#endif
