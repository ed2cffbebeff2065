/* Reading and writing single tokens of pages. */
#include <string.h>

#include "internal.h"

ra_span ra_span_of(const ra_layer *layer, int64_t row, int64_t head)
{
    const ra_head *h = ra_head_at(layer, row, head);
    const ra_pool *pool = layer->pool;
    return (ra_span){.kernels = &ra_kernels_get()->page[pool->dtype],
                     .dtype = pool->dtype,
                     .d = pool->head_dim,
                     .slots = h->slots,
                     .memory = pool->memory,
                     .ids = h->pages};
}

void ra_span_key(const ra_span *span, int64_t slot, float *out)
{
    const char *column = ra_span_k(span, slot / PAGE);
    size_t size = ra_dtype_size(span->dtype);
    column += (size_t)(slot % PAGE) * size;
    if (span->dtype == RA_F32) {
        for (int64_t c = 0; c < span->d; c++)
            memcpy(&out[c], column + (size_t)c * PAGE * 4, 4);
        return;
    }
    uint16_t packed[RA_MAX_HEAD_DIM];
    for (int64_t c = 0; c < span->d; c++)
        memcpy(&packed[c], column + (size_t)c * PAGE * 2, 2);
    span->kernels->to_float(packed, (size_t)span->d, out);
}

void ra_page_write(ra_dtype dtype, int64_t d, void *page, int64_t token, const void *key, const void *value)
{
    size_t size = ra_dtype_size(dtype), row = (size_t)d * size;
    if (size == 4) {
        uint32_t *k = (uint32_t *)page + token;
        for (int64_t c = 0; c < d; c++)
            memcpy(&k[c * PAGE], (const char *)key + 4 * c, 4);
    } else {
        uint16_t *k = (uint16_t *)page + token;
        for (int64_t c = 0; c < d; c++)
            memcpy(&k[c * PAGE], (const char *)key + 2 * c, 2);
    }
    memcpy((char *)page + row * PAGE + row * (size_t)token, value, row);
}
