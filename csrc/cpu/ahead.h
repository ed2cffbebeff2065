/* Which memory is read next, as the streams that kernels prefetch (ra_ahead). */
#ifndef RA_AHEAD_H
#define RA_AHEAD_H

#include "format.h"

/* The next `depth` pages, each cut into `segments`, RA_STREAMS streams together. While one page is read, 1/depth of
 * each of them comes in: `part` bytes of every stream. */
typedef struct ra_streams {
    int64_t segments, depth;
    size_t segment, part;
} ra_streams;

/* bytes: of a page, or of the half of it that is read. */
static inline ra_streams ra_streams_of(size_t bytes)
{
    int64_t segments = 1;
    while (segments < RA_STREAMS && bytes / (size_t)segments > 4096) /* the processor's prefetchers stop at 4 KiB */
        segments *= 2;
    return (ra_streams){.segments = segments,
                        .depth = RA_STREAMS / segments,
                        .segment = bytes / (size_t)segments,
                        .part = bytes / RA_STREAMS};
}

/* next: the pages that follow, depth of them. */
static inline void ra_streams_point(const ra_streams *s, const char *const *next, ra_ahead *ahead)
{
    for (int64_t step = 0; step < s->depth; step++)
        for (int64_t i = 0; i < s->segments; i++)
            ahead->stream[step * s->segments + i] = next[step] + (size_t)(s->depth - 1 - step) * s->part +
                                                    (size_t)i * s->segment;
}

/* The streams for reading page `page` of one head; past its last page that one again. */
static inline void ra_span_ahead(const ra_span *span, const ra_streams *s, int64_t page, ra_ahead *ahead)
{
    const char *next[RA_STREAMS];
    int64_t last = ra_pages_for(span->slots) - 1;
    for (int64_t step = 0; step < s->depth; step++)
        next[step] = ra_span_k(span, ra_min(last, page + 1 + step));
    ra_streams_point(s, next, ahead);
}

/* Brings in bytes [begin, end) of every stream, between work that needs no memory. */
static inline void ra_prefetch(const ra_ahead *ahead, size_t begin, size_t end)
{
    for (size_t at = begin; at < end; at += 64)
        for (int64_t i = 0; i < RA_STREAMS; i++)
            __builtin_prefetch(ahead->stream[i] + at);
}

#endif
