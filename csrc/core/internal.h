/* What the files of csrc/core share. */
#ifndef RA_INTERNAL_H
#define RA_INTERNAL_H

#include "kernels.h"
#include "reasonalloc.h"

#define PAGE RA_PAGE_TOKENS

static inline int64_t ra_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ra_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ra_pages_for(int64_t slots) { return (slots + PAGE - 1) / PAGE; }

/* Serial fallback where the caller gave no ra_parallel. */
void ra_run(ra_parallel parallel, int64_t count, int64_t grain, ra_body body, void *context);
int64_t ra_now_ns(void);
/* malloc of count * size, NULL on overflow too. */
void *ra_new(int64_t count, size_t size);
/* realloc that leaves *array alone on failure. */
bool ra_grow(void **array, int64_t count, size_t size);
/* No NaN or infinity among n elements. */
bool ra_all_finite(ra_dtype dtype, const void *x, int64_t n);

/* ---- pool.c ---- */

typedef struct ra_slab {
    void *memory; /* NULL: given back */
    int64_t pages, used;
} ra_slab;

struct ra_pool {
    ra_dtype dtype;
    int64_t head_dim;
    size_t page_bytes;
    void **memory;     /* by page id; NULL for ids whose slab is gone */
    int32_t *refs;     /* owners of a page */
    int32_t *slab_of;  /* slab of a page */
    int32_t *free_ids; /* stack of pages without owner */
    int32_t *spare_ids; /* stack of ids without memory */
    int64_t ids, free_count, spare_count;
    ra_slab *slabs;
    int64_t slab_count;
    ra_pool_info info;
    ra_layer *layers; /* whose page lists trim rewrites */
};

/* A page with one owner and zeroed keys; the caller made sure that one is free. */
int32_t ra_pool_take(ra_pool *pool);
void ra_pool_share(ra_pool *pool, int32_t page);
void ra_pool_drop(ra_pool *pool, int32_t page);

/* ---- layer.c ---- */

/* Attention that the newest queries gave, noted while it was computed; of no use after anything
 * but decoding, which the counts below tell. */
typedef struct ra_noted {
    float *importance; /* [older]: sum over `queries` of softmax over the older tokens of the group's maximum */
    int64_t queries, older;
    float *mass;       /* [slots]: newest query's softmax over all slots, mean over the group */
    int64_t mass_slots;
    int64_t end;       /* tokens that the row had been given when it was noted */
} ra_noted;

/* What redundancy knows of a head's keys, kept between cuts (redundancy.h); {0} knows nothing. */
typedef struct ra_known {
    int64_t slots, capacity; /* the first `slots` slots are known */
    float *inverse;          /* 1 / (|k| + 1e-8) */
    int32_t *similar;        /* newest similar slot, RA_NONE_SIMILAR or ra_similar_before() */
    float *cosine;           /* with it */
    double *sum;             /* [D]: sum of the unit keys */
    int64_t moved;           /* unit keys added to the sum or taken off it since it was computed afresh */
    float threshold;
} ra_known;

typedef struct ra_head {
    int32_t *pages;
    int64_t page_count, page_capacity;
    int32_t *positions;
    int64_t slots, slot_capacity;
    ra_noted noted;
    ra_known known;
} ra_head;

struct ra_layer {
    ra_pool *pool;
    int64_t rows, kv_heads, query_heads, group, window;
    ra_head *heads;   /* [rows][kv_heads] */
    int64_t *seen;    /* [rows] tokens given */
    float *queries;   /* [rows][window][query_heads][D], a ring: query i lies at i % window */
    int64_t *q_begin; /* [rows] oldest and one past the newest query held */
    int64_t *q_end;
    ra_times times;
    ra_layer *next, *previous;
};

static inline ra_head *ra_head_at(const ra_layer *layer, int64_t row, int64_t head)
{
    return &layer->heads[row * layer->kv_heads + head];
}
/* How many of a head's first `most` tokens stand before position `below`: those are evicted last. */
static inline int64_t ra_protected(const ra_head *head, int64_t below, int64_t most)
{
    int64_t count = 0;
    while (count < most && head->positions[count] < below)
        count++;
    return count;
}
/* Importance, summed over the row's window queries, if all of them have been noted; else NULL. */
const float *ra_noted_importance(const ra_layer *layer, int64_t row, const ra_head *head);
/* Attention mass of the newest query if it has been noted; else NULL. */
const float *ra_noted_mass(const ra_layer *layer, int64_t row, const ra_head *head);
void ra_noted_clear(ra_head *head);

/* Makes room in a head's lists. */
bool ra_head_reserve(ra_head *head, int64_t pages, int64_t slots);

/* ---- span.c: a head's pages as the kernels' callers see them ---- */

typedef struct ra_span {
    const ra_page_kernels *kernels;
    ra_dtype dtype;
    int64_t d, slots;
    void *const *memory; /* by page id, or NULL: then pages lie one behind the other from `base` */
    const void *base;
    const int32_t *ids; /* page ids in order */
} ra_span;

ra_span ra_span_of(const ra_layer *layer, int64_t row, int64_t head);
static inline const void *ra_span_k(const ra_span *span, int64_t page)
{
    int32_t id = span->ids[page];
    if (span->memory)
        return span->memory[id];
    return (const char *)span->base + (size_t)id * 2 * PAGE * (size_t)span->d * ra_dtype_size(span->dtype);
}
static inline const void *ra_span_v(const ra_span *span, int64_t page)
{
    return (const char *)ra_span_k(span, page) + (size_t)span->d * PAGE * ra_dtype_size(span->dtype);
}
/* Key `slot` as D floats. */
void ra_span_key(const ra_span *span, int64_t slot, float *out);
/* Writes one token into a page: K is scattered over its dimensions. */
void ra_page_write(ra_dtype dtype, int64_t d, void *page, int64_t token, const void *key, const void *value);

/* ---- tiles of queries ---- */

#define RA_TILE_ROWS 16
/* Queries that one tile takes: their float32 rows must fit the stack buffers of RA_TILE_FLOATS. */
#define RA_TILE_FLOATS 4096
static inline int64_t ra_tile_rows(int64_t d) { return ra_max(1, ra_min(RA_TILE_ROWS, RA_TILE_FLOATS / d)); }

/* ---- importance.c, redundancy.c, score.c ---- */

/* queries: [count][group][D], already times 1/sqrt(D). out: [older]. */
ra_status ra_importance(const ra_span *span, const float *queries, int64_t count, int64_t group, int64_t older,
                        int64_t kernel, float *out);
/* The same from the sum of the queries' softmaxes, [older]. */
ra_status ra_importance_from(const float *sum, int64_t count, int64_t older, int64_t kernel, float *out);
/* out: [slots], softmaxed. known: what is known of these slots already, and then all of it. */
ra_status ra_redundancy(const ra_span *span, ra_known *known, float threshold, float *out);
/* Tokens of one page are about to leave: leaves[t] for the page's 16. */
void ra_known_remove(ra_known *known, const ra_span *span, int64_t page, const bool *leaves);
/* After an eviction: the survivors' old slots, ascending. Forgets all if memory is short. */
void ra_known_keep(ra_known *known, const int64_t *slots, int64_t keep);
void ra_known_clear(ra_known *known);
/* Softmax of n logits in place; n may be 0. */
void ra_softmax(float *x, int64_t n);

/* ---- select.c ---- */

/* The k-th largest (k >= 1) of n numbers; reorders them. */
float ra_kth_largest(float *x, int64_t n, int64_t k);

#endif
