/* Fuzzes layers: any sequence of calls against a model in plain loops, with failing allocations in between.
 *
 *     make fuzz FUZZ_SECONDS=600          libFuzzer chooses the sequences
 *     build/sanitize/c/fuzz_layer 1000000 a million random operations (tests/c/fuzz_layer.c)
 *
 * The model holds what every head must hold, whose pages it shares, what is reserved, and computes attention, scores and
 * lost mass in float64. */
#include "bytes.h"
#include "half.h"
#include "util.h"

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
    int64_t rows, reserved, count_down;
    bool sinks; /* the newest step had them */
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

static ra_parallel any_parallel(void) { return below(2) ? backwards : NULL; }

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

/* Answers RA_ERR_NO_PAGES. */
static void add_missing(int64_t missing, int64_t needed)
{
    PROMISE(missing == needed - spare_pages() && missing > 0);
    compare(false);
    add_slab(missing + (below(4) ? 0 : below(20)));
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

/* ---- Arithmetic in float64 --------------------------------------------------------------------------------------- */

static double logit(const float *query, const float *key)
{
    double dot = 0;
    for (int64_t c = 0; c < w.d; c++)
        dot += (double)query[c] * (double)key[c];
    dot *= (double)w.scale;
    return w.softcap > 0 ? (double)w.softcap * tanh(dot / (double)w.softcap) : dot;
}

/* Softmax of n logits with a sink (-INFINITY: none); zeros where everything is hidden. */
static void softmax(double *x, int64_t n, double sink)
{
    double top = sink, sum = 0;
    for (int64_t i = 0; i < n; i++)
        top = fmax(top, x[i]);
    for (int64_t i = 0; i < n; i++)
        sum += x[i] = top > -INFINITY ? exp(x[i] - top) : 0;
    sum += top > -INFINITY ? exp(sink - top) : 0;
    for (int64_t i = 0; i < n; i++)
        x[i] = sum > 0 ? x[i] / sum : 0;
}

/* Importance of a head's older tokens. */
static void importance(const m_row *row, int64_t head, int64_t kernel, double *out)
{
    const m_head *h = &row->head[head];
    int64_t older = h->slots - w.window, Hq = w.heads * w.group;
    double mean[SLOTS] = {0}, x[SLOTS];
    for (int64_t q = 0; q < row->queries; q++) {
        for (int64_t i = 0; i < older; i++) {
            x[i] = -INFINITY;
            for (int64_t g = 0; g < w.group; g++)
                x[i] = fmax(x[i], logit(row->query + (q * Hq + head * w.group + g) * w.d, h->keys + i * w.d));
        }
        softmax(x, older, -INFINITY);
        for (int64_t i = 0; i < older; i++)
            mean[i] += x[i] / (double)row->queries;
    }
    for (int64_t i = 0; i < older; i++) {
        out[i] = row->queries ? 0 : 1 / (double)older;
        for (int64_t j = most(0, i - kernel / 2); j <= least(older - 1, i + kernel / 2); j++)
            out[i] = fmax(out[i], mean[j]);
    }
}

static double norm(const float *key)
{
    double sum = 0;
    for (int64_t c = 0; c < w.d; c++)
        sum += (double)key[c] * (double)key[c];
    return sqrt(sum) + 1e-8;
}

/* Redundancy of a head's slots; false where a cosine is so near the threshold that rounding decides. */
static bool redundancy(const m_head *h, double threshold, double *out)
{
    static double norms[SLOTS];
    int64_t n = h->slots;
    bool clear = true;
    for (int64_t i = 0; i < n; i++) {
        norms[i] = norm(h->keys + i * w.d);
        out[i] = 0;
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t zeroed = 0;
        double row[SLOTS];
        for (int64_t j = 0; j < n; j++) {
            double dot = 0;
            for (int64_t c = 0; i != j && c < w.d; c++)
                dot += (double)h->keys[i * w.d + c] * (double)h->keys[j * w.d + c];
            row[j] = dot / (norms[i] * norms[j]);
            clear &= fabs(row[j] - threshold) > 1e-5;
            if (row[j] > threshold)
                zeroed = j;
        }
        row[zeroed] = 0;
        for (int64_t j = 0; j < n; j++)
            out[j] += row[j] / (double)n;
    }
    softmax(out, n, -INFINITY);
    return clear;
}

/* splitmix64 of (seed, head, position), as the header's "random" promises the same in every row. */
static double hash_score(uint64_t seed, int64_t head, int32_t position)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15u * ((uint64_t)head * 0x100000001u + (uint64_t)position + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 40) * 0x1p-24;
}

static void check_scores(const m_row *row, int64_t head, const ra_score_config *c, const float *got)
{
    static double important[SLOTS], redundant[SLOTS];
    const m_head *h = &row->head[head];
    const char *name = NULL;
    int64_t older = h->slots - w.window;
    for (size_t i = 0; (name = ra_scorer_name(i)) && ra_scorer_find(name) != c->scorer;)
        i++;
    bool rkv = !strncmp(name, "rkv", 3);
    if (older < 1 || (rkv && h->slots > 200 && below(8)))
        return;
    if (rkv || !strcmp(name, "importance"))
        importance(row, head, c->kernel, important);
    if (rkv && !redundancy(h, (double)c->threshold, redundant))
        return;
    double alpha = (double)c->alpha, level = strcmp(name, "rkv-centred") ? 0 : 1 / (double)h->slots;
    for (int64_t i = 0; i < older; i++) {
        double want = rkv                           ? alpha * important[i] - (1 - alpha) * (redundant[i] - level)
                      : !strcmp(name, "importance") ? important[i]
                      : !strcmp(name, "recency")    ? (double)h->positions[i]
                                                    : hash_score(c->seed, head, h->positions[i]);
        PROMISE(fabs((double)got[i] - want) <= 2e-5 * fmax(1, fabs(want)));
    }
}

/* Attention mass of the newest query on what goes. */
static double lost_mass(const m_layer *m, int64_t r, int64_t head)
{
    const m_row *row = &m->row[r];
    const m_head *h = &row->head[head];
    int64_t pair = r * w.heads + head, Hq = w.heads * w.group;
    static double x[SLOTS];
    double lost = 0;
    for (int64_t g = 0; row->queries && g < w.group; g++) {
        int64_t q = head * w.group + g;
        for (int64_t i = 0; i < h->slots; i++)
            x[i] = logit(row->query + ((row->queries - 1) * Hq + q) * w.d, h->keys + i * w.d);
        softmax(x, h->slots, m->sinks ? (double)w.sinks[q] : -INFINITY);
        for (int64_t i = 0; i < m->keep[pair]; i++)
            x[m->kept[pair][i]] = 0;
        for (int64_t i = 0; i < h->slots; i++)
            lost += x[i] / (double)w.group;
    }
    return lost;
}

/* ---- Steps ------------------------------------------------------------------------------------------------------- */

typedef struct step_plan {
    int64_t begin[ROWS + 1], *index, tokens; /* tokens: in the tensors */
    bool packed, plain;                      /* plain: begin NULL */
    int64_t total;
} step_plan;

static int64_t fresh_of(const step_plan *p, int64_t row) { return p->begin[row + 1] - p->begin[row]; }

/* Where token i of a row stands in the tensors. */
static int64_t place_of(const step_plan *p, int64_t row, int64_t i)
{
    return p->index ? p->index[p->begin[row] + i] : i;
}

static bool draw_plan(const m_layer *m, int64_t wanted, step_plan *p)
{
    uint8_t mode = take_byte(w.b) % 4;
    *p = (step_plan){.packed = mode == 3 && !wanted, .plain = mode == 0 || wanted > 0};
    uint8_t size = take_byte(w.b);
    int64_t high = size < 150 ? 1 : size < 240 ? 1 + size % 24 : 1 + 2 * (size % 140);
    if (wanted)
        high = wanted;
    for (int64_t row = 0; row < m->rows; row++) {
        int64_t fresh = p->plain ? high : below(3) ? below(high + 1) : high, slots = 0;
        for (int64_t h = 0; h < w.heads; h++)
            slots = most(slots, m->row[row].head[h].slots);
        if (slots + fresh > SLOTS) {
            if (p->plain)
                return false;
            fresh = 0;
        }
        p->begin[row + 1] = p->begin[row] + fresh;
        p->tokens = most(p->tokens, fresh);
    }
    p->total = p->begin[m->rows];
    if (!p->total)
        return false;
    if (p->plain || mode == 1)
        return true;
    p->index = exactly((size_t)p->total * sizeof *p->index);
    p->tokens += below(4);
    for (int64_t row = 0; row < m->rows; row++) {
        int64_t left = p->tokens - fresh_of(p, row), at = 0; /* places that are padding */
        for (int64_t i = 0; i < fresh_of(p, row); i++, at++) {
            int64_t skip = left ? below(left + 1) : 0;
            left -= skip;
            at += skip;
            p->index[p->begin[row] + i] = at;
        }
    }
    for (int64_t i = 0; p->packed && i < p->total; i++)
        p->index[i] = i;
    p->tokens = p->packed ? p->total : p->tokens;
    return true;
}

/* Pages that the step takes: `shared` tails count for every head that has one. */
static int64_t pages_of_step(const m_layer *m, const step_plan *p)
{
    int64_t need = 0;
    for (int64_t row = 0; row < m->rows; row++)
        for (int64_t h = 0; h < w.heads && fresh_of(p, row); h++) {
            const m_head *head = &m->row[row].head[h];
            need += pages_for(head->slots + fresh_of(p, row)) - pages_for(head->slots);
            need += head->slots % T && w.refs[head->page[head->slots / T]] > 1;
        }
    return need;
}

static void reserve(m_layer *m, const step_plan *p)
{
    int64_t missing, need = pages_of_step(m, p), ahead = below(3) ? 0 : below(40);
    for (;;) {
        ra_status status;
        CALL(status,
             ra_layer_reserve(m->layer, p->plain ? NULL : p->begin, p->plain ? p->tokens : -1, ahead, &missing));
        if (status == RA_OK)
            break;
        m->reserved = 0; /* what was reserved before is free again */
        PROMISE(status == RA_ERR_NO_PAGES);
        add_missing(missing, need);
    }
    m->reserved = need;
}

/* A tensor [rows, heads, T, D] in a layout of its own, NaN where nothing is. */
typedef struct tensor {
    ra_tokens t;
    void *memory;
    int64_t heads;
} tensor;

static tensor new_tensor(const step_plan *p, int64_t rows, int64_t heads)
{
    ra_dtype dtype = (ra_dtype)below(RA_DTYPES);
    int64_t gap = below(3), tokens = p->tokens, size = (int64_t)ra_dtype_size(dtype), floats;
    bool token_major = below(2);
    ra_tokens t = {.dtype = dtype,
                   .stride_token = token_major ? heads * w.d + gap : w.d + gap,
                   .stride_head = token_major ? w.d : tokens * (w.d + gap)};
    t.stride_row = p->packed ? 0 : token_major ? tokens * t.stride_token : heads * t.stride_head;
    floats = token_major ? tokens * t.stride_token : heads * t.stride_head;
    floats *= p->packed ? 1 : rows;
    void *memory = exactly((size_t)(floats * size));
    memset(memory, 0xff, (size_t)(floats * size));
    t.data = memory;
    return (tensor){.t = t, .memory = memory, .heads = heads};
}

static int64_t element(const tensor *x, int64_t row, int64_t head, int64_t place)
{
    return row * x->t.stride_row + head * x->t.stride_head + place * x->t.stride_token;
}

static void draw_key(float *key)
{
    int64_t kind = below(8);
    for (int64_t c = 0; c < w.d; c++)
        key[c] = kind == 0   ? 0
                 : kind == 1 ? w.last_key[c]
                 : kind <= 4 ? 0.9f * w.last_key[c] + 0.3f * random_float()
                 : kind == 5 ? 1e-3f * random_float()
                             : random_float();
    memcpy(w.last_key, key, sizeof w.last_key);
}

/* Fills the new tokens' places; `keys`: whether neighbours resemble each other. */
static void fill(const m_layer *m, const step_plan *p, tensor *x, bool keys)
{
    float row_of[DIM];
    for (int64_t row = 0; row < m->rows; row++)
        for (int64_t h = 0; h < x->heads; h++)
            for (int64_t i = 0; i < fresh_of(p, row); i++) {
                int64_t at = element(x, row, h, place_of(p, row, i));
                if (keys)
                    draw_key(row_of);
                for (int64_t c = 0; c < w.d; c++)
                    put(x->t.dtype, x->memory, at + c, rounded(x->t.dtype, keys ? row_of[c] : 2 * random_float()));
            }
}

/* One number that the format cannot hold, somewhere among the new tokens of keys or values; undo with what it returns. */
static int64_t spoil(const m_layer *m, const step_plan *p, tensor *x, float *before)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY, 3e38f};
    int64_t row = below(m->rows);
    while (!fresh_of(p, row))
        row = (row + 1) % m->rows;
    int64_t at = element(x, row, below(x->heads), place_of(p, row, below(fresh_of(p, row)))) + below(w.d);
    float value = bad[below(
        dtype_of(ra_format_name(0)) == RA_F32 && x->t.dtype == RA_BF16 && w.format == ra_format_find("float16") ? 4
                                                                                                                : 3)];
    *before = get(x->t.dtype, x->memory, at);
    put(x->t.dtype, x->memory, at, value);
    return at;
}

static void append(m_layer *m, const step_plan *p, const tensor *q, const tensor *k, const tensor *v)
{
    ra_dtype stored = dtype_of(w.format == ra_format_find("bfloat16")  ? "bfloat16"
                               : w.format == ra_format_find("float16") ? "float16"
                                                                       : "float32");
    int64_t Hq = w.heads * w.group;
    for (int64_t r = 0; r < m->rows; r++) {
        m_row *row = &m->row[r];
        int64_t fresh = fresh_of(p, r);
        for (int64_t h = 0; h < w.heads && fresh; h++) {
            m_head *head = &row->head[h];
            int64_t n = head->slots;
            if (n % T && w.refs[head->page[n / T]] > 1) {
                drop_page(head->page[n / T]);
                head->page[n / T] = take_page();
            }
            for (int64_t i = 0; i < fresh; i++, n++) {
                int64_t place = place_of(p, r, i), key = element(k, r, h, place), value = element(v, r, h, place);
                if (n % T == 0)
                    head->page[n / T] = take_page();
                head->positions[n] = (int32_t)(row->tokens + i);
                for (int64_t c = 0; c < w.d; c++) {
                    head->keys[n * w.d + c] = rounded(stored, get(k->t.dtype, k->memory, key + c));
                    head->values[n * w.d + c] = rounded(stored, get(v->t.dtype, v->memory, value + c));
                }
            }
            head->slots = n;
        }
        for (int64_t i = 0; i < fresh; i++) {
            if (row->queries == w.window)
                memmove(row->query, row->query + Hq * w.d, (size_t)(--row->queries * Hq * w.d) * sizeof *row->query);
            for (int64_t h = 0; h < Hq; h++)
                for (int64_t c = 0; c < w.d; c++)
                    row->query[(row->queries * Hq + h) * w.d + c] = get(q->t.dtype, q->memory,
                                                                        element(q, r, h, place_of(p, r, i)) + c);
            row->queries++;
        }
        row->tokens += fresh;
    }
}

/* One new token of each row, all its heads. */
static void check_output(const m_layer *m, const step_plan *p, const ra_step *s, const tensor *q)
{
    static double x[SLOTS];
    for (int64_t r = 0; r < m->rows; r++) {
        if (!fresh_of(p, r))
            continue;
        int64_t i = below(fresh_of(p, r)), place = place_of(p, r, i);
        for (int64_t h = 0; h < w.heads * w.group; h++) {
            const m_head *head = &m->row[r].head[h / w.group];
            int64_t n = head->slots - (fresh_of(p, r) - 1 - i);
            float query[DIM];
            for (int64_t c = 0; c < w.d; c++)
                query[c] = get(q->t.dtype, q->memory, element(q, r, h, place) + c);
            for (int64_t j = 0; j < n; j++) {
                x[j] = logit(query, head->keys + j * w.d);
                if (s->visible && !s->visible[(p->begin[r] + i) * s->visible_stride + head->positions[j]])
                    x[j] = -INFINITY;
            }
            softmax(x, n, s->sinks ? (double)s->sinks[h] : -INFINITY);
            for (int64_t c = 0; c < w.d; c++) {
                double want = 0;
                for (int64_t j = 0; j < n; j++)
                    want += x[j] * (double)head->values[j * w.d + c];
                double got = (double)get(s->out.dtype, s->out.data,
                                         r * s->out.stride_row + place * s->out.stride_token + h * w.d + c);
                double unit = s->out.dtype == RA_F32 ? 0 : s->out.dtype == RA_BF16 ? 0x1p-8 : 0x1p-11;
                PROMISE(fabs(got - want) <= 2e-4 + unit * fabs(want));
            }
        }
    }
}

/* What does not belong to a new token is as it was. */
static void check_padding(const m_layer *m, const step_plan *p, const ra_step *s, int64_t size_of_out, uint8_t before)
{
    int64_t size = (int64_t)ra_dtype_size(s->out.dtype), each = w.heads * w.group * w.d * size;
    uint8_t *out = s->out.data;
    for (int64_t r = 0; r < m->rows; r++)
        for (int64_t i = 0; i < fresh_of(p, r); i++)
            memset(out + (r * s->out.stride_row + place_of(p, r, i) * s->out.stride_token) * size, before,
                   (size_t)each);
    for (int64_t i = 0; i < size_of_out; i++)
        PROMISE(out[i] == before);
}

/* wanted: tokens of every row, or 0: any. cut_in: of every row, or -2: as it comes. */
static void op_step(m_layer *m, int64_t wanted, int64_t cut_in)
{
    step_plan p;
    if (!draw_plan(m, wanted, &p)) {
        free(p.index);
        return;
    }
    tensor q = new_tensor(&p, m->rows, w.heads * w.group), k = new_tensor(&p, m->rows, w.heads),
           v = new_tensor(&p, m->rows, w.heads);
    fill(m, &p, &q, false);
    fill(m, &p, &k, true);
    fill(m, &p, &v, false);
    ra_step s = {.begin = p.plain ? NULL : p.begin,
                 .index = p.index,
                 .tokens = p.tokens,
                 .queries = q.t,
                 .keys = k.t,
                 .values = v.t,
                 .scale = w.scale,
                 .softcap = w.softcap};
    int64_t announced[ROWS], out_bytes = 0, longest = 0;
    uint8_t options = take_byte(w.b), *visible = NULL, sentinel = 0x55;
    for (int64_t r = 0; r < m->rows; r++) {
        announced[r] = cut_in > -2 ? cut_in : below(w.window + 3) - 1;
        longest = most(longest, m->row[r].tokens + fresh_of(&p, r));
    }
    s.cut_in = cut_in > -2 || options & 1 ? announced : NULL;
    s.sinks = w.with_sinks ? w.sinks : NULL;
    if ((options & 12) == 12 && p.total * longest < 1 << 16) {
        s.visible_stride = longest + below(3);
        s.visible = visible = exactly((size_t)(p.total * s.visible_stride));
        for (int64_t i = 0; i < p.total * s.visible_stride; i++)
            visible[i] = below(4) != 0;
        if (!below(4))
            memset(visible, 0, (size_t)s.visible_stride); /* nothing at all */
    }
    if (options & 48) { /* three of four */
        s.out.dtype = (ra_dtype)below(RA_DTYPES);
        s.out.stride_token = w.heads * w.group * w.d + below(3);
        s.out.stride_row = p.packed ? 0 : p.tokens * s.out.stride_token + below(3);
        out_bytes = (p.packed ? p.tokens * s.out.stride_token : m->rows * s.out.stride_row) *
                    (int64_t)ra_dtype_size(s.out.dtype);
        s.out.data = exactly((size_t)out_bytes);
        memset(s.out.data, sentinel, (size_t)out_bytes);
    }
    if (options >> 6 == 3 && pages_of_step(m, &p) > m->reserved)
        PROMISE(ra_layer_step(m->layer, &s, NULL) == RA_ERR_ARGUMENT); /* nothing was reserved for it */
    reserve(m, &p);
    if (options >> 6 == 2) {
        float before;
        tensor *x = below(2) ? &k : &v;
        int64_t at = spoil(m, &p, x, &before);
        PROMISE(ra_layer_step(m->layer, &s, NULL) == RA_ERR_NOT_FINITE);
        put(x->t.dtype, x->memory, at, before);
        compare(false);
    }
    if (options >> 6 == 1) { /* memory that is given back meanwhile is not what was reserved */
        int64_t ids[4], count;
        for (int i = 0; i < 2; i++) {
            PROMISE(ra_pool_trim(w.pool, below(5), ids, 4, &count) == RA_OK);
            while (count) {
                int64_t id = ids[--count];
                w.pages -= w.slab_pages[id];
                free(w.slab[id]);
                w.slab[id] = NULL;
            }
        }
    }
    int64_t allocations = ra_allocations();
    ra_status status = ra_layer_step(m->layer, &s, any_parallel());
    PROMISE(status == RA_OK);
    PROMISE(ra_allocations() == allocations);
    append(m, &p, &q, &k, &v);
    m->reserved = 0;
    m->sinks = s.sinks != NULL;
    m->begun = false;
    if (s.out.data) {
        check_output(m, &p, &s, &q);
        check_padding(m, &p, &s, out_bytes, sentinel);
    }
    free(s.out.data);
    free(visible);
    free(q.memory);
    free(k.memory);
    free(v.memory);
    free(p.index);
}

/* ---- Cuts -------------------------------------------------------------------------------------------------------- */

static ra_score_config draw_score(void)
{
    size_t count = 0;
    while (ra_scorer_name(count))
        count++;
    return (ra_score_config){.scorer = ra_scorer_find(ra_scorer_name((size_t)below((int64_t)count))),
                             .alpha = (float)below(11) / 10,
                             .threshold = below(8) ? 0.55f : (float)(below(5) - 2) * 0.3f,
                             .kernel = 1 + 2 * below(5),
                             .seed = next_random()};
}

static ra_route_config draw_route(void)
{
    return (ra_route_config){.heads = (ra_heads)below(3),
                             .gamma = (double)below(4),
                             .lo = (double)below(5) / 4,
                             .hi = 1 + (double)below(5) / 2,
                             .mu = (double)below(5) / 4,
                             .safeguard = (double)below(5) / 4};
}

static int64_t row_slots(const m_layer *m, int64_t row)
{
    int64_t slots = 0;
    for (int64_t h = 0; h < w.heads; h++)
        slots += m->row[row].head[h].slots;
    return slots;
}

typedef struct ranked {
    bool guarded;
    float score;
    int32_t slot;
} ranked;

static int by_rank(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->guarded != y->guarded)
        return x->guarded ? -1 : 1;
    if (x->score < y->score || x->score > y->score)
        return x->score > y->score ? -1 : 1;
    return x->slot > y->slot ? -1 : 1;
}

/* What a head keeps of its slots by scores and a budget. */
static void choose(m_layer *m, int64_t pair, const float *scores, int64_t protect_below, int64_t budget)
{
    const m_head *h = &m->row[pair / w.heads].head[pair % w.heads];
    int64_t n = h->slots, window = least(w.window, n), older = n - window, keep = least(n, budget), count = 0;
    static ranked rank[SLOTS];
    static bool stays[SLOTS];
    memset(stays, 0, sizeof stays);
    for (int64_t i = 0; i < older; i++)
        rank[i] = (ranked){h->positions[i] < protect_below, scores[i], (int32_t)i};
    qsort(rank, (size_t)older, sizeof *rank, by_rank);
    for (int64_t i = 0; i < keep - window; i++)
        stays[rank[i].slot] = true;
    for (int64_t i = 0; i < n; i++)
        if (i >= older || stays[i])
            m->kept[pair][count++] = (int32_t)i;
    PROMISE(count == keep);
    m->keep[pair] = keep;
}

/* Pages that each head takes because those that it writes to are shared; the prefix that does not move. */
static int64_t plan_moves(const m_layer *m, int64_t *prefix, int64_t *fresh)
{
    int64_t need = 0;
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++) {
        const m_head *h = &m->row[pair / w.heads].head[pair % w.heads];
        prefix[pair] = fresh[pair] = 0;
        if (!m->cut[pair / w.heads] || m->keep[pair] == h->slots)
            continue;
        while (prefix[pair] < m->keep[pair] && m->kept[pair][prefix[pair]] == prefix[pair])
            prefix[pair]++;
        for (int64_t p = prefix[pair] / T; p < pages_for(m->keep[pair]); p++)
            if (w.refs[h->page[p]] > 1)
                fresh[pair] = pages_for(m->keep[pair]) - prefix[pair] / T;
        need += fresh[pair];
    }
    return need;
}

static void apply(m_layer *m)
{
    int64_t prefix[ROWS * HEADS], fresh[ROWS * HEADS];
    int taken[ROWS * HEADS][PAGES];
    (void)plan_moves(m, prefix, fresh);
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++)
        for (int64_t i = 0; i < fresh[pair]; i++)
            taken[pair][i] = take_page();
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++) {
        m_head *h = &m->row[pair / w.heads].head[pair % w.heads];
        if (!m->cut[pair / w.heads] || m->keep[pair] == h->slots)
            continue;
        int64_t stay = fresh[pair] ? prefix[pair] / T : pages_for(m->keep[pair]);
        drop_pages(h, stay);
        for (int64_t i = 0; i < fresh[pair]; i++)
            h->page[stay + i] = taken[pair][i];
        for (int64_t i = 0; i < m->keep[pair]; i++) {
            int64_t from = m->kept[pair][i];
            h->positions[i] = h->positions[from];
            memmove(h->keys + i * w.d, h->keys + from * w.d, (size_t)w.d * sizeof *h->keys);
            memmove(h->values + i * w.d, h->values + from * w.d, (size_t)w.d * sizeof *h->values);
        }
        h->slots = m->keep[pair];
    }
    m->begun = false;
}

static void op_apply(m_layer *m)
{
    int64_t prefix[ROWS * HEADS], fresh[ROWS * HEADS], missing;
    ra_status status;
    if (!m->begun || !m->chosen) {
        bool nothing = m->begun; /* a cut of no rows is chosen already */
        for (int64_t r = 0; r < m->rows; r++)
            nothing &= !m->cut[r];
        if (!nothing)
            PROMISE(ra_cut_apply(m->layer, NULL, &missing) == RA_ERR_ARGUMENT);
        return;
    }
    for (;;) {
        CALL(status, ra_cut_apply(m->layer, any_parallel(), &missing));
        if (status == RA_OK)
            break;
        PROMISE(status == RA_ERR_NO_PAGES);
        add_missing(missing, plan_moves(m, prefix, fresh));
    }
    apply(m);
}

typedef struct cut_values {
    int64_t totals[ROWS], protect[ROWS], budgets[ROWS * HEADS];
    double lost[ROWS * HEADS];
    bool cut[ROWS], feasible;
    ra_score_config score;
    ra_route_config route;
    bool scored;
} cut_values;

static void begin_cut(m_layer *m, cut_values *c)
{
    bool theirs[ROWS];
    *c = (cut_values){.score = draw_score(), .route = draw_route(), .scored = below(3) != 0, .feasible = true};
    for (int64_t r = 0; r < m->rows; r++) {
        int64_t slots = row_slots(m, r);
        c->totals[r] = below(4) == 0   ? -1
                       : below(5) == 0 ? below(slots + 3)
                                       : most(w.heads * w.window, slots / 2 + below(slots / 2 + 2));
        c->protect[r] = below(2) ? 0 : below(m->row[r].tokens + 2);
        c->cut[r] = c->totals[r] >= 0 && slots > c->totals[r];
        if (c->cut[r] && c->totals[r] < w.heads * w.window)
            c->feasible = false;
    }
    ra_status status;
    m->begun = false;
    CALL(status, ra_cut_score(m->layer, c->totals, c->scored ? &c->score : NULL, theirs, any_parallel()));
    PROMISE(status == RA_OK);
    m->begun = true;
    m->chosen = false;
    memcpy(m->cut, c->cut, sizeof c->cut);
    PROMISE(!memcmp(theirs, c->cut, (size_t)m->rows));
    int64_t looked_at = below(m->rows * w.heads), kind = below(3);
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++) {
        int64_t r = pair / w.heads, h = pair % w.heads, count;
        float *scores = ra_cut_scores(m->layer, r, h, &count);
        PROMISE(!scores == !c->cut[r]);
        if (!scores)
            continue;
        PROMISE(count == most(0, m->row[r].head[h].slots - w.window));
        if (c->scored && pair == looked_at)
            check_scores(&m->row[r], h, &c->score, scores);
        for (int64_t i = 0; !c->scored && i < count; i++) {
            PROMISE(scores[i] == 0);
            scores[i] = kind == 0 ? 0 : kind == 1 ? (float)below(3) : random_float(); /* many ties */
        }
    }
}

/* Budgets by route, or any; whether the cut is still on. */
static void draw_budgets(m_layer *m, cut_values *c, bool routed)
{
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++) {
        int64_t n = m->row[pair / w.heads].head[pair % w.heads].slots;
        c->budgets[pair] = least(n, w.window) + below(most(0, n - w.window) + 3);
        if (!below(16))
            c->budgets[pair] = INT64_MAX;
    }
    if (!routed)
        return;
    int64_t own[ROWS * HEADS];
    ra_status status;
    CALL(status, ra_cut_allocate(m->layer, c->protect, &c->route, own));
    PROMISE(status == (c->feasible ? RA_OK : RA_ERR_INFEASIBLE));
    for (int64_t r = 0; r < m->rows && c->feasible; r++) {
        int64_t sum = 0;
        for (int64_t h = 0; h < w.heads && c->cut[r]; h++) {
            int64_t budget = own[r * w.heads + h];
            PROMISE(budget >= least(w.window, c->totals[r] / w.heads));
            sum += c->budgets[r * w.heads + h] = budget;
        }
        PROMISE(!c->cut[r] || sum == c->totals[r]);
    }
}

static void check_choice(m_layer *m, cut_values *c)
{
    int64_t count, looked_at = below(m->rows * w.heads);
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++) {
        int64_t r = pair / w.heads, h = pair % w.heads;
        if (!m->cut[r])
            continue;
        choose(m, pair, ra_cut_scores(m->layer, r, h, &count), c->protect[r], c->budgets[pair]);
        if (pair == looked_at)
            PROMISE(fabs(c->lost[pair] - lost_mass(m, r, h)) <= 1e-3);
    }
    m->chosen = true;
}

/* The model's count of owners, for a copy that comes (1) and goes (-1). */
static void share(const m_layer *m, int by)
{
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++) {
        const m_head *h = &m->row[pair / w.heads].head[pair % w.heads];
        for (int64_t p = 0; p < pages_for(h->slots); p++)
            w.refs[h->page[p]] += by;
    }
}

/* Phase by phase, or on a copy phase by phase and then at once. */
static void op_cut(m_layer *m)
{
    cut_values c;
    uint8_t how = take_byte(w.b);
    bool at_once = how >= 160;
    ra_layer *own = m->layer, *copy;
    ra_status status;
    if (at_once) {
        CALL(status, ra_layer_copy(own, &copy));
        PROMISE(status == RA_OK);
        ra_cut_abandon(own);
        share(m, 1);
        m->layer = copy;
    }
    begin_cut(m, &c);
    bool routed = (how & 1) != 0;
    draw_budgets(m, &c, routed);
    if (!below(8)) {
        int64_t bad[ROWS * HEADS], pair = below(m->rows * w.heads);
        memcpy(bad, c.budgets, sizeof bad);
        bad[pair] = below(2) ? -1 : INT64_MIN;
        if (m->cut[pair / w.heads])
            PROMISE(ra_cut_choose(m->layer, c.protect, bad, NULL, NULL) == RA_ERR_ARGUMENT);
    }
    int64_t count;
    float *scores = ra_cut_scores(m->layer, 0, 0, &count);
    if (scores && count && !below(8)) {
        float before = scores[count - 1];
        scores[count - 1] = below(2) ? NAN : INFINITY;
        PROMISE(ra_cut_choose(m->layer, c.protect, c.budgets, NULL, NULL) == RA_ERR_NOT_FINITE);
        scores[count - 1] = before;
    }
    CALL(status, ra_cut_choose(m->layer, c.protect, c.budgets, c.lost, any_parallel()));
    PROMISE(status == RA_OK);
    check_choice(m, &c);
    compare(false);
    if (how < 40) /* later, or never */
        return;
    if (how < 60) {
        ra_cut_abandon(m->layer);
        m->begun = false;
        return;
    }
    if (!at_once) {
        op_apply(m);
        return;
    }
    m->begun = false;
    m->layer = own;
    ra_layer_destroy(copy);
    share(m, -1);
    if (!routed || !c.feasible || !c.scored)
        return;
    cut_values again_ = c; /* the same, bit for bit */
    ra_cut all = {.totals = c.totals,
                  .protect_below = c.protect,
                  .score = c.score,
                  .route = c.route,
                  .budgets = again_.budgets,
                  .lost = again_.lost,
                  .cut = again_.cut};
    int64_t prefix[ROWS * HEADS], fresh[ROWS * HEADS], missing;
    for (;;) {
        memset(again_.cut, 1, sizeof again_.cut);
        CALL(status, ra_layer_cut(m->layer, &all, any_parallel(), &missing));
        if (status == RA_OK)
            break;
        PROMISE(status == RA_ERR_NO_PAGES);
        add_missing(missing, plan_moves(m, prefix, fresh));
    }
    PROMISE(!memcmp(again_.cut, c.cut, (size_t)m->rows));
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++)
        if (c.cut[pair / w.heads])
            PROMISE(again_.budgets[pair] == c.budgets[pair] && again_.lost[pair] == c.lost[pair]);
    apply(m);
}

/* The window's last steps announce the cut, so that attention leaves its logits behind. */
static void op_announced_cut(m_layer *m)
{
    int64_t wrong = below(6) ? -1 : below(w.window);
    for (int64_t left = w.window - 1; left >= 0; left--)
        op_step(m, 1, left == wrong ? below(3) : left);
    op_cut(m);
}

/* ---- Rows and layers --------------------------------------------------------------------------------------------- */

static void unsettle(m_layer *m)
{
    m->reserved = 0;
    m->begun = false;
}

static void op_fork(m_layer *m)
{
    int64_t from = below(m->rows), to = below(m->rows);
    PROMISE(ra_layer_fork(m->layer, from, to) == RA_OK);
    if (from == to)
        return;
    unsettle(m);
    empty_row(&m->row[to]);
    copy_row(&m->row[to], &m->row[from]);
}

static void op_release(m_layer *m)
{
    int64_t row = below(m->rows);
    PROMISE(ra_layer_release(m->layer, row) == RA_OK);
    unsettle(m);
    empty_row(&m->row[row]);
}

static void op_reorder(m_layer *m)
{
    static m_row fresh[ROWS];
    int64_t source[ROWS], rows = 1 + below(ROWS);
    for (int64_t r = 0; r < rows; r++)
        source[r] = below(8) ? below(m->rows) : -1;
    ra_status status;
    CALL(status, ra_layer_reorder(m->layer, source, rows));
    PROMISE(status == RA_OK);
    unsettle(m);
    for (int64_t r = 0; r < rows; r++) {
        fresh[r].tokens = fresh[r].queries = 0;
        for (int64_t h = 0; h < w.heads; h++)
            fresh[r].head[h].slots = 0;
        if (source[r] >= 0)
            copy_row(&fresh[r], &m->row[source[r]]);
    }
    for (int64_t r = 0; r < m->rows; r++)
        empty_row(&m->row[r]);
    m->rows = rows;
    for (int64_t r = 0; r < rows; r++) {
        copy_row(&m->row[r], &fresh[r]);
        empty_row(&fresh[r]);
    }
}

static void op_crop(m_layer *m)
{
    int64_t tokens[ROWS];
    bool possible = true;
    for (int64_t r = 0; r < m->rows; r++) {
        const m_row *row = &m->row[r];
        tokens[r] = below(3) ? below(least(row->tokens, 2 * w.window) + 1) : below(row->tokens + 2);
        possible &= tokens[r] <= row->tokens;
        for (int64_t h = 0; h < w.heads; h++)
            for (int64_t i = 1; i <= tokens[r] && possible; i++)
                possible = i <= row->head[h].slots && row->head[h].positions[row->head[h].slots - i] == row->tokens - i;
    }
    PROMISE(ra_layer_crop(m->layer, tokens) == (possible ? RA_OK : RA_ERR_EVICTED));
    if (!possible)
        return;
    unsettle(m);
    for (int64_t r = 0; r < m->rows; r++) {
        m_row *row = &m->row[r];
        row->tokens -= tokens[r];
        row->queries = most(0, row->queries - tokens[r]);
        for (int64_t h = 0; h < w.heads; h++) {
            int64_t slots = row->head[h].slots - tokens[r];
            drop_pages(&row->head[h], pages_for(slots));
            row->head[h].slots = slots;
        }
    }
}

static void op_trim(void)
{
    int64_t ids[8], count, keep = below(2) ? below(30) : INT64_MAX - below(5), before = w.pages - w.used;
    ra_status status;
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
}

static void op_reset(m_layer *m)
{
    ra_layer_reset(m->layer);
    unsettle(m);
    for (int64_t r = 0; r < m->rows; r++)
        empty_row(&m->row[r]);
}

static void destroy(m_layer *m)
{
    ra_layer_destroy(m->layer);
    for (int64_t r = 0; r < m->rows; r++)
        empty_row(&m->row[r]);
    unsettle(m);
    m->layer = NULL;
}

static void create(m_layer *m)
{
    ra_layer_config config = {.rows = 1 + below(ROWS),
                              .kv_heads = w.heads,
                              .query_heads = w.heads * w.group,
                              .window = w.window,
                              .scorer = w.scorer};
    ra_status status;
    ra_layer *made = NULL;
    CALL(status, ra_layer_create(w.pool, &config, &made));
    PROMISE(status == RA_OK);
    m->layer = made;
    m->rows = config.rows;
    m->sinks = false;
    unsettle(m);
    for (int64_t r = 0; r < ROWS; r++) {
        m->row[r].tokens = m->row[r].queries = 0;
        for (int64_t h = 0; h < w.heads; h++)
            m->row[r].head[h].slots = 0;
    }
}

/* Another layer goes, or comes as a copy or empty. */
static void op_layers(m_layer *m)
{
    m_layer *other = &w.layer[below(LAYERS)];
    if (other == m || other == &w.layer[0])
        return;
    if (other->layer) {
        destroy(other);
        return;
    }
    create(other);
    if (!below(3))
        return;
    destroy(other);
    ra_status status;
    ra_layer *made = NULL;
    CALL(status, ra_layer_copy(m->layer, &made));
    PROMISE(status == RA_OK);
    other->layer = made;
    other->rows = m->rows;
    other->sinks = m->sinks;
    for (int64_t r = 0; r < m->rows; r++)
        copy_row(&other->row[r], &m->row[r]);
}

/* A row is read and restored in a row that was empty, of this layer or another. */
static void op_restore(m_layer *m)
{
    m_layer *to = &w.layer[below(LAYERS)];
    if (!to->layer)
        to = m;
    int64_t from = below(m->rows), row = below(to->rows), heads = below(5) ? w.heads : below(w.heads);
    if (to == m && from == row)
        return;
    m_row *target = &to->row[row];
    const m_row *source = &m->row[from];
    int64_t missing;
    if (target->tokens) {
        PROMISE(ra_layer_restore(to->layer, row, 0, 0, NULL, NULL, NULL, &missing) == RA_ERR_ARGUMENT);
        PROMISE(ra_layer_release(to->layer, row) == RA_OK);
        unsettle(to);
        empty_row(target);
    }
    for (int64_t h = 0; h < heads; h++) {
        const m_head *head = &source->head[h];
        ra_status status;
        for (;;) {
            CALL(status,
                 ra_layer_restore(to->layer, row, h, head->slots, head->positions, head->keys, head->values, &missing));
            if (status == RA_OK)
                break;
            PROMISE(status == RA_ERR_NO_PAGES);
            add_missing(missing, pages_for(head->slots));
        }
        unsettle(to);
        m_head *copy = &target->head[h];
        memcpy(copy->positions, head->positions, (size_t)head->slots * sizeof *head->positions);
        memcpy(copy->keys, head->keys, (size_t)(head->slots * w.d) * sizeof *head->keys);
        memcpy(copy->values, head->values, (size_t)(head->slots * w.d) * sizeof *head->values);
        copy->slots = head->slots;
        for (int64_t p = 0; p < pages_for(head->slots); p++)
            copy->page[p] = take_page();
    }
    int64_t Hq = w.heads * w.group, n = source->queries;
    float *queries = exactly((size_t)(n * Hq * w.d) * sizeof *queries);
    for (int64_t i = 0; i < n; i++)
        for (int64_t h = 0; h < Hq; h++)
            memcpy(queries + (h * n + i) * w.d, source->query + (i * Hq + h) * w.d, (size_t)w.d * sizeof *queries);
    if (heads < w.heads && source->tokens) { /* half a row is none */
        PROMISE(ra_layer_release(to->layer, row) == RA_OK);
        unsettle(to);
        empty_row(target);
    } else {
        if (source->tokens && source->head[0].slots)
            PROMISE(ra_layer_restore_row(to->layer, row, source->head[0].positions[source->head[0].slots - 1], queries,
                                         0, w.scale,
                                         w.softcap) == RA_ERR_ARGUMENT); /* fewer tokens than positions say */
        PROMISE(ra_layer_restore_row(to->layer, row, source->tokens, queries, n, w.scale, w.softcap) == RA_OK);
        target->tokens = source->tokens;
        target->queries = n;
        memcpy(target->query, source->query, sizeof target->query);
        unsettle(to);
    }
    free(queries);
}

/* Calls that are refused, with nothing changed. */
static void op_refused(m_layer *m)
{
    static const int64_t hostile[] = {-1, INT64_MIN, INT64_MAX, 1LL << 31, 1LL << 62};
    int64_t bad = hostile[below(5)], missing, source[1] = {bad}, crop[ROWS] = {0};
    float x[1];
    crop[below(m->rows)] = bad;
    PROMISE(ra_layer_fork(m->layer, 0, bad) == RA_ERR_ARGUMENT && ra_layer_fork(m->layer, bad, 0) == RA_ERR_ARGUMENT);
    PROMISE(ra_layer_release(m->layer, bad) == RA_ERR_ARGUMENT);
    if (bad != -1)
        PROMISE(ra_layer_reorder(m->layer, source, 1) == RA_ERR_ARGUMENT);
    PROMISE(ra_layer_crop(m->layer, crop) == (bad < 0 ? RA_ERR_ARGUMENT : RA_ERR_EVICTED));
    PROMISE(ra_layer_read(m->layer, bad, 0, false, x) == RA_ERR_ARGUMENT);
    PROMISE(ra_layer_reserve(m->layer, NULL, bad, 0, &missing) == RA_ERR_ARGUMENT);
    if (bad < 0)
        PROMISE(ra_layer_reserve(m->layer, NULL, 1, bad, &missing) == RA_ERR_ARGUMENT);
    PROMISE(ra_layer_restore(m->layer, 0, bad, 0, NULL, NULL, NULL, &missing) == RA_ERR_ARGUMENT);
    PROMISE(ra_layer_restore(m->layer, 0, 0, bad, NULL, NULL, NULL, &missing) == RA_ERR_ARGUMENT);
    if (below(4) == 0)
        ra_pool_reset_peak(w.pool);
}

/* ---- Any sequence ------------------------------------------------------------------------------------------------ */

static void operate(void)
{
    m_layer *m = &w.layer[take_byte(w.b) % LAYERS];
    if (!m->layer)
        m = &w.layer[0];
    uint8_t op = take_byte(w.b);
    w.random += op;
    if (op < 110)
        op_step(m, 0, -2);
    else if (op < 150)
        op_cut(m);
    else if (op < 160)
        op_announced_cut(m);
    else if (op < 168)
        op_apply(m);
    else if (op < 180)
        op_fork(m);
    else if (op < 188)
        op_release(m);
    else if (op < 200)
        op_reorder(m);
    else if (op < 212)
        op_crop(m);
    else if (op < 222)
        op_trim();
    else if (op < 225)
        op_reset(m);
    else if (op < 233)
        op_layers(m);
    else if (op < 243)
        op_restore(m);
    else if (op < 249)
        op_refused(m);
    else
        take_isa(w.b);
    w.operations++;
    compare(w.operations % 8 == 0);
}

static void begin(bytes *b)
{
    size_t formats = 0;
    static const int64_t dims[] = {1, 3, 16, 20, 33, 40};
    memset(w.refs, 0, sizeof w.refs);
    memset(w.last_key, 0, sizeof w.last_key);
    w.b = b;
    w.used = w.pages = 0;
    w.random = take_word(b);
    while (ra_format_name(formats))
        formats++;
    w.format = ra_format_find(ra_format_name((size_t)below((int64_t)formats)));
    w.d = dims[below(6)];
    w.heads = 1 + below(HEADS);
    w.group = 1 + below(GROUP);
    w.window = 1 + below(WINDOW);
    w.scale = below(2) ? (float)(1 / sqrt((double)w.d)) : 0.3f;
    w.softcap = below(3) ? 0 : 1.5f;
    for (int i = 0; i < QUERY_HEADS; i++)
        w.sinks[i] = 2 * random_float();
    w.with_sinks = below(2);
    w.scorer = below(4) ? draw_score().scorer : NULL;
    take_isa(b);
    PROMISE(ra_pool_create(w.format, w.d, &w.pool) == RA_OK);
    create(&w.layer[0]);
}

static void end(void)
{
    compare(true);
    for (int i = 0; i < LAYERS; i++)
        if (w.layer[i].layer)
            destroy(&w.layer[i]);
    PROMISE(w.used == 0 && ra_pool_get_info(w.pool).used == 0 && ra_pool_get_info(w.pool).shared == 0);
    ra_pool_destroy(w.pool);
    for (int i = 0; i < SLABS; i++) {
        free(w.slab[i]);
        w.slab[i] = NULL;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bytes b = {data, size};
    begin(&b);
    while (b.left)
        operate();
    end();
    return 0;
}
