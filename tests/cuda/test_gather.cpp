/* Gathered statistics beside the C core's: every format, head sizes with and without matrix units, ragged rows, prompts that are
 * taken in whole, by their window or not at all, tiles of queries, sinks, rows that share pages, logits that attention has
 * left, of heads that it splits too; memory of exact size; equal bits whatever the order of blocks and threads. */
#include "beside.h"

using namespace check;

static double worst;

/* Queries of a row that are taken in; stored: -1 where attention has stored their logits. */
static int taken(const beside &x, const new_tokens &t, int row, bool stored)
{
    const bool anew = !t.prompt.empty() && t.prompt[row] && x.shape.stats.prompt != RA_PROMPT_ALL;
    if (!t.fresh(row) || (stored && t.fresh(row) == 1 && !anew))
        return -1;
    return !anew ? t.fresh(row) : x.shape.stats.prompt == RA_PROMPT_WINDOW ? x.shape.window : 0;
}

static bool gather(beside &x, const new_tokens &t, bool attend)
{
    arena own;
    ra_cuda_step s = x.step_of(t);
    ra_cuda_gathering how = {};
    how.config = x.shape.stats, how.prompt = t.prompt.empty() ? nullptr : t.prompt.data();
    if (attend) {
        const int heads = x.shape.heads * x.shape.group,
                  places = t.listed ? 1 + (int)*std::max_element(t.index.begin(), t.index.end()) : t.most;
        const int64_t row = (int64_t)places * heads * x.shape.dim;
        s.out.dtype = RA_F32, s.out.stride_token = heads * x.shape.dim, s.out.stride_row = row;
        s.out.data = own.array<float>((size_t)row * x.shape.rows);
        const size_t bytes = ra_cuda_logits_bytes(&x.l, &s);
        s.logits = bytes ? own.array<float>(bytes / sizeof(float), 0xff) : nullptr;
        if (ra_cuda_attend(&x.l, &s, own.array<uint32_t>(ra_cuda_attend_tickets(&x.l, &s)),
                           own.array<char>(ra_cuda_attend_bytes(&x.l, &s), 0xff), nullptr))
            return fail("%s: attention", x.name().c_str());
    }
    how.tokens = -1;
    for (int row = 0; row < x.shape.rows; row++)
        how.tokens = most(how.tokens, taken(x, t, row, s.logits != nullptr));
    return !ra_cuda_gather(&x.l, &s, &how, own.array<char>(ra_cuda_gather_bytes(&x.l, &s, &how), 0xff), nullptr) ||
           fail("%s: launch", x.name().c_str());
}

static bool same_columns(const beside &x, const char *what)
{
    for (int pair = 0; pair < x.pairs; pair++)
        for (int i = 0; i < x.l.slots[pair]; i++) {
            if (x.l.accumulated) {
                const float got = x.l.accumulated[pair * entries_of(x.l) + i],
                            want = ((const float *)ra_column_of(x.layer, RA_STAT_ACCUMULATED, 0, pair))[i];
                const double off = std::fabs((double)got - want) / (1 + want);
                worst = std::max(worst, off);
                if (!(off <= 2e-5))
                    return fail("%s, %s: head %d, slot %d: %.9g, C has %.9g", x.name().c_str(), what, pair, i,
                                (double)got, (double)want);
            }
            for (int field = 0; field < 2 && x.l.recurrence; field++) {
                const int32_t got = x.l.recurrence[(2 * pair + field) * entries_of(x.l) + i],
                              want = ((const int32_t *)ra_column_of(x.layer, RA_STAT_RECURRENCE, field, pair))[i];
                if (got != want)
                    return fail("%s, %s: head %d, slot %d, field %d: %d, C has %d", x.name().c_str(), what, pair, i,
                                field, got, want);
            }
        }
    return true;
}

static int split; /* heads so long that attention splits them, after steps of one token */

static int run(const beside_shape &shape, int steps, int longest)
{
    beside x(shape);
    int made = 0;
    for (int i = 0; i < steps; i++) {
        const int count = below(2) ? 1 : 1 + below(longest), what = below(12);
        if (what == 0)
            x.fork();
        else if (what == 1)
            x.release(below(shape.rows));
        std::vector<int> fresh;
        for (int row = 0; row < shape.rows && below(3) + row; row++)
            fresh.push_back(below(4) ? 1 + below(count) : below(2));
        if ((int)fresh.size() < shape.rows)
            fresh.clear();
        new_tokens t;
        const int most_new = fresh.empty() ? count : most(1, *std::max_element(fresh.begin(), fresh.end()));
        x.draw(t, most_new, fresh);
        if (!t.listed ? false : t.index.empty())
            continue;
        for (int row = 0; row < shape.rows && what > 6; row++)
            t.prompt.push_back((uint8_t)below(2));
        for (int pair = 0; pair < x.pairs; pair++)
            if (x.layer->slots[pair] + most_new > shape.pages * PAGE)
                return made;
        if (!x.step(t)) {
            x.release(below(shape.rows));
            continue;
        }
        if (x.append(t))
            return fail("%s: append", x.name().c_str());
        const std::vector<char> before = x.snapshot();
        emulate::options().seed = 0;
        if (!gather(x, t, false))
            return made;
        const std::vector<char> plain = x.snapshot();
        if (!same_columns(x, "alone"))
            return made;
        x.restore(before);
        emulate::options().seed = 1 + below(1000);
        if (!gather(x, t, false) || x.snapshot() != plain)
            return fail("%s: the order of threads changes columns", x.name().c_str());
        x.restore(before);
        if (!gather(x, t, true) || !same_columns(x, "after attention"))
            return made;
        for (int pair = 0; pair < x.pairs && most_new == 1; pair++)
            split += x.layer->slots[pair] > 430;
        emulate::options().seed = 0;
        x.push(true);
        made++;
    }
    return made;
}

int main()
{
    seconds();
    int made = 0;
    const int dims[] = {64, 5, 128, 20, 64, 300};
    for (int dim : dims)
        for (int format = 0; format < RA_DTYPES; format++)
            for (const char *scorer : {"h2o", "lazy"}) {
                beside_shape s;
                s.format = (ra_dtype)format, s.dim = dim, s.scorer = scorer, s.scale = 1e-6f;
                s.rows = 1 + below(3), s.heads = 1 + below(2);
                s.group = below(4) ? 1 + below(5) : 17;
                s.window = 1 + below(8);
                s.stats.prompt = (ra_prompt_statistics)below(3);
                s.stats.decay = below(2) ? 1 : 0.9f;
                s.stats.activation = below(2) ? 0.03f : 0.3f;
                s.stats.birth = below(2);
                made += run(s, 3, 20);
            }
    for (int dim : {64, 128})
        for (const char *scorer : {"h2o", "lazy"}) {
            beside_shape s;
            s.format = RA_BF16, s.dim = dim, s.scorer = scorer, s.scale = 1e-6f;
            s.rows = 2, s.heads = 1, s.group = 3, s.window = 4, s.pages = 64;
            made += run(s, 16, 200);
        }
    if (!split)
        fail("no head was split");
    std::printf("gather: %d steps, at most %.1e off the C core's, %d failures, %.1f s\n", made, worst, failures(),
                seconds());
    return failures() > 0;
}
