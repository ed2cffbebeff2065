/* Attention over pages that the caller laid out: torch operators, other engines. */
#include <math.h>
#include <stdlib.h>

#include "attend.h"

static bool table_is_valid(const int32_t *table, const int32_t *lengths, int64_t heads, int64_t table_pages,
                           int64_t page_count, int64_t more)
{
    for (int64_t h = 0; h < heads; h++) {
        if (lengths[h] < 0 || ra_pages_for(lengths[h] + more) > table_pages)
            return false;
        for (int64_t p = 0; p < ra_pages_for(lengths[h] + more); p++)
            if (table[h * table_pages + p] < 0 || table[h * table_pages + p] >= page_count)
                return false;
    }
    return true;
}

ra_status ra_attend_paged(ra_dtype dtype, const void *queries, const void *pages, int64_t page_count,
                          const int32_t *table, const int32_t *lengths, int64_t rows, int64_t kv_heads,
                          int64_t query_heads, int64_t tokens, int64_t head_dim, int64_t table_pages, float scale,
                          void *out, ra_parallel parallel)
{
    if (!ra_dtype_size(dtype))
        return RA_ERR_DTYPE;
    if (!queries || !out || rows < 1 || kv_heads < 1 || tokens < 1 || head_dim < 1 || head_dim > RA_MAX_HEAD_DIM ||
        table_pages < 0 || page_count < 0 || query_heads < kv_heads || query_heads % kv_heads || !isfinite(scale) ||
        !table_is_valid(table, lengths, rows * kv_heads, table_pages, page_count, 0))
        return RA_ERR_ARGUMENT;
    for (int64_t h = 0; h < rows * kv_heads; h++)
        if (lengths[h] < tokens)
            return RA_ERR_ARGUMENT; /* the new tokens are among the slots */
    ra_span *spans = ra_new(rows * kv_heads, sizeof *spans);
    if (!spans)
        return RA_ERR_NO_MEMORY;
    for (int64_t i = 0; i < rows * kv_heads; i++)
        spans[i] = (ra_span){.kernels = &ra_kernels_get()->page[dtype], .dtype = dtype, .d = head_dim,
                             .slots = lengths[i], .base = pages, .ids = table + i * table_pages};
    ra_attend_job job = {.spans = spans,
                      .queries = {.data = queries, .stride_row = query_heads * tokens * head_dim,
                                  .stride_head = tokens * head_dim, .stride_token = head_dim},
                      .rows = rows, .kv_heads = kv_heads, .group = query_heads / kv_heads, .tokens = tokens,
                      .scale = scale, .out = out};
    ra_status status = ra_attend_run(&job, parallel);
    free(spans);
    return status;
}

ra_status ra_append_paged(ra_dtype dtype, const void *keys, const void *values, void *pages, int64_t page_count,
                          const int32_t *table, const int32_t *lengths, int64_t rows, int64_t kv_heads, int64_t tokens,
                          int64_t head_dim, int64_t table_pages)
{
    size_t row = (size_t)head_dim * ra_dtype_size(dtype), page_bytes = 2 * PAGE * row;
    if (!ra_dtype_size(dtype))
        return RA_ERR_DTYPE;
    if (!keys || !values || rows < 1 || kv_heads < 1 || tokens < 1 || head_dim < 1 || head_dim > RA_MAX_HEAD_DIM ||
        table_pages < 0 || page_count < 0 ||
        !table_is_valid(table, lengths, rows * kv_heads, table_pages, page_count, tokens))
        return RA_ERR_ARGUMENT;
    for (int64_t h = 0; h < rows * kv_heads; h++)
        for (int64_t t = 0; t < tokens; t++) {
            int64_t slot = lengths[h] + t, token = h * tokens + t;
            char *page = (char *)pages + page_bytes * (size_t)table[h * table_pages + slot / PAGE];
            ra_page_write(dtype, head_dim, page, slot % PAGE, (const char *)keys + row * (size_t)token,
                          (const char *)values + row * (size_t)token);
        }
    return RA_OK;
}
