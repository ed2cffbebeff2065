/* Fuzzes the functions without state: budgets, choice, scores, attention over pages that the caller laid out.
 *
 *     make fuzz FUZZ_SECONDS=600
 *
 * Valid arguments are held against plain loops. Hostile sizes, whose buffers nobody can have, must be refused before
 * memory is touched. */
#include "bytes.h"

enum { T = RA_PAGE_TOKENS, MOST_HEADS = 8, MOST_COUNT = 64 };

/* ---- Budgets ----------------------------------------------------------------------------------------------------- */

/* What clipped real numbers sum to `total`: shares[i] = clip(scale * exp(logs[i]), low, high), by bisection of log scale. */
static void share_out(const double *logs, int64_t n, double total, double low, double high, double *shares)
{
    double least = -4000, most = 4000;
    for (int step = 0; step < 200; step++) {
        double middle = (least + most) / 2, sum = 0;
        for (int64_t i = 0; i < n; i++)
            sum += fmin(fmax(exp(middle + logs[i]), low), high);
        if (sum < total)
            least = middle;
        else
            most = middle;
    }
    for (int64_t i = 0; i < n; i++)
        shares[i] = fmin(fmax(exp(most + logs[i]), low), high);
}

static void check_robustified(const double *x, int64_t n, int64_t total, double gamma, double lo, double hi,
                              double floor_, const int64_t *got)
{
    double mean = (double)total / (double)n, low = fmax(lo * mean, floor_), high = fmin(hi * mean, (double)total);
    double highest = 0, logs[MOST_COUNT], want[MOST_COUNT];
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += got[i];
        highest = fmax(highest, x[i]);
        PROMISE((double)got[i] >= floor(low) && (double)got[i] <= ceil(high));
    }
    PROMISE(sum == total);
    for (int64_t i = 0; i < n; i++) /* a claim of nothing is a very small one */
        logs[i] = highest > 0 ? gamma * log(fmax(x[i] / highest, 1e-9)) : 0;
    low = ceil(low) > mean ? floor(low) : ceil(low);
    high = floor(high) < mean ? ceil(high) : floor(high);
    share_out(logs, n, (double)total, low, high, want);
    for (int64_t i = 0; i < n; i++)
        PROMISE(fabs((double)got[i] - want[i]) <= 1 + 1e-6 * mean);
}

static void fuzz_robustify(bytes *b)
{
    int64_t n = take_between(b, 1, MOST_COUNT), total = take_size(b, 0, 200), out[MOST_COUNT];
    if (take_byte(b) & 1)
        total *= total > 0 && total < 1 << 20 ? 1000 : 1;
    double gamma = take_setting(b, 16), lo = take_setting(b, 1), hi = 1 + take_setting(b, 4);
    double floor_ = take_byte(b) & 1 ? take_setting(b, 8) : 0, x[MOST_COUNT];
    for (int64_t i = 0; i < n; i++)
        x[i] = fabs((double)take_float(b)) * 50;
    if (ra_robustify(x, n, total, gamma, lo, hi, floor_, out) == RA_OK)
        check_robustified(x, n, total, gamma, lo, hi, floor_, out);
}

static int falling(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* ReasonAlloc's claims: window + the head's scores that are as good as the `chosen`-th best of all. */
static void claims_of(float *const *scores, const int64_t *counts, int64_t heads, int64_t window, int64_t chosen,
                      double *claims)
{
    float all[MOST_HEADS * MOST_COUNT], tau = -INFINITY;
    int64_t n = 0;
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < counts[h]; i++)
            all[n++] = scores[h][i];
    qsort(all, (size_t)n, sizeof *all, falling);
    if (chosen > 0 && chosen < n)
        tau = all[chosen - 1];
    for (int64_t h = 0; h < heads; h++) {
        claims[h] = (double)window;
        for (int64_t i = 0; chosen > 0 && i < counts[h]; i++)
            claims[h] += scores[h][i] >= tau;
    }
}

static void fuzz_route(bytes *b)
{
    int64_t heads = take_between(b, 1, MOST_HEADS), window = take_size(b, 0, 16), total = take_size(b, 0, 239);
    int64_t counts[MOST_HEADS], out[MOST_HEADS], sum = 0;
    float *scores[MOST_HEADS];
    total *= total > 0 && total < 240 ? take_between(b, 1, 4) : 1;
    ra_route_config config = {.heads = (ra_heads)take_between(b, 0, 3), .gamma = take_setting(b, 4)};
    config.lo = take_setting(b, 1);
    config.hi = 1 + take_setting(b, 4);
    config.mu = take_setting(b, 1);
    config.safeguard = take_setting(b, 1);
    for (int64_t h = 0; h < heads; h++)
        scores[h] = take_floats(b, (size_t)(counts[h] = take_between(b, 0, MOST_COUNT)));
    double shares[MOST_HEADS];
    if (config.heads == RA_HEADS_GIVEN) { /* the inputs of the corpus know four allocators */
        config.heads = RA_HEADS_SHARES;
        config.shares = shares;
        for (int64_t h = 0; h < heads; h++)
            shares[h] = take_setting(b, 4);
    }
    ra_status status = ra_route((const float *const *)scores, counts, heads, window, total, &config, out);
    for (int64_t h = 0; h < heads && status == RA_OK; h++) {
        PROMISE(out[h] >= (window < total / heads ? window : total / heads));
        PROMISE(config.heads != RA_HEADS_UNIFORM || out[h] == total / heads + (h < total % heads));
        sum += out[h];
    }
    PROMISE(status != RA_OK || sum == total);
    if (status == RA_OK && config.heads == RA_HEADS_ROUTE) {
        double claims[MOST_HEADS], floor_ = fmax(config.mu * (double)total / (double)heads, (double)window);
        claims_of(scores, counts, heads, window, total - heads * window, claims);
        check_robustified(claims, heads, total, config.gamma, config.lo, config.hi, floor_, out);
    }
    if (status == RA_OK && config.heads == RA_HEADS_SHARES && total > heads * window) {
        for (int64_t h = 0; h < heads; h++)
            out[h] -= window;
        check_robustified(shares, heads, total - heads * window, 1, config.lo, config.hi, 0, out);
    }
    for (int64_t h = 0; h < heads; h++)
        free(scores[h]);
}

/* ---- Choice ------------------------------------------------------------------------------------------------------ */

static void fuzz_select(bytes *b)
{
    int64_t count = take_between(b, 0, 200), keep = take_size(b, 0, count), protect = take_size(b, 0, count);
    float *scores = take_floats(b, (size_t)count);
    bool fits = keep >= 0 && keep <= count && protect >= 0, finite = true;
    int64_t *out = exactly(fits ? (size_t)keep * sizeof *out : 0), at = 0;
    ra_status status = ra_select(scores, count, keep, protect, out);
    for (int64_t i = 0; i < count; i++)
        finite &= (bool)isfinite(scores[i]);
    PROMISE(fits || status == RA_ERR_ARGUMENT);
    PROMISE(!fits || status == (finite ? RA_OK : RA_ERR_NOT_FINITE));
    for (int64_t i = 0; i < count && status == RA_OK; i++) {
        int64_t better = 0;
        for (int64_t j = 0; j < count; j++) {
            bool protected_i = i < protect, protected_j = j < protect;
            better += protected_i != protected_j ? protected_j
                                                 : scores[j] > scores[i] || (scores[j] == scores[i] && j > i);
        }
        if (better < keep)
            PROMISE(at < keep && out[at++] == i);
    }
    PROMISE(status != RA_OK || at == keep);
    free(scores);
    free(out);
}

/* ---- Scores ------------------------------------------------------------------------------------------------------ */

static const int64_t small_enough = 1 << 16; /* of a buffer that is really made, elements */

/* Whether a product of sizes is one that a caller may have memory for; *hostile if it overflows an int64_t of bytes. */
static bool product(const int64_t *sizes, size_t n, int64_t *result, bool *hostile)
{
    __int128 all = 4;
    for (size_t i = 0; i < n; i++) {
        if (sizes[i] < 0)
            all = 0; /* refused for itself */
        all *= sizes[i];
        if (all > INT64_MAX) {
            *hostile = true;
            all = 0; /* a buffer of no bytes stands for it */
        }
    }
    *result = (int64_t)(all / 4);
    return *result <= small_enough;
}

static void fuzz_score(bytes *b)
{
    int64_t group = take_size(b, 1, 4), window = take_size(b, 1, 8), tokens = take_size(b, 0, 80);
    int64_t head_dim = take_size(b, 1, 40), query_count, key_count, all;
    bool hostile = false;
    ra_score_config config = {.scorer = ra_scorer_find(ra_scorer_name((size_t)take_between(b, 0, 8))),
                              .alpha = (float)take_setting(b, 1)};
    config.threshold = (float)take_setting(b, 1);
    config.kernel = take_size(b, 1, 11);
    if (!product((int64_t[]){group, window, head_dim}, 3, &query_count, &hostile) ||
        !product((int64_t[]){tokens, head_dim}, 2, &key_count, &hostile) ||
        !product((int64_t[]){tokens}, 1, &all, &hostile))
        return;
    int64_t older = all > window && window >= 0 ? all - window : 0;
    float *queries = take_floats(b, (size_t)query_count), *keys = take_floats(b, (size_t)key_count);
    float *out = exactly((size_t)older * sizeof *out), *importance = NULL, *redundancy = NULL;
    if (take_byte(b) & 1)
        importance = exactly((size_t)older * sizeof *importance);
    if (take_byte(b) & 1)
        redundancy = exactly((size_t)all * sizeof *redundancy);
    ra_status status = ra_score_dense(queries, group, window, keys, tokens, head_dim, &config, out, importance,
                                      redundancy);
    PROMISE(!hostile || status != RA_OK);
    for (int64_t i = 0; i < older && status == RA_OK; i++) {
        PROMISE(isfinite(out[i]));
        PROMISE(!importance || (importance[i] >= 0 && importance[i] <= 1.0001f));
    }
    free(queries);
    free(keys);
    free(out);
    free(importance);
    free(redundancy);
}

/* ---- Attention over pages ---------------------------------------------------------------------------------------- */

static uint16_t to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)(bits >> 16); /* cut off: exactness is not what is tested */
}

static double from_element(ra_dtype dtype, const void *x, int64_t i)
{
    if (dtype == RA_F32)
        return (double)((const float *)x)[i];
    uint16_t bits = ((const uint16_t *)x)[i];
    if (dtype == RA_BF16) {
        uint32_t wide = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &wide, 4);
        return (double)value;
    }
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double size = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return bits >> 15 ? -size : size;
}

/* Elements in [-1, 1] of a dtype; of an unknown one, none. */
static void *take_elements(bytes *b, ra_dtype dtype, int64_t n)
{
    size_t size = ra_dtype_size(dtype);
    char *x = exactly((size_t)n * size);
    for (int64_t i = 0; i < n && size; i++) {
        float value = (float)(int8_t)take_byte(b) / 128;
        uint16_t bits = dtype == RA_BF16 ? to_bf16(value)
                                         : (uint16_t)(take_byte(b) % 0x3c00 | (value < 0 ? 0x8000 : 0));
        if (dtype == RA_F32)
            memcpy(x + 4 * i, &value, 4);
        else
            memcpy(x + 2 * i, &bits, 2);
    }
    return x;
}

typedef struct pages {
    ra_dtype dtype;
    int64_t rows, kv_heads, group, tokens, head_dim, table_pages, page_count;
    int32_t *table, *lengths;
    void *memory;
} pages;

/* Attention of one query of one head by a plain loop, against `got`. */
static void check_attended(const pages *p, const void *queries, int64_t row, int64_t head, int64_t token, float scale,
                           const void *got)
{
    int64_t query_heads = p->kv_heads * p->group, pair = row * p->kv_heads + head / p->group, d = p->head_dim;
    int64_t seen = p->lengths[pair] - p->tokens + token + 1,
            query = ((row * query_heads + head) * p->tokens + token) * d;
    double sum = 0, top = -INFINITY, logits[T * 8], out[RA_MAX_HEAD_DIM] = {0};
    for (int pass = 0; pass < 2; pass++)
        for (int64_t slot = 0; slot < seen; slot++) {
            int64_t base = p->table[pair * p->table_pages + slot / T] * 2 * T * d;
            if (!pass) {
                logits[slot] = 0;
                for (int64_t c = 0; c < d; c++)
                    logits[slot] += (double)scale * from_element(p->dtype, queries, query + c) *
                                    from_element(p->dtype, p->memory, base + c * T + slot % T);
                top = fmax(top, logits[slot]);
                continue;
            }
            double weight = exp(logits[slot] - top);
            sum += weight;
            for (int64_t c = 0; c < d; c++)
                out[c] += weight * from_element(p->dtype, p->memory, base + (T + slot % T) * d + c);
        }
    double bound = p->dtype == RA_F32 ? 1e-4 : 2e-2;
    for (int64_t c = 0; c < d; c++) {
        double found = from_element(p->dtype, got, ((row * p->tokens + token) * query_heads + head) * d + c);
        PROMISE(fabs(found - out[c] / sum) <= bound);
    }
}

static bool lengths_fit(const pages *p, int64_t more, int64_t least)
{
    for (int64_t pair = 0; pair < p->rows * p->kv_heads; pair++) {
        int64_t slots = p->lengths[pair] + more, need = (slots + T - 1) / T;
        if (p->lengths[pair] < least || need > p->table_pages)
            return false;
        for (int64_t i = 0; i < need; i++)
            if (p->table[pair * p->table_pages + i] < 0 || p->table[pair * p->table_pages + i] >= p->page_count)
                return false;
    }
    return true;
}

/* Appends tokens to heads that share no page, then attends to them. */
static void fuzz_pages(bytes *b)
{
    pages p = {.dtype = (ra_dtype)take_between(b, 0, 3)};
    p.rows = take_size(b, 1, 2);
    p.kv_heads = take_size(b, 1, 3);
    p.group = take_size(b, 1, 3);
    p.tokens = take_size(b, 1, 20);
    p.head_dim = take_size(b, 1, 40);
    p.table_pages = take_size(b, 0, 4);
    p.page_count = take_between(b, 0, 24);
    __int128 heads = (__int128)p.kv_heads * p.group;
    if (heads > INT64_MAX || heads < INT64_MIN)
        p.group = 1;
    int64_t query_heads = p.kv_heads * p.group;
    int64_t pairs, entries, query_count, key_count, page_floats;
    bool hostile = false, hostile_queries = false; /* of which ra_append_paged knows nothing */
    if (!product((int64_t[]){p.rows, p.kv_heads}, 2, &pairs, &hostile) ||
        !product((int64_t[]){p.rows, p.kv_heads, p.table_pages}, 3, &entries, &hostile) ||
        !product((int64_t[]){p.rows, query_heads, p.tokens, p.head_dim}, 4, &query_count, &hostile_queries) ||
        !product((int64_t[]){p.rows, p.kv_heads, p.tokens, p.head_dim}, 4, &key_count, &hostile) ||
        !product((int64_t[]){p.page_count, p.head_dim, 2 * T}, 3, &page_floats, &hostile))
        return;
    size_t size = ra_dtype_size(p.dtype);
    p.table = exactly((size_t)entries * sizeof *p.table);
    p.lengths = exactly((size_t)pairs * sizeof *p.lengths);
    p.memory = exactly((size_t)page_floats * size);
    memset(p.memory, 0, (size_t)page_floats * size);
    bool distinct = take_byte(b) < 224;
    for (int64_t i = 0; i < entries; i++)
        p.table[i] = distinct ? (int32_t)i : (int32_t)take_size(b, 0, 24);
    for (int64_t i = 0; i < pairs; i++)
        p.lengths[i] = (int32_t)take_size(b, 0, 40);
    float scale = (float)take_setting(b, 2);
    void *keys = take_elements(b, p.dtype, key_count), *values = take_elements(b, p.dtype, key_count);
    void *queries = take_elements(b, p.dtype, query_count), *out = exactly((size_t)query_count * size);
    bool sizes_fit = !hostile && size && p.rows > 0 && p.kv_heads > 0 && p.tokens > 0 && p.head_dim > 0 &&
                     p.head_dim <= RA_MAX_HEAD_DIM && p.table_pages >= 0;
    bool fits = sizes_fit && lengths_fit(&p, p.tokens, 0);

    ra_status status = ra_append_paged(p.dtype, keys, values, p.memory, p.page_count, p.table, p.lengths, p.rows,
                                       p.kv_heads, p.tokens, p.head_dim, p.table_pages);
    PROMISE((status == RA_OK) == fits);
    for (int64_t i = 0; i < pairs && fits; i++) {
        for (int64_t t = 0; t < p.tokens && distinct; t++) {
            int64_t slot = p.lengths[i] + t, base = p.table[i * p.table_pages + slot / T] * 2 * T * p.head_dim;
            for (int64_t c = 0; c < p.head_dim; c++) {
                int64_t token = (i * p.tokens + t) * p.head_dim + c, key = base + c * T + slot % T;
                PROMISE(!memcmp((char *)p.memory + size * (size_t)key, (char *)keys + size * (size_t)token, size));
            }
        }
        p.lengths[i] += (int32_t)p.tokens;
    }
    fits = sizes_fit && !hostile_queries && p.group > 0 && isfinite(scale) && lengths_fit(&p, 0, p.tokens);
    status = ra_attend_paged(p.dtype, queries, p.memory, p.page_count, p.table, p.lengths, p.rows, p.kv_heads,
                             query_heads, p.tokens, p.head_dim, p.table_pages, scale, out, NULL);
    PROMISE((status == RA_OK) == fits);
    for (int64_t row = 0; row < p.rows && fits; row++)
        for (int64_t head = 0; head < query_heads; head++)
            for (int64_t token = 0; token < p.tokens; token += 7)
                check_attended(&p, queries, row, head, token, scale, out);
    free(p.table);
    free(p.lengths);
    free(p.memory);
    free(keys);
    free(values);
    free(queries);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const targets[])(bytes *) = {fuzz_robustify, fuzz_route, fuzz_select, fuzz_score, fuzz_pages};
    bytes b = {data, size};
    size_t target = take_byte(&b) % (sizeof targets / sizeof *targets);
    take_isa(&b);
    targets[target](&b);
    return 0;
}
