/* The CUDA backend's kernels, as plain C sees them. Nothing here allocates, copies to the host or waits; pointers and grids
 * depend on what the host knows, never on what heads hold, so that launches can be captured in a graph and replayed.
 *
 * Pages are those of reasonalloc.h: K [D][16], V [16][D] of one KV head in the pool's format. Lists are those of
 * core/layer.h in device memory. Memory is uninitialised unless said: slots past a head's end hold anything, NaN included.
 *
 * Launchers return 0, a cudaError_t, or -1 for a shape that no kernel serves. `stream` is a cudaStream_t. */
#ifndef RA_CUDA_LAUNCH_H
#define RA_CUDA_LAUNCH_H

#include "reasonalloc.h"

#ifdef __cplusplus
extern "C" {
#endif

/* In device memory, at an address that stays. */
typedef struct ra_cuda_pool {
    void **memory;     /* page id -> address */
    int32_t *refs;     /* page id -> owners */
    int32_t *free_ids; /* stack of pages without owner: the last one is taken first */
    int32_t free_count;
    int32_t least_free; /* least free_count since the host wrote this */
    int32_t shared;     /* pages with several owners: while there are none, nobody looks for them */
} ra_cuda_pool;

/* Bits of ra_cuda_layer.fault, each in a byte of its own: blocks set them side by side by plain stores. */
enum {
    RA_CUDA_FAULT_PAGES = 1,           /* the pool ran out, which the host's reservation rules out */
    RA_CUDA_FAULT_TOKENS = 1 << 8,     /* a new key or value is not finite in the pool's format */
    RA_CUDA_FAULT_SCORES = 1 << 16,    /* a score is not finite */
    RA_CUDA_FAULT_INFEASIBLE = 1 << 24 /* a total below heads * window */
};

typedef struct ra_cuda_layer {
    ra_cuda_pool *pool; /* device memory, like all pointers below */
    ra_dtype format;    /* of the pages' elements */
    int32_t rows, kv_heads, group, window, head_dim;
    int32_t pages;      /* M, capacity of a head's list; S = 16 M */
    int32_t *table;     /* [R, H, M] page ids */
    int32_t *slots;     /* [R, H] */
    int32_t *positions; /* [R, H, S] */
    int32_t *tokens;    /* [R] given so far */
    float *queries;     /* [R][window][Hq][D], a ring: the query of token i lies at i % window */
    int32_t *q_begin;   /* [R] oldest and one past the newest query in it */
    int32_t *q_end;
    float *sinks; /* [Hq] of the newest step; -INFINITY: none */
    /* What is known of the newest similar keys (stat/nearest_key.h) of a head's first slots; all NULL: not kept. */
    int32_t *cached;         /* [R, H] how many these are */
    float *cached_threshold; /* [R, H] the threshold */
    int32_t *similar;  /* [R, H, S] newest similar slot; -1: none; -2 - b: it is gone, others lie before slot b > 0 */
    float *cosine;     /* [R, H, S] with it, or with slot 0 where there is none */
    uint32_t *tickets; /* [RA_CUDA_TICKETS], zero between launches */
    uint32_t *fault;   /* [R] bits; host memory that the device writes */
    /* What attention has gathered of each slot; NULL: not kept. */
    float *accumulated;  /* [R, H, S] as stat/accumulated.c */
    int32_t *recurrence; /* [R, H, 2, S] as stat/recurrence.c: last active, longest gap */
} ra_cuda_layer;

#define RA_CUDA_TICKETS 16

/* ---- A step: ra_cuda_append, then ra_cuda_attend ---- */

typedef struct ra_cuda_step {
    const int32_t *begin;            /* [R + 1] as in ra_step, or NULL: every row has `tokens` new ones */
    const int32_t *index;            /* [begin[R]] or NULL: at i - begin[r] */
    int32_t tokens;                  /* most new tokens of a row */
    ra_tokens queries, keys, values; /* any of the three dtypes each, aligned to their elements only */
    float scale, softcap;            /* as in ra_step */
    const float *sinks;              /* [Hq] or NULL */
    const uint8_t *visible;          /* as in ra_step */
    int64_t visible_stride;
    ra_output out;      /* data NULL: no attention */
    int32_t most_slots; /* bound on the slots of a head after the step: fixes grids */
    float *logits;      /* of rows that have one new token, which attention stores for their statistics, or NULL */
} ra_cuda_step;

/* Takes pages (in the order of heads, whatever the order of blocks; a shared tail page is copied to a fresh one first),
 * writes keys, values and positions, puts queries into the ring, sets sinks, slots, tokens, q_begin and q_end: what
 * cpu/step.c does. */
size_t ra_cuda_append_bytes(const ra_cuda_layer *layer, const ra_cuda_step *step);
int ra_cuda_append(const ra_cuda_layer *layer, const ra_cuda_step *step, void *scratch, void *stream);

/* After append: each new token sees its row's slots up to itself (and what `visible` shows of them). tickets: zero between
 * launches, ra_cuda_attend_tickets() of them. */
size_t ra_cuda_attend_tickets(const ra_cuda_layer *layer, const ra_cuda_step *step);
size_t ra_cuda_attend_bytes(const ra_cuda_layer *layer, const ra_cuda_step *step);
int ra_cuda_attend(const ra_cuda_layer *layer, const ra_cuda_step *step, uint32_t *tickets, void *scratch,
                   void *stream);

/* ---- After it, where a layer keeps what attention gathers ---- */

typedef struct ra_cuda_gathering {
    ra_stat_config config;
    const uint8_t *prompt; /* [R] as in ra_step, or NULL: none whose queries do not all count */
    /* Most queries of a row that are taken in, by its new tokens, prompt and config; with step.logits of the rows whose logits
     * are not in it, -1: there is none. */
    int32_t tokens;
} ra_cuda_gathering;

/* Takes the queries of the step's new tokens into the layer's columns, or those that the config wants of a prompt, and gives
 * new slots their first entries: what cpu/gather.c does. Where attention has stored no logits it looks at the keys once more.
 * step.logits: 16 bytes aligned, ra_cuda_logits_bytes of them, which is 0 where this attention stores none. Rows with an entry
 * in `prompt` are not looked for in it. */
size_t ra_cuda_logits_bytes(const ra_cuda_layer *layer, const ra_cuda_step *step);
size_t ra_cuda_gather_bytes(const ra_cuda_layer *layer, const ra_cuda_step *step, const ra_cuda_gathering *how);
int ra_cuda_gather(const ra_cuda_layer *layer, const ra_cuda_step *step, const ra_cuda_gathering *how, void *scratch,
                   void *stream);

/* ---- A cut: begin, score, allocate, choose, apply ---- */

typedef enum ra_cuda_scorer {
    RA_CUDA_RKV,
    RA_CUDA_RKV_CENTRED,
    RA_CUDA_IMPORTANCE,
    RA_CUDA_RECENCY,
    RA_CUDA_RANDOM,
    RA_CUDA_H2O,
    RA_CUDA_LAZY,
    RA_CUDA_RAAS,
    RA_CUDA_SNAPKV,
    RA_CUDA_VATP,
    RA_CUDA_VASE,
    RA_CUDA_SPANS,
    RA_CUDA_DKV,
    RA_CUDA_TRIATTENTION
} ra_cuda_scorer;

/* ra_centres of scorer/triattention.h, in device memory. */
typedef struct ra_cuda_centres {
    int32_t pairs, step, apart, offsets;
    bool largest, group_mean;
    const double *frequency, *turn;
    const float *mean, *spread;
} ra_cuda_centres;

typedef struct ra_cuda_cut {
    int32_t most_slots;                    /* bound on the slots of a head */
    const int64_t *totals, *protect_below; /* [R] */
    ra_cuda_scorer scorer;
    float alpha, threshold; /* ra_score_config */
    int32_t kernel;
    uint64_t seed;
    float recent;
    bool published_code;
    bool average;
    int32_t n_large, n_sink, span;
    ra_cuda_centres centres;
    bool candidates;      /* its scores are standardised over the tokens from protect_below on, not over all */
    float scale, softcap; /* of the logits in scores and in lost */
    ra_route_config route;
    /* Results, device memory. */
    int32_t *cut;     /* [R] 1: the row is cut, for its slots exceed totals[r] >= 0 */
    int32_t *before;  /* [R, H] slots before */
    float *scores;    /* [R, H, S] of the older tokens of rows that are cut */
    int32_t *budgets; /* [R, H] of rows that are cut */
    int32_t *keep;    /* [R, H] slots that stay, of all rows */
    int32_t *kept;    /* [R, H, S] which, ascending, of rows that are cut */
    double *lost;     /* [R, H] as in ra_cut_choose, of rows that are cut */
} ra_cuda_cut;

/* Scratch that any of the five needs. */
size_t ra_cuda_cut_bytes(const ra_cuda_layer *layer, int32_t most_slots);
int ra_cuda_cut_begin(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch,
                      void *stream); /* cut, before */
int ra_cuda_score(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream);
int ra_cuda_allocate(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream);
int ra_cuda_choose(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream);
/* Survivors move into the head's first pages (into fresh ones where one of those to be written is shared); pages go home in
 * the order of heads; slots become keep. */
int ra_cuda_apply(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream);

/* Why the current device cannot run what was built; 0: it can. */
int ra_cuda_probe(void);

#ifdef RA_EMULATE
/* Threads and blocks run in an order drawn from `seed`; 0: in that of their numbers. */
void ra_emulate_order(unsigned seed);
/* A graph: between begin (0, or an error if one is being made) and end, launches are recorded with their arguments as they
 * are, and not made. */
typedef struct ra_emulate_graph ra_emulate_graph;
int ra_emulate_begin(void);
ra_emulate_graph *ra_emulate_end(void); /* NULL: none was begun */
int ra_emulate_capturing(void);
int ra_emulate_record_copy(void *to, const void *from, size_t bytes);
int ra_emulate_replay(const ra_emulate_graph *graph);
/* Name of its node i, NULL past the last. */
const char *ra_emulate_node(const ra_emulate_graph *graph, size_t i);
void ra_emulate_free(ra_emulate_graph *graph);
#endif

#ifdef __cplusplus
}
#endif
#endif
