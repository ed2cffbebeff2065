/* Attention of the newest queries: SnapKV's importance (arXiv 2404.14469) in R-KV's form (arXiv 2505.24133), gathered while
 * attention is computed anyway, or computed from the queries. */
#ifndef RA_WINDOW_ATTENTION_H
#define RA_WINDOW_ATTENTION_H

#include "layer.h"

/* The newest queries of one KV head, oldest first. */
typedef struct ra_window {
    const float *queries; /* [count][group][D], times the scale of the logits */
    int64_t count, group;
    float softcap;
} ra_window;

/* Sum over the row's window queries of softmaxes over the older tokens, [older], if all have been gathered; else NULL. */
const float *ra_window_attention(const ra_layer *layer, int64_t pair);
/* Attention mass of the newest query, mean over the group, [N], if it has been gathered; else NULL. */
const float *ra_window_mass(const ra_layer *layer, int64_t pair);

/* Importance, [older]: mean over the window's queries, max-pooled. sum: as ra_window_attention gives, or NULL. */
ra_status ra_importance(const ra_span *span, const ra_window *window, const float *sum, int64_t older, int64_t kernel,
                        ra_scratch *scratch, float *out);
/* Attention mass of the window's last query, mean over the group, [N]; sinks: [group] or NULL; logits: [N, whole pages]. */
void ra_newest_mass(const ra_span *span, const ra_window *window, const float *sinks, float *logits, float *out);
/* Softmax of n logits in place, with `sink` as one more of them (-INFINITY: none); n may be 0. */
void ra_softmax(float *x, int64_t n, float sink);
/* Soft-capping (Gemma 2, arXiv 2408.00118): x = cap * tanh(x / cap); cap 0: none. */
void ra_softcap(float *x, int64_t n, float cap);

/* Scratch of ra_importance. */
size_t ra_importance_bytes(int64_t slots, int64_t window);

#endif
