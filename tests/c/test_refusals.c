/* Every function of reasonalloc.h refuses sizes whose products overflow, and whatever else is out of range, before it
 * touches memory: the buffers that it is given are a page that may not be read. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "reasonalloc.h"

enum { ROWS = 2, HEADS = 2, GROUP = 2, QUERY_HEADS = HEADS * GROUP, DIM = 8, WINDOW = 4, PAGES = 12, TOKENS = 20 };
#define COUNT(array) (int)(sizeof(array) / sizeof(array)[0])

/* The address sanitizer would end the program where malloc cannot give what is asked for. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "allocator_may_return_null=1"; }

static void *untouchable;
static int failures;
static long checks;

static void check(bool holds, const char *file, int line, const char *what)
{
    checks++;
    if (!holds && ++failures <= 20)
        fprintf(stderr, "%s:%d: FAIL %s\n", file, line, what);
}
#define CHECK(condition) check(condition, __FILE__, __LINE__, #condition)
#define REFUSED(call) CHECK((call) == RA_ERR_ARGUMENT)
/* Of sizes that no machine has. */
#define TOO_MUCH(call) CHECK(too_much(call))

static bool too_much(ra_status status) { return status == RA_ERR_ARGUMENT || status == RA_ERR_NO_MEMORY; }

static const int64_t hostile[] = {-1,        INT64_MIN, INT64_MAX,    INT64_MAX - 15, INT64_MAX / 2,
                                  1LL << 62, 1LL << 61, 1LL << 60,    1LL << 59,      1LL << 58,
                                  1LL << 33, 1LL << 32, -(1LL << 32), -(1LL << 60)};

/* ---- A layer with tokens, and what it shows ---- */

typedef struct fixture {
    ra_pool *pool;
    ra_layer *layer;
    void *slab;
} fixture;

static float numbers[ROWS * QUERY_HEADS * TOKENS * DIM];

static ra_step step_of(int64_t tokens)
{
    ra_step step = {.tokens = tokens, .scale = 1};
    step.queries = (ra_tokens){numbers, RA_F32, QUERY_HEADS * TOKENS * DIM, TOKENS * DIM, DIM};
    step.keys = step.values = (ra_tokens){numbers, RA_F32, HEADS * TOKENS * DIM, TOKENS * DIM, DIM};
    return step;
}

static fixture make(void)
{
    fixture f = {0};
    int64_t missing;
    const ra_layer_config config = {ROWS, HEADS, QUERY_HEADS, WINDOW, ra_scorer_find("rkv"), {0}};
    ra_step step = step_of(TOKENS);
    CHECK(ra_pool_create(ra_format_find("float32"), DIM, &f.pool) == RA_OK);
    f.slab = aligned_alloc(64, PAGES * ra_pool_page_bytes(f.pool));
    CHECK(f.slab && ra_pool_add_slab(f.pool, f.slab, PAGES, NULL) == RA_OK);
    CHECK(ra_layer_create(f.pool, &config, &f.layer) == RA_OK);
    CHECK(ra_layer_reserve(f.layer, NULL, TOKENS, 0, &missing) == RA_OK);
    CHECK(ra_layer_step(f.layer, &step, NULL) == RA_OK);
    return f;
}

static void destroy(fixture *f)
{
    for (int64_t row = 0; row < ROWS; row++) {
        CHECK(ra_layer_tokens(f->layer, row) == TOKENS);
        for (int64_t head = 0; head < HEADS; head++)
            CHECK(ra_layer_slots(f->layer)[row * HEADS + head] == TOKENS);
    }
    CHECK(ra_pool_get_info(f->pool).used == ROWS * HEADS * 2 && ra_pool_get_info(f->pool).pages == PAGES);
    ra_layer_destroy(f->layer);
    CHECK(ra_pool_get_info(f->pool).used == 0);
    ra_pool_destroy(f->pool);
    free(f->slab);
}

/* ---- Names ---- */

static void test_names(void)
{
    REFUSED(ra_set_isa(NULL));
    REFUSED(ra_set_isa("none"));
    CHECK(!ra_format_find(NULL) && !ra_format_find("float64") && !ra_scorer_find(NULL) && !ra_scorer_find("none"));
    CHECK(!ra_format_name(SIZE_MAX) && !ra_scorer_name(SIZE_MAX) && !ra_isa_available(SIZE_MAX));
    CHECK(ra_dtype_size((ra_dtype)-1) == 0 && ra_dtype_size(RA_DTYPES) == 0 && ra_status_text((ra_status)-1) != NULL);
}

/* ---- Pools ---- */

static void test_pools(void)
{
    const ra_format *format = ra_format_find("float16");
    ra_pool *pool = NULL;
    int64_t count, ids[1];
    REFUSED(ra_pool_create(NULL, 8, &pool));
    REFUSED(ra_pool_create(format, 8, NULL));
    REFUSED(ra_pool_create(format, 0, &pool));
    REFUSED(ra_pool_create(format, RA_MAX_HEAD_DIM + 1, &pool));
    for (int i = 0; i < COUNT(hostile); i++)
        REFUSED(ra_pool_create(format, hostile[i], &pool));
    CHECK(!pool && ra_pool_create(format, RA_MAX_HEAD_DIM, &pool) == RA_OK);
    for (int i = 0; i < COUNT(hostile); i++)
        REFUSED(ra_pool_add_slab(pool, untouchable, hostile[i], NULL));
    REFUSED(ra_pool_add_slab(NULL, untouchable, 1, NULL));
    REFUSED(ra_pool_add_slab(pool, NULL, 1, NULL));
    REFUSED(ra_pool_add_slab(pool, untouchable, 0, NULL));
    REFUSED(ra_pool_add_slab(pool, (char *)untouchable + 32, 1, NULL));
    REFUSED(ra_pool_trim(NULL, 0, ids, 1, &count));
    REFUSED(ra_pool_trim(pool, -1, ids, 1, &count));
    REFUSED(ra_pool_trim(pool, INT64_MIN, ids, 1, &count));
    REFUSED(ra_pool_trim(pool, 0, ids, -1, &count));
    REFUSED(ra_pool_trim(pool, 0, NULL, 1, &count));
    REFUSED(ra_pool_trim(pool, 0, ids, 1, NULL));
    CHECK(ra_pool_trim(pool, INT64_MAX, NULL, 0, &count) == RA_OK && count == 0);
    CHECK(ra_pool_get_info(pool).pages == 0 && ra_pool_get_info(pool).slabs == 0);
    ra_pool_destroy(pool);
    ra_pool_destroy(NULL);
}

/* ---- Layers ---- */

static void test_layers_of_any_size(void)
{
    ra_pool *pool;
    ra_layer *layer = NULL;
    CHECK(ra_pool_create(ra_format_find("bfloat16"), RA_MAX_HEAD_DIM, &pool) == RA_OK);
    REFUSED(ra_layer_create(NULL, &(ra_layer_config){1, 1, 1, 1, NULL, {0}}, &layer));
    REFUSED(ra_layer_create(pool, NULL, &layer));
    REFUSED(ra_layer_create(pool, &(ra_layer_config){1, 1, 1, 1, NULL, {0}}, NULL));
    REFUSED(ra_layer_create(pool, &(ra_layer_config){1, 2, 3, 1, NULL, {0}}, &layer));
    REFUSED(ra_layer_create(pool, &(ra_layer_config){1, 2, 1, 1, NULL, {0}}, &layer));
    for (int i = 0; i < COUNT(hostile); i++) {
        const int64_t bad = hostile[i];
        TOO_MUCH(ra_layer_create(pool, &(ra_layer_config){bad, 1, 1, 1, NULL, {0}}, &layer));
        TOO_MUCH(ra_layer_create(pool, &(ra_layer_config){1, bad, bad, 1, NULL, {0}}, &layer));
        TOO_MUCH(ra_layer_create(pool, &(ra_layer_config){1, 1, bad, 1, NULL, {0}}, &layer));
        TOO_MUCH(ra_layer_create(pool, &(ra_layer_config){1, 1, 1, bad, NULL, {0}}, &layer));
        for (int j = 0; j < COUNT(hostile); j++) {
            TOO_MUCH(ra_layer_create(pool, &(ra_layer_config){bad, hostile[j], hostile[j], 1, NULL, {0}}, &layer));
            TOO_MUCH(ra_layer_create(pool, &(ra_layer_config){bad, 4, 8, hostile[j], NULL, {0}}, &layer));
        }
    }
    /* Each within its range, their product beyond every memory. */
    const int64_t most = INT32_MAX;
    TOO_MUCH(ra_layer_create(pool, &(ra_layer_config){most, most, most, most, ra_scorer_find("rkv"), {0}}, &layer));
    TOO_MUCH(ra_layer_create(pool, &(ra_layer_config){most, 1, most, most, NULL, {0}}, &layer));
    TOO_MUCH(ra_layer_create(pool, &(ra_layer_config){1, most, most, most, ra_scorer_find("rkv"), {0}}, &layer));
    TOO_MUCH(ra_layer_create(pool, &(ra_layer_config){1 << 30, 1 << 30, 1 << 30, 4, NULL, {0}}, &layer));
    CHECK(!layer);
    ra_layer_destroy(NULL);
    ra_pool_destroy(pool);
}

static void test_steps(fixture *f)
{
    int64_t missing, begin[ROWS + 1] = {0};
    REFUSED(ra_layer_reserve(NULL, NULL, 1, 0, &missing));
    REFUSED(ra_layer_reserve(f->layer, NULL, 1, 0, NULL));
    for (int i = 0; i < COUNT(hostile); i++) {
        const int64_t bad = hostile[i];
        REFUSED(ra_layer_reserve(f->layer, NULL, bad, 0, &missing));
        REFUSED(ra_layer_reserve(f->layer, NULL, 1, bad, &missing));
        for (int at = 0; at <= ROWS; at++) {
            begin[at] = bad;
            TOO_MUCH(ra_layer_reserve(f->layer, begin, 0, 0, &missing));
            begin[at] = 0;
        }
    }
    TOO_MUCH(ra_layer_reserve(f->layer, NULL, INT32_MAX, 0, &missing));
    TOO_MUCH(ra_layer_reserve(f->layer, NULL, INT32_MAX - TOKENS - 15, 0, &missing)); /* one position too many */

    ra_step good = step_of(1), step = good;
    REFUSED(ra_layer_step(f->layer, &good, NULL)); /* no reserve, though its page has room */
    REFUSED(ra_layer_step(NULL, &good, NULL));
    REFUSED(ra_layer_step(f->layer, NULL, NULL));
    CHECK(ra_layer_reserve(f->layer, NULL, 1, 0, &missing) == RA_OK);
    REFUSED(ra_layer_step(f->layer, (step = step_of(13), &step), NULL)); /* another step than that of the reserve */
    for (int i = 0; i < COUNT(hostile); i++) {
        step = good;
        step.tokens = hostile[i];
        REFUSED(ra_layer_step(f->layer, &step, NULL));
        const int64_t rows[ROWS + 1] = {0, 1, hostile[i]}, index[2] = {0, hostile[i]};
        step = good;
        step.begin = rows;
        REFUSED(ra_layer_step(f->layer, &step, NULL));
        step.begin = (const int64_t[]){0, 2, 2};
        step.index = index;
        if (hostile[i] < 0) /* the tensors' length is the caller's to know */
            REFUSED(ra_layer_step(f->layer, &step, NULL));
    }
    step = good;
    step.index = begin;
    REFUSED(ra_layer_step(f->layer, &step, NULL)); /* index without begin */
    step = good;
    step.visible = untouchable;
    step.visible_stride = -1;
    REFUSED(ra_layer_step(f->layer, &step, NULL));
    const float odd[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < COUNT(odd); i++) {
        step = good;
        step.scale = odd[i];
        REFUSED(ra_layer_step(f->layer, &step, NULL));
        step = good;
        step.softcap = odd[i];
        REFUSED(ra_layer_step(f->layer, &step, NULL));
        float sinks[QUERY_HEADS] = {0};
        sinks[QUERY_HEADS - 1] = odd[i];
        step = good;
        step.sinks = sinks;
        CHECK(ra_layer_step(f->layer, &step, NULL) == RA_ERR_NOT_FINITE);
    }
    step = good;
    step.softcap = -1;
    REFUSED(ra_layer_step(f->layer, &step, NULL));
    ra_tokens *const tensors[] = {&step.queries, &step.keys, &step.values};
    for (int i = 0; i < COUNT(tensors); i++) {
        step = good;
        tensors[i]->data = NULL;
        REFUSED(ra_layer_step(f->layer, &step, NULL));
        step = good;
        tensors[i]->dtype = RA_DTYPES;
        REFUSED(ra_layer_step(f->layer, &step, NULL));
    }
    step = good;
    step.out = (ra_output){.data = untouchable, .dtype = RA_DTYPES};
    REFUSED(ra_layer_step(f->layer, &step, NULL));
}

static void test_rows(fixture *f)
{
    const ra_layer_config config = {1, HEADS, QUERY_HEADS, WINDOW, NULL, {0}};
    ra_layer *empty;
    int64_t missing;
    CHECK(ra_layer_create(f->pool, &config, &empty) == RA_OK);
    for (int i = 0; i <= COUNT(hostile); i++) {
        const int64_t bad = i < COUNT(hostile) ? hostile[i] : ROWS, source[] = {0, bad}, crop[] = {0, bad};
        REFUSED(ra_layer_fork(f->layer, 0, bad));
        REFUSED(ra_layer_fork(f->layer, bad, 0));
        REFUSED(ra_layer_release(f->layer, bad));
        REFUSED(ra_layer_read(f->layer, bad, 0, false, untouchable));
        REFUSED(ra_layer_read(f->layer, 0, bad, true, untouchable));
        CHECK(!ra_layer_positions(f->layer, bad, 0) && !ra_layer_positions(f->layer, 0, bad));
        CHECK(ra_layer_tokens(f->layer, bad) == 0 && ra_layer_queries(f->layer, bad, untouchable) == 0);
        CHECK(!ra_cut_scores(f->layer, bad, 0, &missing) && !ra_cut_kept(f->layer, 0, bad, &missing));
        if (bad != -1)
            REFUSED(ra_layer_reorder(f->layer, source, 2));
        if (bad != ROWS) {
            TOO_MUCH(ra_layer_reorder(f->layer, untouchable, bad));
            CHECK(ra_layer_crop(f->layer, crop) == (bad < 0 ? RA_ERR_ARGUMENT : RA_ERR_EVICTED));
            REFUSED(ra_layer_restore(empty, 0, 0, bad, untouchable, untouchable, untouchable, &missing));
            REFUSED(ra_layer_restore_row(empty, 0, bad, untouchable, 0, 1, 0));
            REFUSED(ra_layer_restore_row(empty, 0, TOKENS, untouchable, bad, 1, 0));
        }
        REFUSED(ra_layer_restore(empty, bad, 0, 1, untouchable, untouchable, untouchable, &missing));
        REFUSED(ra_layer_restore(empty, 0, bad, 1, untouchable, untouchable, untouchable, &missing));
        REFUSED(ra_layer_restore_row(empty, bad, 0, NULL, 0, 1, 0));
    }
    REFUSED(ra_layer_reorder(f->layer, NULL, 1));
    REFUSED(ra_layer_reorder(f->layer, (const int64_t[]){0}, 0));
    REFUSED(ra_layer_crop(f->layer, NULL));
    REFUSED(ra_layer_read(f->layer, 0, 0, false, NULL));
    REFUSED(ra_layer_copy(NULL, &empty));
    REFUSED(ra_layer_copy(f->layer, NULL));
    REFUSED(ra_layer_restore(f->layer, 0, 0, 0, NULL, NULL, NULL, &missing)); /* it is not empty */
    REFUSED(ra_layer_restore(empty, 0, 0, 1, NULL, untouchable, untouchable, &missing));
    REFUSED(ra_layer_restore(empty, 0, 0, 1, untouchable, NULL, untouchable, &missing));
    REFUSED(ra_layer_restore(empty, 0, 0, 1, untouchable, untouchable, NULL, &missing));
    REFUSED(ra_layer_restore(empty, 0, 0, 1, untouchable, untouchable, untouchable, NULL));
    REFUSED(ra_layer_restore(empty, 0, 0, 2, (const int32_t[]){3, 3}, numbers, numbers, &missing));
    REFUSED(ra_layer_restore(empty, 0, 0, 1, (const int32_t[]){-1}, numbers, numbers, &missing));
    REFUSED(ra_layer_restore_row(empty, 0, TOKENS, NULL, 1, 1, 0));
    REFUSED(ra_layer_restore_row(empty, 0, TOKENS, numbers, 1, NAN, 0));
    REFUSED(ra_layer_restore_row(empty, 0, TOKENS, numbers, 1, 1, -1));
    ra_layer_destroy(empty);
}

/* Positions are known of one head alone: a step would count on from 0. */
static void test_half_a_row(fixture *f)
{
    const ra_layer_config config = {2, HEADS, QUERY_HEADS, WINDOW, NULL, {0}};
    ra_layer *layer;
    int64_t missing;
    ra_step step = step_of(1);
    CHECK(ra_layer_create(f->pool, &config, &layer) == RA_OK);
    CHECK(ra_layer_restore(layer, 1, 0, 2, (const int32_t[]){5, 9}, numbers, numbers, &missing) ==
          (ra_pool_get_info(f->pool).free ? RA_OK : RA_ERR_NO_PAGES));
    if (!missing) {
        REFUSED(ra_layer_reserve(layer, NULL, 1, 0, &missing));
        REFUSED(ra_layer_step(layer, &step, NULL));
        REFUSED(ra_layer_restore_row(layer, 1, 9, NULL, 0, 1, 0)); /* position 9 is the tenth */
        CHECK(ra_layer_reserve(layer, (const int64_t[]){0, 0, 0}, 0, 0, &missing) == RA_OK);
        CHECK(ra_layer_restore_row(layer, 1, 10, NULL, 0, 1, 0) == RA_OK && ra_layer_tokens(layer, 1) == 10);
    }
    ra_layer_destroy(layer);
}

/* ---- Statistics ---- */

static void test_statistics(fixture *f)
{
    ra_layer_config good = {1, HEADS, QUERY_HEADS, WINDOW, ra_scorer_find("lazy"), ra_stat_defaults()};
    ra_layer_config bad[] = {good, good, good, good, good, good, good};
    bad[0].stats.prompt = (ra_prompt_statistics)3;
    bad[1].stats.decay = NAN;
    bad[2].stats.decay = 1.5f;
    bad[3].stats.decay = -0.5f;
    bad[4].stats.activation = 0;
    bad[5].stats.activation = INFINITY;
    bad[6].stats.activation = NAN;
    ra_layer *layer;
    for (int i = 0; i < COUNT(bad); i++) {
        REFUSED(ra_layer_create(f->pool, &bad[i], &layer));
        bad[i].scorer = ra_scorer_find("rkv"); /* it does not look at them */
        CHECK(ra_layer_create(f->pool, &bad[i], &layer) == RA_OK);
        ra_layer_destroy(layer);
    }
    CHECK(ra_layer_columns(f->layer, 0, 0, NULL) == 0 && ra_layer_columns(f->layer, ROWS, 0, NULL) == -1);
    CHECK(ra_layer_restore_columns(f->layer, 0, 0, NULL) == RA_OK);
    REFUSED(ra_layer_restore_columns(f->layer, 0, HEADS, NULL));
    int64_t missing;
    int32_t columns[2 * 3] = {0, 1, 2, 0, 0, 0};
    CHECK(ra_layer_create(f->pool, &good, &layer) == RA_OK);
    CHECK(ra_layer_restore(layer, 0, 0, 3, (const int32_t[]){0, 1, 2}, numbers, numbers, &missing) == RA_OK);
    CHECK(ra_layer_columns(layer, 0, 0, NULL) == 2);
    REFUSED(ra_layer_restore_columns(layer, 0, 0, NULL));
    columns[4] = -1;
    REFUSED(ra_layer_restore_columns(layer, 0, 0, columns));
    columns[4] = 7;
    CHECK(ra_layer_restore_columns(layer, 0, 0, columns) == RA_OK);
    ra_layer_destroy(layer);
}

/* ---- Cuts ---- */

static void test_cuts(fixture *f)
{
    const ra_score_config score = {.scorer = ra_scorer_find("rkv"), .alpha = 0.1f, .threshold = 0.5f, .kernel = 7};
    const ra_route_config route = {RA_HEADS_ROUTE, 0.5, 0.25, 2, 0.25, 0.2, NULL, NULL};
    int64_t totals[ROWS] = {20, 20}, protect[ROWS] = {0}, budgets[ROWS * HEADS], missing;
    double lost[ROWS * HEADS];
    bool cut[ROWS];
    ra_layer *layer = f->layer;
    const ra_cut all = {totals, protect, score, route, budgets, lost, cut};
    ra_score_config bad_score[] = {score, score, score, score, score, score, score,
                                   score, score, score, score, score, score};
    bad_score[8].recent = 1.5f;
    bad_score[10].n_large = -2;
    bad_score[11].n_sink = -1;
    bad_score[12].span = -1;
    bad_score[9].scorer = ra_scorer_find("h2o"); /* the layer has not gathered what it needs */
    bad_score[0].scorer = NULL;
    bad_score[1].alpha = -0.5f;
    bad_score[2].alpha = NAN;
    bad_score[3].threshold = NAN;
    bad_score[4].kernel = 0;
    bad_score[5].kernel = 6;
    bad_score[6].kernel = INT64_MIN + 1;
    bad_score[7].kernel = INT64_MIN;
    for (int i = 0; i < COUNT(bad_score); i++) {
        ra_cut bad = all;
        bad.score = bad_score[i];
        REFUSED(ra_cut_score(layer, totals, &bad_score[i], cut, NULL));
        REFUSED(ra_layer_cut(layer, &bad, NULL, &missing));
    }
    ra_route_config bad_route[] = {route, route, route, route, route, route, route,
                                   route, route, route, route, route, route, route};
    bad_route[0].heads = (ra_heads)9;
    bad_route[1].gamma = NAN;
    bad_route[2].gamma = 33;
    bad_route[3].lo = 1.5;
    bad_route[4].hi = 0.5;
    bad_route[5].mu = NAN;
    bad_route[6].mu = 2;
    bad_route[7].heads = RA_HEADS_GIVEN; /* without limits */
    const double negative[HEADS] = {1, -1}, nan[HEADS] = {NAN, 1}, infinite[HEADS] = {INFINITY, 1},
                 good[HEADS] = {1, 2};
    const double *shares[] = {NULL, negative, nan, infinite, good, good};
    for (int i = 0; i < COUNT(shares); i++) {
        bad_route[8 + i].heads = RA_HEADS_SHARES;
        bad_route[8 + i].shares = shares[i];
    }
    bad_route[12].lo = 1.5;
    bad_route[13].hi = NAN;
    for (int i = 0; i < COUNT(bad_route); i++) {
        ra_cut bad = all;
        bad.route = bad_route[i];
        REFUSED(ra_layer_cut(layer, &bad, NULL, &missing));
        CHECK(!cut[0] && !cut[1] && missing == 0);
    }
    ra_route_config shared = {.heads = RA_HEADS_SHARES, .lo = 0.25, .hi = 2, .shares = good};
    const ra_cut without[] = {{NULL, protect, score, route, budgets, lost, cut},
                              {totals, NULL, score, route, budgets, lost, cut},
                              {totals, protect, score, route, NULL, lost, cut},
                              {totals, protect, score, route, budgets, NULL, cut},
                              {totals, protect, score, route, budgets, lost, NULL}};
    for (int i = 0; i < COUNT(without); i++)
        REFUSED(ra_layer_cut(layer, &without[i], NULL, &missing));
    REFUSED(ra_layer_cut(layer, &all, NULL, NULL));
    REFUSED(ra_layer_cut(layer, NULL, NULL, &missing));
    REFUSED(ra_layer_cut(NULL, &all, NULL, &missing));

    /* Row 1 cannot be cut to three slots; row 0 stays as it is. */
    totals[1] = 3;
    CHECK(ra_layer_cut(layer, &all, NULL, &missing) == RA_ERR_INFEASIBLE && !cut[0] && !cut[1]);
    totals[1] = 20;

    REFUSED(ra_cut_score(NULL, totals, &score, cut, NULL));
    REFUSED(ra_cut_score(layer, NULL, &score, cut, NULL));
    REFUSED(ra_cut_allocate(layer, protect, &route, budgets)); /* none has begun */
    REFUSED(ra_cut_choose(layer, protect, budgets, lost, NULL));
    REFUSED(ra_cut_apply(layer, NULL, &missing));
    CHECK(!ra_cut_scores(layer, 0, 0, &missing) && !ra_cut_kept(layer, 0, 0, &missing));
    CHECK(ra_cut_score(layer, totals, &score, NULL, NULL) == RA_OK);
    REFUSED(ra_cut_allocate(layer, NULL, &route, budgets));
    REFUSED(ra_cut_allocate(layer, protect, NULL, budgets));
    REFUSED(ra_cut_allocate(layer, protect, &route, NULL));
    REFUSED(ra_cut_choose(layer, NULL, budgets, lost, NULL));
    REFUSED(ra_cut_choose(layer, protect, NULL, lost, NULL));
    REFUSED(ra_cut_apply(layer, NULL, &missing)); /* nothing is chosen */
    REFUSED(ra_cut_apply(layer, NULL, NULL));
    for (int i = 0; i < COUNT(hostile); i++) {
        protect[0] = hostile[i]; /* any position will do */
        CHECK(ra_cut_allocate(layer, protect, &route, budgets) == RA_OK && budgets[0] + budgets[1] == 20);
        CHECK(ra_cut_allocate(layer, protect, &shared, budgets) == RA_OK && budgets[0] + budgets[1] == 20);
        CHECK(ra_cut_choose(layer, protect, budgets, lost, NULL) == RA_OK);
        protect[0] = 0;
        for (int at = 0; at < ROWS * HEADS; at++) {
            const int64_t before = budgets[at];
            budgets[at] = hostile[i];
            CHECK(ra_cut_choose(layer, protect, budgets, lost, NULL) ==
                  (hostile[i] < WINDOW ? RA_ERR_ARGUMENT : RA_OK));
            budgets[at] = before;
        }
    }
    ra_cut_abandon(layer);
    REFUSED(ra_cut_apply(layer, NULL, &missing));
    /* A kernel of any width, scores of any threshold. */
    ra_score_config wide = score;
    wide.kernel = INT64_MAX;
    wide.threshold = INFINITY;
    CHECK(ra_cut_score(layer, totals, &wide, NULL, NULL) == RA_OK);
    wide.threshold = -INFINITY;
    CHECK(ra_cut_score(layer, totals, &wide, NULL, NULL) == RA_OK);
    ra_cut_abandon(layer);
}

/* ---- Functions of numbers ---- */

static void test_budgets(void)
{
    const ra_route_config route = {RA_HEADS_ROUTE, 0.5, 0.25, 2, 0.25, 0.2, NULL, NULL};
    const float *scores[2] = {untouchable, untouchable};
    const int64_t none[2] = {0, 0};
    const double x[2] = {1, 2};
    int64_t out[2];
    for (int i = 0; i < COUNT(hostile); i++) {
        const int64_t bad = hostile[i], counts[2] = {1, bad}, both[2] = {bad, bad};
        if (bad != 1LL << 32 && bad != 1LL << 33)
            REFUSED(ra_robustify(x, 2, bad, 0.5, 0.25, 2, 0, out));
        REFUSED(ra_robustify(untouchable, bad, 100, 0.5, 0.25, 2, 0, untouchable));
        REFUSED(ra_route(scores, counts, 2, 4, 100, &route, untouchable));
        REFUSED(ra_route(scores, both, 2, 4, 100, &route, untouchable));
        REFUSED(ra_route(untouchable, untouchable, bad, 4, 100, &route, untouchable));
        ra_status status = ra_route(scores, none, 2, bad, 100, &route, untouchable);
        CHECK(status == (bad < 0 ? RA_ERR_ARGUMENT : RA_ERR_INFEASIBLE));
        REFUSED(ra_select(untouchable, bad, 1, 0, untouchable));
        REFUSED(ra_select(untouchable, 8, bad, 0, untouchable));
        if (bad < 0)
            REFUSED(ra_select(untouchable, 8, 1, bad, untouchable));
    }
    REFUSED(ra_robustify(NULL, 2, 100, 0.5, 0.25, 2, 0, out));
    REFUSED(ra_robustify(x, 2, 100, 0.5, 0.25, 2, 0, NULL));
    REFUSED(ra_robustify(x, 0, 100, 0.5, 0.25, 2, 0, out));
    CHECK(ra_robustify(x, 2, 100, 0.5, 0.25, 2, 51, out) == RA_ERR_INFEASIBLE);
    const double odd[] = {NAN, INFINITY, -1};
    for (int i = 0; i < COUNT(odd); i++) {
        const double claims[2] = {1, odd[i]};
        REFUSED(ra_robustify(claims, 2, 100, 0.5, 0.25, 2, 0, out));
        REFUSED(ra_robustify(x, 2, 100, odd[i], 0.25, 2, 0, out));
        REFUSED(ra_robustify(x, 2, 100, 0.5, odd[i], 2, 0, out));
        if (odd[i] != INFINITY) {
            REFUSED(ra_robustify(x, 2, 100, 0.5, 0.25, odd[i], 0, out));
            REFUSED(ra_robustify(x, 2, 100, 0.5, 0.25, 2, odd[i], out));
        }
    }
    REFUSED(ra_route(NULL, none, 2, 4, 100, &route, out));
    REFUSED(ra_route(scores, NULL, 2, 4, 100, &route, out));
    REFUSED(ra_route(scores, none, 2, 4, 100, NULL, out));
    REFUSED(ra_route(scores, none, 2, 4, 100, &route, NULL));
    REFUSED(ra_route((const float *const[]){NULL, NULL}, (const int64_t[]){1, 1}, 2, 4, 100, &route, out));
    REFUSED(ra_select(NULL, 1, 1, 0, out));
    REFUSED(ra_select(untouchable, 1, 2, 0, out));
    REFUSED(ra_select(untouchable, 1, 1, 0, NULL));
}

static void test_dense_scores(void)
{
    const ra_score_config config = {.scorer = ra_scorer_find("rkv"), .alpha = 0.1f, .threshold = 0.5f, .kernel = 7};
    for (int i = 0; i < COUNT(hostile); i++)
        for (int at = 0; at < 4; at++) {
            int64_t size[4] = {2, 4, 20, 8};
            size[at] = hostile[i];
            TOO_MUCH(ra_score_dense(untouchable, size[0], size[1], untouchable, size[2], size[3], &config, untouchable,
                                    untouchable, untouchable));
            for (int other = 0; other < 3; other++) {
                size[other] = INT32_MAX - 16;
                TOO_MUCH(ra_score_dense(untouchable, size[0], size[1], untouchable, size[2], size[3], &config,
                                        untouchable, untouchable, untouchable));
            }
        }
    const int64_t most = INT32_MAX - 16;
    TOO_MUCH(ra_score_dense(untouchable, 1, most, untouchable, most, 1024, &config, untouchable, NULL, NULL));
    REFUSED(ra_score_dense(untouchable, 1, 8, untouchable, 7, 8, &config, untouchable, NULL, NULL));
    REFUSED(ra_score_dense(NULL, 1, 1, numbers, 4, 8, &config, numbers, NULL, NULL));
    REFUSED(ra_score_dense(numbers, 1, 1, NULL, 4, 8, &config, numbers, NULL, NULL));
    REFUSED(ra_score_dense(numbers, 1, 1, numbers, 4, 8, &config, NULL, NULL, NULL));
    REFUSED(ra_score_dense(numbers, 1, 1, numbers, 4, 8, NULL, numbers, NULL, NULL));
    const ra_score_config recency = {.scorer = ra_scorer_find("recency"),
                                     .alpha = 0.1f,
                                     .threshold = 0.5f,
                                     .kernel = 7};
    REFUSED(ra_score_dense(untouchable, 1, 1, untouchable, 4, 8, &recency, untouchable, NULL, NULL));
}

static ra_status attend(ra_dtype dtype, const int64_t *size)
{
    return ra_attend_paged(dtype, untouchable, untouchable, size[0], untouchable, untouchable, size[1], size[2],
                           size[3], size[4], size[5], size[6], 1, untouchable, NULL);
}

static ra_status append(ra_dtype dtype, const int64_t *size)
{
    return ra_append_paged(dtype, untouchable, untouchable, untouchable, size[0], untouchable, untouchable, size[1],
                           size[2], size[4], size[5], size[6]);
}

/* Sizes: pages, rows, KV heads, query heads, tokens, head size, pages of a list. */
static void test_pages(void)
{
    const int64_t good[] = {4, 1, 2, 4, 1, 8, 2}, big = 1LL << 32;
    const int32_t table[] = {0, 1}, lengths[] = {INT32_MAX, INT32_MAX};
    CHECK(attend(RA_DTYPES, good) == RA_ERR_DTYPE && append(RA_DTYPES, good) == RA_ERR_DTYPE);
    for (int i = 0; i < COUNT(hostile); i++)
        for (int at = 0; at < COUNT(good); at++) {
            int64_t size[COUNT(good)];
            memcpy(size, good, sizeof size);
            size[at] = hostile[i];
            if (hostile[i] > big << 1 || hostile[i] < 0) { /* others may be in memory */
                REFUSED(attend(RA_F32, size));
                if (at != 3)
                    REFUSED(append(RA_BF16, size));
            }
            size[1] = size[2] = size[3] = big; /* rows x heads is 2^64 */
            REFUSED(attend(RA_F16, size));
            REFUSED(append(RA_F16, size));
        }
    REFUSED(ra_attend_paged(RA_F32, untouchable, untouchable, 4, untouchable, untouchable, 1, 2, 3, 1, 8, 2, 1,
                            untouchable, NULL));
    REFUSED(ra_attend_paged(RA_F32, untouchable, untouchable, 4, untouchable, untouchable, 1, 2, 4, 1, 8, 2, NAN,
                            untouchable, NULL));
    REFUSED(ra_attend_paged(RA_F32, NULL, untouchable, 4, table, lengths, 1, 2, 4, 1, 8, 2, 1, untouchable, NULL));
    REFUSED(ra_append_paged(RA_F32, NULL, untouchable, untouchable, 4, table, lengths, 1, 2, 1, 8, 2));
    REFUSED(ra_attend_paged(RA_F32, untouchable, untouchable, 4, table, lengths, 1, 2, 4, 1, 8, 1, 1, untouchable,
                            NULL)); /* the lists are shorter than the lengths */
    REFUSED(ra_append_paged(RA_F32, untouchable, untouchable, untouchable, 4, table, lengths, 1, 2, INT32_MAX, 8, 1));
    const int32_t out_of_range[][2] = {{0, 4}, {-1, 0}, {INT32_MIN, 0}, {INT32_MAX, 0}}, two[] = {2, 2};
    for (int i = 0; i < COUNT(out_of_range); i++) {
        REFUSED(ra_attend_paged(RA_F32, untouchable, untouchable, 4, out_of_range[i], two, 1, 2, 4, 1, 8, 1, 1,
                                untouchable, NULL));
        REFUSED(ra_append_paged(RA_F32, untouchable, untouchable, untouchable, 4, out_of_range[i], two, 1, 2, 1, 8, 1));
    }
}

int main(void)
{
    untouchable = mmap(NULL, 1 << 16, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (untouchable == MAP_FAILED) {
        perror("mmap");
        return 2;
    }
    for (int i = 0; i < COUNT(numbers); i++)
        numbers[i] = sinf((float)i);
    fixture f = make();
    test_names();
    test_pools();
    test_layers_of_any_size();
    test_steps(&f);
    test_rows(&f);
    test_half_a_row(&f);
    test_statistics(&f);
    test_cuts(&f);
    destroy(&f);
    test_budgets();
    test_dense_scores();
    test_pages();
    if (failures)
        fprintf(stderr, "%d of %ld refusals are missing\n", failures, checks);
    else
        printf("all %ld refusals hold\n", checks);
    return failures ? 1 : 0;
}
