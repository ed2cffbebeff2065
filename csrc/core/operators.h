/* Operators on memory that the caller laid out, on a device: what ra_attend_paged, ra_append_paged and ra_score_dense are on
 * the CPU. */
#ifndef RA_OPERATORS_H
#define RA_OPERATORS_H

#include "reasonalloc.h"

/* As of ra_attend_paged and ra_append_paged; sizes are good. query_heads: 0 for an append. */
typedef struct ra_paged {
    ra_dtype dtype;
    int64_t rows, kv_heads, query_heads, tokens, head_dim, table_pages, page_count;
    void *pages;                    /* aligned to 16 bytes */
    const int32_t *table, *lengths; /* device memory, which nobody on the host has looked at */
} ra_paged;

/* queries [Hq, W, D], NULL: redundancy [H, N] is wanted, else importance or R-KV's score [H, N - W]; keys [H, N, D]. */
typedef struct ra_dense {
    const float *queries, *keys;
    int64_t kv_heads, query_heads, window, tokens, head_dim, kernel;
    float alpha, threshold;
    bool importance;
} ra_dense;

/* All of it is started on `stream` of the current device and not waited for. Scratch: device memory of `.._bytes`, at 256.
 * A head whose length or pages are wrong answers NaN, and an append with anything wrong in it writes nothing. */
typedef struct ra_operators {
    size_t (*attend_bytes)(const ra_paged *pages);
    ra_status (*attend)(const ra_paged *pages, const void *queries, float scale, void *out, void *scratch,
                        void *stream);
    size_t (*append_bytes)(const ra_paged *pages);
    ra_status (*append)(const ra_paged *pages, const void *keys, const void *values, void *scratch, void *stream);
    size_t (*score_bytes)(const ra_dense *keys);
    ra_status (*score)(const ra_dense *keys, float *out, void *scratch, void *stream);
    /* What kernels have found wrong since the last call of this, or NULL; does not wait. */
    const char *(*fault)(void);
} ra_operators;

#endif
