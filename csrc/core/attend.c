/* Attention over ragged pages: one pass, online softmax, a tile of queries of one KV head at a time. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define BLOCK_PAGES 8
#define BLOCK (BLOCK_PAGES * PAGE)

/* Queries of one tile with the number of slots that each may see. */
typedef struct tile {
    int64_t m;
    float q[RA_TILE_FLOATS], acc[RA_TILE_FLOATS]; /* [m][D] */
    int64_t limit[RA_TILE_ROWS];
} tile;

static void attend_tile(const ra_span *span, tile *t)
{
    const ra_kernels *kernels = ra_kernels_get();
    const ra_page_kernels *page_kernels = span->kernels;
    size_t d = (size_t)span->d, m = (size_t)t->m;
    float highest[RA_TILE_ROWS], sum[RA_TILE_ROWS], p[RA_TILE_ROWS][BLOCK], dots[RA_TILE_ROWS * PAGE];
    int64_t end = 0;
    for (size_t i = 0; i < m; i++) {
        highest[i] = -INFINITY;
        sum[i] = 0;
        end = ra_max(end, t->limit[i]);
    }
    memset(t->acc, 0, m * d * sizeof *t->acc);
    for (int64_t start = 0; start < end; start += BLOCK) {
        int64_t count = ra_min(BLOCK, end - start), first = start / PAGE, pages = ra_pages_for(count);
        for (int64_t page = 0; page < pages; page++) {
            page_kernels->qk(t->q, m, ra_span_k(span, first + page), d, dots);
            for (size_t i = 0; i < m; i++)
                memcpy(&p[i][page * PAGE], &dots[i * PAGE], PAGE * sizeof(float));
        }
        for (size_t i = 0; i < m; i++) {
            int64_t visible = ra_max(0, ra_min(count, t->limit[i] - start));
            for (int64_t j = visible; j < pages * PAGE; j++)
                p[i][j] = 0;
            if (!visible)
                continue;
            float top = highest[i];
            for (int64_t j = 0; j < visible; j++)
                top = p[i][j] > top ? p[i][j] : top;
            if (top > highest[i]) {
                float shrink = highest[i] == -INFINITY ? 0 : expf(highest[i] - top);
                kernels->scale(&t->acc[i * d], d, shrink);
                sum[i] *= shrink;
                highest[i] = top;
            }
            sum[i] += kernels->exp_sum(p[i], (size_t)visible, top);
        }
        for (int64_t page = 0; page < pages; page++)
            page_kernels->pv(&p[0][page * PAGE], m, BLOCK, ra_span_v(span, first + page),
                             (size_t)ra_min(PAGE, count - page * PAGE), d, t->acc);
    }
    for (size_t i = 0; i < m; i++)
        if (t->limit[i] > 0)
            kernels->scale(&t->acc[i * d], d, 1 / sum[i]);
}

/* One attention call: spans of every (row, head), T queries of each of the group's heads. */
typedef struct attend_job {
    const ra_span *spans; /* [rows][kv_heads] */
    ra_tokens queries;
    const bool *real; /* [rows][tokens] or NULL */
    int64_t rows, kv_heads, group, tokens, tiles;
    float scale;
    char *out;
} attend_job;

/* Queries of a KV head are numbered token-major, q = token * group + g, so that a tile's limits lie together. */
static void load_tile(const attend_job *job, const ra_span *span, int64_t row, int64_t head, int64_t first, tile *t)
{
    size_t size = ra_dtype_size(span->dtype), d = (size_t)span->d;
    int64_t after = 0; /* real tokens after the one at hand: it does not see them */
    int64_t last = (first + t->m - 1) / job->group;
    for (int64_t token = last + 1; token < job->tokens; token++)
        after += !job->real || job->real[row * job->tokens + token];
    for (int64_t i = t->m - 1; i >= 0; i--) {
        int64_t token = (first + i) / job->group, g = (first + i) % job->group;
        bool real = !job->real || job->real[row * job->tokens + token];
        const char *q = (const char *)job->queries.data +
                        (row * job->queries.stride_row + (head * job->group + g) * job->queries.stride_head +
                         token * job->queries.stride_token) *
                            (int64_t)size;
        float *to = &t->q[(size_t)i * d];
        t->limit[i] = real ? span->slots - after : 0;
        if (real) {
            span->kernels->to_float(q, d, to);
            ra_kernels_get()->scale(to, d, job->scale);
        } else {
            memset(to, 0, d * sizeof *to);
        }
        if (g == 0)
            after += real;
    }
}

static void store_tile(const attend_job *job, const ra_span *span, int64_t row, int64_t head, int64_t first,
                       const tile *t)
{
    size_t size = ra_dtype_size(span->dtype), d = (size_t)span->d;
    int64_t heads = job->kv_heads * job->group;
    for (int64_t i = 0; i < t->m; i++) {
        int64_t token = (first + i) / job->group, g = (first + i) % job->group;
        int64_t index = (row * job->tokens + token) * heads + head * job->group + g;
        span->kernels->from_float(&t->acc[(size_t)i * d], d, job->out + (size_t)index * d * size);
    }
}

static void attend_tiles(int64_t begin, int64_t end, void *context)
{
    const attend_job *job = context;
    tile t;
    for (int64_t i = begin; i < end; i++) {
        int64_t pair = i / job->tiles, row = pair / job->kv_heads, head = pair % job->kv_heads;
        const ra_span *span = &job->spans[pair];
        int64_t height = ra_tile_rows(span->d), first = i % job->tiles * height;
        t.m = ra_min(height, job->group * job->tokens - first);
        load_tile(job, span, row, head, first, &t);
        attend_tile(span, &t);
        store_tile(job, span, row, head, first, &t);
    }
}

static void run(attend_job *job, ra_parallel parallel)
{
    int64_t pairs = job->rows * job->kv_heads, work = 0;
    int64_t height = ra_tile_rows(job->spans[0].d);
    job->tiles = (job->group * job->tokens + height - 1) / height;
    for (int64_t i = 0; i < pairs; i++)
        work += job->spans[i].slots;
    work = ra_max(1, work / pairs * job->spans[0].d); /* elements of K that a tile reads */
    ra_run(parallel, pairs * job->tiles, ra_max(1, 32768 / work), attend_tiles, job);
}

ra_status ra_layer_attend(ra_layer *layer, ra_tokens queries, int64_t tokens, const bool *real, float scale, void *out,
                          ra_parallel parallel)
{
    if (!queries.data || !out || tokens < 1 || !isfinite(scale))
        return RA_ERR_ARGUMENT;
    int64_t start = ra_now_ns(), pairs = layer->rows * layer->kv_heads;
    ra_span few[64], *spans = pairs <= 64 ? few : ra_new(pairs, sizeof *spans);
    if (!spans)
        return RA_ERR_NO_MEMORY;
    for (int64_t i = 0; i < pairs; i++)
        spans[i] = ra_span_of(layer, i / layer->kv_heads, i % layer->kv_heads);
    attend_job job = {.spans = spans, .queries = queries, .real = real, .rows = layer->rows,
                      .kv_heads = layer->kv_heads, .group = layer->group, .tokens = tokens, .scale = scale, .out = out};
    run(&job, parallel);
    if (spans != few)
        free(spans);
    layer->times.attend_ns += ra_now_ns() - start;
    return RA_OK;
}

/* ---- pages laid out by the caller ---- */

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
    attend_job job = {.spans = spans,
                      .queries = {.data = queries, .stride_row = query_heads * tokens * head_dim,
                                  .stride_head = tokens * head_dim, .stride_token = head_dim},
                      .rows = rows, .kv_heads = kv_heads, .group = query_heads / kv_heads, .tokens = tokens,
                      .scale = scale, .out = out};
    run(&job, parallel);
    free(spans);
    return RA_OK;
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
