/* Softmaxes of each query head, averaged over queries and group, pooled. */
#include "head_attention.h"

#include <string.h>

static int64_t room_for(int64_t slots) { return ra_pages_for(slots) * PAGE; }

/* Logits of `m` queries from number `first` on, [m][slots, whole pages]. */
static void logits_of(const ra_score_view *view, int64_t first, int64_t m, int64_t slots, float *logits)
{
    const ra_span *span = &view->span;
    float dots[RA_TILE_ROWS * PAGE];
    for (int64_t page = 0; page * PAGE < slots; page++) {
        span->kernels->qk(view->window.queries + first * span->d, (size_t)m, ra_span_k(span, page), (size_t)span->d,
                          NULL, dots);
        for (int64_t i = 0; i < m; i++)
            memcpy(logits + i * room_for(slots) + page * PAGE, dots + i * PAGE, PAGE * sizeof *dots);
    }
}

/* Sum of all softmaxes, [older]. logits: [RA_TILE_ROWS][slots, whole pages]. */
static void add_up(const ra_score_view *view, bool everything, int64_t slots, float *logits, float *sum)
{
    const ra_window *window = &view->window;
    int64_t group = window->group, rows = window->count * group;
    const float *sinks = everything && view->layer ? view->layer->sinks + view->head * group : NULL;
    memset(sum, 0, (size_t)view->older * sizeof *sum);
    for (int64_t first = 0; first < rows; first += RA_TILE_ROWS) {
        int64_t m = ra_min(RA_TILE_ROWS, rows - first);
        logits_of(view, first, m, slots, logits);
        for (int64_t i = 0; i < m; i++) {
            int64_t later = window->count - 1 - (first + i) / group; /* tokens that this query does not see */
            int64_t sees = everything ? slots - later : slots;
            float *row = logits + i * room_for(slots);
            ra_softcap(row, sees, window->softcap);
            ra_softmax(row, sees, sinks ? sinks[(first + i) % group] : -INFINITY);
            for (int64_t t = 0; t < view->older; t++)
                sum[t] += row[t];
        }
    }
}

/* Sums, not differences of running sums: what is small stays what it is. */
static void pool(const float *x, int64_t n, bool average, int64_t kernel, float factor, float *out)
{
    for (int64_t i = 0; i < n; i++) {
        int64_t from = ra_max(0, i - kernel / 2), to = ra_min(n, i + kernel / 2 + 1);
        float pooled = x[from];
        for (int64_t j = from + 1; j < to; j++)
            pooled = average ? pooled + x[j] : x[j] > pooled ? x[j] : pooled;
        out[i] = factor * pooled;
    }
}

size_t ra_head_attention_bytes(int64_t slots)
{
    ra_scratch count = {0};
    ra_scratch_take(&count, RA_TILE_ROWS + 1, (size_t)room_for(slots) * sizeof(float));
    return count.used + 64;
}

ra_status ra_head_attention(const ra_score_view *view, bool everything, bool average, int64_t kernel,
                            ra_scratch *scratch, float *out)
{
    const ra_window *window = &view->window;
    int64_t older = view->older, slots = everything ? view->span.slots : older;
    if (window->count < 1) { /* nothing was observed: no token matters more than another */
        for (int64_t i = 0; i < older; i++)
            out[i] = 1 / (float)older;
        return RA_OK;
    }
    float *logits = ra_scratch_take(scratch, RA_TILE_ROWS + 1, (size_t)room_for(slots) * sizeof *logits);
    if (!logits)
        return RA_ERR_NO_MEMORY;
    float *sum = logits + RA_TILE_ROWS * room_for(slots);
    add_up(view, everything, slots, logits, sum);
    double queries = (double)(window->count * window->group);
    pool(sum, older, average, kernel, (float)(1 / (average ? queries * (double)kernel : queries)), out);
    return RA_OK;
}
