/* A layer of the C core and its copy in structs of the CUDA kernels, which share the pages. */
#pragma once
#include <algorithm>
#include <memory>
#include <string>

#include "check.h"
#include "common.cuh"

struct case_shape {
    ra_dtype format = RA_F32;
    int rows = 2, heads = 2, group = 2, window = 4, dim = 24;
    std::vector<int> slots = {100}; /* of the rows' heads before `ragged` */
    bool ragged = true;             /* a first cut gives heads lists of their own lengths */
    int crop = 0;                   /* tokens forgotten at the end, and so queries of the window */
    float scale = 0.25f, softcap = 0;
    bool sinks = false;
    float like = 0.5f; /* share of keys that resemble an earlier one */
    float large = 1;   /* factor of some keys */
    ra_dtype queries = RA_F32;
};

inline void demand(bool good, const char *what)
{
    if (good)
        return;
    std::printf("the test itself failed: %s\n", what);
    std::exit(1);
}

class twin
{
    check::arena memory;
    ra_pool *pool = nullptr;
    char *slab;
    size_t page_bytes;
    int all_pages;

    /* Normal numbers; keys are in turn new, near an earlier one, and the same as an earlier one. */
    void fill_keys(float *keys, int heads, int tokens)
    {
        const int D = shape.dim;
        for (int h = 0; h < heads; h++)
            for (int t = 0; t < tokens; t++) {
                float *own = keys + ((size_t)h * tokens + t) * D;
                const bool like = t && check::uniform() < shape.like;
                const float *other = keys + ((size_t)h * tokens + check::below(t + 1)) * D;
                const double noise = check::below(4) * 0.2, size = check::below(9) ? 1 : (double)shape.large;
                for (int c = 0; c < D; c++)
                    own[c] = like ? other[c] + (float)(noise * check::normal()) : (float)(check::normal() * size);
                for (int c = 0; c < D && check::below(60) == 0; c++)
                    own[c] = 0; /* a key of length 0 */
            }
    }
    void step(const std::vector<int> &fresh)
    {
        const int D = shape.dim, H = shape.heads, Hq = H * shape.group,
                  most = *std::max_element(fresh.begin(), fresh.end());
        check::arena given;
        auto *keys = given.array<float>((size_t)shape.rows * H * most * D);
        auto *values = given.array<float>((size_t)shape.rows * H * most * D);
        auto *floats = given.array<float>((size_t)shape.rows * Hq * most * D);
        void *queries = given.array<float>((size_t)shape.rows * Hq * most * D);
        for (int row = 0; row < shape.rows; row++)
            fill_keys(keys + (size_t)row * H * most * D, H, most);
        for (size_t i = 0; i < (size_t)shape.rows * H * most * D; i++)
            values[i] = (float)check::normal();
        for (size_t i = 0; i < (size_t)shape.rows * Hq * most * D; i++) {
            floats[i] = (float)(check::normal() * 2);
            store_element(queries, (int64_t)i, shape.queries, floats[i]);
        }
        std::vector<int64_t> begin = {0}, index;
        for (int row = 0; row < shape.rows; row++) {
            for (int i = 0; i < fresh[row]; i++)
                index.push_back(i);
            begin.push_back((int64_t)index.size());
        }
        auto tensor = [&](const void *data, ra_dtype dtype, int heads) {
            return ra_tokens{data, dtype, (int64_t)heads * most * D, (int64_t)most * D, D};
        };
        ra_step s = {};
        s.begin = begin.data(), s.index = index.data(), s.tokens = most;
        s.queries = tensor(queries, shape.queries, Hq);
        s.keys = tensor(keys, RA_F32, H), s.values = tensor(values, RA_F32, H);
        s.scale = shape.scale, s.softcap = shape.softcap;
        sinks.assign(Hq, -INFINITY);
        if (shape.sinks)
            for (float &sink : sinks)
                sink = (float)check::normal();
        s.sinks = shape.sinks ? sinks.data() : nullptr;
        int64_t missing;
        demand(ra_layer_reserve(layer, begin.data(), most, 0, &missing) == RA_OK, "reserve");
        demand(ra_layer_step(layer, &s, nullptr) == RA_OK, "step");
    }
    /* Heads of a row lose different numbers of tokens. */
    void make_ragged()
    {
        int64_t missing;
        const int pairs = shape.rows * shape.heads;
        std::vector<int64_t> totals(shape.rows, 0), protect(shape.rows, 0), budgets(pairs);
        demand(ra_cut_score(layer, totals.data(), nullptr, nullptr, nullptr) == RA_OK, "score");
        for (int pair = 0; pair < pairs; pair++) {
            const int n = ra_layer_slots(layer)[pair], window = std::min(shape.window, n);
            budgets[pair] = check::below(3) ? window + check::below(n - window + 1) : n;
            int64_t count = 0;
            float *score = ra_cut_scores(layer, pair / shape.heads, pair % shape.heads, &count);
            for (int64_t i = 0; i < count; i++)
                score[i] = (float)check::uniform();
        }
        demand(ra_cut_choose(layer, protect.data(), budgets.data(), nullptr, nullptr) == RA_OK, "choose");
        demand(ra_cut_apply(layer, nullptr, &missing) == RA_OK, "apply");
    }

  public:
    case_shape shape;
    ra_layer *layer = nullptr;
    ra_cuda_layer l = {};
    ra_cuda_pool there = {};
    ra_cuda_cut cut = {};
    std::vector<float> sinks;
    int pairs, most_slots = 0;
    char *scratch = nullptr;

    explicit twin(const case_shape &s) : shape(s), pairs(s.rows * s.heads)
    {
        const char *names[] = {"float32", "bfloat16", "float16"};
        std::vector<int> fresh;
        for (int row = 0; row < s.rows; row++)
            fresh.push_back(s.slots[row % s.slots.size()]);
        const int longest = *std::max_element(fresh.begin(), fresh.end()) + s.window + 3;
        all_pages = pairs * (pages_for(longest) + 1);
        demand(ra_pool_create(ra_format_find(names[s.format]), s.dim, &pool) == RA_OK, "pool");
        page_bytes = ra_pool_page_bytes(pool);
        slab = memory.array<char>(page_bytes * all_pages + 64, 0xff);
        slab += 64 - (uintptr_t)slab % 64;
        demand(ra_pool_add_slab(pool, slab, all_pages, nullptr) == RA_OK, "slab");
        ra_layer_config config = {}; // by name: later fields keep their zeros
        config.rows = s.rows, config.kv_heads = s.heads, config.query_heads = s.heads * s.group;
        config.window = s.window;
        demand(ra_layer_create(pool, &config, &layer) == RA_OK, "layer");
        step(fresh);
        if (s.ragged) {
            make_ragged();
            for (int row = 0; row < s.rows; row++)
                fresh[row] = check::below(3) ? check::below(s.window + 3) : 0;
            fresh[check::below(s.rows)] = 1;
            step(fresh);
        }
        std::vector<int64_t> crop(s.rows, 0);
        for (int row = 0; row < s.rows && s.crop; row++)
            crop[row] = std::min<int64_t>(s.crop, ra_layer_tokens(layer, row));
        if (s.crop)
            demand(ra_layer_crop(layer, crop.data()) == RA_OK, "crop");
        mirror();
    }
    twin(const twin &) = delete;
    ~twin()
    {
        ra_layer_destroy(layer);
        ra_pool_destroy(pool);
    }

    /* The lists, as long as they must be and no longer; all else is what 0xff bytes are. */
    void mirror()
    {
        const int D = shape.dim, Hq = shape.heads * shape.group, M = (int)ra_layer_table_pages(layer);
        const size_t entries = (size_t)pairs * M * PAGE;
        there.memory = memory.array<void *>(all_pages);
        for (int id = 0; id < all_pages; id++) /* the pool hands them out from the last to the first */
            there.memory[id] = slab + (size_t)(all_pages - 1 - id) * page_bytes;
        l = {};
        l.pool = &there, l.format = shape.format, l.rows = shape.rows, l.kv_heads = shape.heads, l.group = shape.group;
        l.window = shape.window, l.head_dim = D, l.pages = M;
        l.table = memory.array<int32_t>((size_t)pairs * M, 0xff);
        l.slots = memory.array<int32_t>(pairs);
        l.positions = memory.array<int32_t>(entries, 0xff);
        l.tokens = memory.array<int32_t>(shape.rows);
        l.queries = memory.array<float>((size_t)shape.rows * shape.window * Hq * D, 0xff);
        l.q_begin = memory.array<int32_t>(shape.rows), l.q_end = memory.array<int32_t>(shape.rows);
        l.sinks = memory.array<float>(Hq);
        l.tickets = memory.array<uint32_t>(RA_CUDA_TICKETS);
        l.fault = memory.array<uint32_t>(shape.rows);
        std::copy(sinks.begin(), sinks.end(), l.sinks);
        std::vector<float> key((size_t)(most_slots + 1) * D);
        for (int pair = 0; pair < pairs; pair++) {
            const int n = l.slots[pair] = ra_layer_slots(layer)[pair];
            most_slots = std::max(most_slots, n);
            std::copy_n(ra_layer_table(layer) + (size_t)pair * M, pages_for(n), l.table + (size_t)pair * M);
            std::copy_n(ra_layer_positions(layer, pair / shape.heads, pair % shape.heads), n, positions_of(l, pair));
        }
        for (int row = 0; row < shape.rows; row++) {
            const int count = (int)ra_layer_queries(layer, row, nullptr);
            std::vector<float> queries((size_t)Hq * count * D + 1);
            ra_layer_queries(layer, row, queries.data());
            l.tokens[row] = l.q_end[row] = (int)ra_layer_tokens(layer, row);
            l.q_begin[row] = l.q_end[row] - count;
            for (int h = 0; h < Hq; h++)
                for (int i = 0; i < count; i++)
                    std::copy_n(&queries[((size_t)h * count + i) * D], D,
                                query_of(l, row, l.q_begin[row] + i, h / shape.group) + h % shape.group * D);
        }
        check_pages();
        cut = {};
        cut.most_slots = most_slots;
        cut.totals = memory.array<int64_t>(shape.rows), cut.protect_below = memory.array<int64_t>(shape.rows);
        cut.scale = ra_layer_scale(layer), cut.softcap = ra_layer_softcap(layer);
        cut.cut = memory.array<int32_t>(shape.rows, 0xff), cut.before = memory.array<int32_t>(pairs, 0xff);
        cut.scores = memory.array<float>(entries, 0xff);
        cut.budgets = memory.array<int32_t>(pairs, 0xff), cut.keep = memory.array<int32_t>(pairs, 0xff);
        cut.kept = memory.array<int32_t>(entries, 0xff), cut.lost = memory.array<double>(pairs, 0xff);
        scratch = memory.array<char>(ra_cuda_cut_bytes(&l, most_slots), 0xff);
    }
    void check_pages()
    {
        for (int pair = 0; pair < pairs; pair++) {
            const int n = l.slots[pair], D = shape.dim;
            std::vector<float> keys((size_t)n * D + 1);
            demand(ra_layer_read(layer, pair / shape.heads, pair % shape.heads, false, keys.data()) == RA_OK, "read");
            for (int i = 0; i < n; i += 1 + check::below(20))
                for (int c = 0; c < D; c++)
                    demand(keys[(size_t)i * D + c] ==
                               load_element(page_at(l, pair, i / PAGE), c * PAGE + i % PAGE, l.format),
                           "pages are where they should be");
        }
    }
    int64_t *totals() { return (int64_t *)cut.totals; }
    int64_t *protect_below() { return (int64_t *)cut.protect_below; }
    int held(int row) const
    {
        int n = 0;
        for (int h = 0; h < shape.heads; h++)
            n += l.slots[row * shape.heads + h];
        return n;
    }
    int older(int pair) const { return std::max(0, l.slots[pair] - l.window); }
    float *scores(int pair) { return cut.scores + pair * entries_of(l); }
    int32_t *kept(int pair) { return cut.kept + pair * entries_of(l); }
    std::string name() const
    {
        char text[160];
        std::snprintf(text, sizeof text,
                      "format %d, D %d, rows %d, heads %d, group %d, window %d, crop %d, slots up to %d", shape.format,
                      shape.dim, shape.rows, shape.heads, shape.group, shape.window, shape.crop, most_slots);
        return text;
    }
};
