/* A layer of the C core and one of the kernels, side by side: the same lists and page numbers, pages of their own. */
#pragma once
#include <algorithm>
#include <string>

#include "check.h"
#include "common.cuh"
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
extern "C" {
#include "backend.h"
}
#pragma GCC diagnostic pop

struct beside_shape {
    ra_dtype format = RA_F32;
    int dim = 16, rows = 3, heads = 2, group = 2, window = 4;
    int all_pages = 400, pages = 24; /* of the pool, of a head's list */
    const char *scorer = nullptr;    /* whose gathered statistics are kept */
    ra_stat_config stats = ra_stat_defaults();
    float scale = 1; /* of logits */
};

inline void demand(bool good, const char *what)
{
    if (good)
        return;
    std::printf("the test itself failed: %s\n", what);
    std::exit(1);
}

/* New tokens, in one memory for both. */
struct new_tokens {
    std::vector<char> memory[3]; /* queries, keys, values */
    ra_tokens tensor[3];
    std::vector<int64_t> begin, index;
    std::vector<int32_t> begin32, index32;
    std::vector<float> sinks;
    std::vector<uint8_t> prompt; /* of each row; empty: none */
    int most = 0;
    bool listed = false, with_sinks = false;

    int fresh(int row) const { return listed ? (int)(begin[row + 1] - begin[row]) : most; }
    char *element(int which, int row, int head, int i, int c)
    {
        const ra_tokens &t = tensor[which];
        const int64_t place = listed ? index[begin[row] + i] : i;
        return (char *)t.data + (row * t.stride_row + head * t.stride_head + place * t.stride_token + c) *
                                    (int64_t)ra_dtype_size(t.dtype);
    }
};

class beside
{
    check::arena arena;
    std::vector<std::pair<char *, size_t>> regions;
    char *slab;

    template <class T> T *list(size_t count, int fill = 0)
    {
        T *x = arena.array<T>(count, fill);
        regions.emplace_back((char *)x, count * sizeof(T));
        return x;
    }

  public:
    const beside_shape shape;
    const int pairs;
    ra_pool *pool = nullptr;
    ra_layer *layer = nullptr;
    size_t page_bytes;
    ra_cuda_pool *there;
    ra_cuda_layer l = {};

    explicit beside(const beside_shape &s) : shape(s), pairs(s.rows * s.heads)
    {
        const char *names[] = {"float32", "bfloat16", "float16"};
        demand(ra_pool_create(ra_format_find(names[s.format]), s.dim, &pool) == RA_OK, "pool");
        page_bytes = ra_pool_page_bytes(pool);
        char *host = arena.array<char>(page_bytes * s.all_pages + 64);
        host += 64 - (uintptr_t)host % 64;
        demand(ra_pool_add_slab(pool, host, s.all_pages, nullptr) == RA_OK, "slab");
        ra_layer_config config = {}; // by name: later fields keep their zeros
        config.rows = s.rows, config.kv_heads = s.heads, config.query_heads = s.heads * s.group;
        config.window = s.window;
        config.scorer = s.scorer ? ra_scorer_find(s.scorer) : nullptr, config.stats = s.stats;
        demand(ra_layer_create(pool, &config, &layer) == RA_OK, "layer");
        const size_t M = s.pages, row_floats = (size_t)s.window * s.heads * s.group * s.dim;
        there = list<ra_cuda_pool>(1);
        there->memory = list<void *>(s.all_pages);
        there->refs = list<int32_t>(s.all_pages);
        there->free_ids = list<int32_t>(s.all_pages, 0xff);
        slab = list<char>(page_bytes * s.all_pages, 0xff);
        for (int id = 0; id < s.all_pages; id++)
            there->memory[id] = slab + page_bytes * id;
        l.pool = there, l.format = s.format, l.rows = s.rows, l.kv_heads = s.heads, l.group = s.group;
        l.window = s.window, l.head_dim = s.dim, l.pages = s.pages;
        l.table = list<int32_t>(pairs * M, 0xff);
        l.slots = list<int32_t>(pairs);
        l.positions = list<int32_t>(pairs * M * PAGE, 0xff);
        l.tokens = list<int32_t>(s.rows);
        l.queries = list<float>(s.rows * row_floats, 0xff);
        l.q_begin = list<int32_t>(s.rows);
        l.q_end = list<int32_t>(s.rows);
        l.sinks = list<float>(s.heads * s.group, 0xff);
        l.tickets = list<uint32_t>(RA_CUDA_TICKETS);
        l.fault = list<uint32_t>(s.rows);
        if (layer->columns[RA_STAT_ACCUMULATED])
            l.accumulated = list<float>(pairs * M * PAGE, 0xff);
        if (layer->columns[RA_STAT_RECURRENCE])
            l.recurrence = list<int32_t>(2 * pairs * M * PAGE, 0xff);
        push(true);
    }
    beside(const beside &) = delete;
    ~beside()
    {
        ra_layer_destroy(layer);
        ra_pool_destroy(pool);
    }

    std::string name() const
    {
        char text[160];
        std::snprintf(text, sizeof text, "format %d, D %d, rows %d, heads %d, group %d, window %d", shape.format,
                      shape.dim, shape.rows, shape.heads, shape.group, shape.window);
        return text;
    }
    int most_slots() const { return *std::max_element(layer->slots, layer->slots + pairs); }

    /* The C core's lists become the kernels'; with_pages: what pages hold too. */
    void push(bool with_pages)
    {
        std::copy_n(pool->refs, shape.all_pages, there->refs);
        std::copy_n(pool->free_ids, pool->free_count, there->free_ids);
        there->free_count = there->least_free = (int32_t)pool->free_count;
        there->shared = (int32_t)pool->info.shared;
        for (int pair = 0; pair < pairs; pair++) {
            const int n = l.slots[pair] = layer->slots[pair];
            std::copy_n(ra_pages_of(layer, pair), pages_for(n), pages_of(l, pair));
            std::copy_n(ra_positions_of(layer, pair), n, positions_of(l, pair));
            if (l.accumulated)
                std::copy_n((const float *)ra_column_of(layer, RA_STAT_ACCUMULATED, 0, pair), n,
                            l.accumulated + pair * entries_of(l));
            for (int field = 0; field < 2 && l.recurrence; field++)
                std::copy_n((const int32_t *)ra_column_of(layer, RA_STAT_RECURRENCE, field, pair), n,
                            l.recurrence + (2 * pair + field) * entries_of(l));
        }
        for (int row = 0; row < shape.rows; row++) {
            l.tokens[row] = (int32_t)layer->tokens[row];
            l.q_begin[row] = (int32_t)layer->q_begin[row];
            l.q_end[row] = (int32_t)layer->q_end[row];
            l.fault[row] = 0;
        }
        const size_t row_floats = (size_t)shape.heads * shape.group * shape.dim;
        for (int row = 0; row < shape.rows; row++)
            for (int64_t i = layer->q_begin[row]; i < layer->q_end[row]; i++)
                std::copy_n(ra_query(layer, row, i), row_floats, query_of(l, row, i, 0));
        std::copy_n(layer->sinks, shape.heads * shape.group, l.sinks);
        for (int id = 0; id < shape.all_pages && with_pages; id++)
            if (pool->refs[id])
                std::memcpy(there->memory[id], pool->memory[id], page_bytes);
    }

    /* All that kernels may write to, scratch aside. */
    std::vector<char> snapshot() const
    {
        std::vector<char> all;
        for (auto &region : regions)
            all.insert(all.end(), region.first, region.first + region.second);
        return all;
    }
    void restore(const std::vector<char> &all)
    {
        size_t at = 0;
        for (auto &region : regions) {
            std::memcpy(region.first, all.data() + at, region.second);
            at += region.second;
        }
    }

    bool same(const char *what) const
    {
        auto bad = [&](const char *list, int64_t at) {
            return check::fail("%s, %s: %s, at %lld", name().c_str(), what, list, (long long)at);
        };
        if (there->free_count != pool->free_count || there->shared != pool->info.shared)
            return check::fail("%s, %s: %d pages free, not %d; %d shared, not %d", name().c_str(), what,
                               there->free_count, (int)pool->free_count, there->shared, (int)pool->info.shared);
        for (int i = 0; i < there->free_count; i++)
            if (there->free_ids[i] != pool->free_ids[i])
                return bad("free stack", i);
        for (int id = 0; id < shape.all_pages; id++)
            if (there->refs[id] != pool->refs[id])
                return bad("owners", id);
        for (int i = 0; i < RA_CUDA_TICKETS; i++)
            if (l.tickets[i])
                return bad("tickets", i);
        for (int row = 0; row < shape.rows; row++)
            if (l.tokens[row] != layer->tokens[row] || l.q_begin[row] != layer->q_begin[row] ||
                l.q_end[row] != layer->q_end[row] || l.fault[row])
                return bad("row", row);
        for (int i = 0; i < shape.heads * shape.group; i++)
            if (std::memcmp(&l.sinks[i], &layer->sinks[i], sizeof(float)))
                return bad("sinks", i);
        const size_t row_bytes = (size_t)shape.heads * shape.group * shape.dim * sizeof(float);
        for (int row = 0; row < shape.rows; row++)
            for (int64_t i = l.q_begin[row]; i < l.q_end[row]; i++)
                if (std::memcmp(query_of(l, row, i, 0), ra_query(layer, row, i), row_bytes))
                    return bad("queries", row);
        for (int pair = 0; pair < pairs; pair++)
            if (!same_head(pair))
                return bad("head", pair);
        return true;
    }
    bool same_head(int pair) const
    {
        const int n = l.slots[pair];
        const size_t size = ra_dtype_size(shape.format), row = size * shape.dim;
        if (n != layer->slots[pair] ||
            std::memcmp(positions_of(l, pair), ra_positions_of(layer, pair), n * sizeof(int32_t)))
            return false;
        for (int page = 0; page < pages_for(n); page++) {
            const int32_t id = pages_of(l, pair)[page];
            if (id != ra_pages_of(layer, pair)[page])
                return false;
            const char *own = (const char *)there->memory[id], *other = (const char *)pool->memory[id];
            const int count = least(PAGE, n - page * PAGE);
            for (int c = 0; c < shape.dim; c++)
                if (std::memcmp(own + c * PAGE * size, other + c * PAGE * size, count * size))
                    return false;
            if (std::memcmp(own + PAGE * row, other + PAGE * row, count * row))
                return false;
        }
        return true;
    }

    /* ---- New tokens ---- */

    void set_element(char *to, ra_dtype dtype, float x) { store_element(to, 0, dtype, x); }

    /* fresh: of each row; empty: `most` of all. */
    void draw(new_tokens &t, int most_new, const std::vector<int> &fresh)
    {
        using check::below;
        t.most = most_new;
        t.listed = !fresh.empty();
        const bool packed = t.listed && below(3) == 0;
        int places = most_new + (t.listed ? below(4) : 0), all = 0;
        t.begin.assign(1, 0), t.index.clear();
        for (int row = 0; row < shape.rows && t.listed; row++) {
            std::vector<int> order(places);
            for (int i = 0; i < places; i++)
                order[i] = i;
            for (int i = 0; i < fresh[row]; i++)
                std::swap(order[i], order[i + below(places - i)]);
            std::sort(order.begin(), order.begin() + fresh[row]);
            for (int i = 0; i < fresh[row]; i++)
                t.index.push_back(packed ? all++ : order[i]);
            t.begin.push_back((int64_t)t.index.size());
        }
        if (packed)
            places = most(1, all);
        t.begin32.assign(t.begin.begin(), t.begin.end());
        t.index32.assign(t.index.begin(), t.index.end());
        const double size = std::pow(10.0, below(3) - 1);
        for (int which = 0; which < 3; which++) {
            const ra_dtype dtype = below(2) ? shape.format : (ra_dtype)below(RA_DTYPES);
            const int heads = which ? shape.heads : shape.heads * shape.group, rows = packed ? 1 : shape.rows;
            const int pad = below(2) ? 0 : below(9), offset = below(2) ? 0 : below(8);
            const bool heads_first = below(2);
            ra_tokens &tensor = t.tensor[which];
            tensor.dtype = dtype;
            const int64_t row_elements = (int64_t)heads * places * (shape.dim + pad);
            tensor.stride_token = heads_first ? shape.dim + pad : (int64_t)heads * (shape.dim + pad);
            tensor.stride_head = heads_first ? (int64_t)places * (shape.dim + pad) : shape.dim + pad;
            tensor.stride_row = packed ? 0 : row_elements;
            /* 16 bytes aligned, then `offset` elements. */
            const size_t bytes = (size_t)(rows * row_elements - pad + offset) * ra_dtype_size(dtype);
            t.memory[which].assign(bytes + 16, 0);
            char *data = t.memory[which].data();
            data += (16 - (uintptr_t)data % 16) % 16 + offset * ra_dtype_size(dtype);
            tensor.data = data;
            for (int64_t i = 0; i < rows * row_elements - pad; i++) {
                double x = check::normal() * (below(4) ? size : std::pow(10.0, below(13) - 9));
                store_element(data, i, dtype, (float)std::max(-6e4, std::min(6e4, x)));
            }
        }
        t.with_sinks = below(2);
        t.sinks.resize(shape.heads * shape.group);
        for (float &sink : t.sinks)
            sink = (float)check::normal();
    }

    /* In the C core; false: there are not the pages for it. */
    bool step(const new_tokens &t)
    {
        ra_step s = {};
        s.begin = t.listed ? t.begin.data() : nullptr, s.index = t.listed ? t.index.data() : nullptr;
        s.tokens = t.most;
        s.queries = t.tensor[0], s.keys = t.tensor[1], s.values = t.tensor[2];
        s.scale = shape.scale;
        s.sinks = t.with_sinks ? t.sinks.data() : nullptr;
        s.prompt = t.prompt.empty() ? nullptr : (const bool *)t.prompt.data();
        int64_t missing;
        const ra_status status = ra_layer_reserve(layer, s.begin, s.tokens, 0, &missing);
        if (status == RA_ERR_NO_PAGES)
            return false;
        demand(status == RA_OK && ra_layer_step(layer, &s, nullptr) == RA_OK, "step");
        return true;
    }
    ra_cuda_step step_of(const new_tokens &t) const
    {
        ra_cuda_step s = {};
        s.begin = t.listed ? t.begin32.data() : nullptr, s.index = t.listed ? t.index32.data() : nullptr;
        s.tokens = t.most;
        s.queries = t.tensor[0], s.keys = t.tensor[1], s.values = t.tensor[2];
        s.scale = shape.scale;
        s.sinks = t.with_sinks ? t.sinks.data() : nullptr;
        s.most_slots = most_slots() + t.most;
        return s;
    }
    int append(const new_tokens &t)
    {
        const ra_cuda_step s = step_of(t);
        const size_t bytes = ra_cuda_append_bytes(&l, &s);
        check::arena scratch;
        return ra_cuda_append(&l, &s, scratch.array<char>(bytes, 0xff), nullptr);
    }

    /* ---- Rows ---- */

    void fork()
    {
        using check::below;
        demand(ra_layer_fork(layer, below(shape.rows), below(shape.rows)) == RA_OK, "fork");
        push(false);
    }
    void reorder()
    {
        std::vector<int64_t> source(shape.rows);
        const int likely = check::below(shape.rows);
        for (auto &from : source)
            from = check::below(3) ? likely : check::below(shape.rows + 1) - 1;
        demand(ra_layer_reorder(layer, source.data(), shape.rows) == RA_OK, "reorder");
        push(false);
    }
    void release(int row)
    {
        demand(ra_layer_release(layer, row) == RA_OK, "release");
        push(false);
    }
    void crop(int longest)
    {
        std::vector<int64_t> tokens(shape.rows);
        for (int row = 0; row < shape.rows; row++)
            tokens[row] = std::min<int64_t>(layer->tokens[row], check::below(2) ? 0 : check::below(longest));
        if (ra_layer_crop(layer, tokens.data()) == RA_OK)
            push(false);
    }
};
