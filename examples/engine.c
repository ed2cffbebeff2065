/* The library without Python: a small engine with continuous batching that keeps its key-value cache inside a budget.
 *
 *     cc -std=c11 -O2 -Icsrc/include -Icsrc/{core,format,stat,scorer,cpu,cpu/simd} \
 *        examples/engine.c csrc/{core,format,stat,scorer,cpu,cpu/simd}/?*.c -lm -o engine
 *
 * Requests wait until one of ROWS places is free. A step takes one token of each sequence that decodes, and a chunk of the
 * prompt of each that has just come; a sequence is cut when INTERVAL of its own tokens have come, whatever the others do.
 * One request is read and then forked into a second chain. The "model" makes keys, values and queries from a seeded
 * generator: topics that come and go, so that keys of one topic resemble each other as in a real chain. Attention is
 * compared with a plain double loop, and one sequence with the same sequence alone. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "reasonalloc.h"

enum { LAYERS = 4, KV_HEADS = 2, QUERY_HEADS = 6, HEAD_DIM = 64, WINDOW = 8, BUDGET = 96, INTERVAL = 128 };
enum { ROWS = 3, REQUESTS = 7, CHUNK = 48, TOPICS = 12, TOPIC_LENGTH = 24, MOST_TOKENS = ROWS * CHUNK };
enum { KEYS = KV_HEADS * HEAD_DIM, QUERIES = QUERY_HEADS * HEAD_DIM };

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        ra_status status_ = (call);                                                                                    \
        if (status_ != RA_OK) {                                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, ra_status_text(status_));                               \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* ---- The "model": a token's numbers follow from the request, the layer and its place alone ---- */

static float topics[TOPICS][HEAD_DIM];

static float noise(uint64_t *state) /* roughly normal */
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(*state >> 40) * 0x1p-24f - 0.5f;
    }
    return sum * 1.7f;
}

static void make_token(int request, int layer, int place, int kind, int heads, float *out)
{
    const float *topic = topics[(place / TOPIC_LENGTH * 7 + request) % TOPICS];
    uint64_t state = ((uint64_t)request * 1000003u + (uint64_t)place) * 64u + (uint64_t)(layer * 4 + kind) + 1;
    for (int i = 0; i < 8; i++)
        (void)noise(&state);
    for (int i = 0; i < heads * HEAD_DIM; i++)
        out[i] = topic[i % HEAD_DIM] + 0.6f * noise(&state);
}

/* ---- Memory: slabs are the caller's; malloc'd here, torch tensors in the Python package ---- */

static void *slabs[256];
static int slab_count;

static void add_pages(ra_pool *pool, int64_t missing)
{
    int64_t pages = missing > 64 ? missing : 64;
    size_t bytes = (size_t)pages * ra_pool_page_bytes(pool);
    void *memory = slab_count < 256 ? aligned_alloc(64, (bytes + 63) / 64 * 64) : NULL;
    if (!memory) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    slabs[slab_count++] = memory;
    CHECK(ra_pool_add_slab(pool, memory, pages, NULL));
}

static void reserve(ra_pool *pool, ra_layer *layer, const int64_t *begin)
{
    int64_t missing;
    ra_status status;
    while ((status = ra_layer_reserve(layer, begin, 0, INTERVAL, &missing)) == RA_ERR_NO_PAGES)
        add_pages(pool, missing);
    CHECK(status);
}

/* ---- The batch ---- */

typedef struct sequence {
    int request; /* -1: the place is free */
    int prompt, length, done;
    int64_t since; /* tokens since its last cut */
} sequence;

typedef struct engine {
    ra_pool *pool;
    ra_layer *layers[LAYERS];
    int64_t totals[LAYERS];
    sequence rows[ROWS];
    int rows_used; /* 1 for a sequence alone */
    int64_t cuts, evicted;
    double lost, worst; /* attention lost; error of attention */
} engine;

static engine make_engine(int rows)
{
    const double wave[LAYERS] = {180, 60, 40, 120}; /* tokens that hold 93 % of a layer's attention */
    const ra_layer_config config = {.rows = rows,
                                    .kv_heads = KV_HEADS,
                                    .query_heads = QUERY_HEADS,
                                    .window = WINDOW,
                                    .scorer = ra_scorer_find("rkv")};
    engine e = {.rows_used = rows};
    CHECK(ra_robustify(wave, LAYERS, BUDGET * KV_HEADS * LAYERS, 0.5, 0.25, 2, WINDOW * KV_HEADS, e.totals));
    CHECK(ra_pool_create(ra_format_find("float32"), HEAD_DIM, &e.pool));
    for (int l = 0; l < LAYERS; l++)
        CHECK(ra_layer_create(e.pool, &config, &e.layers[l]));
    for (int r = 0; r < ROWS; r++)
        e.rows[r].request = -1;
    return e;
}

/* Largest difference between the library's attention of a row's newest token and a double loop over its slots. */
static double error_of(const ra_layer *layer, int row, const float *queries, const float *got)
{
    double worst = 0;
    for (int h = 0; h < QUERY_HEADS; h++) {
        int head = h * KV_HEADS / QUERY_HEADS;
        int64_t n = ra_layer_slots(layer)[row * KV_HEADS + head];
        float *keys = malloc((size_t)n * HEAD_DIM * sizeof *keys),
              *values = malloc((size_t)n * HEAD_DIM * sizeof *values);
        double *p = malloc((size_t)n * sizeof *p), sum = 0;
        CHECK(ra_layer_read(layer, row, head, false, keys));
        CHECK(ra_layer_read(layer, row, head, true, values));
        for (int64_t i = 0; i < n; i++) {
            double dot = 0;
            for (int c = 0; c < HEAD_DIM; c++)
                dot += (double)queries[h * HEAD_DIM + c] * (double)keys[i * HEAD_DIM + c];
            sum += p[i] = exp(dot / sqrt(HEAD_DIM));
        }
        for (int c = 0; c < HEAD_DIM; c++) {
            double want = 0;
            for (int64_t i = 0; i < n; i++)
                want += p[i] / sum * (double)values[i * HEAD_DIM + c];
            worst = fmax(worst, fabs(want - (double)got[h * HEAD_DIM + c]));
        }
        free(keys);
        free(values);
        free(p);
    }
    return worst;
}

static void cut(engine *e, int l, const bool *due)
{
    int64_t totals[ROWS], protect[ROWS] = {0}, budgets[ROWS * KV_HEADS], missing, before[ROWS * KV_HEADS];
    double lost[ROWS * KV_HEADS];
    bool was_cut[ROWS];
    ra_cut order = {.totals = totals,
                    .protect_below = protect,
                    .budgets = budgets,
                    .lost = lost,
                    .cut = was_cut,
                    .score = {.scorer = ra_scorer_find("rkv"), .alpha = 0.1f, .threshold = 0.5f, .kernel = 7},
                    .route = {.heads = RA_HEADS_ROUTE, .gamma = 0.5, .lo = 0.25, .hi = 2, .mu = 0.25}};
    for (int r = 0; r < e->rows_used; r++)
        totals[r] = due[r] ? e->totals[l] : -1;
    for (int i = 0; i < e->rows_used * KV_HEADS; i++)
        before[i] = ra_layer_slots(e->layers[l])[i];
    ra_status status;
    while ((status = ra_layer_cut(e->layers[l], &order, NULL, &missing)) == RA_ERR_NO_PAGES)
        add_pages(e->pool, missing);
    CHECK(status);
    for (int i = 0; i < e->rows_used * KV_HEADS; i++)
        if (was_cut[i / KV_HEADS]) {
            e->evicted += before[i] - ra_layer_slots(e->layers[l])[i];
            e->lost += lost[i];
            e->cuts++;
        }
}

/* A step of all sequences. The tokens of all rows are packed into one [1, heads, T, D]; here token-major. */
static void step(engine *e)
{
    static float keys[MOST_TOKENS * KEYS], values[MOST_TOKENS * KEYS], queries[MOST_TOKENS * QUERIES],
        out[MOST_TOKENS * QUERIES];
    int64_t begin[ROWS + 1] = {0}, index[MOST_TOKENS], cut_in[ROWS];
    bool due[ROWS] = {false};
    int64_t total = 0;
    for (int r = 0; r < e->rows_used; r++) {
        sequence *s = &e->rows[r];
        int fresh = s->request < 0 ? 0 : s->done < s->prompt ? s->prompt - s->done : 1;
        fresh = fresh > CHUNK ? CHUNK : fresh;
        begin[r + 1] = begin[r] + fresh;
        s->since += fresh;
        due[r] = fresh && s->since >= INTERVAL;
        cut_in[r] = INTERVAL - s->since > 0 ? INTERVAL - s->since : 0;
    }
    total = begin[e->rows_used];
    for (int64_t i = 0; i < total; i++)
        index[i] = i;
    for (int l = 0; l < LAYERS; l++) {
        for (int r = 0; r < e->rows_used; r++)
            for (int64_t i = begin[r]; i < begin[r + 1]; i++) {
                const sequence *s = &e->rows[r];
                int place = s->done + (int)(i - begin[r]), request = s->request;
                make_token(request, l, place, 0, KV_HEADS, keys + i * KEYS);
                make_token(request, l, place, 1, KV_HEADS, values + i * KEYS);
                make_token(request, l, place, 2, QUERY_HEADS, queries + i * QUERIES);
            }
        const ra_step order = {
            .begin = begin,
            .index = index,
            .scale = 1 / sqrtf(HEAD_DIM),
            .cut_in = cut_in,
            .queries = {.data = queries, .dtype = RA_F32, .stride_head = HEAD_DIM, .stride_token = QUERIES},
            .keys = {.data = keys, .dtype = RA_F32, .stride_head = HEAD_DIM, .stride_token = KEYS},
            .values = {.data = values, .dtype = RA_F32, .stride_head = HEAD_DIM, .stride_token = KEYS},
            .out = {.data = out, .dtype = RA_F32, .stride_token = QUERIES}};
        reserve(e->pool, e->layers[l], begin);
        CHECK(ra_layer_step(e->layers[l], &order, NULL));
        for (int r = 0; r < e->rows_used; r++)
            if (begin[r + 1] > begin[r] && e->rows[r].done % 61 < CHUNK)
                e->worst = fmax(e->worst, error_of(e->layers[l], r, queries + (begin[r + 1] - 1) * QUERIES,
                                                   out + (begin[r + 1] - 1) * QUERIES));
        cut(e, l, due);
    }
    for (int r = 0; r < e->rows_used; r++) {
        e->rows[r].done += (int)(begin[r + 1] - begin[r]);
        if (due[r])
            e->rows[r].since = 0;
    }
}

static sequence request_of(int number)
{
    return (sequence){.request = number, .prompt = 40 + number * 37 % 150, .length = 260 + number * 97 % 300};
}

/* What a sequence holds in a layer, as a number; places in memory have no part in it. */
static uint64_t digest(const ra_layer *layer, int row)
{
    uint64_t sum = 1469598103934665603u;
    for (int h = 0; h < KV_HEADS; h++)
        for (int64_t i = 0; i < ra_layer_slots(layer)[row * KV_HEADS + h]; i++)
            sum = (sum ^ (uint64_t)ra_layer_positions(layer, row, h)[i]) * 1099511628211u;
    return sum;
}

/* Runs sequence `number` alone; digests of its layers at the end. */
static void run_alone(int number, uint64_t *digests)
{
    engine e = make_engine(1);
    e.rows[0] = request_of(number);
    while (e.rows[0].done < e.rows[0].length)
        step(&e);
    for (int l = 0; l < LAYERS; l++) {
        digests[l] = digest(e.layers[l], 0);
        ra_layer_destroy(e.layers[l]);
    }
    ra_pool_destroy(e.pool);
}

int main(void)
{
    uint64_t state = 42, alone[LAYERS];
    for (int t = 0; t < TOPICS; t++)
        for (int c = 0; c < HEAD_DIM; c++)
            topics[t][c] = noise(&state);
    run_alone(4, alone);

    engine e = make_engine(ROWS);
    int waiting = 0, finished = 0, steps = 0;
    bool forked = false, same = true;
    while (finished < REQUESTS + 1) {
        for (int r = 0; r < ROWS; r++) { /* sequences that have ended leave, others join */
            sequence *s = &e.rows[r];
            if (s->request >= 0 && s->done >= s->length) {
                for (int l = 0; l < LAYERS; l++) {
                    same &= s->request != 4 || digest(e.layers[l], r) == alone[l];
                    CHECK(ra_layer_release(e.layers[l], r));
                }
                printf("step %3d: request %d ends in row %d after %d tokens\n", steps, s->request, r, s->done);
                s->request = -1;
                finished++;
            }
            if (s->request < 0 && waiting < REQUESTS) {
                *s = request_of(waiting++);
                printf("step %3d: request %d joins in row %d, prompt of %d tokens\n", steps, s->request, r, s->prompt);
            }
        }
        for (int r = 0; r < ROWS && !forked && waiting == REQUESTS; r++) /* a chain that splits shares its pages */
            for (int to = 0; to < ROWS && !forked; to++)
                if (e.rows[r].request >= 0 && e.rows[to].request < 0) {
                    for (int l = 0; l < LAYERS; l++)
                        CHECK(ra_layer_fork(e.layers[l], r, to));
                    e.rows[to] = e.rows[r];
                    forked = true;
                    printf("step %3d: request %d of row %d goes on in row %d too, %lld pages shared\n", steps,
                           e.rows[r].request, r, to, (long long)ra_pool_get_info(e.pool).shared);
                }
        step(&e);
        steps++;
    }

    ra_pool_info info = ra_pool_get_info(e.pool);
    printf("instruction set %s, %d steps, %lld slots evicted in %lld cuts of a head, mean attention lost %.4f\n",
           ra_isa(), steps, (long long)e.evicted, (long long)e.cuts, e.lost / (double)(e.cuts ? e.cuts : 1));
    printf("pages in use at most %lld (%lld bytes)\n", (long long)info.peak_used,
           (long long)info.peak_used * (long long)ra_pool_page_bytes(e.pool));
    printf("attention error against a double loop: %.2e; request 4 alone holds %s\n", e.worst,
           same ? "the same" : "SOMETHING ELSE");
    for (int l = 0; l < LAYERS; l++)
        ra_layer_destroy(e.layers[l]);
    int64_t used = ra_pool_get_info(e.pool).used;
    ra_pool_destroy(e.pool);
    while (slab_count)
        free(slabs[--slab_count]);
    bool good = e.worst < 1e-5 && e.cuts > 0 && e.evicted > 0 && forked && same && used == 0;
    printf("%s\n", good ? "ok" : "FAILED");
    return good ? 0 : 1;
}
