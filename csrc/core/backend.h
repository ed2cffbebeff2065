/* Where a pool's pages lie and what computes on them. core/ does the arithmetic that a host can do without looking at
 * what heads hold; a backend does the rest. */
#ifndef RA_BACKEND_H
#define RA_BACKEND_H

#include "layer.h"

typedef struct ra_backend {
    const char *name;
    /* Bytes of scratch for a step, and for the cut after it, where rows have at most `tokens` new tokens and heads at most
     * `slots` slots afterwards. */
    size_t (*step_bytes)(const ra_layer *layer, int64_t tokens, int64_t slots);
    /* Appends, observes, attends. Arguments are good, pages and scratch are there. */
    ra_status (*step)(ra_layer *layer, const ra_step *step, ra_parallel parallel);
    /* Scores of the rows in layer->cut. */
    ra_status (*score)(ra_layer *layer, const ra_score_config *config, ra_parallel parallel);
    /* layer->cut.kept and .keep, and lost (may be NULL), by budgets. */
    ra_status (*choose)(ra_layer *layer, const int64_t *protect_below, const int64_t *budgets, double *lost,
                        ra_parallel parallel);
    /* Pages that `apply` takes before it gives others back. */
    int64_t (*apply_pages)(const ra_layer *layer);
    ra_status (*apply)(ra_layer *layer, ra_parallel parallel);
} ra_backend;

extern const ra_backend ra_backend_cpu;

#endif
