/* reasonalloc: a key-value cache with a fixed budget for reasoning models.
 *
 * This header is the manual of the C library. It knows nothing of Python, torch or CUDA.
 *
 * Words.  row    one sequence of the batch            slot    one cached token of one KV head (K and V)
 *         head   one key-value head                   group   query heads that share a KV head (Hq / H)
 *         window the newest tokens, never evicted     older   the tokens before the window
 *         budget slots that a head may keep           total   slots that a layer may keep (sum over its heads)
 * Letters in shapes: B rows, H KV heads, Hq query heads, T new tokens, N slots of a head, D head size, W window.
 *
 * Page format.  A page holds RA_PAGE_TOKENS tokens of one KV head in the cache's dtype:
 *     K [D][RA_PAGE_TOKENS]   dimension-major, so that 16 dot products need no horizontal sum
 *     V [RA_PAGE_TOKENS][D]   token-major
 * Every (row, layer, head) owns a list of pages; its N slots fill them in order of age, oldest first.
 * Pages are reference counted: rows that fork (beams, samples) share them and copy on write.
 *
 * Ties.  Of two tokens with the same score the newer one stays. Of two heads or layers with the same claim the one
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
    RA_ERR_NO_PAGES,   /* the pool is too small: add a slab of the number of pages told and call again */
    RA_ERR_NO_MEMORY,  /* malloc failed */
    RA_ERR_NOT_FINITE, /* NaN or infinity in keys, values, queries or scores */
    RA_ERR_INFEASIBLE, /* the bounds of an allocation exclude its total */
    RA_ERR_EVICTED     /* the tokens asked for are gone */
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

/* Reads `bytes` (to the last whole 512, aligned to 4) with the set in use and does nothing else: the roofline of the
 * benchmarks. In 8 streams side by side, which brings in more on some processors, or in one. */
void ra_read_probe(const void *memory, size_t bytes, bool streamed);

/* ---- Pool of pages ----------------------------------------------------------------------------------------------- */

typedef struct ra_pool ra_pool;

/* A pool of pages for one head size and dtype, empty at first. */
ra_status ra_pool_create(ra_dtype dtype, int64_t head_dim, ra_pool **out);
/* All layers of the pool must have been destroyed. Slabs are not touched: they are the caller's. */
void ra_pool_destroy(ra_pool *pool);
/* Bytes of one page: 2 * RA_PAGE_TOKENS * D * element size. */
size_t ra_pool_page_bytes(const ra_pool *pool);
/* Lends `pages` pages of memory, aligned to 64 bytes, until ra_pool_trim names its id or the pool is destroyed. */
ra_status ra_pool_add_slab(ra_pool *pool, void *memory, int64_t pages, int64_t *out_id);
/* Moves pages together and gives back slabs that become empty, as long as at least `keep_free` pages stay free.
 * out_ids receives up to `capacity` ids of slabs that the caller may free now. */
ra_status ra_pool_trim(ra_pool *pool, int64_t keep_free, int64_t *out_ids, int64_t capacity, int64_t *out_count);

typedef struct ra_pool_info {
    int64_t pages;      /* lent in all */
    int64_t used;       /* with at least one owner */
    int64_t free;       /* pages - used */
    int64_t peak_used;  /* highest `used` since creation or ra_pool_reset_peak */
    int64_t slabs;
} ra_pool_info;
ra_pool_info ra_pool_get_info(const ra_pool *pool);
void ra_pool_reset_peak(ra_pool *pool);

/* ---- Layer: B x H lists of pages --------------------------------------------------------------------------------- */

typedef struct ra_layer ra_layer;

/* A layer with B rows of H KV heads and Hq = H * group query heads, empty. `window` newest queries of each row are
 * kept for scoring. The pool must outlive the layer. */
ra_status ra_layer_create(ra_pool *pool, int64_t rows, int64_t kv_heads, int64_t query_heads, int64_t window,
                          ra_layer **out);
void ra_layer_destroy(ra_layer *layer);

int64_t ra_layer_rows(const ra_layer *layer);
int64_t ra_layer_kv_heads(const ra_layer *layer);
int64_t ra_layer_query_heads(const ra_layer *layer);
int64_t ra_layer_window(const ra_layer *layer);
/* Slots that a head keeps now. */
int64_t ra_layer_slots(const ra_layer *layer, int64_t row, int64_t head);
/* Tokens that a row has been given, evicted ones included, padding not. */
int64_t ra_layer_seen(const ra_layer *layer, int64_t row);
/* Positions (0 = the row's first token that is not padding) of a head's slots, ascending; N of them, borrowed until
 * the next call that changes the layer. */
const int32_t *ra_layer_positions(const ra_layer *layer, int64_t row, int64_t head);
/* Copies a head's keys (values) as float32 [N, D], oldest first. */
ra_status ra_layer_read(const ra_layer *layer, int64_t row, int64_t head, bool values, float *out);
/* The newest queries of a row, oldest first, float32 [Hq, n, D] with n <= window; returns n. out may be NULL. */
int64_t ra_layer_queries(const ra_layer *layer, int64_t row, float *out);

/* A tensor [B, heads, T, D] whose last dimension is contiguous; strides count elements. */
typedef struct ra_tokens {
    const void *data;
    int64_t stride_row, stride_head, stride_token;
} ra_tokens;

/* Appends T tokens to every row. real: [B, T] flags, false for padding that no row ever sees; NULL: all real.
 * RA_ERR_NOT_FINITE if a real token has NaN or infinity. On RA_ERR_NO_PAGES *missing tells how many pages to add. */
ra_status ra_layer_append(ra_layer *layer, ra_tokens keys, ra_tokens values, int64_t tokens, const bool *real,
                          ra_parallel parallel, int64_t *missing);
/* Remembers the newest queries of each row ([B, Hq, T, D], pool's dtype) for scoring. Call it after append. */
ra_status ra_layer_observe(ra_layer *layer, ra_tokens queries, int64_t tokens, const bool *real);
/* Attention of the T newest tokens' queries [B, Hq, T, D] over the row's slots, causal among the new tokens, which
 * were appended before. out: [B, T, Hq, D] contiguous, pool's dtype; padding gets zeros. Accumulates in float32.
 * cut_in: decoding steps that follow before the next cut, 0 where it comes right after this one, negative where none is
 * in sight. With scale = 1/sqrt(D) the steps of the last `window` tokens then leave behind what scores need of their
 * queries; it is used only if all went as told, and changes results by no more than rounding. */
ra_status ra_layer_attend(ra_layer *layer, ra_tokens queries, int64_t tokens, const bool *real, float scale,
                          int64_t cut_in, void *out, ra_parallel parallel);

/* rows' heads become those of source[0..new_rows), sharing pages; for beam search, samples and selection. */
ra_status ra_layer_reorder(ra_layer *layer, const int64_t *source, int64_t new_rows);
/* Forgets the newest `tokens` tokens of each row (padding not counted). RA_ERR_EVICTED if one of them was evicted or
 * a row has fewer. */
ra_status ra_layer_crop(ra_layer *layer, int64_t tokens);
/* Drops everything; pages go home, rows and peak figures stay. */
void ra_layer_reset(ra_layer *layer);

/* ---- Scores ------------------------------------------------------------------------------------------------------ */

typedef enum ra_scorer {
    RA_SCORE_RKV = 0,    /* alpha * importance - (1 - alpha) * redundancy, arXiv 2505.24133 */
    RA_SCORE_IMPORTANCE, /* attention of the window queries, max-pooled: SnapKV's, arXiv 2404.14469 */
    RA_SCORE_RECENCY,    /* the position itself: StreamingLLM's, arXiv 2309.17453 */
    RA_SCORE_RANDOM,     /* hash of (seed, head, position): the same in every row */
    RA_SCORE_RKV_CENTRED /* alpha * importance + (1 - alpha) * (1 / N - redundancy), N the head's slots: the same order
                            within a head, and a level that does not depend on how many slots the head has */
} ra_scorer;

typedef struct ra_score_config {
    ra_scorer scorer;
    float alpha;     /* weight of importance, in [0, 1] */
    float threshold; /* cosine above which two keys count as similar */
    int64_t kernel;  /* odd width of the max-pool over importance; 1: none */
    uint64_t seed;
} ra_score_config;

/* Scores of each head's older tokens, oldest first: out[h] receives max(N_h - window, 0) floats; higher stays.
 * Importance: logits q.k / sqrt(D) of the window queries, max over the group, softmax over the older tokens, mean over
 * the queries, max-pool. Redundancy: cosine matrix of all N keys (norm + 1e-8), zero diagonal, the last entry above
 * `threshold` of each row set to zero (entry 0 where a row has none), softmax over all N tokens of the column means;
 * O(N D) work on keys that resemble each other, O(N) scratch; what one call finds is kept for the next, which looks only
 * at new tokens and at those whose newest similar key has gone. RA_ERR_NOT_FINITE if a score is not finite. */
ra_status ra_layer_score(const ra_layer *layer, int64_t row, const ra_score_config *config, float *const *out,
                         ra_parallel parallel);
/* The same for one head given densely: queries [group, W, D], keys [N, D] float32 -> out [N - W]. redundancy may be
 * NULL or [N] (softmaxed), importance NULL or [N - W] (pooled). Not RA_SCORE_RECENCY or RA_SCORE_RANDOM. */
ra_status ra_score_dense(const float *queries, int64_t group, int64_t window, const float *keys, int64_t tokens,
                         int64_t head_dim, const ra_score_config *config, float *out, float *importance,
                         float *redundancy);

/* ---- Budgets ----------------------------------------------------------------------------------------------------- */

/* x^gamma, scaled so that the clipped values meet `total`, as integers that sum to it exactly. Bounds: lo and hi times
 * the mean total / n, at least `floor` slots each; an integer within the bounds wherever integers can keep them.
 * Found by bisection of the one scale, then largest remainder, ties to the lower index. All x zero: all equal.
 * RA_ERR_ARGUMENT for n < 1, x negative or not finite, total < 0, lo > hi; RA_ERR_INFEASIBLE if n * floor > total. */
ra_status ra_robustify(const double *x, int64_t n, int64_t total, double gamma, double lo, double hi, double floor,
                       int64_t *out);

typedef enum ra_heads {
    RA_HEADS_UNIFORM = 0, /* total / H each, odd slots to the lower index */
    RA_HEADS_ROUTE,       /* ReasonAlloc's online routing, arXiv 2606.11164 */
    RA_HEADS_POOLED       /* Ada-KV's pooled top-k with a safeguard, arXiv 2407.11550 */
} ra_heads;

typedef struct ra_route_config {
    ra_heads heads;
    double gamma, lo, hi; /* ROUTE: robustify */
    double mu;            /* ROUTE: floor as a share of total / H */
    double safeguard;     /* POOLED: share of total / H that each head gets whatever its scores */
} ra_route_config;

/* Head budgets that sum to `total`. scores[h]: counts[h] floats of the older tokens; `window` more tokens of each head
 * always stay and count as chosen. Each budget is at least min(window, total / H). ROUTE: tau = the (total - H window)-th
 * largest pooled score, claim = window + number of scores >= tau, robustified with floor max(mu * total / H, window).
 * RA_ERR_INFEASIBLE if total < H * window, RA_ERR_NOT_FINITE for such scores. */
ra_status ra_route(const float *const *scores, const int64_t *counts, int64_t heads, int64_t window, int64_t total,
                   const ra_route_config *config, int64_t *out);

/* ---- Eviction ---------------------------------------------------------------------------------------------------- */

/* Indices (ascending) of the `keep` tokens out of `count` that stay: first those before `protect` (the oldest), then by
 * score, ties to the newer. keep <= count. RA_ERR_NOT_FINITE for such scores. */
ra_status ra_select(const float *scores, int64_t count, int64_t keep, int64_t protect, int64_t *out);

/* Cuts the heads of a row down to budgets[h] slots: the window and the best of the older tokens; heads with fewer stay.
 * Tokens at positions below protect_below go last. lost (may be NULL): [H], attention mass of the newest query, mean
 * over the group, on what was evicted. May need pages where pages are shared: then RA_ERR_NO_PAGES and *missing. */
ra_status ra_layer_evict(ra_layer *layer, int64_t row, const int64_t *budgets, const float *const *scores,
                         int64_t protect_below, double *lost, ra_parallel parallel, int64_t *missing);

typedef struct ra_times {
    int64_t score_ns, route_ns, evict_ns, attend_ns;
} ra_times;

/* Score, route and evict every row b whose slots exceed totals[b] (negative: leave the row alone).
 * protect_below: [B]. budgets [B][H] and lost [B][H] are written for the rows that were cut; cut [B] flags them. Where
 * pages run out rows before it stay cut, *missing is told, and calling again goes on with the rest. */
ra_status ra_layer_compress(ra_layer *layer, const int64_t *totals, const int64_t *protect_below,
                            const ra_score_config *score, const ra_route_config *route, int64_t *budgets, double *lost,
                            bool *cut, ra_parallel parallel, int64_t *missing);

/* Nanoseconds spent in this layer's calls since creation. */
ra_times ra_layer_times(const ra_layer *layer);

/* ---- Attention over pages that the caller laid out (torch operators, other engines) --------------------------------
 * pages: base of an array of pages in the format above; table [B, H, P] page numbers; lengths [B, H] slots.
 * queries [B, Hq, T, D] contiguous, out [B, T, Hq, D]; query t sees slots [0, length - T + t + 1). */
ra_status ra_attend_paged(ra_dtype dtype, const void *queries, const void *pages, int64_t page_count,
                          const int32_t *table, const int32_t *lengths, int64_t rows, int64_t kv_heads,
                          int64_t query_heads, int64_t tokens, int64_t head_dim, int64_t table_pages, float scale,
                          void *out, ra_parallel parallel);
/* Writes keys and values [B, H, T, D] (contiguous) behind the first lengths[b][h] slots. */
ra_status ra_append_paged(ra_dtype dtype, const void *keys, const void *values, void *pages, int64_t page_count,
                          const int32_t *table, const int32_t *lengths, int64_t rows, int64_t kv_heads, int64_t tokens,
                          int64_t head_dim, int64_t table_pages);

#ifdef __cplusplus
}
#endif
#endif
