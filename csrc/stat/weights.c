/* Attention weights of a token, reduced over the group. */
#include "weights.h"

typedef struct piece {
    const float *parts, *factors;
    int64_t page, pages, stride, rows;
} piece;

/* Queries from `first` on over the chunk that begins at a page. */
static piece piece_of(const ra_weights *w, int64_t first, int64_t page)
{
    int64_t all = ra_pages_for(w->slots), rows = ra_min(w->height, w->group - first);
    int64_t stride = w->group <= w->height ? w->stride : rows;
    return (piece){.parts = w->parts + first * all * PAGE + page * stride * PAGE,
                   .factors = w->factors + page / w->chunk_pages * w->group + first,
                   .page = page,
                   .pages = ra_min(w->chunk_pages, all - page),
                   .stride = stride,
                   .rows = rows};
}

void ra_weights_sum(const ra_weights *weights, float keep, float *out)
{
    const ra_kernels *kernels = ra_kernels_get();
    for (int64_t page = 0; page * PAGE < weights->slots; page += weights->chunk_pages)
        for (int64_t first = 0; first < weights->group; first += weights->height) {
            piece x = piece_of(weights, first, page);
            kernels->weigh(x.parts, (size_t)x.stride, (size_t)x.rows, x.factors, (size_t)x.pages, first ? 1 : keep,
                           out + page * PAGE);
        }
}

void ra_weights_max(const ra_weights *weights, float *out)
{
    const ra_kernels *kernels = ra_kernels_get();
    for (int64_t page = 0; page * PAGE < weights->slots; page += weights->chunk_pages)
        for (int64_t first = 0; first < weights->group; first += weights->height) {
            piece x = piece_of(weights, first, page);
            kernels->peak(x.parts, (size_t)x.stride, (size_t)x.rows, x.factors, (size_t)x.pages, first > 0,
                          out + page * PAGE);
        }
}
