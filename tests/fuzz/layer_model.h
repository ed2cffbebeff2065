/* Part of layer.c: what every head must hold, whose pages it shares, what is reserved; compared with what layers show. */
#ifndef RA_FUZZ_LAYER_MODEL_H
#define RA_FUZZ_LAYER_MODEL_H

#include "bytes.h"
#include "half.h"
#include "util.h"

#include <pthread.h>

enum {
    T = RA_PAGE_TOKENS,
    ROWS = 4,
    HEADS = 3,
    GROUP = 3,
    QUERY_HEADS = HEADS * GROUP,
    DIM = 40,
    WINDOW = 6,
    SLOTS = 640,
    PAGES = SLOTS / T,
    LAYERS = 3,
    MODEL_PAGES = LAYERS * ROWS * HEADS * PAGES * 2,
    SLABS = 512,
};

typedef struct m_head {
    int64_t slots;
    int32_t positions[SLOTS];
    int page[PAGES]; /* numbers of the model's own */
    float keys[SLOTS * DIM], values[SLOTS * DIM];
} m_head;

typedef struct m_row {
    int64_t tokens, queries;                 /* queries: of the newest `window`, oldest first */
    float query[WINDOW * QUERY_HEADS * DIM]; /* [queries][Hq][D] */
    m_head head[HEADS];
} m_row;

typedef struct m_layer {
    ra_layer *layer; /* NULL: none here */
    int64_t rows, reserved;
    bool sinks, pending; /* the newest step had them; a step is reserved */
    bool begun, chosen, cut[ROWS];
    int64_t keep[ROWS * HEADS];
    int32_t kept[ROWS * HEADS][SLOTS];
    m_row row[ROWS];
} m_layer;

typedef struct world {
    bytes *b;
    uint64_t random;
    ra_pool *pool;
    const ra_format *format;
    const ra_scorer *scorer; /* whose statistics are kept, or NULL */
    int64_t d, heads, group, window;
    float scale, softcap, sinks[QUERY_HEADS];
    float last_key[DIM];
    void *slab[SLABS];
    int64_t slab_pages[SLABS], pages;
    int refs[MODEL_PAGES];
    int64_t used;
    long operations;
    bool armed, with_sinks;
    m_layer layer[LAYERS];
} world;

static world w; /* too large for the stack */

/* What came of an operation. */
typedef enum outcome {
    DONE,
    REFUSED, /* as the header says that it must be */
    SKIPPED, /* nothing there to do it to */
    OUTCOMES
} outcome;

/* ---- Numbers ----------------------------------------------------------------------------------------------------- */

static uint64_t next_random(void)
{
    uint64_t z = (w.random += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int64_t below(int64_t n) { return (int64_t)(next_random() % (uint64_t)n); }

/* About normal. */
static float random_float(void)
{
    double sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (double)(next_random() >> 11) * 0x1p-53 - 0.5;
    return (float)(1.7 * sum);
}

/* To the nearest number that a dtype has, ties to even. */
static float rounded(ra_dtype dtype, float x)
{
    int exponent;
    (void)frexp((double)x, &exponent);
    int bits = dtype == RA_BF16 ? 8 : 11, least = dtype == RA_BF16 ? -133 : -24;
    if (dtype == RA_F32 || x == 0)
        return x;
    int unit = exponent - bits > least ? exponent - bits : least;
    return (float)ldexp(nearbyint(ldexp((double)x, -unit)), unit);
}

static ra_dtype dtype_of(const char *name)
{
    return !strcmp(name, "bfloat16") ? RA_BF16 : !strcmp(name, "float16") ? RA_F16 : RA_F32;
}

static void put(ra_dtype dtype, void *data, int64_t i, float x)
{
    uint16_t half = dtype == RA_BF16 ? ra_f32_to_bf16(x) : ra_f32_to_f16(x);
    if (dtype == RA_F32)
        ((float *)data)[i] = x;
    else
        ((uint16_t *)data)[i] = half;
}

static float get(ra_dtype dtype, const void *data, int64_t i)
{
    if (dtype == RA_F32)
        return ((const float *)data)[i];
    uint16_t half = ((const uint16_t *)data)[i];
    return dtype == RA_BF16 ? ra_bf16_to_f32(half) : ra_f16_to_f32(half);
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t pages_for(int64_t slots) { return (slots + T - 1) / T; }

/* ---- Failing allocations, and threads that come in another order ------------------------------------------------- */

static void arm(void)
{
    uint8_t x = take_byte(w.b);
    w.armed = x > 235;
    ra_fail_allocation(w.armed ? x - 235 : 0);
}

static void compare(bool all);

/* After a call: whether it failed for the memory that it was denied, and has to be called again. Nothing may have changed. */
static bool again(ra_status status)
{
    ra_fail_allocation(0);
    PROMISE(status != RA_ERR_NO_MEMORY || w.armed);
    if (status == RA_ERR_NO_MEMORY)
        compare(true);
    return status == RA_ERR_NO_MEMORY;
}

#define CALL(status, call)                                                                                             \
    do {                                                                                                               \
        arm();                                                                                                         \
        (status) = (call);                                                                                             \
    } while (again(status))

/* Parts of random length, the last one first. */
static void backwards(int64_t count, int64_t grain, ra_body body, void *context)
{
    while (count > 0) {
        int64_t part = least(count, grain + below(3));
        body(count - part, count, context);
        count -= part;
    }
}

typedef struct part {
    int64_t begin, end;
    ra_body body;
    void *context;
} part;

static void *run_part(void *argument)
{
    const part *p = argument;
    p->body(p->begin, p->end, p->context);
    return NULL;
}

/* All parts at the same time. */
static void threads(int64_t count, int64_t grain, ra_body body, void *context)
{
    enum { MOST = 3 };
    pthread_t id[MOST];
    part parts[MOST];
    int64_t size = most(grain, (count + MOST - 1) / MOST);
    int started = 0;
    for (int64_t begin = 0; begin < count; begin += size) {
        parts[started] = (part){begin, least(count, begin + size), body, context};
        PROMISE(!pthread_create(&id[started], NULL, run_part, &parts[started]));
        started++;
    }
    while (started)
        PROMISE(!pthread_join(id[--started], NULL));
}

static ra_parallel any_parallel(void)
{
    int64_t kind = below(16);
    return kind == 0 ? threads : kind < 8 ? backwards : NULL;
}

/* ---- The model's pages ------------------------------------------------------------------------------------------- */

static int take_page(void)
{
    static int hint;
    while (w.refs[hint])
        hint = (hint + 1) % MODEL_PAGES;
    w.refs[hint] = 1;
    w.used++;
    return hint;
}

static void drop_page(int page)
{
    PROMISE(w.refs[page] > 0);
    w.used -= --w.refs[page] == 0;
}

static void drop_pages(m_head *head, int64_t from)
{
    for (int64_t p = from; p < pages_for(head->slots); p++)
        drop_page(head->page[p]);
}

static void copy_head(m_head *to, const m_head *from)
{
    to->slots = from->slots;
    memcpy(to->positions, from->positions, (size_t)from->slots * sizeof *to->positions);
    memcpy(to->keys, from->keys, (size_t)(from->slots * w.d) * sizeof *to->keys);
    memcpy(to->values, from->values, (size_t)(from->slots * w.d) * sizeof *to->values);
    for (int64_t p = 0; p < pages_for(from->slots); p++)
        w.refs[to->page[p] = from->page[p]]++;
}

static void copy_row(m_row *to, const m_row *from)
{
    to->tokens = from->tokens;
    to->queries = from->queries;
    memcpy(to->query, from->query, sizeof to->query);
    for (int64_t h = 0; h < w.heads; h++)
        copy_head(&to->head[h], &from->head[h]);
}

static void empty_row(m_row *row)
{
    for (int64_t h = 0; h < w.heads; h++) {
        drop_pages(&row->head[h], 0);
        row->head[h].slots = 0;
    }
    row->tokens = row->queries = 0;
}

static int64_t all_reserved(void)
{
    int64_t sum = 0;
    for (int i = 0; i < LAYERS; i++)
        sum += w.layer[i].layer ? w.layer[i].reserved : 0;
    return sum;
}

static int64_t spare_pages(void) { return w.pages - w.used - all_reserved(); }

static void add_slab(int64_t pages)
{
    size_t size = (size_t)pages * ra_pool_page_bytes(w.pool);
    void *memory = aligned_alloc(64, (size + 63) / 64 * 64);
    PROMISE(memory);
    memset(memory, 0xff, size); /* NaN: nothing may rely on what is there */
    int64_t id;
    ra_status status;
    CALL(status, ra_pool_add_slab(w.pool, memory, pages, &id));
    PROMISE(status == RA_OK && id >= 0 && id < SLABS && !w.slab[id]);
    PROMISE(ra_pool_add_slab(w.pool, (char *)memory + 64 * below((int64_t)(size + 63) / 64), 1, &id) ==
            RA_ERR_ARGUMENT);
    w.slab[id] = memory;
    w.slab_pages[id] = pages;
    w.pages += pages;
}

/* Changes nothing that a layer shows, whatever is under way. */
static outcome op_trim(m_layer *m)
{
    int64_t ids[8], count, keep = below(5) ? below(6) : INT64_MAX - below(5), before = w.pages - w.used;
    ra_status status;
    (void)m;
    CALL(status, ra_pool_trim(w.pool, keep, ids, below(9), &count));
    PROMISE(status == RA_OK && count >= 0 && count <= 8);
    for (int64_t i = 0; i < count; i++) {
        PROMISE(ids[i] >= 0 && ids[i] < SLABS && w.slab[ids[i]]);
        w.pages -= w.slab_pages[ids[i]];
        memset(w.slab[ids[i]], 0xee, (size_t)w.slab_pages[ids[i]] * ra_pool_page_bytes(w.pool));
        free(w.slab[ids[i]]);
        w.slab[ids[i]] = NULL;
    }
    PROMISE(w.pages - w.used >= least(keep, before) && spare_pages() >= 0);
    return count ? DONE : SKIPPED;
}

/* Answers RA_ERR_NO_PAGES. */
static void add_missing(int64_t missing, int64_t needed)
{
    PROMISE(missing == needed - spare_pages() && missing > 0);
    compare(false);
    add_slab(missing + (below(4) ? 0 : below(80)));
}

/* ---- The whole state --------------------------------------------------------------------------------------------- */

static void compare_head(const m_layer *m, int64_t row, int64_t head, bool all)
{
    const m_head *h = &m->row[row].head[head];
    PROMISE(ra_layer_slots(m->layer)[row * w.heads + head] == h->slots);
    if (h->slots)
        PROMISE(
            !memcmp(ra_layer_positions(m->layer, row, head), h->positions, (size_t)h->slots * sizeof *h->positions));
    if (!all || !h->slots)
        return;
    float *got = exactly((size_t)(h->slots * w.d) * sizeof *got);
    PROMISE(ra_layer_read(m->layer, row, head, false, got) == RA_OK);
    PROMISE(!memcmp(got, h->keys, (size_t)(h->slots * w.d) * sizeof *got));
    PROMISE(ra_layer_read(m->layer, row, head, true, got) == RA_OK);
    PROMISE(!memcmp(got, h->values, (size_t)(h->slots * w.d) * sizeof *got));
    free(got);
}

static void compare_queries(const m_layer *m, int64_t row)
{
    const m_row *r = &m->row[row];
    int64_t n = r->queries, heads = w.heads * w.group;
    PROMISE(ra_layer_queries(m->layer, row, NULL) == n);
    float *got = exactly((size_t)(n * heads * w.d) * sizeof *got);
    if (n)
        PROMISE(ra_layer_queries(m->layer, row, got) == n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t h = 0; h < heads; h++)
            PROMISE(!memcmp(got + (h * n + i) * w.d, r->query + (i * heads + h) * w.d, (size_t)w.d * sizeof *got));
    free(got);
}

/* The table's page numbers stand for the model's pages, one for one. */
static void compare_tables(void)
{
    static int32_t theirs[MODEL_PAGES];
    static int ours[1 << 15];
    memset(theirs, 0xff, sizeof theirs);
    memset(ours, 0xff, sizeof ours);
    for (int i = 0; i < LAYERS; i++) {
        const m_layer *m = &w.layer[i];
        for (int64_t pair = 0; m->layer && pair < m->rows * w.heads; pair++) {
            const m_head *h = &m->row[pair / w.heads].head[pair % w.heads];
            const int32_t *table = ra_layer_table(m->layer) + pair * ra_layer_table_pages(m->layer);
            PROMISE(pages_for(h->slots) <= ra_layer_table_pages(m->layer));
            for (int64_t p = 0; p < pages_for(h->slots); p++) {
                int page = h->page[p];
                PROMISE(table[p] >= 0 && table[p] < 1 << 15);
                PROMISE(theirs[page] < 0 || theirs[page] == table[p]);
                PROMISE(ours[table[p]] < 0 || ours[table[p]] == page);
                theirs[page] = table[p];
                ours[table[p]] = page;
            }
        }
    }
}

static void compare(bool all)
{
    int64_t shared = 0, slabs = 0;
    for (int i = 0; i < MODEL_PAGES; i++)
        shared += w.refs[i] > 1;
    for (int i = 0; i < SLABS; i++)
        slabs += w.slab[i] != NULL;
    ra_pool_info info = ra_pool_get_info(w.pool);
    PROMISE(info.pages == w.pages && info.used == w.used && info.free == w.pages - w.used);
    PROMISE(info.shared == shared && info.slabs == slabs && info.peak_used >= info.used);
    for (int i = 0; i < LAYERS; i++) {
        m_layer *m = &w.layer[i];
        if (!m->layer)
            continue;
        PROMISE(ra_layer_rows(m->layer) == m->rows);
        for (int64_t row = 0; row < m->rows; row++) {
            PROMISE(ra_layer_tokens(m->layer, row) == m->row[row].tokens);
            for (int64_t h = 0; h < w.heads; h++) {
                int64_t count;
                compare_head(m, row, h, all);
                PROMISE(!ra_cut_scores(m->layer, row, h, &count) == !(m->begun && m->cut[row]));
                const int32_t *kept = ra_cut_kept(m->layer, row, h, &count);
                PROMISE(!kept == !(m->begun && m->chosen && m->cut[row]));
                if (kept)
                    PROMISE(count == m->keep[row * w.heads + h] &&
                            !memcmp(kept, m->kept[row * w.heads + h], (size_t)count * sizeof *kept));
            }
            if (all)
                compare_queries(m, row);
        }
    }
    compare_tables();
}

#endif
