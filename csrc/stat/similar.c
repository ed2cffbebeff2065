/* The newest similar key of each key.
 *
 * Real keys resemble one of the newest few, so all pages are swept with the newest keys as queries until every key of a
 * page has found one. The few that are left are gathered, 16 at a time, and go through the pages from the newest to the
 * oldest. Keys known from an earlier time need only be compared with what has come since, and, where their newest
 * similar key was evicted, with what lies before it. */
#include <string.h>

#include "ahead.h"
#include "nearest_key.h"

#define BATCH 4          /* newest keys that are compared at a time: a tile of the kernels */
#define MOST_QUERIES 255 /* of the sweep: bounds its scratch memory */
#define PATIENCE 11      /* newest keys after which a page with few keys left is swept no further */
#define FEW 4
#define SLICES 8 /* comparisons of a page over which the next one is brought in */

/* What the sweep of the known slots' pages says of a new key: those are all the pages that it still has to go through
 * if no new key is like it. */
typedef struct sweep_result {
    int64_t pages;  /* it was compared with */
    int32_t newest; /* similar slot among them, RA_NONE_SIMILAR: none */
    float cosine;
} sweep_result;

typedef struct search {
    const ra_span *span;
    ra_nearest *nearest;
    int64_t cached; /* slots known before */
    float threshold;
    ra_streams streams;
    int64_t queries, gathered; /* newest keys that the sweep may use, and those that lie in `rows` */
    float *rows;               /* [1 + queries][D]: sum of the unit keys, then the newest unit keys, newest first */
    float *dots;
    int64_t *left, left_count; /* slots for which the sweep found nothing */
    int64_t *from;             /* ... among the keys from there on */
    sweep_result *swept;       /* [queries] */
} search;

static void unit_key(const search *s, int64_t slot, float *out)
{
    ra_span_key(s->span, slot, out);
    ra_kernels_get()->scale(out, (size_t)s->span->d, s->nearest->inverse[slot]);
}

/* One past the slots that still have to be looked at among those known before. */
static int64_t old_bound(const search *s, int64_t slot)
{
    if (slot >= s->cached)
        return s->cached;
    int32_t similar = s->nearest->similar[slot];
    return similar >= RA_NONE_SIMILAR ? 0 : ra_similar_bound(similar);
}

static void found(search *s, int64_t slot, int64_t similar, float cosine)
{
    s->nearest->similar[slot] = (int32_t)similar;
    s->nearest->cosine[slot] = similar == slot ? 0 : cosine;
}

/* The diagonal is zero, which is similar only where the threshold is negative. */
static uint32_t with_diagonal(const search *s, uint32_t hits, int64_t lane)
{
    return lane < 0 || lane >= PAGE ? hits : s->threshold < 0 ? hits | 1u << lane : hits & ~(1u << lane);
}

static int64_t count_bits(uint32_t bits)
{
    int64_t count = 0;
    for (; bits; bits &= bits - 1)
        count++;
    return count;
}

/* A slot for which the newest keys down to slot `from` are not similar. */
static void leave_for_batch(search *s, int64_t slot, int64_t from)
{
    int64_t query = s->span->slots - 1 - slot;
    if (slot >= s->cached && from <= s->cached && query < s->queries &&
        s->swept[query].pages == ra_pages_for(s->cached)) {
        found(s, slot, s->swept[query].newest, s->swept[query].cosine);
    } else if (from > s->cached || old_bound(s, slot)) {
        s->left[s->left_count] = slot;
        s->from[s->left_count++] = from;
    } else if (slot >= s->cached || s->nearest->similar[slot] < RA_NONE_SIMILAR) {
        s->nearest->similar[slot] = RA_NONE_SIMILAR;
    }
}

/* A new key was compared with a page that has known slots: their newest similar one, pages come in ascending order. */
static void remember(search *s, int64_t query, int64_t base, uint32_t hits, const float *products, const float *inverse)
{
    s->swept[query].pages++;
    for (int64_t t = ra_min(PAGE, s->cached - base) - 1; t >= 0; t--)
        if (hits >> t & 1) {
            s->swept[query].newest = (int32_t)(base + t);
            s->swept[query].cosine = products[t] * inverse[t];
            return;
        }
}

static void sweep_page(search *s, int64_t page)
{
    const ra_span *span = s->span;
    int64_t n = span->slots, d = span->d, base = page * PAGE, done = 0;
    uint32_t left = (1u << ra_min(PAGE, n - base)) - 1;
    float dots[(1 + BATCH) * PAGE], inverse[PAGE] = {0};
    size_t at = 0, slice = (s->streams.part / 64 / SLICES + 1) * 64;
    ra_ahead ahead;
    ra_span_ahead(span, &s->streams, page, &ahead);
    memcpy(inverse, s->nearest->inverse + base, (size_t)ra_min(PAGE, n - base) * sizeof *inverse);
    do {
        int64_t sum = done == 0, take = ra_min(BATCH - sum, s->queries - done);
        for (; s->gathered < done + take; s->gathered++)
            unit_key(s, n - 1 - s->gathered, s->rows + (1 + s->gathered) * d);
        span->kernels->qk(s->rows + (sum ? 0 : 1 + done) * d, (size_t)(sum + take), ra_span_k(span, page), (size_t)d,
                          NULL, dots);
        if (at < s->streams.part)
            ra_prefetch(&ahead, at, at + slice);
        at += slice;
        if (sum)
            memcpy(s->dots + base, dots, (size_t)ra_min(PAGE, n - base) * sizeof *dots);
        for (int64_t i = 0; i < take; i++) {
            const float *products = dots + (sum + i) * PAGE;
            int64_t similar = n - 1 - done - i;
            uint32_t hits = ra_kernels_get()->above(products, inverse, s->threshold);
            hits = with_diagonal(s, hits, similar - base);
            if (base < s->cached)
                remember(s, done + i, base, hits, products, inverse);
            hits &= left;
            left &= ~hits;
            for (int64_t t = 0; hits; t++, hits >>= 1)
                if (hits & 1)
                    found(s, base + t, similar, products[t] * inverse[t]);
        }
        done += take;
    } while (left && done < s->queries && (done < PATIENCE || count_bits(left) > FEW));
    ra_prefetch(&ahead, at, s->streams.part);
    for (int64_t t = 0; left; t++, left >>= 1)
        if (left & 1)
            leave_for_batch(s, base + t, n - done);
}

/* Up to 16 keys on their way through the pages. */
typedef struct batch {
    int64_t count, slot[PAGE], from[PAGE], bound[PAGE];
    float *rows; /* [16][D] */
} batch;

static bool wants(const search *s, const batch *b, int64_t r, int64_t similar)
{
    return similar >= s->cached ? similar < b->from[r] : similar < b->bound[r];
}

/* Whether row r is done with everything from `page` on: no key before it is wanted. */
static bool is_through(const search *s, const batch *b, int64_t r, int64_t page)
{
    return b->bound[r] == 0 && page * PAGE <= s->cached;
}

static void visit_page(search *s, batch *b, int64_t page, bool needed)
{
    const ra_span *span = s->span;
    int64_t tokens = ra_min(PAGE, span->slots - page * PAGE), still = 0, d = span->d;
    float dots[PAGE * PAGE];
    if (needed)
        span->kernels->qk(b->rows, (size_t)b->count, ra_span_k(span, page), (size_t)d, NULL, dots);
    for (int64_t r = 0; r < b->count; r++) {
        bool hit = false;
        uint32_t hits = 0;
        if (needed)
            hits = ra_kernels_get()->above(dots + r * PAGE, s->nearest->inverse + page * PAGE, s->threshold);
        hits = with_diagonal(s, hits & ((1u << tokens) - 1), b->slot[r] - page * PAGE);
        for (int64_t t = tokens - 1; t >= 0 && hits && !hit; t--)
            if ((hits >> t & 1) && wants(s, b, r, page * PAGE + t)) {
                found(s, b->slot[r], page * PAGE + t, dots[r * PAGE + t] * s->nearest->inverse[page * PAGE + t]);
                hit = true;
            }
        if (hit)
            continue;
        if (is_through(s, b, r, page) || page == 0) {
            if (b->slot[r] >= s->cached || s->nearest->similar[b->slot[r]] < RA_NONE_SIMILAR)
                s->nearest->similar[b->slot[r]] = RA_NONE_SIMILAR;
            continue;
        }
        if (still != r) {
            memcpy(b->rows + still * d, b->rows + r * d, (size_t)d * sizeof *b->rows);
            b->slot[still] = b->slot[r];
            b->from[still] = b->from[r];
            b->bound[still] = b->bound[r];
        }
        still++;
    }
    b->count = still;
}

/* The keys that the sweep left over, from number `first` on. */
static void search_batch(search *s, int64_t first, float *rows)
{
    batch b = {.count = ra_min(PAGE, s->left_count - first), .rows = rows};
    int64_t from = 0, bound = 0;
    for (int64_t r = 0; r < b.count; r++) {
        b.slot[r] = s->left[first + r];
        b.from[r] = s->from[first + r];
        b.bound[r] = old_bound(s, b.slot[r]);
        from = ra_max(from, b.from[r]);
        bound = ra_max(bound, b.bound[r]);
        unit_key(s, b.slot[r], rows + r * s->span->d);
    }
    for (int64_t page = ra_pages_for(s->span->slots) - 1; page >= 0 && b.count; page--) {
        int64_t begin = page * PAGE, end = begin + PAGE;
        bool needed = begin < bound || (end > s->cached && begin < from);
        visit_page(s, &b, page, needed);
    }
}

/* Takes what a search needs from scratch; false if it does not fit. */
static bool take_scratch(search *s, int64_t slots, int64_t d, ra_scratch *scratch, float **rows)
{
    *rows = ra_scratch_take(scratch, PAGE * d, sizeof **rows);
    s->rows = ra_scratch_take(scratch, (1 + s->queries) * d, sizeof *s->rows);
    s->left = ra_scratch_take(scratch, slots, sizeof *s->left);
    s->from = ra_scratch_take(scratch, slots, sizeof *s->from);
    s->swept = ra_scratch_take(scratch, s->queries, sizeof *s->swept);
    return *rows && s->rows && s->left && s->from && s->swept;
}

size_t ra_find_similar_bytes(int64_t slots, int64_t head_dim)
{
    search s = {.queries = ra_min(slots, MOST_QUERIES)};
    ra_scratch count = {0};
    float *rows;
    (void)take_scratch(&s, slots, head_dim, &count, &rows);
    return count.used + 64;
}

ra_status ra_find_similar(ra_nearest *nearest, const ra_span *span, float threshold, ra_scratch *scratch, float *dots)
{
    int64_t n = span->slots, cached = nearest->state->slots, d = span->d;
    search s = {.span = span,
                .nearest = nearest,
                .cached = cached,
                .threshold = threshold,
                .queries = ra_min(n - cached, MOST_QUERIES),
                .dots = dots,
                .streams = ra_streams_of(span->value_offset)};
    float *rows;
    if (!take_scratch(&s, n, d, scratch, &rows))
        return RA_ERR_NO_MEMORY;
    for (int64_t i = 0; i < s.queries; i++)
        s.swept[i] = (sweep_result){.newest = RA_NONE_SIMILAR};
    for (int64_t c = 0; c < d; c++)
        s.rows[c] = (float)nearest->state->sum[c];
    for (int64_t page = 0; page * PAGE < n; page++)
        sweep_page(&s, page);
    for (int64_t first = 0; first < s.left_count; first += PAGE)
        search_batch(&s, first, rows);
    return RA_OK;
}
