/* Per-slot statistics: what is kept of each slot between steps, so that a score need not look at everything again.
 *
 * One file an entry. A column has an entry a slot in each of its fields (4 bytes), a state belongs to the head. Some are a
 * cache: what does not fit any more is dropped and computed again. The lasting ones cannot be: they move with their slots
 * and are saved. Positions are every layer's own column. */
#ifndef RA_STAT_H
#define RA_STAT_H

#include "util.h"
#include "weights.h"

enum {
    RA_STAT_WINDOW_ATTENTION,
    RA_STAT_NEAREST_KEY,
    RA_STAT_ACCUMULATED,
    RA_STAT_RECURRENCE,
    RA_STAT_NEWEST_MASS,
    RA_STAT_VALUE_RANGE,
    RA_STAT_VALUE_NORM,
    RA_STATS
};

typedef struct ra_stat {
    const char *name;
    int fields;
    bool lasting;  /* its columns cannot be computed again */
    bool of_pages; /* its columns are read off pages, whose memory a device's layer does not see: it has none */
    size_t (*head_bytes)(int64_t head_dim);
    /* Whether the step `cut_in` steps before a cut leaves something behind, for which it needs the new token's logits.
     * NULL: it never does. Called once the new token is stored. */
    bool (*wants)(const ra_layer *layer, int64_t pair, int64_t cut_in);
    /* Takes the new token's logits, [group][stride], and may overwrite them. sinks [group] or NULL; floats: [N]. */
    void (*gather)(ra_layer *layer, int64_t pair, int64_t cut_in, float *logits, int64_t stride, const float *sinks,
                   float *floats);
    /* Slots from `from` on are new: stored, with their positions; row's tokens are not counted yet. May be NULL. */
    void (*append)(ra_layer *layer, int64_t pair, int64_t from);
    /* All slots are a prompt whose queries are forgotten: as `append`, of all. NULL where `add` is. */
    void (*restart)(ra_layer *layer, int64_t pair);
    /* Takes the attention weights of the query at position `now`, at every step; cut_in is negative where no cut is in
     * sight. floats: [N, whole pages] of room. NULL: it needs none. Queries come in order. */
    void (*add)(ra_layer *layer, int64_t pair, int64_t cut_in, const ra_weights *weights, int64_t now, float *floats);
    /* Slots of a page (goes[t] of its 16) are about to go; nothing has moved yet. May be NULL. */
    void (*leave)(ra_layer *layer, int64_t pair, int64_t page, const bool *goes);
    /* The slots kept [keep], ascending, have become slots 0, 1, ...; of `before` slots. places: scratch [before + 1]. NULL: the
     * columns move along, and that is all. */
    void (*move)(ra_layer *layer, int64_t pair, const int32_t *kept, int64_t keep, int64_t before, int32_t *places);
    /* Slots from `slots` on are gone; 0: all. May be NULL. */
    void (*crop)(ra_layer *layer, int64_t pair, int64_t slots);
    /* Of how many of its first slots a head's state and columns hold all that they say as long as these stay the same, whatever
     * comes behind them: a cold tier keeps that from cut to cut. NULL: of none. */
    int64_t (*cached)(const ra_layer *layer, int64_t pair);
    /* Whether columns [fields][slots] are such as steps leave. NULL: any are. */
    bool (*holds)(int64_t slots, const int32_t *columns);
} ra_stat;

extern const ra_stat *const ra_stats[RA_STATS];
extern const ra_stat ra_stat_window_attention, ra_stat_nearest_key, ra_stat_accumulated, ra_stat_recurrence,
    ra_stat_newest_mass;
extern const ra_stat ra_stat_value_range, ra_stat_value_norm;

/* For statistics that are their columns alone. */
size_t ra_stat_no_state(int64_t head_dim);
/* A statistic's `move`, or what stands for it. */
void ra_stat_move(ra_layer *layer, int stat, int64_t pair, const int32_t *kept, int64_t keep, int64_t before,
                  int32_t *places);

#endif
