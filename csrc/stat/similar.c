/* The newest similar key of each key.
 *
 * Real keys resemble one of the newest few, so all pages are swept with the newest keys as queries until every key of a
 * page has found one. The few that are left are gathered, 16 at a time, and go through the pages from the newest to the
 * oldest. Keys known from an earlier time need only be compared with what has come since, and, where their newest
 * similar key was evicted, with what lies before it. */
#include <stdlib.h>
#include <string.h>

#include "ahead.h"
#include "redundancy.h"

#define BATCH 4         /* newest keys that are compared at a time: a tile of the kernels */
#define MOST_QUERIES 255 /* of the sweep: bounds its scratch memory */
#define PATIENCE 11     /* newest keys after which a page with few keys left is swept no further */
#define FEW 4
#define SLICES 8 /* comparisons of a page over which the next one is brought in */

/* What the sweep of the known slots' pages says of a new key: those are all the pages that it still has to go through
 * if no new key is like it. */
typedef struct seen {
    int64_t pages;  /* it was compared with */
    int32_t newest; /* similar slot among them, RA_NONE_SIMILAR: none */
    float cosine;
} seen;

typedef struct search {
    const ra_span *span;
    ra_known *known;
    float threshold;
    ra_streams streams;
    int64_t queries, gathered; /* newest keys that the sweep may use, and those that lie in `rows` */
    float *rows;               /* [1 + queries][D]: sum of the unit keys, then the newest unit keys, newest first */
    float *dots;
    int64_t *left, left_count; /* slots for which the sweep found nothing */
    int64_t *from;             /* ... among the keys from there on */
    seen *seen;                /* [queries] */
} search;

static void unit_key(const search *s, int64_t slot, float *out)
{
    ra_span_key(s->span, slot, out);
    ra_kernels_get()->scale(out, (size_t)s->span->d, s->known->inverse[slot]);
}

/* One past the slots that still have to be looked at among those known before. */
static int64_t old_bound(const search *s, int64_t slot)
{
    if (slot >= s->known->slots)
        return s->known->slots;
    int32_t similar = s->known->similar[slot];
    return similar >= RA_NONE_SIMILAR ? 0 : ra_similar_bound(similar);
}

static void found(search *s, int64_t slot, int64_t similar, float cosine)
{
    s->known->similar[slot] = (int32_t)similar;
    s->known->cosine[slot] = similar == slot ? 0 : cosine;
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
static void put_off(search *s, int64_t slot, int64_t from)
{
    int64_t query = s->span->slots - 1 - slot;
    if (slot >= s->known->slots && from <= s->known->slots && query < s->queries &&
        s->seen[query].pages == ra_pages_for(s->known->slots)) {
        found(s, slot, s->seen[query].newest, s->seen[query].cosine);
    } else if (from > s->known->slots || old_bound(s, slot)) {
        s->left[s->left_count] = slot;
        s->from[s->left_count++] = from;
    } else if (slot >= s->known->slots || s->known->similar[slot] < RA_NONE_SIMILAR) {
        s->known->similar[slot] = RA_NONE_SIMILAR;
    }
}

/* A new key was compared with a page that has known slots: their newest similar one, pages come in ascending order. */
static void remember(search *s, int64_t query, int64_t base, uint32_t hits, const float *products, const float *inverse)
{
    s->seen[query].pages++;
    for (int64_t t = ra_min(PAGE, s->known->slots - base) - 1; t >= 0; t--)
        if (hits >> t & 1) {
            s->seen[query].newest = (int32_t)(base + t);
            s->seen[query].cosine = products[t] * inverse[t];
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
    memcpy(inverse, s->known->inverse + base, (size_t)ra_min(PAGE, n - base) * sizeof *inverse);
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
            if (base < s->known->slots)
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
            put_off(s, base + t, n - done);
}

/* Up to 16 keys on their way through the pages. */
typedef struct party {
    int64_t count, slot[PAGE], from[PAGE], bound[PAGE];
    float *rows; /* [16][D] */
} party;

static bool wants(const search *s, const party *p, int64_t r, int64_t similar)
{
    return similar >= s->known->slots ? similar < p->from[r] : similar < p->bound[r];
}

/* Whether row r is done with everything from `page` on: no key before it is wanted. */
static bool is_through(const search *s, const party *p, int64_t r, int64_t page)
{
    return p->bound[r] == 0 && page * PAGE <= s->known->slots;
}

static void visit_page(search *s, party *p, int64_t page, bool needed)
{
    const ra_span *span = s->span;
    int64_t tokens = ra_min(PAGE, span->slots - page * PAGE), still = 0, d = span->d;
    float dots[PAGE * PAGE];
    if (needed)
        span->kernels->qk(p->rows, (size_t)p->count, ra_span_k(span, page), (size_t)d, NULL, dots);
    for (int64_t r = 0; r < p->count; r++) {
        bool hit = false;
        uint32_t hits = 0;
        if (needed)
            hits = ra_kernels_get()->above(dots + r * PAGE, s->known->inverse + page * PAGE, s->threshold);
        hits = with_diagonal(s, hits, p->slot[r] - page * PAGE);
        for (int64_t t = tokens - 1; t >= 0 && hits && !hit; t--)
            if ((hits >> t & 1) && wants(s, p, r, page * PAGE + t)) {
                found(s, p->slot[r], page * PAGE + t, dots[r * PAGE + t] * s->known->inverse[page * PAGE + t]);
                hit = true;
            }
        if (hit)
            continue;
        if (is_through(s, p, r, page) || page == 0) {
            if (p->slot[r] >= s->known->slots || s->known->similar[p->slot[r]] < RA_NONE_SIMILAR)
                s->known->similar[p->slot[r]] = RA_NONE_SIMILAR;
            continue;
        }
        if (still != r) {
            memcpy(p->rows + still * d, p->rows + r * d, (size_t)d * sizeof *p->rows);
            p->slot[still] = p->slot[r];
            p->from[still] = p->from[r];
            p->bound[still] = p->bound[r];
        }
        still++;
    }
    p->count = still;
}

/* The keys that were put off, from number `first` on. */
static void send_party(search *s, int64_t first, float *rows)
{
    party p = {.count = ra_min(PAGE, s->left_count - first), .rows = rows};
    int64_t from = 0, bound = 0;
    for (int64_t r = 0; r < p.count; r++) {
        p.slot[r] = s->left[first + r];
        p.from[r] = s->from[first + r];
        p.bound[r] = old_bound(s, p.slot[r]);
        from = ra_max(from, p.from[r]);
        bound = ra_max(bound, p.bound[r]);
        unit_key(s, p.slot[r], rows + r * s->span->d);
    }
    for (int64_t page = ra_pages_for(s->span->slots) - 1; page >= 0 && p.count; page--) {
        int64_t begin = page * PAGE, end = begin + PAGE;
        bool needed = begin < bound || (end > s->known->slots && begin < from);
        visit_page(s, &p, page, needed);
    }
}

ra_status ra_find_similar(ra_known *known, const ra_span *span, float threshold, float *dots)
{
    int64_t n = span->slots, fresh = n - known->slots, d = span->d;
    search s = {.span = span, .known = known, .threshold = threshold, .queries = ra_min(fresh, MOST_QUERIES),
                .dots = dots, .streams = ra_streams_of(PAGE * (size_t)d * ra_dtype_size(span->dtype))};
    float *rows = ra_new(PAGE * d, sizeof *rows);
    s.rows = ra_new((1 + s.queries) * d, sizeof *s.rows);
    s.left = ra_new(n, sizeof *s.left);
    s.from = ra_new(n, sizeof *s.from);
    s.seen = ra_new(s.queries, sizeof *s.seen);
    ra_status status = RA_ERR_NO_MEMORY;
    if (rows && s.rows && s.left && s.from && s.seen) {
        for (int64_t i = 0; i < s.queries; i++)
            s.seen[i] = (seen){.newest = RA_NONE_SIMILAR};
        for (int64_t c = 0; c < d; c++)
            s.rows[c] = (float)known->sum[c];
        for (int64_t page = 0; page * PAGE < n; page++)
            sweep_page(&s, page);
        for (int64_t first = 0; first < s.left_count; first += PAGE)
            send_party(&s, first, rows);
        status = RA_OK;
    }
    free(rows);
    free(s.rows);
    free(s.left);
    free(s.from);
    free(s.seen);
    return status;
}
