/* reasonalloc: a key-value cache with a fixed budget for reasoning models.
 *
 * This header is the manual of the C library. It knows nothing of Python, torch or CUDA.
 *
 * Words.  row    one sequence of the batch            slot    one cached token of one KV head (K and V)
 *         head   one key-value head                   group   query heads that share a KV head (Hq / H)
 *         window the newest tokens, never evicted     older   the tokens before the window
 *         budget slots that a head may keep           total   slots that a layer may keep (sum over its heads)
 * Letters in shapes: R rows, H KV heads, Hq query heads, T new tokens, N slots of a head, D head size, W window,
 *         M pages that a head's list has room for.
 *
 * Pages.  A page holds RA_PAGE_TOKENS tokens of one KV head in the pool's format (ra_format_find). Every (row, head) of
 * a layer has a list of pages; its N slots fill them in order of age, oldest first. Pages are reference counted: rows
 * that fork (beams, samples) share them and copy on write.
 *
 * A layer is flat: one table of page numbers [R, H, M], slots [R, H], and columns [R, H, 16 M] with an entry a slot: its
 * position first, then what the layer's scorer keeps of it (its statistics). Columns belong to the head, pages may be
 * shared.
 *
 * A step.  ra_layer_reserve, then ra_layer_step: the first may fail for want of pages or memory and may be called again,
 * the second cannot run out, allocates nothing and returns nothing but RA_OK once its arguments are good. Each row has
 * its own number of new tokens, none included, so that rows come and go while others go on.
 *
 * A cut.  ra_layer_cut, or its four phases: ra_cut_score, ra_cut_allocate, ra_cut_choose, ra_cut_apply. Between them the
 * caller may look at scores, budgets and choices, or put its own in their place.
 *
 * Ties. Of two tokens with the same score the newer one stays. Of two heads or layers with the same claim the one
 * with the lower index gets the odd slot. Every result is a function of the inputs alone, whatever the thread count.
 *
 * Errors.  Functions return ra_status; everything but RA_OK leaves the objects as they were. Nothing here aborts or
 * prints. Arguments marked "out" are written only on RA_OK unless said otherwise.
 *
 * Threads.  An ra_pool with all its layers is used by one thread at a time; different pools are independent. Work
 * inside a call is spread by the ra_parallel that the caller gives (NULL: serial).
 *
 * Ownership.  Objects come from ra_*_create and go to ra_*_destroy (NULL is accepted). Page memory belongs to the
 * caller, who lends it slab by slab; metadata is allocated here with malloc.
 */
#ifndef REASONALLOC_H
#define REASONALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RA_PAGE_TOKENS 16
#define RA_MAX_HEAD_DIM 1024

typedef enum ra_status {
    RA_OK = 0,
    RA_ERR_ARGUMENT,   /* a size, a pointer or a setting out of range */
    RA_ERR_DTYPE,      /* dtype not supported */
    RA_ERR_NO_PAGES,   /* the pool is too small: add the number of pages given as missing and call again */
    RA_ERR_NO_MEMORY,  /* malloc failed */
    RA_ERR_NOT_FINITE, /* NaN or infinity in keys, values, queries or scores */
    RA_ERR_INFEASIBLE, /* the bounds of an allocation exclude its total */
    RA_ERR_EVICTED,    /* the tokens asked for are gone */
    RA_ERR_DEVICE,     /* the device that a pool lies on reports an error */
    RA_ERR_CAPTURE     /* a stream is being captured, and a graph cannot hold this */
} ra_status;

/* A short English sentence for a status; never NULL, static storage. */
const char *ra_status_text(ra_status status);

typedef enum ra_dtype { RA_F32 = 0, RA_BF16 = 1, RA_F16 = 2, RA_DTYPES = 3 } ra_dtype;

/* Bytes of one element, 0 for an unknown dtype. */
size_t ra_dtype_size(ra_dtype dtype);

/* Runs body(begin, end, context) over disjoint parts that cover [0, count); parts of at least `grain`. Same signature
 * as torch's, so that its pool can be lent. */
typedef void (*ra_body)(int64_t begin, int64_t end, void *context);
typedef void (*ra_parallel)(int64_t count, int64_t grain, ra_body body, void *context);

/* ---- Instruction sets --------------------------------------------------------------------------------------------
 * "serial" always exists. The best one that the machine has is chosen at the first call; REASONALLOC_CPU overrides. */

/* Name of the set in use: "serial", "neon", "avx2" or "avx512". */
const char *ra_isa(void);
/* Switches to a set by name for every later call in the process. RA_ERR_ARGUMENT if this machine lacks it. */
ra_status ra_set_isa(const char *name);
/* Name number `index` among those that this machine can run, "serial" first; NULL past the end. */
const char *ra_isa_available(size_t index);

/* Allocations of memory by this library since it was loaded: what a step does not add to. */
int64_t ra_allocations(void);

/* Reads `bytes` (to the last whole 512, aligned to 4) with the set in use and does nothing else: the roofline of the
 * benchmarks. In 8 streams side by side, which brings in more on some processors, or in one. */
void ra_read_probe(const void *memory, size_t bytes, bool streamed);

/* ---- Page formats ------------------------------------------------------------------------------------------------
 * "float32", "bfloat16", "float16": K [D][RA_PAGE_TOKENS], dimension-major, so that 16 dot products need no horizontal
 * sum; then V [RA_PAGE_TOKENS][D]. What is stored need not be of the dtype of what comes in. */

typedef struct ra_format ra_format;

/* NULL if there is none of that name. */
const ra_format *ra_format_find(const char *name);
/* Name number `index`; NULL past the end. */
const char *ra_format_name(size_t index);

/* ---- Pool of pages ----------------------------------------------------------------------------------------------- */

typedef struct ra_pool ra_pool;

/* A pool of pages for one head size and format, empty at first. */
ra_status ra_pool_create(const ra_format *format, int64_t head_dim, ra_pool **out);
/* The same on a backend: "the device" below is the one that its pages and lists lie on, number `device_id` of its kind.
 * Then slabs, tokens, sinks and outputs are memory of that device; lists, masks and settings stay the host's. */
typedef struct ra_backend ra_backend;
ra_status ra_pool_create_on(const ra_backend *backend, int device_id, const ra_format *format, int64_t head_dim,
                            ra_pool **out);
const ra_backend *ra_pool_backend(const ra_pool *pool);
const char *ra_backend_name(const ra_backend *backend);
/* Kind of the memory that its pages lie in, as DLPack counts: 1 the host's, 2 CUDA's. */
int ra_backend_memory(const ra_backend *backend);
/* The stream that later calls put their work on (a cudaStream_t); NULL: the default one. */
ra_status ra_pool_set_stream(ra_pool *pool, void *stream);
/* Waits until ra_pool_get_info is as of now; on a device it otherwise is as of the last wait. */
ra_status ra_pool_wait(ra_pool *pool);
/* All layers of the pool must have been destroyed. Slabs are not touched: they are the caller's. */
void ra_pool_destroy(ra_pool *pool);
/* Bytes of one page. */
size_t ra_pool_page_bytes(const ra_pool *pool);
int64_t ra_pool_head_dim(const ra_pool *pool);
const ra_format *ra_pool_format(const ra_pool *pool);
/* Lends `pages` pages of memory, aligned to 64 bytes, until ra_pool_trim names its id or the pool is destroyed.
 * RA_ERR_ARGUMENT if part of it has been lent already. */
ra_status ra_pool_add_slab(ra_pool *pool, void *memory, int64_t pages, int64_t *out_id);
/* Moves pages together and gives back slabs that become empty, as long as at least `keep_free` pages stay free; frees
 * the scratch memory of earlier calls, and columns much longer than what they hold.
 * out_ids receives up to `capacity` ids of slabs that the caller may free now. */
ra_status ra_pool_trim(ra_pool *pool, int64_t keep_free, int64_t *out_ids, int64_t capacity, int64_t *out_count);

typedef struct ra_pool_info {
    int64_t pages;     /* lent in all */
    int64_t used;      /* with at least one owner */
    int64_t free;      /* pages - used */
    int64_t peak_used; /* highest `used` since creation or ra_pool_reset_peak */
    int64_t slabs;
    int64_t shared; /* with more than one owner */
} ra_pool_info;
ra_pool_info ra_pool_get_info(const ra_pool *pool);
void ra_pool_reset_peak(ra_pool *pool);
/* Pages with an owner; on a device as many as its layers may have taken, whether waited for or not. */
int64_t ra_pool_taken(const ra_pool *pool);

/* ---- Scorers ------------------------------------------------------------------------------------------------------
 * "rkv"          alpha * importance - (1 - alpha) * redundancy, arXiv 2505.24133
 * "rkv-centred"  alpha * importance + (1 - alpha) * (1 / N - redundancy): the same order within a head, and a level that
 *                does not depend on how many slots the head has
 * "importance"   attention of the window queries, max-pooled: SnapKV's, arXiv 2404.14469
 * "recency"      the position itself: StreamingLLM's, arXiv 2309.17453
 * "random"       hash of (seed, head, position): the same in every row
 * "triattention" what queries of a calibrated distribution will find, arXiv 2604.04921; needs ra_layer_set_centres
 * "h2o"          accumulated attention, the newest `recent` of a head's even share above all others: arXiv 2306.14048
 * "lazy"         how long ago a token was active, measured by its longest gap: LazyEviction's, arXiv 2506.15969
 * "raas"         when it was active last: RaaS's, arXiv 2502.11147
 * "snapkv-published"  each query head's attention over all that it sees, pooled, mean over group and window: arXiv 2404.14469
 * "vatp"         that times the sum of |value|: arXiv 2406.12335
 * "vase"         the n_large largest value ranges, then a sample by attention: VaSE's, arXiv 2606.03928
 * "dkv"          |k M|^2 |v M|^2 for a random matrix M, another at each cut: VaSE's DKV
 * "spans"        "rkv-centred", of which the tokens of a span (the same position / `span`) have one: their mean or maximum
 *
 * "h2o", "lazy" and "raas" score by statistics that attention gathers at each step (ra_stat_config); a layer keeps them if it was
 * made for a scorer that needs them, and a cut by another is RA_ERR_ARGUMENT.
 *
 * Importance: logits of the window queries as the model computes them (its scale, its soft-capping), max over the group,
 * softmax over the older tokens, mean over the queries, max-pool. Redundancy: cosine matrix of all N keys (norm + 1e-8),
 * zero diagonal, the last entry above `threshold` of each row set to zero (entry 0 where a row has none), softmax over
 * all N tokens of the column means; O(N D) work on keys that resemble each other, O(N) memory; what one call finds is
 * kept for the next, which looks only at new tokens and at those whose newest similar key has gone. */

typedef struct ra_scorer ra_scorer;

/* NULL if there is none of that name. */
const ra_scorer *ra_scorer_find(const char *name);
/* Name number `index`; NULL past the end. */
const char *ra_scorer_name(size_t index);

typedef struct ra_score_config {
    const ra_scorer *scorer;
    float alpha;     /* weight of importance, in [0, 1] */
    float threshold; /* cosine above which two keys count as similar */
    int64_t kernel;  /* odd width of the max-pool over importance; 1: none */
    uint64_t seed;
    float recent;        /* "h2o": share of a head's slots that are its newest and stay, in [0, 1] */
    bool published_code; /* "lazy": the published code's formula, not the paper's */
    bool average;        /* "snapkv-published", "vatp", "spans": pooled by the mean, not the maximum */
    int64_t n_large;     /* "vase": -1: half the even share of a head's slots up to 512 of them, 200 beyond */
    int64_t n_sink;      /* "vase", "dkv": first slots, which stay before all others */
    int64_t span;        /* "spans": tokens of a span; 0 and 1: each by itself */
    /* [R] or NULL: "triattention" standardises over the tokens from this position on. ra_layer_cut sets its own. */
    const int64_t *protect_below;
} ra_score_config;

/* Whether it has a scorer and gathers what that needs; NULL: the CPU's backend, which has all. */
bool ra_backend_supports(const ra_backend *backend, const ra_scorer *scorer);
/* Whether scores are made of statistics that attention gathers at every step. */
bool ra_scorer_gathers(const ra_scorer *scorer);

/* Scores of one head given densely: queries [group, W, D], keys [N, D] float32 -> out [N - W]; logits are q.k / sqrt(D).
 * redundancy may be NULL or [N] (softmaxed), importance NULL or [N - W] (pooled). Only "rkv", "rkv-centred", "importance",
 * which leaves redundancy as it is. */
ra_status ra_score_dense(const float *queries, int64_t group, int64_t window, const float *keys, int64_t tokens,
                         int64_t head_dim, const ra_score_config *config, float *out, float *importance,
                         float *redundancy);

/* ---- Layer ------------------------------------------------------------------------------------------------------- */

typedef struct ra_layer ra_layer;

/* Of a prompt, which queries statistics take in. What a cut has removed by then sees none. */
typedef enum ra_prompt_statistics {
    RA_PROMPT_ALL = 0, /* all: computed anew after the step, O(n^2 D) a query head */
    RA_PROMPT_WINDOW,  /* the newest `window` */
    RA_PROMPT_NONE
} ra_prompt_statistics;

/* Statistics that attention gathers of each slot, from every query that is given with or after it: weights p are those of
 * the softmax over what the head holds, masks, soft-capping and sinks included.
 *   accumulated  float32 sum of p over the group and the queries; each query multiplies what was there by `decay`
 *   recurrence   int32 position of the last query for which the slot was active, p >= activation for one of the group;
 *                and the longest gap between two such queries, 0 where there were none. A slot's first gap counts from
 *                its own position, or with `birth` from the one before (for a prompt of RA_PROMPT_NONE: its last), so that
 *                its own query makes a gap of 1.
 * Cuts move them, crop ends them with their slots (what cropped queries added stays), forks and copies take them along. */
typedef struct ra_stat_config {
    ra_prompt_statistics prompt;
    float decay;      /* in [0, 1]; 1: none */
    float activation; /* above 0 */
    bool relative;    /* p >= activation / N, where the query sees N slots */
    bool birth;
} ra_stat_config;

/* The papers': all, 1, 1e-4, false, false. */
ra_stat_config ra_stat_defaults(void);

typedef struct ra_layer_config {
    int64_t rows;
    int64_t kv_heads, query_heads; /* Hq a multiple of H */
    int64_t window;                /* newest queries of each row that are kept for scoring */
    const ra_scorer *scorer;       /* whose statistics are kept; NULL: none */
    ra_stat_config stats;          /* looked at where ra_scorer_gathers */
} ra_layer_config;

/* A layer of empty rows. The pool must outlive it. RA_ERR_ARGUMENT also for a scorer that the pool's backend lacks. */
ra_status ra_layer_create(ra_pool *pool, const ra_layer_config *config, ra_layer **out);
/* A layer that holds the same, sharing pages. */
ra_status ra_layer_copy(ra_layer *layer, ra_layer **out);
void ra_layer_destroy(ra_layer *layer);

/* The distribution of a layer's queries, for the scorer "triattention". Pair f of a head, its dimensions f and f + pairs
 * (interleaved: 2 f and 2 f + 1), is turned by frequency[f] radians a position; dimensions from 2 pairs on are not. */
typedef struct ra_query_centres {
    int64_t pairs;
    bool interleaved;
    const double *frequency; /* [pairs] */
    const float *mean;       /* [Hq, D] of queries turned back to position 0 */
    const float *length;     /* [Hq, pairs] mean length of each pair */
    bool largest;            /* of the offsets 1, 2, 4, ..., 65536 the best counts, not their mean */
    bool group_mean;         /* the group's mean counts, not its maximum */
} ra_query_centres;

/* Copies them; copies of the layer share them. RA_ERR_ARGUMENT for numbers that are not finite or lengths below 0. */
ra_status ra_layer_set_centres(ra_layer *layer, const ra_query_centres *centres);

/* Steps and cuts on a device are not waited for: what the functions below read is as of the last ra_layer_wait. Other
 * calls wait by themselves where they must. */
ra_status ra_layer_wait(ra_layer *layer);
int64_t ra_layer_rows(const ra_layer *layer);
int64_t ra_layer_kv_heads(const ra_layer *layer);
int64_t ra_layer_query_heads(const ra_layer *layer);
int64_t ra_layer_window(const ra_layer *layer);
/* Room of a head's page list: M. */
int64_t ra_layer_table_pages(const ra_layer *layer);
/* [R, H, M] page numbers and [R, H] slots, borrowed until the next call that changes the layer: an engine's block table. */
const int32_t *ra_layer_table(const ra_layer *layer);
const int32_t *ra_layer_slots(const ra_layer *layer);
/* Tokens that a row has been given, evicted ones included; 0 if there is no such row. */
int64_t ra_layer_tokens(const ra_layer *layer, int64_t row);
/* Slots of all heads of a row; on a device no fewer than they are, and it is not waited for. 0 if there is no such row. */
int64_t ra_layer_row_slots(const ra_layer *layer, int64_t row);
/* Scale and soft-capping of the logits in the newest step, which scores use too; scale 1 / sqrt(D) before the first. */
float ra_layer_scale(const ra_layer *layer);
float ra_layer_softcap(const ra_layer *layer);
/* Positions (0 = the row's first token) of a head's slots, ascending; borrowed as the table. NULL if there is no such head. */
const int32_t *ra_layer_positions(const ra_layer *layer, int64_t row, int64_t head);
/* Copies a head's keys (values) as float32 [N, D], oldest first. */
ra_status ra_layer_read(const ra_layer *layer, int64_t row, int64_t head, bool values, float *out);
/* The newest queries of a row, oldest first, float32 [Hq, n, D] with n <= window; returns n, 0 if there is no such row. out
 * may be NULL. */
int64_t ra_layer_queries(const ra_layer *layer, int64_t row, float *out);

/* A tensor [R, heads, T, D] whose last dimension is contiguous; strides count elements. */
typedef struct ra_tokens {
    const void *data;
    ra_dtype dtype;
    int64_t stride_row, stride_head, stride_token;
} ra_tokens;

/* A tensor [R, T, Hq, D] whose last two dimensions are contiguous. */
typedef struct ra_output {
    void *data; /* NULL: attention is not wanted */
    ra_dtype dtype;
    int64_t stride_row, stride_token;
} ra_output;

typedef struct ra_step {
    /* Row r has the new tokens begin[r] to begin[r + 1] - 1 (begin[0] = 0); token i stands at index[i] of its row in the
     * tensors below, ascending within a row. index NULL: at i - begin[r]. begin NULL: every row has `tokens`. A tensor
     * that packs all rows into one has stride_row 0 and index 0, 1, 2, ... */
    const int64_t *begin, *index;
    int64_t tokens;
    ra_tokens queries, keys, values;
    float scale;        /* of the logits, not 0 */
    float softcap;      /* logits become softcap * tanh(logit / softcap); 0: they stay */
    const float *sinks; /* [Hq] logits of attention sinks, or NULL: none */
    /* [R] steps of one token that follow before the row's next cut, 0 where it comes right after this one, negative where
     * none is in sight; NULL: nowhere. The steps of the last `window` tokens then leave behind what scores need of their
     * queries; it is used only if all went as announced, and changes results by no more than rounding. */
    const int64_t *cut_in;
    /* Masks besides causality: byte visible[i * visible_stride + p] is 0 where new token i does not see position p of its
     * row. NULL: every token sees all before it. */
    const uint8_t *visible;
    int64_t visible_stride;
    ra_output out;
    /* [R] whether a row's new tokens and all before them are its prompt (ra_prompt_statistics); NULL: none of them. */
    const bool *prompt;
} ra_step;

/* Makes room for a step of these tokens (`begin`, `tokens` as in ra_step), and in the lists for `ahead` more a row. On
 * RA_ERR_NO_PAGES *missing says how many pages to add. It takes the place of an earlier one, even if it fails, but for a
 * `begin` that does not rise; a step, and every call that changes rows, uses it up. */
ra_status ra_layer_reserve(ra_layer *layer, const int64_t *begin, int64_t tokens, int64_t ahead, int64_t *missing);
/* Appends the new tokens, remembers the newest queries, and where `out` is wanted attends: each new token sees its row's
 * slots up to itself. Accumulates in float32. What lies in `out` between the tokens of a row is not touched.
 * RA_ERR_NOT_FINITE if a new key or value is not finite in the pool's format, RA_ERR_ARGUMENT without a reserve. */
ra_status ra_layer_step(ra_layer *layer, const ra_step *step, ra_parallel parallel);

/* Row i becomes row source[i], sharing its pages, or empty where source[i] is -1: beam search, samples, selection. */
ra_status ra_layer_reorder(ra_layer *layer, const int64_t *source, int64_t new_rows);
/* Row `to` becomes row `from`, sharing its pages; the other rows stay. */
ra_status ra_layer_fork(ra_layer *layer, int64_t from, int64_t to);
/* Empties a row: its sequence has ended, another may begin there. */
ra_status ra_layer_release(ra_layer *layer, int64_t row);
/* Forgets the newest tokens[r] tokens of each row. RA_ERR_EVICTED if one of them was evicted or a row has fewer. */
ra_status ra_layer_crop(ra_layer *layer, const int64_t *tokens);
/* Fills an empty row as it was read: a head's positions [N] ascending, keys and values [N, D] float32; then, once for
 * the row, its token count and newest queries [Hq, n, D]. The pool must have pages for it: *missing as in reserve. */
ra_status ra_layer_restore(ra_layer *layer, int64_t row, int64_t head, int64_t slots, const int32_t *positions,
                           const float *keys, const float *values, int64_t *missing);
ra_status ra_layer_restore_row(ra_layer *layer, int64_t row, int64_t tokens, const float *queries, int64_t count,
                               float scale, float softcap);
/* What a head's statistics have of each slot and could not compute again: fields of 4 bytes [fields, N], one after the
 * other; returns their number. out may be NULL. -1 if there is no such head. */
int64_t ra_layer_columns(const ra_layer *layer, int64_t row, int64_t head, int32_t *out);
/* Puts them back into a restored head. RA_ERR_ARGUMENT for numbers that no step could leave. */
ra_status ra_layer_restore_columns(ra_layer *layer, int64_t row, int64_t head, const int32_t *columns);
/* Empties all rows. */
void ra_layer_reset(ra_layer *layer);

/* ---- Budgets ----------------------------------------------------------------------------------------------------- */

/* x^gamma, scaled so that the clipped values meet `total`, as integers that sum to it exactly. Bounds: lo and hi times
 * the mean total / n, at least `floor` slots each; an integer within the bounds wherever integers can keep them.
 * Found by bisection of the one scale, then largest remainder, ties to the lower index. All x zero: all equal.
 * RA_ERR_ARGUMENT for n < 1, x negative or not finite, total < 0 or above 2^52, gamma below 0 or above 32, bounds that are
 * not 0 <= lo <= 1 <= hi; RA_ERR_INFEASIBLE if n * floor > total. */
ra_status ra_robustify(const double *x, int64_t n, int64_t total, double gamma, double lo, double hi, double floor,
                       int64_t *out);

typedef enum ra_heads {
    RA_HEADS_UNIFORM = 0, /* total / H each, odd slots to the lower index */
    RA_HEADS_ROUTE,       /* ReasonAlloc's online routing, arXiv 2606.11164 */
    RA_HEADS_POOLED,      /* Ada-KV's pooled top-k with a safeguard, arXiv 2407.11550 */
    RA_HEADS_GIVEN,       /* `limits`: DuoAttention's and RLKV's full and local heads, arXiv 2410.10819, 2510.08525 */
    RA_HEADS_SHARES       /* `shares`: measured beforehand, the same in every text */
} ra_heads;

typedef struct ra_route_config {
    ra_heads heads;
    double gamma, lo, hi; /* ROUTE: robustify; SHARES: lo and hi */
    double mu;            /* ROUTE: floor as a share of total / H */
    double safeguard;     /* POOLED: share of total / H that each head gets whatever its scores */
    const int64_t
        *limits; /* GIVEN: [H] slots of a head; negative: it shares evenly what the others leave of the total */
    const double *shares; /* SHARES: [H] finite, not negative; all 0: equal */
} ra_route_config;

/* Head budgets that sum to `total`. scores[h]: counts[h] floats of the older tokens; `window` more tokens of each head
 * always stay and count as chosen. Each budget is at least min(window, total / H). ROUTE: tau = the (total - H window)-th
 * largest pooled score, claim = window + number of scores >= tau, robustified with floor max(mu * total / H, window).
 * GIVEN: scores are not looked at; where every head has a limit the budgets are these, whatever they sum to (at most the
 * total in ra_layer_cut on a device). SHARES: no scores either; every head gets `window` slots, and what is left of the total
 * is robustified from the shares with gamma 1. RA_ERR_INFEASIBLE if total < H * window, RA_ERR_NOT_FINITE for such scores. */
ra_status ra_route(const float *const *scores, const int64_t *counts, int64_t heads, int64_t window, int64_t total,
                   const ra_route_config *config, int64_t *out);

/* Totals of a row's layers that sum to `total`, by DynamicKV's rule (arXiv 2412.14838) at a cut. scores[l * H + h]: as of
 * ra_route, of head h of layer l. tau = the (total - L H window)-th largest score of all; a layer's claim is its number
 * of scores >= tau. Above their windows layers get slots in proportion to their claims, at most r_max times the mean and
 * what they hold; what that leaves over goes evenly to the others, at last beyond r_max. Whole numbers by largest
 * remainder, computed exactly; ties to the lower index.
 * RA_ERR_INFEASIBLE if total is below the windows or above what the layers hold, RA_ERR_ARGUMENT for r_max below 1 or
 * more than 2^31 - 1 scores or slots, RA_ERR_NOT_FINITE for such scores. */
ra_status ra_route_layers(const float *const *scores, const int64_t *counts, int64_t layers, int64_t heads,
                          int64_t window, int64_t total, double r_max, int64_t *out);

/* ---- The cut ----------------------------------------------------------------------------------------------------- */

/* Indices (ascending) of the `keep` tokens out of `count` that stay: first those before `protect` (the oldest), then by
 * score, ties to the newer. keep <= count. RA_ERR_NOT_FINITE for such scores. */
ra_status ra_select(const float *scores, int64_t count, int64_t keep, int64_t protect, int64_t *out);

/* 1. Scores the older tokens of every row whose slots exceed totals[r] (negative: leave the row alone); those rows are
 * cut, and `cut` (may be NULL) [R] says which they are. config NULL: scores are left to the caller. */
ra_status ra_cut_score(ra_layer *layer, const int64_t *totals, const ra_score_config *config, bool *cut,
                       ra_parallel parallel);
/* A head's scores, one for each of its *count = max(N - window, 0) older tokens, oldest first; higher stays. They may be
 * overwritten before the next phase. NULL for a row that is not cut. */
float *ra_cut_scores(ra_layer *layer, int64_t row, int64_t head, int64_t *count);
/* 2. Head budgets [R, H] of the rows that are cut. Tokens at positions below protect_below[r] go last; what every head
 * still has of them is not routed: a head must not lose them because others score higher. By SHARES every head gets
 * protect_below[r] slots (none if negative) beside its window, whatever it still has of these tokens; a row whose total
 * holds no more than that is cut evenly. */
ra_status ra_cut_allocate(ra_layer *layer, const int64_t *protect_below, const ra_route_config *route,
                          int64_t *budgets);
/* 3. Which slots stay: of each head the window and the best of the older tokens; a head with fewer slots than its budget
 * keeps them. lost (may be NULL) [R, H]: attention mass of the newest query, mean over the group, on what goes. Once the
 * work has begun, an error leaves nothing chosen and numbers of no use in lost. */
ra_status ra_cut_choose(ra_layer *layer, const int64_t *protect_below, const int64_t *budgets, double *lost,
                        ra_parallel parallel);
/* The *count slots that a head keeps, ascending. NULL for a row that is not cut. */
const int32_t *ra_cut_kept(const ra_layer *layer, int64_t row, int64_t head, int64_t *count);
/* 4. Evicts the rest. Where pages are shared it may need some: RA_ERR_NO_PAGES and *missing, and call it again. */
ra_status ra_cut_apply(ra_layer *layer, ra_parallel parallel, int64_t *missing);
/* Forgets a cut that was begun. */
void ra_cut_abandon(ra_layer *layer);

/* All four in one call, all or nothing. budgets and lost [R, H] are written for the rows that were cut; on an error they
 * are of no use, and `cut` is false everywhere. A device does not wait: a row whose scores turn out to be no numbers is cut
 * by age, and the next call says so. */
typedef struct ra_cut {
    const int64_t *totals, *protect_below; /* [R] */
    ra_score_config score;
    ra_route_config route;
    int64_t *budgets;
    double *lost;
    bool *cut; /* [R] */
} ra_cut;
ra_status ra_layer_cut(ra_layer *layer, const ra_cut *cut, ra_parallel parallel, int64_t *missing);
/* On a device a cut whose budgets, lost and cut are NULL is not waited for. This fetches them afterwards, with the slots of
 * all heads before and after, and waits for that cut, not for what came later. RA_ERR_ARGUMENT where there was none. */
typedef struct ra_figures {
    bool *cut;                         /* [R] */
    int64_t *before, *after, *budgets; /* [R, H], budgets of the rows that were cut */
    double *lost;                      /* likewise */
} ra_figures;
ra_status ra_layer_figures(ra_layer *layer, const ra_figures *figures);

/* A cut of several layers, which share rows, heads and window, by totals that depend on the scores of all: ra_cut_score for
 * each, with totals of no more than the windows so that all is scored; totals; ra_cut_set_totals, ra_cut_allocate and
 * ra_cut_choose for each; ra_cut_apply_layers. Until that nothing has changed, and ra_cut_abandon for each ends it.
 *
 * Totals [R, L] of the rows whose totals[r] is not negative, by ra_route_layers. What every head of every layer still has
 * of the tokens at positions below protect_below[r] is not routed. Other rows of `out` are left alone. */
ra_status ra_cut_route_layers(ra_layer *const *layers, int64_t count, const int64_t *totals,
                              const int64_t *protect_below, double r_max, int64_t *out);
/* Other totals for the rows that are being cut; those that are not over theirs are not cut any more. */
ra_status ra_cut_set_totals(ra_layer *layer, const int64_t *totals);
/* ra_cut_apply for each layer, all or none. On RA_ERR_NO_PAGES the pool of layer number *which lacks *missing pages. */
ra_status ra_cut_apply_layers(ra_layer *const *layers, int64_t count, ra_parallel parallel, int64_t *which,
                              int64_t *missing);

/* ---- The cold tier: evicted tokens that can come back -----------------------------------------------------------------
 * A layer may keep what its cuts evict in host memory, of each head up to a limit of its own. Before a cut is scored the
 * cold tokens of its rows are put among their slots by position, into pages of the pool: scores, budgets and choices are
 * those of a row that has evicted nothing but what was beyond the limit. What is not chosen then is cold, the best by
 * score if it is more than the limit, the protected ones first, ties to the newer. Budgets count slots alone. A cut of a row
 * with cold tokens that were not recalled is RA_ERR_ARGUMENT.
 *
 * What lasting statistics have of a token (ra_stat_config) goes and comes with it as it was; no query of the time between
 * counts. Rows that fork share their cold tokens. Only for pools in host memory. */

typedef enum ra_cold_format {
    RA_COLD_SAME = 0, /* keys and values as pages have them */
    RA_COLD_INT8 /* 8-bit integers, one power of two for each 32 (MXINT8); what came back goes again without further loss */
} ra_cold_format;

/* Gives an empty layer a cold tier for `slots` tokens of each head; negative: without a limit. */
ra_status ra_layer_keep_cold(ra_layer *layer, int64_t slots, ra_cold_format format);
/* 0. Puts the cold tokens of the rows whose totals[r] is not negative among their slots, for ra_cut_score; a row that is
 * within its total then keeps them. The others have them until ra_cut_apply, ra_cut_abandon, or any call that changes the
 * layer, which abandons the cut. ra_layer_cut begins with it. RA_ERR_NO_PAGES and *missing as in ra_layer_reserve. */
ra_status ra_cut_recall(ra_layer *layer, const int64_t *totals, ra_parallel parallel, int64_t *missing);
/* Of a head: its cold tokens; their positions, ascending, and records, borrowed until the next call that changes the layer,
 * NULL for none; those that came back by the newest recall
 * and the cut after it. */
int64_t ra_cold_slots(const ra_layer *layer, int64_t row, int64_t head);
const int32_t *ra_cold_positions(const ra_layer *layer, int64_t row, int64_t head);
const void *ra_cold_records(const ra_layer *layer, int64_t row, int64_t head);
int64_t ra_cold_recalled(const ra_layer *layer, int64_t row, int64_t head);
/* Bytes of a record; 0 without a cold tier. */
size_t ra_cold_record_bytes(const ra_layer *layer);
/* Gives a restored row, after ra_layer_restore_row, cold tokens as they were read. RA_ERR_ARGUMENT for positions that do
 * not ascend, are slots of the head or beyond the row, and for more than the limit. */
ra_status ra_cold_restore(ra_layer *layer, int64_t row, int64_t head, int64_t count, const int32_t *positions,
                          const void *records);
/* Bytes that cold tokens of all layers of a pool take; those that rows share count once. */
size_t ra_pool_cold_bytes(const ra_pool *pool);

/* ---- Graphs -------------------------------------------------------------------------------------------------------
 *
 * On a device, steps of one token a row and cuts whose figures come later may be captured in a graph (cudaStreamBeginCapture)
 * and replayed. All that changes from step to step is in the device's memory and moves on by itself; a replay reads anew the
 * tensors that were captured, and the totals sent last. What is captured counts as made: replay it once for that.
 *
 *     prepare(layer, 1, ...); begin capture; step, cut; end capture; replay
 *     again and again: prepare(layer, n, ...); n replays; replayed(layer, n), or replayed and replayed_cut
 *
 * All on one stream. A graph may be replayed while ra_layer_generation of its layers is what it was when it was captured. */

/* Makes room for `steps` steps of one token a row and, in the lists, for `ahead` more, brings the device's lists up to date
 * and, where totals are given, sends them for the cuts to come, whose pages are counted too; protect_below NULL: as sent
 * before. In place of ra_layer_reserve, with its `missing`. RA_ERR_CAPTURE amid a capture. */
ra_status ra_layer_prepare(ra_layer *layer, int64_t steps, int64_t ahead, const int64_t *totals,
                           const int64_t *protect_below, int64_t *missing);
/* `steps` steps were replayed. RA_ERR_ARGUMENT, and nothing changes, for more than were prepared. */
ra_status ra_layer_replayed(ra_layer *layer, int64_t steps);
/* A cut with these totals was replayed, after all steps that were counted. RA_ERR_ARGUMENT if others were sent. */
ra_status ra_layer_replayed_cut(ra_layer *layer, const int64_t *totals);
int64_t ra_layer_generation(const ra_layer *layer);

typedef struct ra_times {
    int64_t score_ns, route_ns, evict_ns, attend_ns;
} ra_times;
/* Nanoseconds spent in this layer's calls since creation; on a device, in starting the work. */
ra_times ra_layer_times(const ra_layer *layer);

/* ---- Attention over pages that the caller laid out (torch operators, other engines) --------------------------------
 * pages: base of an array of pages of the format of that dtype; table [B, H, P] page numbers; lengths [B, H] slots.
 * queries [B, Hq, T, D] contiguous, out [B, T, Hq, D]; query t sees slots [0, length - T + t + 1). */
ra_status ra_attend_paged(ra_dtype dtype, const void *queries, const void *pages, int64_t page_count,
                          const int32_t *table, const int32_t *lengths, int64_t rows, int64_t kv_heads,
                          int64_t query_heads, int64_t tokens, int64_t head_dim, int64_t table_pages, float scale,
                          void *out, ra_parallel parallel);
/* Writes keys and values [B, H, T, D] (contiguous) behind the first lengths[b][h] slots. RA_ERR_NOT_FINITE as in a step. */
ra_status ra_append_paged(ra_dtype dtype, const void *keys, const void *values, void *pages, int64_t page_count,
                          const int32_t *table, const int32_t *lengths, int64_t rows, int64_t kv_heads, int64_t tokens,
                          int64_t head_dim, int64_t table_pages);

#ifdef __cplusplus
}
#endif
#endif
