/* Cold tokens: stored, shared among rows, read and restored. */
#include "cold.h"

#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "mxint8.h"

#define RA_MOST_FIELDS 8 /* of a statistic that lasts */

static ra_dtype dtype_of(const ra_layer *layer) { return (ra_dtype)layer->pool->format->id; }

/* Fields that travel with a token. */
static size_t carried_bytes(const ra_layer *layer)
{
    size_t bytes = 0;
    for (int s = 0; s < RA_STATS; s++)
        if (layer->columns[s] && ra_stats[s]->lasting)
            bytes += (size_t)ra_stats[s]->fields * sizeof(int32_t);
    return bytes;
}

/* ---- Blocks ---- */

ra_cold_block *ra_cold_make(int64_t count, size_t bytes)
{
    if (bytes > PTRDIFF_MAX / 2 || count > INT32_MAX)
        return NULL;
    size_t size = sizeof(ra_cold_block) + (size_t)count * sizeof(int32_t) + bytes;
    ra_cold_block *block = ra_new((int64_t)size, 1);
    if (block) {
        *block = (ra_cold_block){.owners = 1, .count = count, .bytes = size};
        block->records = (char *)(block->positions + count);
    }
    return block;
}

static void drop(ra_pool *pool, ra_cold_block *block)
{
    if (!block || --block->owners)
        return;
    pool->cold_bytes -= block->bytes;
    free(block);
}

static void put(ra_pool *pool, ra_cold_block **place, ra_cold_block *block)
{
    if (block)
        pool->cold_bytes += block->bytes;
    drop(pool, *place);
    *place = block;
}

void ra_cold_put(ra_layer *layer, int64_t pair, ra_cold_block *block, ra_cold_block *statistics)
{
    put(layer->pool, &layer->cold->blocks[pair], block);
    put(layer->pool, &layer->cold->statistics[pair], statistics);
}

/* One more owner of a block. */
static void share(ra_pool *pool, ra_cold_block **place, ra_cold_block *block)
{
    if (block)
        block->owners++;
    drop(pool, *place);
    *place = block;
}

/* ---- The tier of a layer ---- */

static ra_cold *new_cold(const ra_cold *like, int64_t rows, int64_t heads)
{
    ra_cold *cold = ra_new_zeroed(1, sizeof *cold);
    if (!cold)
        return NULL;
    *cold = (ra_cold){.limit = like->limit,
                      .format = like->format,
                      .row_bytes = like->row_bytes,
                      .record_bytes = like->record_bytes};
    cold->blocks = ra_new_zeroed(rows * heads, sizeof *cold->blocks);
    cold->statistics = ra_new_zeroed(rows * heads, sizeof *cold->statistics);
    cold->fresh = ra_new_zeroed(rows * heads, sizeof *cold->fresh);
    cold->fresh_statistics = ra_new_zeroed(rows * heads, sizeof *cold->fresh_statistics);
    cold->recalled = ra_new_zeroed(rows * heads, sizeof *cold->recalled);
    cold->merged = ra_new_zeroed(rows, sizeof *cold->merged);
    if (cold->blocks && cold->statistics && cold->fresh && cold->fresh_statistics && cold->recalled && cold->merged)
        return cold;
    ra_cold_free(cold);
    return NULL;
}

void ra_cold_free(ra_cold *cold)
{
    if (!cold)
        return;
    free(cold->blocks);
    free(cold->statistics);
    free(cold->fresh);
    free(cold->fresh_statistics);
    free(cold->recalled);
    free(cold->merged);
    free(cold);
}

ra_status ra_layer_keep_cold(ra_layer *layer, int64_t slots, ra_cold_format format)
{
    if (!layer || layer->cold || (format != RA_COLD_SAME && format != RA_COLD_INT8) || layer->pool->backend->device)
        return RA_ERR_ARGUMENT;
    for (int64_t row = 0; row < layer->rows; row++)
        if (layer->tokens[row])
            return RA_ERR_ARGUMENT;
    if (ra_format_of(dtype_of(layer)) != layer->pool->format)
        return RA_ERR_DTYPE;
    int64_t d = layer->pool->head_dim;
    ra_cold like = {.limit = slots, .format = format};
    like.row_bytes = format == RA_COLD_INT8 ? ra_mxint8_bytes(d) : (size_t)d * ra_dtype_size(dtype_of(layer));
    like.record_bytes = 2 * like.row_bytes + carried_bytes(layer);
    layer->cold = new_cold(&like, layer->rows, layer->kv_heads);
    return layer->cold ? RA_OK : RA_ERR_NO_MEMORY;
}

bool ra_cold_for_rows(const ra_layer *layer, const int64_t *source, int64_t rows, ra_cold **out)
{
    *out = NULL;
    if (!layer->cold)
        return true;
    int64_t H = layer->kv_heads;
    *out = new_cold(layer->cold, rows, H);
    for (int64_t row = 0; *out && row < rows; row++) {
        int64_t from = source ? source[row] : row;
        for (int64_t head = 0; head < H && from >= 0; head++) {
            share(layer->pool, &(*out)->blocks[row * H + head], layer->cold->blocks[from * H + head]);
            share(layer->pool, &(*out)->statistics[row * H + head], layer->cold->statistics[from * H + head]);
        }
    }
    return *out != NULL;
}

void ra_cold_empty_row(ra_layer *layer, int64_t row)
{
    for (int64_t head = 0; layer->cold && head < layer->kv_heads; head++)
        ra_cold_put(layer, ra_pair(layer, row, head), NULL, NULL);
}

void ra_cold_crop(ra_layer *layer, int64_t row)
{
    for (int64_t head = 0; layer->cold && head < layer->kv_heads; head++) {
        ra_cold_block **statistics = &layer->cold->statistics[ra_pair(layer, row, head)];
        if (*statistics && (*statistics)->positions[(*statistics)->count - 1] >= layer->tokens[row])
            put(layer->pool, statistics, NULL);
    }
}

void ra_cold_empty(ra_layer *layer)
{
    for (int64_t row = 0; layer->cold && row < layer->rows; row++) {
        ra_cold_empty_row(layer, row);
        layer->cold->merged[row] = false;
        for (int64_t head = 0; head < layer->kv_heads; head++)
            layer->cold->recalled[ra_pair(layer, row, head)] = 0;
    }
}

void ra_cold_fork(ra_layer *layer, int64_t from, int64_t to)
{
    for (int64_t head = 0; layer->cold && head < layer->kv_heads; head++) {
        int64_t source = ra_pair(layer, from, head), target = ra_pair(layer, to, head);
        share(layer->pool, &layer->cold->blocks[target], layer->cold->blocks[source]);
        share(layer->pool, &layer->cold->statistics[target], layer->cold->statistics[source]);
    }
}

/* ---- Tokens ---- */

void ra_cold_rows(const ra_layer *layer, const ra_cold_block *block, int64_t begin, int64_t count, float *floats,
                  ra_rows *keys, ra_rows *values)
{
    const ra_cold *cold = layer->cold;
    const char *record = block->records + (size_t)begin * cold->record_bytes;
    int64_t d = layer->pool->head_dim;
    if (cold->format == RA_COLD_SAME) {
        *keys = (ra_rows){.data = record, .stride = (int64_t)cold->record_bytes, .dtype = dtype_of(layer)};
        *values = *keys;
        values->data += cold->row_bytes;
        return;
    }
    for (int64_t i = 0; i < count; i++, record += cold->record_bytes) {
        ra_mxint8_unpack(record, d, floats + i * d);
        ra_mxint8_unpack(record + cold->row_bytes, d, floats + (PAGE + i) * d);
    }
    *keys = (ra_rows){.data = (const char *)floats, .stride = d * (int64_t)sizeof *floats, .dtype = RA_F32};
    *values = *keys;
    values->data = (const char *)(floats + PAGE * d);
}

void ra_cold_store(const ra_layer *layer, int64_t pair, int64_t slot, char *record)
{
    const ra_cold *cold = layer->cold;
    ra_span span = ra_span_of(layer, pair);
    const char *page = ra_span_k(&span, slot / PAGE);
    float row[RA_MAX_HEAD_DIM];
    for (int values = 0; values < 2; values++, record += cold->row_bytes) {
        (values ? span.format->read_value : span.format->read_key)(page, slot % PAGE, span.d, row);
        if (cold->format == RA_COLD_INT8)
            ra_mxint8_pack(row, span.d, record);
        else
            ra_kernels_get()->page[dtype_of(layer)].from_float(row, (size_t)span.d, record); /* exact: it was of it */
    }
    for (int s = 0; s < RA_STATS; s++)
        for (int field = 0; layer->columns[s] && ra_stats[s]->lasting && field < ra_stats[s]->fields; field++) {
            memcpy(record, (const int32_t *)ra_column_of(layer, s, field, pair) + slot, 4);
            record += 4;
        }
}

/* ---- Reading and restoring ---- */

static const ra_cold_block *block_of(const ra_layer *layer, int64_t row, int64_t head)
{
    if (!layer || !layer->cold || row < 0 || row >= layer->rows || head < 0 || head >= layer->kv_heads)
        return NULL;
    return layer->cold->blocks[ra_pair(layer, row, head)];
}

int64_t ra_cold_slots(const ra_layer *layer, int64_t row, int64_t head)
{
    return ra_cold_count(block_of(layer, row, head));
}

const int32_t *ra_cold_positions(const ra_layer *layer, int64_t row, int64_t head)
{
    const ra_cold_block *block = block_of(layer, row, head);
    return block ? block->positions : NULL;
}

size_t ra_cold_record_bytes(const ra_layer *layer) { return layer && layer->cold ? layer->cold->record_bytes : 0; }

const void *ra_cold_records(const ra_layer *layer, int64_t row, int64_t head)
{
    const ra_cold_block *block = block_of(layer, row, head);
    return block ? block->records : NULL;
}

int64_t ra_cold_recalled(const ra_layer *layer, int64_t row, int64_t head)
{
    if (!layer || !layer->cold || row < 0 || row >= layer->rows || head < 0 || head >= layer->kv_heads)
        return 0;
    return layer->cold->recalled[ra_pair(layer, row, head)];
}

size_t ra_pool_cold_bytes(const ra_pool *pool) { return pool->cold_bytes; }

/* What statistics have of the tokens is what steps leave. */
static bool carries_well(const ra_layer *layer, const ra_cold_block *block)
{
    const ra_cold *cold = layer->cold;
    size_t carried = 2 * cold->row_bytes;
    for (int64_t i = 0; i < block->count; i++) {
        const char *from = block->records + (size_t)i * cold->record_bytes + carried;
        for (int s = 0; s < RA_STATS; s++) {
            int32_t entries[RA_MOST_FIELDS];
            if (!layer->columns[s] || !ra_stats[s]->lasting)
                continue;
            memcpy(entries, from, (size_t)ra_stats[s]->fields * 4);
            if (ra_stats[s]->holds && !ra_stats[s]->holds(1, entries))
                return false;
            from += ra_stats[s]->fields * 4;
        }
    }
    return true;
}

/* All keys and values can be stored in pages. */
static bool all_hold(const ra_layer *layer, const ra_cold_block *block)
{
    const ra_format *format = layer->pool->format;
    float *floats = ra_new(2 * PAGE * layer->pool->head_dim, sizeof *floats);
    bool holds = floats != NULL;
    for (int64_t i = 0; holds && i < block->count; i++) {
        ra_rows keys, values;
        ra_cold_rows(layer, block, i, 1, floats, &keys, &values);
        holds = format->holds(keys.dtype, keys.data, layer->pool->head_dim) &&
                format->holds(values.dtype, values.data, layer->pool->head_dim);
    }
    free(floats);
    return holds && carries_well(layer, block);
}

ra_status ra_cold_restore(ra_layer *layer, int64_t row, int64_t head, int64_t count, const int32_t *positions,
                          const void *records)
{
    if (!layer || !layer->cold || row < 0 || row >= layer->rows || head < 0 || head >= layer->kv_heads || count < 0 ||
        count > INT32_MAX || (count && (!positions || !records)) ||
        (layer->cold->limit >= 0 && count > layer->cold->limit) || ra_cold_count(block_of(layer, row, head)))
        return RA_ERR_ARGUMENT;
    ra_cut_abandon(layer);
    int64_t pair = ra_pair(layer, row, head);
    const int32_t *hot = ra_positions_of(layer, pair);
    for (int64_t i = 0, slot = 0; i < count; i++) {
        if (positions[i] < (i ? positions[i - 1] + 1 : 0) || positions[i] >= layer->tokens[row])
            return RA_ERR_ARGUMENT;
        while (slot < layer->slots[pair] && hot[slot] < positions[i])
            slot++;
        if (slot < layer->slots[pair] && hot[slot] == positions[i])
            return RA_ERR_ARGUMENT; /* a token is hot or cold */
    }
    if (!count)
        return RA_OK;
    ra_cold_block *block = ra_cold_make(count, (size_t)count * layer->cold->record_bytes);
    if (!block)
        return RA_ERR_NO_MEMORY;
    memcpy(block->positions, positions, (size_t)count * sizeof *positions);
    memcpy(block->records, records, (size_t)count * layer->cold->record_bytes);
    if (!all_hold(layer, block)) {
        free(block);
        return RA_ERR_NOT_FINITE;
    }
    ra_cold_put(layer, pair, block, NULL);
    return RA_OK;
}
