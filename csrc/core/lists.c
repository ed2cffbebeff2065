/* Lists that a device keeps: which memory's are current, and what the host knows without looking.
 *
 * While the device's are ahead, `slots` of the host bounds each head from above and `row_slots` the sum of a row's, so that
 * the pages that a layer may have taken are bounded too: what the pool has promised to its layers. */
#include "backend.h"

static const ra_device *device_of(const ra_pool *pool) { return pool->backend->device; }

int64_t ra_lists_pages(const ra_layer *layer, const int64_t *begin, int64_t tokens)
{
    int64_t all = 0, H = layer->kv_heads;
    for (int64_t row = 0; row < layer->rows; row++) {
        int64_t fresh = begin ? begin[row + 1] - begin[row] : tokens, each = 0;
        for (int64_t head = 0; head < H; head++)
            each += ra_pages_for(layer->slots[ra_pair(layer, row, head)] + fresh);
        all += ra_min(each, (layer->row_slots[row] + H * (fresh + PAGE - 1)) / PAGE);
    }
    return all;
}

static void promise(ra_layer *layer, int64_t pages)
{
    layer->pool->promised += pages - layer->promised;
    layer->promised = pages;
}

void ra_lists_changed(ra_layer *layer)
{
    if (!device_of(layer->pool))
        return;
    for (int64_t row = 0; row < layer->rows; row++) {
        layer->row_slots[row] = 0;
        for (int64_t head = 0; head < layer->kv_heads; head++)
            layer->row_slots[row] += layer->slots[ra_pair(layer, row, head)];
    }
    promise(layer, ra_lists_pages(layer, NULL, 0));
}

void ra_lists_stepped(ra_layer *layer, const int64_t *begin, int64_t tokens)
{
    promise(layer, ra_lists_pages(layer, begin, tokens));
    for (int64_t row = 0; row < layer->rows; row++) {
        int64_t fresh = begin ? begin[row + 1] - begin[row] : tokens;
        if (!fresh)
            continue;
        for (int64_t head = 0; head < layer->kv_heads; head++)
            layer->slots[ra_pair(layer, row, head)] += (int32_t)fresh;
        layer->row_slots[row] += layer->kv_heads * fresh;
        layer->tokens[row] += fresh;
        layer->q_end[row] = layer->tokens[row];
        layer->q_begin[row] = ra_max(layer->q_begin[row], layer->q_end[row] - layer->window);
    }
    layer->lists = layer->pool->lists = RA_LISTS_DEVICE;
}

void ra_lists_cut(ra_layer *layer, const int64_t *totals)
{
    for (int64_t row = 0; row < layer->rows; row++) {
        if (totals[row] < 0)
            continue;
        layer->row_slots[row] = ra_min(layer->row_slots[row], totals[row]);
        for (int64_t head = 0; head < layer->kv_heads; head++) {
            int32_t *slots = &layer->slots[ra_pair(layer, row, head)];
            *slots = (int32_t)ra_min(*slots, totals[row]);
        }
    }
    promise(layer, ra_lists_pages(layer, NULL, 0));
    layer->lists = layer->pool->lists = RA_LISTS_DEVICE;
}

void ra_lists_applied(ra_layer *layer)
{
    for (int64_t pair = 0; pair < ra_pairs(layer); pair++)
        if (layer->cut.cut[pair / layer->kv_heads])
            layer->slots[pair] = layer->cut.keep[pair];
    ra_lists_changed(layer);
    layer->lists = layer->pool->lists = RA_LISTS_DEVICE;
}

void ra_lists_close(ra_layer *layer)
{
    const ra_device *device = device_of(layer->pool);
    if (!device)
        return;
    promise(layer, 0);
    device->layer_close(layer);
}

static ra_status pull(ra_pool *pool, ra_layer *layer)
{
    bool stale = pool->lists == RA_LISTS_DEVICE || (layer && layer->lists == RA_LISTS_DEVICE);
    if (!device_of(pool) || !stale)
        return RA_OK;
    ra_status status = device_of(pool)->pull(pool, layer);
    if (status != RA_OK)
        return status;
    if (pool->lists == RA_LISTS_DEVICE) {
        ra_pool_recount(pool);
        pool->lists = RA_LISTS_BOTH;
    }
    if (layer && layer->lists == RA_LISTS_DEVICE) {
        layer->lists = RA_LISTS_BOTH;
        ra_lists_changed(layer);
    }
    return RA_OK;
}

bool ra_lists_fit_capture(const ra_layer *layer)
{
    return layer->lists != RA_LISTS_HOST && layer->pool->lists != RA_LISTS_HOST;
}

ra_status ra_layer_wait(ra_layer *layer) { return layer ? pull(layer->pool, layer) : RA_ERR_ARGUMENT; }

ra_status ra_pool_wait(ra_pool *pool) { return pool ? pull(pool, NULL) : RA_ERR_ARGUMENT; }

ra_status ra_lists_write(ra_layer *layer)
{
    ra_status status = pull(layer->pool, layer);
    if (status == RA_OK && device_of(layer->pool))
        layer->lists = layer->pool->lists = RA_LISTS_HOST;
    return status;
}

ra_status ra_pool_write(ra_pool *pool)
{
    ra_status status = pull(pool, NULL);
    if (status == RA_OK && device_of(pool))
        pool->lists = RA_LISTS_HOST;
    return status;
}

ra_status ra_lists_write_all(ra_pool *pool)
{
    ra_status status = ra_pool_write(pool);
    for (ra_layer *layer = pool->layers; layer && status == RA_OK; layer = layer->next)
        status = ra_lists_write(layer);
    return status;
}
