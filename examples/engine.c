/* The library without Python: a toy decoding engine that keeps its key-value cache inside a budget.
 *
 *     cc -std=c11 -O2 -Icsrc/include -Icsrc/{core,format,stat,scorer,cpu,cpu/simd} \
 *        examples/engine.c csrc/{core,format,stat,scorer,cpu,cpu/simd}/?*.c -lm -o engine
 *
 * The "model" makes keys, values and queries from a seeded generator: topics that come and go, so that keys of one
 * topic resemble each other as in a real chain. Every 128 tokens each layer is scored (R-KV), its budget routed among
 * the heads and the rest evicted. Before the first cut the attention is compared with a plain double loop. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "reasonalloc.h"

enum { LAYERS = 4, KV_HEADS = 2, QUERY_HEADS = 6, HEAD_DIM = 64, WINDOW = 8, BUDGET = 96, INTERVAL = 128, TOKENS = 700 };
enum { TOPICS = 12, TOPIC_LENGTH = 24 };

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        ra_status status_ = (call);                                                                                    \
        if (status_ != RA_OK) {                                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, ra_status_text(status_));                               \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static uint64_t state = 42;

static float noise(void) /* roughly normal */
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(state >> 40) * 0x1p-24f - 0.5f;
    }
    return sum * 1.7f;
}

static float topics[TOPICS][HEAD_DIM];

static void make_token(int token, int heads, float *out)
{
    const float *topic = topics[token / TOPIC_LENGTH * 7 % TOPICS];
    for (int i = 0; i < heads * HEAD_DIM; i++)
        out[i] = topic[i % HEAD_DIM] + 0.6f * noise();
}

/* Slabs are the caller's: malloc'd here, torch tensors in the Python package. */
static void *slabs[64];
static int slab_count;

static void add_pages(ra_pool *pool, int64_t missing)
{
    int64_t pages = missing > 64 ? missing : 64;
    size_t bytes = (size_t)pages * ra_pool_page_bytes(pool);
    void *memory = slab_count < 64 ? aligned_alloc(64, (bytes + 63) / 64 * 64) : NULL;
    if (!memory) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    slabs[slab_count++] = memory;
    CHECK(ra_pool_add_slab(pool, memory, pages, NULL));
}

static ra_tokens one_token(const float *data, int heads)
{
    return (ra_tokens){.data = data, .stride_row = (int64_t)heads * HEAD_DIM, .stride_head = HEAD_DIM,
                       .stride_token = HEAD_DIM};
}

/* Largest difference between the library's attention of one query head and a double loop over what the head holds. */
static double error_of(const ra_layer *layer, int head, const float *query, const float *got)
{
    int64_t n = ra_layer_slots(layer, 0, head);
    float *keys = malloc((size_t)n * HEAD_DIM * sizeof *keys), *values = malloc((size_t)n * HEAD_DIM * sizeof *values);
    double *p = malloc((size_t)n * sizeof *p), sum = 0, worst = 0;
    CHECK(ra_layer_read(layer, 0, head, false, keys));
    CHECK(ra_layer_read(layer, 0, head, true, values));
    for (int64_t i = 0; i < n; i++) {
        double dot = 0;
        for (int c = 0; c < HEAD_DIM; c++)
            dot += (double)query[c] * (double)keys[i * HEAD_DIM + c];
        p[i] = exp(dot / sqrt(HEAD_DIM));
        sum += p[i];
    }
    for (int c = 0; c < HEAD_DIM; c++) {
        double want = 0;
        for (int64_t i = 0; i < n; i++)
            want += p[i] / sum * (double)values[i * HEAD_DIM + c];
        worst = fmax(worst, fabs(want - (double)got[c]));
    }
    free(keys);
    free(values);
    free(p);
    return worst;
}

int main(void)
{
    static float keys[KV_HEADS * HEAD_DIM], values[KV_HEADS * HEAD_DIM], queries[QUERY_HEADS * HEAD_DIM],
        out[QUERY_HEADS * HEAD_DIM];
    const ra_score_config score = {.scorer = RA_SCORE_RKV, .alpha = 0.1f, .threshold = 0.5f, .kernel = 7};
    const ra_route_config route = {.heads = RA_HEADS_ROUTE, .gamma = 0.5, .lo = 0.25, .hi = 2, .mu = 0.25};
    const double wave[LAYERS] = {180, 60, 40, 120}; /* tokens that hold 93 % of a layer's attention */
    int64_t totals[LAYERS], missing, evicted = 0, cuts = 0;
    double worst = 0, lost_sum = 0;

    for (int t = 0; t < TOPICS; t++)
        for (int c = 0; c < HEAD_DIM; c++)
            topics[t][c] = noise();
    CHECK(ra_robustify(wave, LAYERS, BUDGET * KV_HEADS * LAYERS, 0.5, 0.25, 2, WINDOW * KV_HEADS, totals));
    ra_pool *pool;
    ra_layer *layers[LAYERS];
    CHECK(ra_pool_create(RA_F32, HEAD_DIM, &pool));
    for (int l = 0; l < LAYERS; l++)
        CHECK(ra_layer_create(pool, 1, KV_HEADS, QUERY_HEADS, WINDOW, &layers[l]));

    for (int token = 0; token < TOKENS; token++) {
        for (int l = 0; l < LAYERS; l++) {
            make_token(token, KV_HEADS, keys);
            make_token(token, KV_HEADS, values);
            make_token(token, QUERY_HEADS, queries);
            ra_status status;
            while ((status = ra_layer_append(layers[l], one_token(keys, KV_HEADS), one_token(values, KV_HEADS), 1, NULL,
                                             NULL, &missing)) == RA_ERR_NO_PAGES)
                add_pages(pool, missing);
            CHECK(status);
            CHECK(ra_layer_observe(layers[l], one_token(queries, QUERY_HEADS), 1, NULL));
            CHECK(ra_layer_attend(layers[l], one_token(queries, QUERY_HEADS), 1, NULL, 1 / sqrtf(HEAD_DIM),
                                  INTERVAL - 1 - token % INTERVAL, out, NULL));
            for (int h = 0; h < QUERY_HEADS && token % 61 == 0; h++)
                worst = fmax(worst, error_of(layers[l], h * KV_HEADS / QUERY_HEADS, queries + h * HEAD_DIM,
                                             out + h * HEAD_DIM));
            if ((token + 1) % INTERVAL)
                continue;
            int64_t budgets[KV_HEADS], protect = 0, before = 0, after = 0;
            double lost[KV_HEADS];
            bool cut = false;
            for (int h = 0; h < KV_HEADS; h++)
                before += ra_layer_slots(layers[l], 0, h);
            CHECK(ra_layer_compress(layers[l], &totals[l], &protect, &score, &route, budgets, lost, &cut, NULL,
                                    &missing));
            for (int h = 0; h < KV_HEADS; h++) {
                after += ra_layer_slots(layers[l], 0, h);
                lost_sum += cut ? lost[h] : 0;
            }
            cuts += cut;
            evicted += before - after;
            printf("token %3d layer %d: %3lld -> %3lld slots, budgets %lld %lld\n", token + 1, l, (long long)before,
                   (long long)after, (long long)budgets[0], (long long)budgets[1]);
        }
    }
    ra_pool_info info = ra_pool_get_info(pool);
    printf("instruction set %s, %lld slots evicted in %lld cuts, mean attention lost %.4f\n", ra_isa(),
           (long long)evicted, (long long)cuts, lost_sum / (double)(cuts * KV_HEADS));
    printf("pages in use %lld (%lld bytes), peak %lld, a full cache would use %d\n", (long long)info.used,
           (long long)info.used * (long long)ra_pool_page_bytes(pool), (long long)info.peak_used,
           LAYERS * KV_HEADS * ((TOKENS + RA_PAGE_TOKENS - 1) / RA_PAGE_TOKENS));
    printf("attention error against a double loop: %.2e\n", worst);

    for (int l = 0; l < LAYERS; l++)
        ra_layer_destroy(layers[l]);
    info = ra_pool_get_info(pool);
    ra_pool_destroy(pool);
    while (slab_count)
        free(slabs[--slab_count]);
    bool good = worst < 1e-5 && cuts > 0 && evicted > 0 && info.used == 0;
    printf("%s\n", good ? "ok" : "FAILED");
    return good ? 0 : 1;
}
