/* Rows and heads: append, observe, reorder, crop, read. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

ra_status ra_layer_create(ra_pool *pool, int64_t rows, int64_t kv_heads, int64_t query_heads, int64_t window,
                          ra_layer **out)
{
    if (!pool || !out || rows < 1 || kv_heads < 1 || query_heads < kv_heads || query_heads % kv_heads || window < 1)
        return RA_ERR_ARGUMENT;
    ra_layer *layer = calloc(1, sizeof *layer);
    if (!layer)
        return RA_ERR_NO_MEMORY;
    layer->pool = pool;
    layer->rows = rows;
    layer->kv_heads = kv_heads;
    layer->query_heads = query_heads;
    layer->group = query_heads / kv_heads;
    layer->window = window;
    layer->heads = calloc((size_t)(rows * kv_heads), sizeof *layer->heads);
    layer->seen = calloc((size_t)rows, sizeof *layer->seen);
    layer->q_begin = calloc((size_t)rows, sizeof *layer->q_begin);
    layer->q_end = calloc((size_t)rows, sizeof *layer->q_end);
    layer->queries = ra_new(rows * window * query_heads * pool->head_dim, sizeof *layer->queries);
    layer->next = pool->layers; /* before the check: destroy unlinks */
    if (pool->layers)
        pool->layers->previous = layer;
    pool->layers = layer;
    if (!layer->heads || !layer->seen || !layer->q_begin || !layer->q_end || !layer->queries) {
        ra_layer_destroy(layer);
        return RA_ERR_NO_MEMORY;
    }
    *out = layer;
    return RA_OK;
}

static void drop_heads(ra_pool *pool, ra_head *heads, int64_t count)
{
    for (int64_t h = 0; heads && h < count; h++) {
        for (int64_t p = 0; p < heads[h].page_count; p++)
            ra_pool_drop(pool, heads[h].pages[p]);
        free(heads[h].pages);
        free(heads[h].positions);
        ra_noted_clear(&heads[h]);
        ra_known_clear(&heads[h].known);
        heads[h] = (ra_head){0};
    }
}

void ra_layer_destroy(ra_layer *layer)
{
    if (!layer)
        return;
    drop_heads(layer->pool, layer->heads, layer->rows * layer->kv_heads);
    if (layer->previous)
        layer->previous->next = layer->next;
    else
        layer->pool->layers = layer->next;
    if (layer->next)
        layer->next->previous = layer->previous;
    free(layer->heads);
    free(layer->seen);
    free(layer->q_begin);
    free(layer->q_end);
    free(layer->queries);
    free(layer);
}

void ra_layer_reset(ra_layer *layer)
{
    drop_heads(layer->pool, layer->heads, layer->rows * layer->kv_heads);
    for (int64_t row = 0; row < layer->rows; row++)
        layer->seen[row] = layer->q_begin[row] = layer->q_end[row] = 0;
}

int64_t ra_layer_rows(const ra_layer *layer) { return layer->rows; }
int64_t ra_layer_kv_heads(const ra_layer *layer) { return layer->kv_heads; }
int64_t ra_layer_query_heads(const ra_layer *layer) { return layer->query_heads; }
int64_t ra_layer_window(const ra_layer *layer) { return layer->window; }
int64_t ra_layer_seen(const ra_layer *layer, int64_t row) { return layer->seen[row]; }
ra_times ra_layer_times(const ra_layer *layer) { return layer->times; }

int64_t ra_layer_slots(const ra_layer *layer, int64_t row, int64_t head) { return ra_head_at(layer, row, head)->slots; }

const int32_t *ra_layer_positions(const ra_layer *layer, int64_t row, int64_t head)
{
    return ra_head_at(layer, row, head)->positions;
}

bool ra_head_reserve(ra_head *head, int64_t pages, int64_t slots)
{
    if (pages > head->page_capacity) {
        int64_t capacity = ra_max(pages, head->page_capacity * 3 / 2 + 4);
        if (!ra_grow((void **)&head->pages, capacity, sizeof *head->pages))
            return false;
        head->page_capacity = capacity;
    }
    if (slots > head->slot_capacity) {
        int64_t capacity = ra_max(slots, head->slot_capacity * 3 / 2 + PAGE);
        if (!ra_grow((void **)&head->positions, capacity, sizeof *head->positions))
            return false;
        head->slot_capacity = capacity;
    }
    return true;
}

static const void *token_at(ra_tokens tokens, size_t size, int64_t row, int64_t head, int64_t token)
{
    return (const char *)tokens.data +
           (row * tokens.stride_row + head * tokens.stride_head + token * tokens.stride_token) * (int64_t)size;
}

static int64_t count_real(const bool *real, int64_t row, int64_t tokens)
{
    if (!real)
        return tokens;
    int64_t n = 0;
    for (int64_t t = 0; t < tokens; t++)
        n += real[row * tokens + t];
    return n;
}

typedef struct append_job {
    ra_layer *layer;
    ra_tokens keys, values;
    int64_t tokens;
    const bool *real;
} append_job;

static void append_heads(int64_t begin, int64_t end, void *context)
{
    const append_job *job = context;
    const ra_layer *layer = job->layer;
    const ra_pool *pool = layer->pool;
    size_t size = ra_dtype_size(pool->dtype);
    for (int64_t i = begin; i < end; i++) {
        int64_t row = i / layer->kv_heads, h = i % layer->kv_heads;
        ra_head *head = &layer->heads[i];
        int64_t position = layer->seen[row];
        for (int64_t t = 0; t < job->tokens; t++) {
            if (job->real && !job->real[row * job->tokens + t])
                continue;
            head->positions[head->slots] = (int32_t)position++;
            ra_page_write(pool->dtype, pool->head_dim, pool->memory[head->pages[head->slots / PAGE]],
                          head->slots % PAGE, token_at(job->keys, size, row, h, t),
                          token_at(job->values, size, row, h, t));
            head->slots++;
        }
    }
}

/* Whether appending writes into a page that another row owns too. */
static bool tail_is_shared(const ra_pool *pool, const ra_head *head)
{
    return head->slots % PAGE && pool->refs[head->pages[head->slots / PAGE]] > 1;
}

ra_status ra_layer_append(ra_layer *layer, ra_tokens keys, ra_tokens values, int64_t tokens, const bool *real,
                          ra_parallel parallel, int64_t *missing)
{
    if (!keys.data || !values.data || tokens < 1 || !missing)
        return RA_ERR_ARGUMENT;
    ra_pool *pool = layer->pool;
    size_t size = ra_dtype_size(pool->dtype);
    int64_t need = 0;
    *missing = 0;
    for (int64_t row = 0; row < layer->rows; row++) {
        int64_t fresh = count_real(real, row, tokens);
        if (layer->seen[row] > INT32_MAX - fresh)
            return RA_ERR_ARGUMENT;
        for (int64_t h = 0; h < layer->kv_heads && fresh; h++) {
            ra_head *head = ra_head_at(layer, row, h);
            for (int64_t t = 0; t < tokens; t++)
                if ((!real || real[row * tokens + t]) &&
                    (!ra_all_finite(pool->dtype, token_at(keys, size, row, h, t), pool->head_dim) ||
                     !ra_all_finite(pool->dtype, token_at(values, size, row, h, t), pool->head_dim)))
                    return RA_ERR_NOT_FINITE;
            int64_t pages = ra_pages_for(head->slots + fresh);
            if (!ra_head_reserve(head, pages, head->slots + fresh))
                return RA_ERR_NO_MEMORY;
            need += pages - head->page_count + tail_is_shared(pool, head);
        }
    }
    if (need > pool->info.free) {
        *missing = need - pool->info.free;
        return RA_ERR_NO_PAGES;
    }
    for (int64_t row = 0; row < layer->rows; row++) {
        int64_t fresh = count_real(real, row, tokens);
        for (int64_t h = 0; h < layer->kv_heads && fresh; h++) {
            ra_head *head = ra_head_at(layer, row, h);
            if (tail_is_shared(pool, head)) {
                int32_t *tail = &head->pages[head->slots / PAGE], copy = ra_pool_take(pool);
                memcpy(pool->memory[copy], pool->memory[*tail], pool->page_bytes);
                ra_pool_drop(pool, *tail);
                *tail = copy;
            }
            while (head->page_count < ra_pages_for(head->slots + fresh))
                head->pages[head->page_count++] = ra_pool_take(pool);
        }
    }
    append_job job = {.layer = layer, .keys = keys, .values = values, .tokens = tokens, .real = real};
    int64_t grain = ra_max(1, 32768 / (tokens * pool->head_dim));
    ra_run(parallel, layer->rows * layer->kv_heads, grain, append_heads, &job);
    for (int64_t row = 0; row < layer->rows; row++)
        layer->seen[row] += count_real(real, row, tokens);
    return RA_OK;
}

static float *query_slot(const ra_layer *layer, int64_t row, int64_t index)
{
    return layer->queries +
           (row * layer->window + index % layer->window) * layer->query_heads * layer->pool->head_dim;
}

ra_status ra_layer_observe(ra_layer *layer, ra_tokens queries, int64_t tokens, const bool *real)
{
    if (!queries.data || tokens < 1)
        return RA_ERR_ARGUMENT;
    const ra_pool *pool = layer->pool;
    size_t size = ra_dtype_size(pool->dtype), d = (size_t)pool->head_dim;
    const ra_page_kernels *kernels = &ra_kernels_get()->page[pool->dtype];
    for (int64_t row = 0; row < layer->rows; row++) {
        int64_t skip = ra_max(0, count_real(real, row, tokens) - layer->window), end = layer->seen[row];
        int64_t index = end - count_real(real, row, tokens); /* queries are numbered as the tokens they belong to */
        if (layer->q_end[row] != index)
            layer->q_begin[row] = index; /* a gap: what was held is not contiguous any more */
        for (int64_t t = 0; t < tokens; t++) {
            if (real && !real[row * tokens + t])
                continue;
            if (skip-- <= 0)
                for (int64_t h = 0; h < layer->query_heads; h++)
                    kernels->to_float(token_at(queries, size, row, h, t), d,
                                      query_slot(layer, row, index) + (size_t)h * d);
            index++;
        }
        layer->q_end[row] = end;
        layer->q_begin[row] = ra_max(layer->q_begin[row], end - layer->window);
    }
    return RA_OK;
}

int64_t ra_layer_queries(const ra_layer *layer, int64_t row, float *out)
{
    int64_t count = layer->q_end[row] - layer->q_begin[row], d = layer->pool->head_dim;
    for (int64_t i = 0; out && i < count; i++)
        for (int64_t h = 0; h < layer->query_heads; h++)
            memcpy(out + (h * count + i) * d, query_slot(layer, row, layer->q_begin[row] + i) + h * d,
                   (size_t)d * sizeof *out);
    return count;
}

ra_status ra_layer_read(const ra_layer *layer, int64_t row, int64_t head, bool values, float *out)
{
    if (row < 0 || row >= layer->rows || head < 0 || head >= layer->kv_heads || !out)
        return RA_ERR_ARGUMENT;
    ra_span span = ra_span_of(layer, row, head);
    size_t row_bytes = (size_t)span.d * ra_dtype_size(span.dtype);
    for (int64_t slot = 0; slot < span.slots; slot++, out += span.d) {
        if (values)
            span.kernels->to_float((const char *)ra_span_v(&span, slot / PAGE) + row_bytes * (size_t)(slot % PAGE),
                                   (size_t)span.d, out);
        else
            ra_span_key(&span, slot, out);
    }
    return RA_OK;
}

/* A copy of a head's lists that owns its pages too. */
static bool share_head(ra_pool *pool, const ra_head *from, ra_head *to)
{
    if (!ra_head_reserve(to, from->page_count, from->slots))
        return false;
    for (int64_t p = 0; p < from->page_count; p++) {
        to->pages[p] = from->pages[p];
        ra_pool_share(pool, from->pages[p]);
    }
    to->page_count = from->page_count;
    if (from->slots)
        memcpy(to->positions, from->positions, (size_t)from->slots * sizeof *to->positions);
    to->slots = from->slots;
    return true;
}

ra_status ra_layer_reorder(ra_layer *layer, const int64_t *source, int64_t new_rows)
{
    if (!source || new_rows < 1)
        return RA_ERR_ARGUMENT;
    for (int64_t row = 0; row < new_rows; row++)
        if (source[row] < 0 || source[row] >= layer->rows)
            return RA_ERR_ARGUMENT;
    int64_t H = layer->kv_heads, row_floats = layer->window * layer->query_heads * layer->pool->head_dim;
    ra_head *heads = calloc((size_t)(new_rows * H), sizeof *heads);
    float *queries = ra_new(new_rows * row_floats, sizeof *queries);
    int64_t *fresh[3] = {NULL, NULL, NULL};
    for (int i = 0; i < 3; i++)
        fresh[i] = ra_new(new_rows, sizeof **fresh);
    bool ok = heads && queries && fresh[0] && fresh[1] && fresh[2];
    for (int64_t i = 0; ok && i < new_rows * H; i++)
        ok = share_head(layer->pool, ra_head_at(layer, source[i / H], i % H), &heads[i]);
    if (!ok) {
        drop_heads(layer->pool, heads, new_rows * H);
        free(heads);
        free(queries);
        for (int i = 0; i < 3; i++)
            free(fresh[i]);
        return RA_ERR_NO_MEMORY;
    }
    for (int64_t row = 0; row < new_rows; row++) {
        fresh[0][row] = layer->seen[source[row]];
        fresh[1][row] = layer->q_begin[source[row]];
        fresh[2][row] = layer->q_end[source[row]];
        memcpy(queries + row * row_floats, layer->queries + source[row] * row_floats,
               (size_t)row_floats * sizeof *queries);
    }
    drop_heads(layer->pool, layer->heads, layer->rows * H);
    free(layer->heads);
    free(layer->queries);
    free(layer->seen);
    free(layer->q_begin);
    free(layer->q_end);
    layer->heads = heads;
    layer->queries = queries;
    layer->seen = fresh[0];
    layer->q_begin = fresh[1];
    layer->q_end = fresh[2];
    layer->rows = new_rows;
    return RA_OK;
}

ra_status ra_layer_crop(ra_layer *layer, int64_t tokens)
{
    if (tokens < 0)
        return RA_ERR_ARGUMENT;
    for (int64_t row = 0; row < layer->rows; row++) {
        int64_t left = layer->seen[row] - tokens;
        if (left < 0)
            return RA_ERR_EVICTED;
        for (int64_t h = 0; h < layer->kv_heads && tokens; h++) {
            const ra_head *head = ra_head_at(layer, row, h);
            if (head->slots < tokens || head->positions[head->slots - tokens] != left)
                return RA_ERR_EVICTED;
        }
    }
    for (int64_t row = 0; row < layer->rows; row++) {
        layer->seen[row] -= tokens;
        layer->q_end[row] = ra_min(layer->q_end[row], layer->seen[row]);
        layer->q_begin[row] = ra_min(layer->q_begin[row], layer->q_end[row]);
        for (int64_t h = 0; h < layer->kv_heads; h++) {
            ra_head *head = ra_head_at(layer, row, h);
            head->slots -= tokens;
            ra_noted_clear(head);
            if (head->known.slots > head->slots)
                ra_known_clear(&head->known);
            while (head->page_count > ra_pages_for(head->slots))
                ra_pool_drop(layer->pool, head->pages[--head->page_count]);
        }
    }
    return RA_OK;
}
