/* Attention over pages against float64: every dtype, head sizes with kernels of their own and others, ragged heads and rows,
 * masks, soft-capping, sinks; pages of NaN past the slots; equal bits whatever the order of blocks and whoever else is in the
 * batch. */
#include <algorithm>
#include <string>

#include "check.h"
#include "common.cuh"

using namespace check;

extern int ra_emulate_capability;

struct shape {
    int heads, group;
    std::vector<int> fresh; /* new tokens of each row */
    std::vector<int> slots; /* of the heads, in turn, and at least the row's new tokens */
    bool places = false;    /* begin and index; without, all rows have as many new tokens */
    bool visible = false, sinks = false, aligned = true;
    float softcap = 0;
};

struct types {
    ra_dtype format, queries, out;
    int capability;
    double tolerance;
};

/* A layer after append, a step, and what it should give. */
struct attention {
    arena memory;
    ra_cuda_layer l = {};
    ra_cuda_pool pool = {};
    ra_cuda_step s = {};
    std::vector<int> first; /* [R + 1] numbers of the rows' first new tokens */
    std::vector<int> place; /* of a token */
    int places, D;
    size_t out_bytes;

    void fill(void *to, int64_t i, ra_dtype dtype) { store_element(to, i, dtype, (float)normal()); }

    attention(int D_, const shape &x, const types &t) : D(D_)
    {
        const int rows = (int)x.fresh.size(), pairs = rows * x.heads, query_heads = x.heads * x.group;
        int most_fresh = 0, all_pages = 0;
        first.push_back(0);
        for (int fresh : x.fresh) {
            most_fresh = std::max(most_fresh, fresh);
            first.push_back(first.back() + fresh);
        }
        places = most_fresh + (x.places ? 3 : 0);
        l.format = t.format, l.rows = rows, l.kv_heads = x.heads, l.group = x.group, l.head_dim = D;
        l.slots = memory.array<int32_t>(pairs);
        s.most_slots = 0;
        for (int i = 0; i < pairs; i++) {
            l.slots[i] = std::max(x.slots[i % x.slots.size()], x.fresh[i / x.heads]);
            s.most_slots = std::max(s.most_slots, l.slots[i]);
            all_pages += pages_for(l.slots[i]);
        }
        l.pages = pages_for(s.most_slots) + 1;
        l.table = memory.array<int32_t>((size_t)pairs * l.pages, 0xff);
        l.positions = memory.array<int32_t>((size_t)pairs * l.pages * PAGE, 0x7f);
        pool.memory = memory.array<void *>(all_pages);
        l.pool = &pool;
        std::vector<int> order(all_pages);
        for (int i = 0; i < all_pages; i++) {
            pool.memory[i] = memory.array<char>(2 * PAGE * D * size_of(t.format), 0xff);
            order[i] = i;
        }
        for (int i = all_pages - 1; i > 0; i--)
            std::swap(order[i], order[below(i + 1)]);
        int most_position = 0;
        for (int pair = 0, next = 0; pair < pairs; pair++) {
            int position = 0;
            for (int page = 0; page < pages_for(l.slots[pair]); page++)
                l.table[pair * l.pages + page] = order[next++];
            for (int slot = 0; slot < l.slots[pair]; slot++) {
                position += 1 + (x.visible ? below(3) : 0);
                l.positions[(int64_t)pair * l.pages * PAGE + slot] = position - 1;
                char *page = page_at(l, pair, slot / PAGE);
                for (int c = 0; c < D; c++) {
                    fill(page, c * PAGE + slot % PAGE, t.format);
                    fill(page, PAGE * D + slot % PAGE * D + c, t.format);
                }
            }
            most_position = std::max(most_position, position);
        }

        const int total = first.back();
        s.tokens = most_fresh;
        if (x.places) {
            int32_t *begin = memory.array<int32_t>(rows + 1), *index = memory.array<int32_t>(total);
            std::copy(first.begin(), first.end(), begin);
            for (int row = 0; row < rows; row++)
                for (int i = 0, at = 0, spare = places - x.fresh[row]; i < x.fresh[row]; i++, at++) {
                    for (; spare && uniform() < 0.4; spare--)
                        at++;
                    index[first[row] + i] = at;
                }
            s.begin = begin, s.index = index;
            place.assign(index, index + total);
        } else {
            for (int row = 0; row < rows; row++)
                for (int i = 0; i < x.fresh[row]; i++)
                    place.push_back(i);
        }
        const int pad = x.aligned ? 0 : 1; /* elements: nothing but these is aligned */
        const int64_t wide = (int64_t)query_heads * D + pad;
        s.queries.dtype = t.queries;
        s.queries.stride_token = wide, s.queries.stride_head = D, s.queries.stride_row = wide * places;
        char *data = memory.array<char>((s.queries.stride_row * rows + pad) * size_of(t.queries), 0xff) +
                     pad * size_of(t.queries);
        s.queries.data = data;
        for (int row = 0; row < rows; row++) /* what lies between tokens stays NaN */
            for (int i = first[row]; i < first[row + 1]; i++)
                for (int64_t c = 0; c < (int64_t)query_heads * D; c++)
                    fill(data, row * s.queries.stride_row + place[i] * wide + c, t.queries);
        s.out.dtype = t.out;
        s.out.stride_token = wide, s.out.stride_row = wide * places;
        out_bytes = (s.out.stride_row * rows + pad) * size_of(t.out);
        s.out.data = memory.array<char>(out_bytes, 0xab) + pad * size_of(t.out);
        s.scale = (float)(1.3 / std::sqrt((double)D)), s.softcap = x.softcap;
        if (x.sinks) {
            float *sinks = memory.array<float>(query_heads);
            for (int i = 0; i < query_heads; i++)
                sinks[i] = i % 3 == 2 ? -INFINITY : (float)(3 * normal());
            s.sinks = sinks;
        }
        if (x.visible) {
            s.visible_stride = most_position + 5;
            uint8_t *visible = memory.array<uint8_t>(total * s.visible_stride);
            for (int64_t i = 0; i < total * s.visible_stride; i++)
                visible[i] = (i / s.visible_stride) % 4 == 3 ? 0 : uniform() < 0.6 ? 1 + below(255) : 0;
            s.visible = visible;
        }
    }

    char *out_data() const { return (char *)s.out.data; }

    /* All of `out` after a step of this layer, which may be a part of the whole. */
    bool run(const ra_cuda_layer &layer, const ra_cuda_step &step, std::vector<char> *out)
    {
        arena own;
        std::memset(out_data() - (out_bytes - s.out.stride_row * l.rows * size_of(s.out.dtype)), 0xab, out_bytes);
        const size_t tickets = ra_cuda_attend_tickets(&layer, &step);
        uint32_t *ticket = own.array<uint32_t>(tickets);
        void *scratch = own.array<char>(ra_cuda_attend_bytes(&layer, &step), 0xff);
        if (int status = ra_cuda_attend(&layer, &step, ticket, scratch, nullptr))
            return fail("launch: %d", status);
        for (size_t i = 0; i < tickets; i++)
            if (ticket[i])
                return fail("ticket %zu is left at %u", i, ticket[i]);
        out->assign(out_data(), out_data() + s.out.stride_row * l.rows * size_of(s.out.dtype));
        return true;
    }

    /* Logits of one query in float64, of the slots that it sees. */
    std::vector<double> logits(int row, int head, int group, int i) const
    {
        const int pair = row * l.kv_heads + head, fresh = first[row + 1] - first[row];
        const int limit = l.slots[pair] - (fresh - 1 - i), number = first[row] + i, query_head = head * l.group + group;
        const int64_t at = row * s.queries.stride_row + query_head * s.queries.stride_head +
                           place[number] * s.queries.stride_token;
        std::vector<double> p(limit, -INFINITY), query(D);
        for (int c = 0; c < D; c++)
            query[c] = load_element(s.queries.data, at + c, s.queries.dtype);
        for (int slot = 0; slot < limit; slot++) {
            if (s.visible && !s.visible[number * s.visible_stride + positions_of(l, pair)[slot]])
                continue;
            const char *page = page_at(l, pair, slot / PAGE);
            double dot = 0;
            for (int c = 0; c < D; c++)
                dot += query[c] * load_element(page, c * PAGE + slot % PAGE, l.format);
            dot *= s.scale;
            p[slot] = s.softcap > 0 ? s.softcap * std::tanh(dot / s.softcap) : dot;
        }
        return p;
    }

    /* One query in float64, and in *size what its error is measured by: the root of sum over c of (sum p |v|)^2. */
    std::vector<double> want(int row, int head, int group, int i, double *size) const
    {
        const int pair = row * l.kv_heads + head;
        const float sink = s.sinks ? s.sinks[head * l.group + group] : -INFINITY;
        std::vector<double> p = logits(row, head, group, i), out(D, 0), sizes(D, 0);
        const int limit = (int)p.size();
        *size = 1;
        double top = sink, sum = 0;
        for (double x : p)
            top = std::max(top, x);
        if (top == -INFINITY)
            return out;
        sum = std::exp(sink - top);
        for (int slot = 0; slot < limit; slot++)
            sum += p[slot] = std::exp(p[slot] - top);
        for (int slot = 0; slot < limit; slot++) {
            const char *page = page_at(l, pair, slot / PAGE);
            for (int c = 0; c < D && p[slot] > 0; c++) {
                const double x = p[slot] / sum * load_element(page, PAGE * D + slot % PAGE * D + c, l.format);
                out[c] += x;
                sizes[c] += std::fabs(x);
            }
        }
        double squares = 0;
        for (double x : sizes)
            squares += x * x;
        *size = std::sqrt(squares);
        return out;
    }

    /* The worst relative error of a query; what is no query's must be as it was. */
    double compare(const std::vector<char> &out) const
    {
        const int64_t size = size_of(s.out.dtype);
        std::vector<char> rest = out;
        double worst = 0;
        for (int row = 0; row < l.rows; row++)
            for (int head = 0; head < l.kv_heads; head++)
                for (int group = 0; group < l.group; group++)
                    for (int i = 0; i < first[row + 1] - first[row]; i++) {
                        const int64_t at = row * s.out.stride_row + place[first[row] + i] * s.out.stride_token +
                                           (int64_t)(head * l.group + group) * D;
                        double scale, error = 0;
                        const std::vector<double> right = want(row, head, group, i, &scale);
                        for (int c = 0; c < D; c++) {
                            const double off = load_element(out.data(), at + c, s.out.dtype) - right[c];
                            error += off * off;
                        }
                        const double relative = std::sqrt(error) / (scale > 0 ? scale : 1);
                        worst = std::max(worst, relative == relative ? relative : INFINITY);
                        std::memset(&rest[at * size], 0xab, D * size);
                    }
        for (char byte : rest)
            if (byte != (char)0xab)
                return INFINITY;
        return worst;
    }

    /* What rows with one new token leave behind beside the same output; their keys are those of all. */
    bool leave(const std::vector<char> &out)
    {
        ra_cuda_step step = s;
        const size_t bytes = ra_cuda_logits_bytes(&l, &step);
        const int64_t room = list_room(s.most_slots);
        std::vector<char> again;
        arena own;
        if (!bytes)
            return true;
        step.logits = own.array<float>(bytes / sizeof(float), 0xff);
        if (!run(l, step, &again) || again != out)
            return fail("other bits where logits are stored");
        for (int row = 0; row < l.rows; row++)
            for (int query = 0; query < l.kv_heads * l.group && first[row + 1] - first[row] == 1; query++) {
                const float *got = step.logits + ((int64_t)row * l.kv_heads * l.group + query) * room;
                const std::vector<double> right = logits(row, query / l.group, query % l.group, 0);
                for (size_t slot = 0; slot < right.size(); slot++)
                    if (!(got[slot] == right[slot] || std::fabs(got[slot] - right[slot]) <= 1e-5))
                        return fail("row %d, query %d, slot %zu: logit %.9g, not %.9g", row, query, slot,
                                    (double)got[slot], right[slot]);
            }
        return true;
    }

    /* Row `row` as a layer of its own. */
    bool alone(int row, std::vector<char> *out)
    {
        ra_cuda_layer layer = l;
        ra_cuda_step step = s;
        const int pair = row * l.kv_heads, fresh = first[row + 1] - first[row];
        const int32_t begin[2] = {0, fresh};
        layer.rows = 1;
        layer.table += (int64_t)pair * l.pages;
        layer.slots += pair;
        layer.positions = positions_of(l, pair);
        step.tokens = fresh;
        step.begin = s.begin ? begin : nullptr;
        step.index = s.index ? s.index + first[row] : nullptr;
        step.visible = s.visible ? s.visible + first[row] * s.visible_stride : nullptr;
        step.queries.data = (const char *)s.queries.data + row * s.queries.stride_row * size_of(s.queries.dtype);
        step.out.data = out_data() + row * s.out.stride_row * size_of(s.out.dtype);
        step.most_slots = *std::max_element(layer.slots, layer.slots + l.kv_heads);
        return run(layer, step, out);
    }
};

static double worst_of_all[3];

static void attend(int D, const shape &x, const types &t)
{
    attention a(D, x, t);
    std::vector<char> out, again;
    char name[200];
    std::snprintf(
        name, sizeof name,
        "D %d, pages %d, queries %d, out %d, sm_%d, rows %zu, heads %d, group %d, new %d.., slots %d..%s%s%s%s%s", D,
        t.format, t.queries, t.out, t.capability, x.fresh.size(), x.heads, x.group, x.fresh[0], x.slots[0],
        x.places ? ", places" : "", x.visible ? ", mask" : "", x.sinks ? ", sinks" : "",
        x.softcap > 0 ? ", softcap" : "", x.aligned ? "" : ", not aligned");
    ra_emulate_capability = t.capability;
    emulate::options().seed = 0;
    if (!a.run(a.l, a.s, &out)) {
        fail("%s", name);
        return;
    }
    const double worst = a.compare(out);
    worst_of_all[t.out] = std::max(worst_of_all[t.out], worst);
    if (!(worst <= t.tolerance))
        fail("%s: error %.3g", name, worst);
    if (!a.leave(out))
        fail("%s", name);
    emulate::options().seed = 17 + (unsigned)below(1000);
    if (!a.run(a.l, a.s, &again) || out != again)
        fail("%s: another order of blocks and threads gives other bits", name);
    for (int row = 0; row < a.l.rows && a.l.rows > 1; row++) {
        const size_t bytes = a.s.out.stride_row * size_of(t.out);
        if (!a.alone(row, &again) || std::memcmp(&out[row * bytes], &again[row * bytes], bytes))
            fail("%s: row %d alone gives other bits", name, row);
    }
}

/* Bytes of global memory that one token's attention moves over those that it must: what vectors move is counted, the lists
 * of pages, which K and V are found by one after the other, are added. */
static void count_bytes(int D, int group, int slots)
{
    attention a(D, {.heads = 1, .group = group, .fresh = {1}, .slots = {slots}}, {RA_BF16, RA_BF16, RA_BF16, 90, 0});
    std::vector<char> out;
    ra_emulate_capability = 90;
    emulate::self().moved_bytes = 0;
    if (!a.run(a.l, a.s, &out))
        return;
    const double least = 2.0 * 2 * D * (slots + group), lists = 2.0 * pages_for(slots) * (4 + 8);
    const double ratio = ((double)emulate::self().moved_bytes + lists) / least;
    if (!(ratio >= 1 && ratio <= 1.1))
        fail("D %d, group %d, %d slots: %.3f times the bytes that must be moved", D, group, slots, ratio);
    std::printf("bytes moved over the least, D %d, group %d, %d slots: %.3f\n", D, group, slots, ratio);
}

int main()
{
    seconds();
    const std::vector<types> all_types = {
        {RA_BF16, RA_BF16, RA_BF16, 90, 4e-3}, {RA_F16, RA_F16, RA_F16, 75, 6e-4},
        {RA_F32, RA_F32, RA_F32, 90, 3e-6},    {RA_BF16, RA_BF16, RA_F32, 90, 2e-5},
        {RA_BF16, RA_BF16, RA_BF16, 75, 4e-3}, {RA_F16, RA_F16, RA_F32, 90, 3e-6},
        {RA_BF16, RA_BF16, RA_BF16, 86, 4e-3}, /* less shared memory: heads of 256 have another kernel */
        {RA_BF16, RA_F32, RA_F32, 90, 3e-6},   {RA_F16, RA_BF16, RA_F16, 90, 6e-4},
        {RA_F32, RA_F16, RA_BF16, 90, 4e-3},
    };
    std::vector<shape> shapes;
    auto add = [&](shape x) { shapes.push_back(x); };
    add({.heads = 1, .group = 1, .fresh = {1}, .slots = {1}});
    add({.heads = 2, .group = 4, .fresh = {1}, .slots = {15, 16}, .sinks = true});
    add({.heads = 2, .group = 4, .fresh = {1, 1}, .slots = {17, 63, 64, 65}, .aligned = false});
    add({.heads = 3, .group = 7, .fresh = {1}, .slots = {255, 1, 257}, .visible = true});
    add({.heads = 2, .group = 8, .fresh = {1}, .slots = {511, 130}, .softcap = 5});
    add({.heads = 1, .group = 16, .fresh = {1}, .slots = {200}, .visible = true, .sinks = true, .softcap = 20});
    add({.heads = 2, .group = 5, .fresh = {1, 1}, .slots = {513, 40, 1100, 512}, .sinks = true});
    add({.heads = 2, .group = 3, .fresh = {4}, .slots = {70, 9}, .aligned = false});
    add({.heads = 1, .group = 2, .fresh = {7, 7}, .slots = {600, 33}, .sinks = true, .softcap = 8});
    add({.heads = 1, .group = 1, .fresh = {1, 1}, .slots = {1025, 700}});
    add({.heads = 2, .group = 2, .fresh = {0, 3, 1, 12, 0}, .slots = {530, 21, 5, 90, 40, 33}, .places = true});
    add({.heads = 1,
         .group = 3,
         .fresh = {2, 0, 5, 1},
         .slots = {540, 600, 77, 20},
         .places = true,
         .visible = true,
         .sinks = true,
         .aligned = false});
    add({.heads = 1, .group = 1, .fresh = {40}, .slots = {560}, .visible = true});
    int count = 0, turn = 0;
    for (int D : {128, 64, 80, 96, 256, 1, 5, 24, 33, 72, 512}) {
        const bool fast = D == 64 || D == 80 || D == 96 || D == 128 || D == 256;
        for (size_t t = 0; t < all_types.size(); t++)
            for (size_t x = 0; x < shapes.size();
                 x++) /* all of one size, a part of each other, another one each time */
                if (D == 128 || (turn++ % (fast ? 4 : 9)) == 0) {
                    attend(D, shapes[x], all_types[t]);
                    count++;
                }
    }
    for (const types &t :
         {all_types[0], all_types[2], all_types[4]}) { /* where chunks grow, beside one where they do not */
        attend(64, {.heads = 1, .group = 4, .fresh = {1, 1}, .slots = {4500, 4096}}, t);
        count++;
    }
    for (int slots : {136, 264, 384, 512, 640, 1152, 4224}) {
        count_bytes(128, 4, slots);
        count_bytes(128, 8, slots);
        count_bytes(64, 8, slots);
    }
    std::printf(
        "attend: %s, %d cases, worst relative error: float32 %.2g, bfloat16 %.2g, float16 %.2g; %.1f s, %.1f M fiber "
        "switches, %.2f M warp operations\n",
        failures() ? "BAD" : "good", count, worst_of_all[RA_F32], worst_of_all[RA_BF16], worst_of_all[RA_F16],
        seconds(), (double)emulate::self().switches / 1e6, (double)emulate::self().collectives / 1e6);
    return failures() != 0;
}
