/* A layer's insides: flat lists [R, H], one head after the other ("pair" = row * H + head). */
#ifndef RA_LAYER_H
#define RA_LAYER_H

#include <math.h>

#include "pool.h"
#include "stat.h"

/* Rows of a layer whose cut has begun: what the phases leave for each other. */
typedef struct ra_cut_state {
    bool *cut;        /* [R], NULL while no cut has begun */
    int64_t *totals;  /* [R] */
    int64_t *protect; /* [R] positions below which tokens go last, as of the choice */
    float *scores;    /* [R, H, 16 (M + 1)]: one page more, for a list that is one longer than the slots */
    int32_t *kept;    /* [R, H, 16 (M + 1)] slots that stay, ascending */
    int32_t *keep;    /* [R, H] their number, -1 before they are chosen */
    int64_t pages;    /* M of these lists */
    int64_t rows;
    bool begun;
} ra_cut_state;

struct ra_layer {
    ra_pool *pool;
    int64_t rows, kv_heads, query_heads, group, window;
    const ra_scorer *scorer;
    ra_stat_config stats;
    int64_t pages;           /* M: room of each head's list */
    int32_t *table;          /* [R, H, M] */
    int32_t *slots;          /* [R, H] */
    int32_t *positions;      /* [R, H, 16 M] */
    void *columns[RA_STATS]; /* [R, H][fields][16 M] of 4 bytes, NULL where the scorer does not need it */
    char *states[RA_STATS];  /* [R, H] of ra_stat.head_bytes */
    int64_t *tokens;         /* [R] given so far */
    float *queries;          /* [R][window][Hq][D], a ring: the query of token i lies at i % window */
    int64_t *q_begin;        /* [R] oldest and one past the newest query in it */
    int64_t *q_end;
    float scale, softcap;       /* of the logits, as the newest step had them; scale 0: 1 / sqrt(D) */
    struct ra_centres *centres; /* of its queries, or NULL: scorer/triattention.h */
    int64_t centres_set;        /* how often they were, so that a device knows whether it has the newest */
    float *sinks;               /* [Hq], likewise; -INFINITY: none */
    bool pending;               /* a step was reserved and has not come yet */
    int64_t reserved;           /* pages, for the next step */
    int64_t replays;            /* steps of a graph that `reserved` is for; 0: it is for an ordinary step */
    /* A step of rows of at most `ready_tokens` new tokens, after which heads have at most `ready_slots` slots, needs no more
     * scratch than `ready_bytes`. */
    int64_t ready_tokens, ready_slots;
    size_t ready_bytes;
    int64_t ready_changes; /* how often ready_slots has risen */
    ra_cut_state cut;
    ra_times times;
    ra_layer *next, *previous;
    /* Of a backend with a device: */
    void *device; /* the backend's own */
    ra_lists lists;
    int64_t *row_slots;   /* [R] no fewer than the row's heads hold together */
    int64_t promised;     /* pages that it may have taken */
    struct ra_cold *cold; /* NULL: what is evicted is gone */
};

typedef struct ra_cold ra_cold;

static inline int64_t ra_pairs(const ra_layer *layer) { return layer->rows * layer->kv_heads; }
static inline int64_t ra_pair(const ra_layer *layer, int64_t row, int64_t head) { return row * layer->kv_heads + head; }
static inline int32_t *ra_pages_of(const ra_layer *layer, int64_t pair) { return layer->table + pair * layer->pages; }
static inline int32_t *ra_positions_of(const ra_layer *layer, int64_t pair)
{
    return layer->positions + pair * layer->pages * PAGE;
}
/* Field `field` of a statistic's column: an entry a slot. */
static inline void *ra_column_of(const ra_layer *layer, int stat, int field, int64_t pair)
{
    int64_t entries = layer->pages * PAGE;
    return (int32_t *)layer->columns[stat] + (pair * ra_stats[stat]->fields + field) * entries;
}
static inline void *ra_state_of(const ra_layer *layer, int stat, int64_t pair)
{
    return layer->states[stat] + (size_t)pair * ra_stats[stat]->head_bytes(layer->pool->head_dim);
}
static inline ra_span ra_span_of(const ra_layer *layer, int64_t pair)
{
    ra_span span = ra_span_with(layer->pool->format, layer->pool->head_dim, layer->slots[pair],
                                ra_pages_of(layer, pair));
    span.memory = layer->pool->memory;
    return span;
}
/* The page that a head's next token goes to belongs to other rows too. */
static inline bool ra_tail_is_shared(const ra_layer *layer, int64_t pair)
{
    const ra_pool *pool = layer->pool;
    int64_t slots = layer->slots[pair];
    return pool->info.shared && slots % PAGE && pool->refs[ra_pages_of(layer, pair)[slots / PAGE]] > 1;
}
static inline float *ra_scores_of(const ra_layer *layer, int64_t pair)
{
    return layer->cut.scores + pair * (layer->cut.pages + 1) * PAGE;
}
static inline int32_t *ra_kept_of(const ra_layer *layer, int64_t pair)
{
    return layer->cut.kept + pair * (layer->cut.pages + 1) * PAGE;
}
/* Of the head that has most. */
static inline int64_t ra_most_slots(const ra_layer *layer)
{
    int64_t most = 0;
    for (int64_t pair = 0; pair < ra_pairs(layer); pair++)
        most = ra_max(most, layer->slots[pair]);
    return most;
}
/* Of the logits. */
static inline float ra_scale_of(const ra_layer *layer)
{
    return layer->scale != 0 ? layer->scale : 1 / sqrtf((float)layer->pool->head_dim);
}
static inline int64_t ra_older(const ra_layer *layer, int64_t pair)
{
    return ra_max(0, layer->slots[pair] - layer->window);
}
/* How many of a head's first `most` tokens stand before position `below`: those are evicted last. */
static inline int64_t ra_protected(const ra_layer *layer, int64_t pair, int64_t below, int64_t most)
{
    const int32_t *positions = ra_positions_of(layer, pair);
    int64_t count = 0;
    while (count < most && positions[count] < below)
        count++;
    return count;
}
/* The query of token `index` of a row, [Hq][D]. */
static inline float *ra_query(const ra_layer *layer, int64_t row, int64_t index)
{
    return layer->queries + (row * layer->window + index % layer->window) * layer->query_heads * layer->pool->head_dim;
}

/* ---- tiles of queries ---- */

#define RA_TILE_ROWS 16
/* Queries that one tile takes: their float32 rows must fit the stack buffers of RA_TILE_FLOATS. */
#define RA_TILE_FLOATS 4096
static inline int64_t ra_tile_rows(int64_t d) { return ra_max(1, ra_min(RA_TILE_ROWS, RA_TILE_FLOATS / d)); }

/* ---- layer.c, stat/table.c ---- */

/* Room for `pages` pages in every head's lists; false without memory, with nothing changed. */
bool ra_layer_make_room(ra_layer *layer, int64_t pages);
/* Gives back room that is much more than what the heads hold, as after a long prompt. */
void ra_layer_shrink(ra_layer *layer);
/* What was reserved for a step is free again. */
void ra_layer_unreserve(ra_layer *layer);
/* Forgets what statistics have of a head, or of its slots from `slots` on. */
void ra_stats_clear(ra_layer *layer, int64_t pair);
void ra_stats_crop(ra_layer *layer, int64_t pair, int64_t slots);
/* The hooks of the same names of all statistics that the layer keeps. */
void ra_stats_append(ra_layer *layer, int64_t pair, int64_t from);
void ra_stats_restart(ra_layer *layer, int64_t pair);
void ra_stats_add(ra_layer *layer, int64_t pair, int64_t cut_in, const ra_weights *weights, int64_t now, float *floats);
/* Whether some of them take in every query. */
bool ra_stats_gather(const ra_layer *layer);
bool ra_stat_config_is_good(const ra_stat_config *config);

/* ---- cut.c ---- */

/* The lists of a cut, as long as the layer's; false without memory. */
bool ra_cut_make_lists(ra_layer *layer);
/* Pages that survivors of a device's cut after `tokens` more of each row may move into, where pages are shared. */
int64_t ra_cut_fresh_pages(const ra_layer *layer, const int64_t *totals, int64_t tokens);

/* ---- allocate.c ---- */

/* Whether it is good for layers of so many heads. */
bool ra_route_config_is_good(const ra_route_config *config, int64_t heads);
/* ra_route for arguments that are good, with scratch of ra_route_bytes(heads, sum of counts). protect_below: SHARES gives
 * every head room for so many positions beside the window. */
ra_status ra_route_in(const float *const *scores, const int64_t *counts, int64_t heads, int64_t window,
                      int64_t protect_below, int64_t total, const ra_route_config *config, ra_scratch *scratch,
                      int64_t *out);
size_t ra_route_bytes(int64_t heads, int64_t scores);

/* ---- allocate_layers.c ---- */

/* ra_route_layers for lists that may be read, with scratch of ra_route_layers_bytes(layers). */
ra_status ra_route_layers_in(const float *const *scores, const int64_t *counts, int64_t layers, int64_t heads,
                             int64_t window, int64_t total, double r_max, ra_scratch *scratch, int64_t *out);
size_t ra_route_layers_bytes(int64_t layers);

/* ---- select.c ---- */

/* The k-th largest (k >= 1) of n numbers; reorders them. */
float ra_kth_largest(float *x, int64_t n, int64_t k);
/* ra_select over scratch of its own: floats [count], flags [count]; slots as int32. */
ra_status ra_select_into(const float *scores, int64_t count, int64_t keep, int64_t protect, float *floats, bool *flags,
                         int32_t *out);

#endif
