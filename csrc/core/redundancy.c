/* R-KV's redundancy (arXiv 2505.24133) without the n x n matrix.
 *
 * With unit keys u_i the column mean of the cosine matrix (zero diagonal, one entry of each row zeroed) is
 *     mean_j = (u_j . sum_i u_i  -  u_j . u_j  -  sum of the zeroed entries of column j) / n
 * The zeroed entry of row i is its newest similar key. It is looked for from the newest page backwards and found at
 * once on real keys, which resemble their neighbours. Keys are never copied: u = k / (|k| + 1e-8) is applied to the
 * dot products. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define NORM_FLOOR 1e-8f

typedef struct scratch {
    float *inverse;  /* [pages * 16]: 1 / (|k| + 1e-8) */
    double *removed; /* [slots]: zeroed entries of each column */
    float *sum;      /* [D]: sum of the unit keys */
    float *rows;     /* [16][D]: the unit keys of one page */
} scratch;

static void unit_norms(const ra_span *span, scratch *s)
{
    for (int64_t page = 0; page * PAGE < span->slots; page++) {
        float *inverse = &s->inverse[page * PAGE];
        span->kernels->square_norms(ra_span_k(span, page), (size_t)span->d, inverse);
        for (int64_t t = 0; t < PAGE; t++)
            inverse[t] = page * PAGE + t < span->slots ? 1 / (sqrtf(inverse[t]) + NORM_FLOOR) : 0;
        span->kernels->weighted_sum(ra_span_k(span, page), inverse, (size_t)span->d, s->sum);
    }
}

/* Finds, for the `count` keys of page `home`, the newest similar other key and adds the entry to `removed`. */
static void remove_last_similar(const ra_span *span, float threshold, int64_t home, int64_t count, scratch *s)
{
    float dots[PAGE * PAGE];
    int64_t row_of[PAGE], left = count, d = span->d;
    for (int64_t r = 0; r < count; r++) {
        row_of[r] = r;
        float *row = &s->rows[r * d];
        ra_span_key(span, home * PAGE + r, row);
        ra_kernels_get()->scale(row, (size_t)d, s->inverse[home * PAGE + r]);
    }
    for (int64_t page = ra_pages_for(span->slots) - 1; page >= 0 && left; page--) {
        span->kernels->qk(s->rows, (size_t)left, ra_span_k(span, page), (size_t)d, dots);
        int64_t tokens = ra_min(PAGE, span->slots - page * PAGE), still = 0;
        for (int64_t r = 0; r < left; r++) {
            int64_t self = home * PAGE + row_of[r], found = -1;
            for (int64_t t = tokens - 1; t >= 0 && found < 0; t--) {
                int64_t j = page * PAGE + t;
                float cosine = j == self ? 0 : dots[r * PAGE + t] * s->inverse[j];
                if (cosine > threshold) {
                    s->removed[j] += (double)cosine;
                    found = j;
                }
            }
            if (found >= 0)
                continue;
            if (page == 0 && self != 0) /* no similar key at all: entry 0 is zeroed; it is the diagonal of row 0 */
                s->removed[0] += (double)(dots[r * PAGE] * s->inverse[0]);
            if (still != r)
                memcpy(&s->rows[still * d], &s->rows[r * d], (size_t)d * sizeof(float));
            row_of[still++] = row_of[r];
        }
        left = still;
    }
}

static void column_means(const ra_span *span, const scratch *s, float *out)
{
    float dots[PAGE], squares[PAGE];
    for (int64_t page = 0; page * PAGE < span->slots; page++) {
        span->kernels->qk(s->sum, 1, ra_span_k(span, page), (size_t)span->d, dots);
        span->kernels->square_norms(ra_span_k(span, page), (size_t)span->d, squares);
        for (int64_t t = 0; t < ra_min(PAGE, span->slots - page * PAGE); t++) {
            int64_t j = page * PAGE + t;
            double inverse = (double)s->inverse[j];
            double column = (double)dots[t] * inverse - (double)squares[t] * inverse * inverse - s->removed[j];
            out[j] = (float)(column / (double)span->slots);
        }
    }
}

ra_status ra_redundancy(const ra_span *span, float threshold, float *out)
{
    int64_t n = span->slots, pages = ra_pages_for(n);
    if (n < 1)
        return RA_OK;
    scratch s = {.inverse = ra_new(pages * PAGE, sizeof(float)),
                 .removed = calloc((size_t)n, sizeof(double)),
                 .sum = calloc((size_t)span->d, sizeof(float)),
                 .rows = ra_new(PAGE * span->d, sizeof(float))};
    ra_status status = RA_ERR_NO_MEMORY;
    if (s.inverse && s.removed && s.sum && s.rows) {
        unit_norms(span, &s);
        for (int64_t page = 0; page < pages; page++)
            remove_last_similar(span, threshold, page, ra_min(PAGE, n - page * PAGE), &s);
        column_means(span, &s, out);
        ra_softmax(out, n);
        status = RA_OK;
    }
    free(s.inverse);
    free(s.removed);
    free(s.sum);
    free(s.rows);
    return status;
}
