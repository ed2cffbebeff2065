/* What a layer holds, read. */
#include <stdlib.h>
#include <string.h>

#include "backend.h"

static bool has_row(const ra_layer *layer, int64_t row) { return row >= 0 && row < layer->rows; }

int64_t ra_layer_rows(const ra_layer *layer) { return layer->rows; }
int64_t ra_layer_kv_heads(const ra_layer *layer) { return layer->kv_heads; }
int64_t ra_layer_query_heads(const ra_layer *layer) { return layer->query_heads; }
int64_t ra_layer_window(const ra_layer *layer) { return layer->window; }
int64_t ra_layer_table_pages(const ra_layer *layer) { return layer->pages; }
const int32_t *ra_layer_table(const ra_layer *layer) { return layer->table; }
const int32_t *ra_layer_slots(const ra_layer *layer) { return layer->slots; }
int64_t ra_layer_tokens(const ra_layer *layer, int64_t row) { return has_row(layer, row) ? layer->tokens[row] : 0; }
int64_t ra_layer_row_slots(const ra_layer *layer, int64_t row)
{
    int64_t slots = 0;
    for (int64_t head = 0; head < layer->kv_heads && has_row(layer, row); head++)
        slots += layer->slots[ra_pair(layer, row, head)];
    return layer->lists == RA_LISTS_DEVICE && has_row(layer, row) ? layer->row_slots[row] : slots;
}

float ra_layer_softcap(const ra_layer *layer) { return layer->softcap; }

float ra_layer_scale(const ra_layer *layer) { return ra_scale_of(layer); }

ra_times ra_layer_times(const ra_layer *layer) { return layer->times; }

const int32_t *ra_layer_positions(const ra_layer *layer, int64_t row, int64_t head)
{
    if (!has_row(layer, row) || head < 0 || head >= layer->kv_heads)
        return NULL;
    return ra_positions_of(layer, ra_pair(layer, row, head));
}

int64_t ra_layer_queries(const ra_layer *layer, int64_t row, float *out)
{
    if (!has_row(layer, row))
        return 0;
    int64_t count = layer->q_end[row] - layer->q_begin[row], d = layer->pool->head_dim;
    for (int64_t i = 0; out && i < count; i++)
        for (int64_t h = 0; h < layer->query_heads; h++)
            memcpy(out + (h * count + i) * d, ra_query(layer, row, layer->q_begin[row] + i) + h * d,
                   (size_t)d * sizeof *out);
    return count;
}

ra_status ra_layer_read(const ra_layer *layer, int64_t row, int64_t head, bool values, float *out)
{
    if (!layer || row < 0 || row >= layer->rows || head < 0 || head >= layer->kv_heads || !out)
        return RA_ERR_ARGUMENT;
    ra_span span = ra_span_of(layer, ra_pair(layer, row, head));
    const ra_device *device = layer->pool->backend->device;
    char *copy = device ? ra_new((int64_t)span.page_bytes, 1) : NULL; /* of a page */
    if (device && !copy)
        return RA_ERR_NO_MEMORY;
    for (int64_t slot = 0; slot < span.slots; slot++, out += span.d) {
        const char *page = device ? copy : ra_span_k(&span, slot / PAGE);
        if (device && slot % PAGE == 0) {
            ra_status status = device->down(layer->pool, copy, ra_span_k(&span, slot / PAGE), span.page_bytes);
            if (status != RA_OK) {
                free(copy);
                return status;
            }
        }
        (values ? span.format->read_value : span.format->read_key)(page, slot % PAGE, span.d, out);
    }
    free(copy);
    return RA_OK;
}
