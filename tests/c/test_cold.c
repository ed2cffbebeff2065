/* The cold tier in C: tokens come back as they went, whatever memory a cut is refused, and nothing leaks. */
#define _DEFAULT_SOURCE
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mxint8.h"
#include "reasonalloc.h"
#include "util.h"

enum { ROWS = 2, HEADS = 2, GROUP = 2, QUERY_HEADS = HEADS * GROUP, DIM = 40, WINDOW = 4, TOKENS = 60, MORE = 8 };
enum { TOTAL = 24, PAGES = 256 };

static int failures;
static long checks;

static void check(bool holds, int line, const char *what)
{
    checks++;
    if (!holds && ++failures <= 20)
        fprintf(stderr, "test_cold.c:%d: FAIL %s\n", line, what);
}
#define CHECK(condition) check(condition, __LINE__, #condition)

static uint64_t random_state = 1;
static float random_number(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(random_state >> 32) / 2147483648.0f;
}

/* ---- The format ---- */

static void pack_twice(const float *x, int64_t d, float bound)
{
    size_t bytes = ra_mxint8_bytes(d);
    char *first = malloc(bytes), *second = malloc(bytes); /* of exact size: ASan sees a byte too far */
    float *unpacked = malloc((size_t)d * sizeof *unpacked);
    ra_mxint8_pack(x, d, first);
    ra_mxint8_unpack(first, d, unpacked);
    ra_mxint8_pack(unpacked, d, second);
    CHECK(!memcmp(first, second, bytes));
    for (int64_t begin = 0; begin < d; begin += RA_MX_BLOCK) {
        float most = 0;
        for (int64_t i = begin; i < ra_min(begin + RA_MX_BLOCK, d); i++)
            most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        for (int64_t i = begin; i < ra_min(begin + RA_MX_BLOCK, d); i++) {
            CHECK(isfinite(unpacked[i]) && fabs((double)unpacked[i] - (double)x[i]) <= (double)most * (double)bound);
            CHECK(unpacked[i] == 0 || signbit(unpacked[i]) == signbit(x[i]));
        }
    }
    free(first);
    free(second);
    free(unpacked);
}

static void test_format(void)
{
    const int64_t sizes[] = {1, 2, 31, 32, 33, 64, 80, 1024};
    float x[1024];
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
        for (int power = -140; power <= 127; power += 3) {
            for (int64_t i = 0; i < sizes[s]; i++)
                x[i] = ldexpf(random_number(), power) * (i % 7 ? 1 : 0.001f);
            /* below 2^-126 a step is that of the least power */
            pack_twice(x, sizes[s], power < -118 ? 2 : 1 / 127.0f);
        }
    for (int i = 0; i < 64; i++)
        x[i] = i < 32 ? 0 : FLT_MAX * (i % 2 ? 1.0f : -1.0f);
    pack_twice(x, 64, 1 / 127.0f);
    for (int i = 0; i < 32; i++)
        x[i] = 127.6f / 64 * (float)(i - 16) / 16; /* cut to 127 */
    pack_twice(x, 32, 1 / 127.0f);
    float whole[3] = {127, -127, 1}, back[3];
    char packed[4];
    ra_mxint8_pack(whole, 3, packed);
    ra_mxint8_unpack(packed, 3, back);
    CHECK(!memcmp(whole, back, sizeof whole));
}

/* ---- Layers ---- */

typedef struct fixture {
    ra_pool *pool;
    ra_layer *layer;
    void *slab;
} fixture;

static float numbers[ROWS * QUERY_HEADS * TOKENS * DIM];

static bool step(ra_layer *layer, int64_t tokens)
{
    int64_t missing;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        numbers[i] = random_number() * 3;
    ra_step s = {.tokens = tokens, .scale = 0.2f};
    s.queries = (ra_tokens){numbers, RA_F32, QUERY_HEADS * TOKENS * DIM, TOKENS * DIM, DIM};
    s.keys = s.values = (ra_tokens){numbers, RA_F32, HEADS * TOKENS * DIM, TOKENS * DIM, DIM};
    return ra_layer_reserve(layer, NULL, tokens, 0, &missing) == RA_OK && ra_layer_step(layer, &s, NULL) == RA_OK;
}

/* Where queries lie, for "triattention". */
static bool give_centres(ra_layer *layer)
{
    static const double frequency[] = {1, 0.1, 0.01};
    static float mean[QUERY_HEADS * DIM], length[QUERY_HEADS * 3];
    for (int i = 0; i < QUERY_HEADS * DIM; i++)
        mean[i] = (float)(i % 7) - 3;
    for (int i = 0; i < QUERY_HEADS * 3; i++)
        length[i] = (float)(i % 5);
    const ra_query_centres centres = {.pairs = 3, .frequency = frequency, .mean = mean, .length = length};
    return ra_layer_set_centres(layer, &centres) == RA_OK;
}

static fixture make(const char *format, const char *scorer, int64_t limit, ra_cold_format cold)
{
    fixture f = {0};
    const ra_layer_config config = {ROWS, HEADS, QUERY_HEADS, WINDOW, ra_scorer_find(scorer), ra_stat_defaults()};
    CHECK(ra_pool_create(ra_format_find(format), DIM, &f.pool) == RA_OK);
    f.slab = aligned_alloc(64, PAGES * ra_pool_page_bytes(f.pool));
    CHECK(f.slab && ra_pool_add_slab(f.pool, f.slab, PAGES, NULL) == RA_OK);
    CHECK(ra_layer_create(f.pool, &config, &f.layer) == RA_OK);
    CHECK(ra_layer_keep_cold(f.layer, limit, cold) == RA_OK && give_centres(f.layer));
    random_state = 7;
    CHECK(step(f.layer, TOKENS));
    return f;
}

static void destroy(fixture *f)
{
    ra_layer_destroy(f->layer);
    CHECK(ra_pool_get_info(f->pool).used == 0 && ra_pool_cold_bytes(f->pool) == 0);
    ra_pool_destroy(f->pool);
    free(f->slab);
}

static ra_status cut(ra_layer *layer, const char *scorer, int64_t *missing)
{
    static int64_t budgets[ROWS * HEADS];
    static double lost[ROWS * HEADS];
    static bool was_cut[ROWS];
    const int64_t totals[ROWS] = {TOTAL, TOTAL}, protect[ROWS] = {0, 3};
    const ra_cut c = {.totals = totals,
                      .protect_below = protect,
                      .score = {.scorer = ra_scorer_find(scorer),
                                .alpha = 0.1f,
                                .threshold = 0.5f,
                                .kernel = 7,
                                .seed = 3,
                                .recent = 0.5f},
                      .route = {RA_HEADS_ROUTE, 0.5, 0.25, 2, 0.25, 0.2, NULL, NULL},
                      .budgets = budgets,
                      .lost = lost,
                      .cut = was_cut};
    return ra_layer_cut(layer, &c, NULL, missing);
}

/* A digest of all that a layer shows. */
static uint64_t digest(const ra_layer *layer)
{
    static float rows[4 * TOKENS * DIM];
    uint64_t sum = 14695981039346656037u;
#define ADD(memory, bytes)                                                                                             \
    for (size_t b = 0; b < (size_t)(bytes); b++)                                                                       \
    sum = (sum ^ ((const unsigned char *)(memory))[b]) * 1099511628211u
    for (int64_t row = 0; row < ROWS; row++)
        for (int64_t head = 0; head < HEADS; head++) {
            int64_t n = ra_layer_slots(layer)[row * HEADS + head], cold = ra_cold_slots(layer, row, head);
            ADD(ra_layer_positions(layer, row, head), n * 4);
            for (int values = 0; values < 2; values++) {
                CHECK(ra_layer_read(layer, row, head, values, rows) == RA_OK);
                ADD(rows, n * DIM * 4);
            }
            int64_t fields = ra_layer_columns(layer, row, head, (int32_t *)(void *)rows);
            ADD(rows, fields * n * 4);
            if (cold) {
                ADD(ra_cold_positions(layer, row, head), cold * 4);
                ADD(ra_cold_records(layer, row, head), (size_t)cold * ra_cold_record_bytes(layer));
            }
        }
    return sum;
}

/* Every token of a row is a slot or cold. */
static void check_whole(const ra_layer *layer)
{
    for (int64_t row = 0; row < ROWS; row++)
        for (int64_t head = 0; head < HEADS; head++) {
            const int32_t *hot = ra_layer_positions(layer, row, head), *cold = ra_cold_positions(layer, row, head);
            int64_t n = ra_layer_slots(layer)[row * HEADS + head], c = ra_cold_slots(layer, row, head), i = 0, j = 0;
            CHECK(n + c == ra_layer_tokens(layer, row));
            while (i < n || j < c) {
                bool is_hot = i < n && hot[i] == i + j, is_cold = j < c && cold[j] == i + j;
                CHECK(is_hot != is_cold);
                if (is_hot == is_cold)
                    return;
                i += is_hot;
                j += is_cold;
            }
        }
}

static void test_cuts(const char *format, const char *scorer, ra_cold_format cold)
{
    fixture f = make(format, scorer, -1, cold);
    int64_t missing, back = 0;
    for (int turn = 0; turn < 5; turn++) {
        CHECK(cut(f.layer, scorer, &missing) == RA_OK);
        check_whole(f.layer);
        for (int64_t row = 0; row < ROWS; row++)
            for (int64_t head = 0; head < HEADS; head++)
                back += ra_cold_recalled(f.layer, row, head);
        if (turn == 2)
            CHECK(ra_layer_fork(f.layer, 0, 1) == RA_OK);
        CHECK(step(f.layer, MORE));
    }
    CHECK(back > 0 || strcmp(scorer, "rkv"));
    destroy(&f);
}

/* Of the allocations of a cut each fails once, and then pages do: the layer is as it was, and the next cut makes up for it. */
static void test_refused_memory(ra_cold_format cold)
{
    fixture f = make("float32", "h2o", 20, cold), want = make("float32", "h2o", 20, cold);
    int64_t missing, refused = 0;
    for (int turn = 0; turn < 3; turn++) {
        uint64_t before = digest(f.layer);
        int64_t used = ra_pool_get_info(f.pool).used;
        size_t bytes = ra_pool_cold_bytes(f.pool);
        for (int64_t next = 1;; next++) {
            ra_fail_allocation(next);
            ra_status status = cut(f.layer, "h2o", &missing);
            ra_fail_allocation(0);
            if (status == RA_OK)
                break;
            refused++;
            CHECK(status == RA_ERR_NO_MEMORY && digest(f.layer) == before && ra_pool_get_info(f.pool).used == used &&
                  ra_pool_cold_bytes(f.pool) == bytes);
        }
        CHECK(cut(want.layer, "h2o", &missing) == RA_OK);
        CHECK(digest(f.layer) == digest(want.layer));
        uint64_t state = random_state;
        CHECK(step(f.layer, MORE));
        random_state = state;
        CHECK(step(want.layer, MORE));
    }
    CHECK(refused > 10);
    destroy(&f);
    destroy(&want);
}

static void test_missing_pages(void)
{
    fixture f = {0};
    const ra_layer_config config = {ROWS, HEADS, QUERY_HEADS, WINDOW, ra_scorer_find("rkv"), ra_stat_defaults()};
    CHECK(ra_pool_create(ra_format_find("bfloat16"), DIM, &f.pool) == RA_OK);
    const int64_t pages = ROWS * HEADS * ((TOKENS + 15) / 16);
    f.slab = aligned_alloc(64, PAGES * ra_pool_page_bytes(f.pool));
    CHECK(ra_pool_add_slab(f.pool, f.slab, pages, NULL) == RA_OK);
    CHECK(ra_layer_create(f.pool, &config, &f.layer) == RA_OK);
    CHECK(ra_layer_keep_cold(f.layer, -1, RA_COLD_SAME) == RA_OK);
    CHECK(step(f.layer, TOKENS));
    int64_t missing, all = pages, last = 0;
    CHECK(cut(f.layer, "rkv", &missing) == RA_OK);
    for (int turn = 0; turn < 6; turn++) {
        CHECK(step(f.layer, MORE));
        uint64_t before = digest(f.layer);
        ra_status status;
        while ((status = cut(f.layer, "rkv", &missing)) == RA_ERR_NO_PAGES) {
            CHECK(missing > 0 && digest(f.layer) == before);
            char *more = (char *)f.slab + (size_t)all * ra_pool_page_bytes(f.pool);
            CHECK(ra_pool_add_slab(f.pool, more, missing, NULL) == RA_OK);
            all += missing;
        }
        CHECK(status == RA_OK);
        check_whole(f.layer);
        last = ra_pool_get_info(f.pool).used;
    }
    CHECK(all > pages && last < all / 2);
    destroy(&f);
}

static void test_refusals(void)
{
    fixture f = make("float32", "rkv", 5, RA_COLD_SAME);
    int64_t missing = 0;
    const int64_t totals[ROWS] = {TOTAL, TOTAL};
    const int64_t hostile[] = {-1, INT64_MIN, INT64_MAX, ROWS, 1LL << 32};
    CHECK(ra_layer_keep_cold(f.layer, 5, RA_COLD_SAME) == RA_ERR_ARGUMENT);
    CHECK(ra_layer_keep_cold(NULL, 5, RA_COLD_SAME) == RA_ERR_ARGUMENT);
    CHECK(ra_cut_recall(NULL, totals, NULL, &missing) == RA_ERR_ARGUMENT);
    CHECK(ra_cut_recall(f.layer, NULL, NULL, &missing) == RA_ERR_ARGUMENT);
    CHECK(ra_cut_recall(f.layer, totals, NULL, NULL) == RA_ERR_ARGUMENT);
    CHECK(cut(f.layer, "rkv", &missing) == RA_OK);
    uint64_t before = digest(f.layer);
    for (size_t i = 0; i < sizeof hostile / sizeof hostile[0]; i++) {
        CHECK(!ra_cold_slots(f.layer, hostile[i], 0) && !ra_cold_slots(f.layer, 0, hostile[i]));
        CHECK(!ra_cold_positions(f.layer, hostile[i], 0) && !ra_cold_records(f.layer, 0, hostile[i]));
        CHECK(!ra_cold_recalled(f.layer, hostile[i], 0));
        CHECK(ra_cold_restore(f.layer, hostile[i], 0, 1, (const int32_t *)&missing, &missing) == RA_ERR_ARGUMENT);
        CHECK(ra_cold_restore(f.layer, 0, hostile[i], 1, (const int32_t *)&missing, &missing) == RA_ERR_ARGUMENT);
        if (hostile[i] > 5 || hostile[i] < 0)
            CHECK(ra_cold_restore(f.layer, 0, 0, hostile[i], (const int32_t *)&missing, &missing) == RA_ERR_ARGUMENT);
    }
    CHECK(digest(f.layer) == before && ra_cold_slots(f.layer, 0, 0) == 5);
    destroy(&f);
}

int main(void)
{
    const char *isa;
    for (size_t i = 0; (isa = ra_isa_available(i)); i++) {
        ra_set_isa(isa);
        test_format();
        for (size_t f = 0; ra_format_name(f); f++)
            for (size_t s = 0; ra_scorer_name(s); s++) {
                test_cuts(ra_format_name(f), ra_scorer_name(s), RA_COLD_SAME);
                test_cuts(ra_format_name(f), ra_scorer_name(s), RA_COLD_INT8);
            }
        test_refused_memory(RA_COLD_SAME);
        test_refused_memory(RA_COLD_INT8);
        test_missing_pages();
        test_refusals();
    }
    printf("%ld checks of the cold tier, %d failed\n", checks, failures);
    return failures != 0;
}
