/* What a page looks like: one file an entry. Nothing else knows; the kernels of cpu/simd are found by `id`. */
#ifndef RA_FORMAT_H
#define RA_FORMAT_H

#include "kernels.h"
#include "util.h"

/* Rows of elements, `stride` bytes apart. */
typedef struct ra_rows {
    const char *data;
    int64_t stride;
    ra_dtype dtype;
} ra_rows;

struct ra_format {
    const char *name;
    int id; /* index of its kernels, ra_kernels.page */
    size_t (*page_bytes)(int64_t d);
    size_t (*value_offset)(int64_t d); /* of V in a page */
    /* Whether a row of D elements can be stored: finite as it came and as it is kept. */
    bool (*holds)(ra_dtype dtype, const void *row, int64_t d);
    /* Tokens `slot` to slot + count - 1 of a page: rows of D elements, `stride` bytes apart. */
    void (*write)(void *page, int64_t slot, int64_t count, int64_t d, const ra_rows *keys, const ra_rows *values);
    void (*read_key)(const void *page, int64_t slot, int64_t d, float *out);
    void (*read_value)(const void *page, int64_t slot, int64_t d, float *out);
    /* Slots from[i] of a page, ascending, go to slots to, to + 1, ... of a page, `count` of them; both pages may be one,
     * where from[i] >= to + i. */
    void (*move)(const void *source, const uint8_t *from, void *target, int64_t to, int64_t count, int64_t d);
};

extern const ra_format ra_format_f32, ra_format_bf16, ra_format_f16;

/* The format that stores a dtype as it is. */
const ra_format *ra_format_of(ra_dtype dtype);

/* ---- A head's pages as the kernels' callers see them ---- */

typedef struct ra_span {
    const ra_format *format;
    const ra_page_kernels *kernels;
    int64_t d, slots;
    size_t page_bytes, value_offset;
    void *const *memory; /* by page id, or NULL: then pages lie one behind the other from `base` */
    const char *base;
    const int32_t *ids; /* page ids in order */
} ra_span;

static inline ra_span ra_span_with(const ra_format *format, int64_t d, int64_t slots, const int32_t *ids)
{
    return (ra_span){.format = format,
                     .kernels = &ra_kernels_get()->page[format->id],
                     .d = d,
                     .slots = slots,
                     .page_bytes = format->page_bytes(d),
                     .value_offset = format->value_offset(d),
                     .ids = ids};
}
static inline const char *ra_span_k(const ra_span *span, int64_t page)
{
    int32_t id = span->ids[page];
    return span->memory ? (const char *)span->memory[id] : span->base + (size_t)id * span->page_bytes;
}
static inline const char *ra_span_v(const ra_span *span, int64_t page)
{
    return ra_span_k(span, page) + span->value_offset;
}
/* Key `slot` of the head as D floats. */
static inline void ra_span_key(const ra_span *span, int64_t slot, float *out)
{
    span->format->read_key(ra_span_k(span, slot / PAGE), slot % PAGE, span->d, out);
}

#endif
