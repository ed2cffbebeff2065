/* A scorer: a name, the statistics that it needs, and a function of one head. One file an entry. */
#ifndef RA_SCORER_H
#define RA_SCORER_H

#include "layer.h"
#include "nearest_key.h"
#include "window_attention.h"

/* One head at the moment of a cut. */
typedef struct ra_score_view {
    ra_span span;
    const int32_t *positions; /* [N] */
    int64_t head, older;
    int64_t share;         /* slots of a head at an even share of the row's total */
    const ra_layer *layer; /* for statistics of its own; NULL where the head is given densely */
    int64_t pair;
    ra_window window;               /* the newest queries */
    const float *attention;         /* window attention's sum over the queries, [older], or NULL: not gathered */
    ra_nearest nearest;             /* what is known of similar keys; filled only for scorers that need it */
    float *importance, *redundancy; /* NULL, or where parts of the score are wanted: [older], [N] */
} ra_score_view;

struct ra_scorer {
    const char *name;
    bool dense;   /* can score a head without positions */
    bool queries; /* asks for the window's queries; those of window attention have them anyway */
    int stat_count;
    int stats[RA_STATS];
    /* out [older]; scratch of ra_score_bytes. */
    ra_status (*score)(ra_score_view *view, const ra_score_config *config, ra_scratch *scratch, float *out);
};

extern const ra_scorer ra_scorer_rkv, ra_scorer_rkv_centred, ra_scorer_importance, ra_scorer_recency, ra_scorer_random,
    ra_scorer_h2o, ra_scorer_lazy, ra_scorer_raas;
extern const ra_scorer ra_scorer_snapkv, ra_scorer_vatp, ra_scorer_vase, ra_scorer_dkv;
extern const ra_scorer ra_scorer_triattention;
extern const ra_scorer ra_scorer_spans;

size_t ra_dkv_bytes(int64_t slots, int64_t head_dim);
/* Scratch that any scorer needs for a head. */
size_t ra_score_bytes(int64_t slots, int64_t head_dim, int64_t window, int64_t group);
/* Whether the layer's backend has a scorer, and the layer the lasting statistics that this needs. */
bool ra_scorer_fits(const ra_scorer *scorer, const ra_layer *layer);
bool ra_score_config_is_good(const ra_score_config *config);
/* The window queries of a layer's head; false if scratch does not hold them. */
bool ra_window_of(const ra_layer *layer, int64_t pair, ra_scratch *scratch, ra_window *out);
/* Scores of a layer's head. */
ra_status ra_score_head(ra_layer *layer, int64_t pair, const ra_score_config *config, ra_scratch *scratch, float *out);

#endif
