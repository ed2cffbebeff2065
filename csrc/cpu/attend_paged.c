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

/* Whether arrays of these sizes can lie in memory: those of tokens, of pages and of the table. */
static bool sizes_are_good(int64_t rows, int64_t heads, int64_t tokens, int64_t head_dim, int64_t table_pages,
                           int64_t page_count)
{
    int64_t size;
    return rows >= 1 && heads >= 1 && tokens >= 1 && tokens <= INT32_MAX && head_dim >= 1 &&
           head_dim <= RA_MAX_HEAD_DIM && table_pages >= 0 && page_count >= 0 &&
           ra_size_of(rows, heads, tokens, head_dim * 64, &size) && ra_size_of(rows, heads, table_pages, 64, &size) &&
           ra_size_of(page_count, 2 * PAGE * head_dim, 4, 1, &size);
}

ra_status ra_attend_paged(ra_dtype dtype, const void *queries, const void *pages, int64_t page_count,
                          const int32_t *table, const int32_t *lengths, int64_t rows, int64_t kv_heads,
                          int64_t query_heads, int64_t tokens, int64_t head_dim, int64_t table_pages, float scale,
                          void *out, ra_parallel parallel)
{
    if (!ra_dtype_size(dtype))
        return RA_ERR_DTYPE;
    if (!queries || !out || !lengths || !sizes_are_good(rows, kv_heads, tokens, head_dim, table_pages, page_count) ||
        !sizes_are_good(rows, query_heads, tokens, head_dim, table_pages, page_count) || query_heads < kv_heads ||
        query_heads % kv_heads || !isfinite(scale) || (table_pages && (!table || !pages)) ||
        !table_is_valid(table, lengths, rows * kv_heads, table_pages, page_count, 0))
        return RA_ERR_ARGUMENT;
    int64_t pairs = rows * kv_heads, slots = 0;
    for (int64_t h = 0; h < pairs; h++) {
        if (lengths[h] < tokens)
            return RA_ERR_ARGUMENT; /* the new tokens are among the slots */
        slots = ra_max(slots, lengths[h]);
    }
    ra_scratch scratch = {0};
    ra_scratch_take(&scratch, pairs, sizeof(ra_span));
    size_t bytes = scratch.used + 64 + ra_attend_bytes(pairs, query_heads / kv_heads, head_dim, slots, tokens);
    scratch = (ra_scratch){0};
    if (!ra_scratch_grow(&scratch, bytes))
        return RA_ERR_NO_MEMORY;
    ra_span *spans = ra_scratch_take(&scratch, pairs, sizeof *spans);
    for (int64_t i = 0; i < pairs; i++) {
        spans[i] = ra_span_with(ra_format_of(dtype), head_dim, lengths[i], table + i * table_pages);
        spans[i].base = pages;
    }
    ra_attend_job job = {.spans = spans,
                         .rows = rows,
                         .kv_heads = kv_heads,
                         .group = query_heads / kv_heads,
                         .head_dim = head_dim,
                         .tokens = tokens,
                         .scale = scale,
                         .queries = {.data = queries,
                                     .dtype = dtype,
                                     .stride_row = query_heads * tokens * head_dim,
                                     .stride_head = tokens * head_dim,
                                     .stride_token = head_dim},
                         .out = {.data = out,
                                 .dtype = dtype,
                                 .stride_row = tokens * query_heads * head_dim,
                                 .stride_token = query_heads * head_dim}};
    ra_status status = ra_attend_run(&job, &scratch, parallel);
    free(scratch.memory);
    return status;
}

ra_status ra_append_paged(ra_dtype dtype, const void *keys, const void *values, void *pages, int64_t page_count,
                          const int32_t *table, const int32_t *lengths, int64_t rows, int64_t kv_heads, int64_t tokens,
                          int64_t head_dim, int64_t table_pages)
{
    const ra_format *format = ra_format_of(dtype);
    if (!format)
        return RA_ERR_DTYPE;
    if (!keys || !values || !lengths || !table || !pages ||
        !sizes_are_good(rows, kv_heads, tokens, head_dim, table_pages, page_count) ||
        !table_is_valid(table, lengths, rows * kv_heads, table_pages, page_count, tokens))
        return RA_ERR_ARGUMENT;
    int64_t count = rows * kv_heads * tokens, row = head_dim * (int64_t)ra_dtype_size(dtype);
    if (!ra_all_finite(dtype, keys, count * head_dim) || !ra_all_finite(dtype, values, count * head_dim))
        return RA_ERR_NOT_FINITE;
    for (int64_t h = 0; h < rows * kv_heads; h++)
        for (int64_t i = 0, run; i < tokens; i += run) { /* into one page */
            int64_t slot = lengths[h] + i, token = h * tokens + i;
            run = ra_min(tokens - i, PAGE - slot % PAGE);
            char *page = (char *)pages + format->page_bytes(head_dim) * (size_t)table[h * table_pages + slot / PAGE];
            const ra_rows k = {.data = (const char *)keys + row * token, .stride = row, .dtype = dtype};
            const ra_rows v = {.data = (const char *)values + row * token, .stride = row, .dtype = dtype};
            format->write(page, slot % PAGE, run, head_dim, &k, &v);
        }
    return RA_OK;
}
