/* On the C core's own scores: head budgets and the slots that stay, the same integers for every allocator, with ties, protected
 * slots and heads that hold less than their budget; the attention that is lost; totals without room for the windows and scores
 * that are no numbers leave a row alone; equal bits whatever the order of blocks and threads. */
#include "cut_case.h"

using namespace check;

extern int ra_emulate_capability;

static int64_t budgets_compared, choices_compared, infeasible;
static double worst;

/* Scores with ties in plenty, or few, or of one value. */
static void draw_scores(twin &x)
{
    const int kind = below(6);
    for (int pair = 0; pair < x.pairs; pair++) {
        int64_t count = 0;
        float *score = ra_cut_scores(x.layer, pair / x.shape.heads, pair % x.shape.heads, &count);
        const double level = kind == 5 ? normal() : 0;
        for (int64_t i = 0; score && i < count; i++) {
            score[i] = kind == 0   ? (float)normal()
                       : kind == 1 ? (float)below(3) - 1
                       : kind == 2 ? (float)below(40) * 0.25f
                       : kind == 3 ? -0.0f * (float)below(2) /* 0 and -0 are the same score */
                       : kind == 4 ? (float)std::pow(uniform(), 20) * 1e-30f
                                   : (float)(level + 0.1 * normal());
            x.scores(pair)[i] = score[i];
        }
    }
}

static ra_route_config draw_route(const case_shape &s)
{
    static std::vector<double> shares; /* on the device as well, which is this machine */
    const ra_heads allocators[] = {RA_HEADS_UNIFORM, RA_HEADS_ROUTE, RA_HEADS_POOLED, RA_HEADS_SHARES};
    ra_route_config r = {};
    r.heads = allocators[below(4)];
    shares.resize(s.heads);
    for (double &share : shares)
        share = below(6) ? std::pow(uniform(), 1 + below(20)) : below(2);
    r.shares = shares.data();
    const double gammas[] = {0.5, 1, 0, 2, 0.25, 1.7, 32, 0.9};
    r.gamma = gammas[below(8)];
    r.lo = below(3) ? uniform() : 0;
    r.hi = 1 + (below(3) ? uniform() * 3 : 100);
    r.mu = below(3) ? uniform() : 0;
    r.safeguard = below(4) ? uniform() : below(2);
    return r;
}

static const int32_t untouched = -1;

static bool allocate(twin &x, std::vector<int64_t> &budgets)
{
    const int H = x.shape.heads;
    std::vector<char> flags(x.shape.rows);
    demand(ra_cut_score(x.layer, x.totals(), nullptr, (bool *)flags.data(), nullptr) == RA_OK, "score of the C core");
    draw_scores(x);
    std::fill_n(x.cut.budgets, x.pairs, untouched);
    std::fill_n(x.l.fault, x.shape.rows, 0u);
    int error = ra_cuda_cut_begin(&x.l, &x.cut, x.scratch, nullptr);
    if (error || ra_cuda_allocate(&x.l, &x.cut, x.scratch, nullptr))
        return fail("%s: launch", x.name().c_str());
    /* A row that is not feasible is an error of the whole cut in C: each row is asked for alone. */
    std::vector<int64_t> totals(x.totals(), x.totals() + x.shape.rows);
    for (int row = 0; row < x.shape.rows; row++) {
        for (int h = 0; h < H; h++)
            budgets[row * H + h] = x.l.slots[row * H + h];
        bool feasible = true;
        if (flags[row]) {
            std::vector<int64_t> alone(x.shape.rows, -1), own(x.pairs);
            alone[row] = totals[row];
            demand(ra_cut_score(x.layer, alone.data(), nullptr, nullptr, nullptr) == RA_OK, "score of a row");
            for (int h = 0; h < H; h++) {
                int64_t count = 0;
                float *score = ra_cut_scores(x.layer, row, h, &count);
                std::copy_n(x.scores(row * H + h), count, score);
            }
            const ra_status status = ra_cut_allocate(x.layer, x.protect_below(), &x.cut.route, own.data());
            feasible = status == RA_OK;
            demand(feasible || status == RA_ERR_INFEASIBLE, "budgets of the C core");
            for (int h = 0; h < H && feasible; h++)
                budgets[row * H + h] = own[row * H + h];
            infeasible += !feasible;
        }
        if (x.cut.cut[row] != (flags[row] && feasible) ||
            x.l.fault[row] != (feasible ? 0u : (uint32_t)RA_CUDA_FAULT_INFEASIBLE))
            return fail("%s: row %d: cut %d, fault %u", x.name().c_str(), row, x.cut.cut[row], x.l.fault[row]);
        for (int h = 0; h < H; h++, budgets_compared++)
            if (x.cut.budgets[row * H + h] != budgets[row * H + h])
                return fail("%s: total %ld, allocator %d, gamma %g: head %d of row %d has budget %d, in C %ld",
                            x.name().c_str(), (long)totals[row], x.cut.route.heads, x.cut.route.gamma, h, row,
                            x.cut.budgets[row * H + h], (long)budgets[row * H + h]);
        if (!feasible)
            x.totals()[row] = -1; /* the rest of the cut goes on without it */
    }
    return true;
}

static bool choose(twin &x, const std::vector<int64_t> &budgets, bool compare_lost)
{
    const int H = x.shape.heads;
    std::vector<char> flags(x.shape.rows);
    std::vector<double> lost(x.pairs);
    demand(ra_cut_score(x.layer, x.totals(), nullptr, (bool *)flags.data(), nullptr) == RA_OK, "score of the C core");
    for (int pair = 0; pair < x.pairs; pair++) {
        int64_t count = 0;
        float *score = ra_cut_scores(x.layer, pair / H, pair % H, &count);
        for (int64_t i = 0; score && i < count; i++)
            score[i] = x.scores(pair)[i];
        x.cut.cut[pair / H] = flags[pair / H];
        x.cut.budgets[pair] = (int32_t)budgets[pair];
    }
    demand(ra_cut_choose(x.layer, x.protect_below(), budgets.data(), lost.data(), nullptr) == RA_OK,
           "choice of the C core");
    const size_t entries = x.pairs * entries_of(x.l);
    std::fill_n(x.cut.kept, entries, untouched);
    std::fill_n(x.cut.keep, x.pairs, untouched);
    std::memset(x.scratch, 0xff, ra_cuda_cut_bytes(&x.l, x.most_slots));
    if (ra_cuda_choose(&x.l, &x.cut, x.scratch, nullptr))
        return fail("%s: launch", x.name().c_str());
    for (int pair = 0; pair < x.pairs; pair++, choices_compared++) {
        int64_t keep = x.l.slots[pair];
        const int32_t *kept = ra_cut_kept(x.layer, pair / H, pair % H, &keep);
        if (x.cut.keep[pair] != keep)
            return fail("%s: head %d keeps %d, in C %ld", x.name().c_str(), pair, x.cut.keep[pair], (long)keep);
        for (int i = 0; i < entries_of(x.l); i++)
            if (x.kept(pair)[i] != (kept && i < keep ? kept[i] : untouched))
                return fail("%s: head %d keeps as number %d slot %d, in C %d", x.name().c_str(), pair, i,
                            x.kept(pair)[i], kept && i < keep ? kept[i] : untouched);
        if (!kept || !compare_lost)
            continue;
        worst = std::max(worst, std::fabs(x.cut.lost[pair] - lost[pair]));
        if (!(std::fabs(x.cut.lost[pair] - lost[pair]) <= 1e-6))
            return fail("%s: head %d loses %.9g, in C %.9g", x.name().c_str(), pair, x.cut.lost[pair], lost[pair]);
    }
    return true;
}

static void draw_rows(twin &x)
{
    for (int row = 0; row < x.shape.rows; row++) {
        const int H = x.shape.heads, held = x.held(row), least = H * x.shape.window;
        const int kind = below(8);
        x.totals()[row] = kind == 0   ? -1
                          : kind == 1 ? below(held + 5)
                          : kind == 2 ? least
                                      : least + below(std::max(1, held - least));
        x.protect_below()[row] = below(2) ? 0 : below(2 + x.l.tokens[row] * (1 + below(2)) / 2);
    }
    x.cut.route = draw_route(x.shape);
}

/* Budgets, choices and what is lost, and all of it again in another order. */
static void cases(const case_shape &s, int turns)
{
    twin x(s);
    for (int turn = 0; turn < turns; turn++) {
        ra_emulate_capability = turn % 2 ? 90 : 75;
        std::vector<int64_t> budgets(x.pairs);
        draw_rows(x);
        if (!allocate(x, budgets))
            return;
        if (turn % 3 == 2) /* such as no allocator gives: larger than the head, or the window alone */
            for (int pair = 0; pair < x.pairs; pair++) {
                const int window = std::min(s.window, x.l.slots[pair]);
                budgets[pair] = below(4) ? window + below(x.l.slots[pair] - window + 9) : window;
            }
        if (!choose(x, budgets, true))
            return;
        const size_t entries = x.pairs * entries_of(x.l);
        const std::vector<int32_t> kept(x.cut.kept, x.cut.kept + entries);
        const std::vector<double> lost(x.cut.lost, x.cut.lost + x.pairs);
        emulate::options().seed = 1 + below(1000);
        const bool same = choose(x, budgets, true) &&
                          !std::memcmp(kept.data(), x.cut.kept, entries * sizeof(int32_t)) &&
                          !std::memcmp(lost.data(), x.cut.lost, x.pairs * sizeof(double));
        if (!same)
            fail("%s: another order gives other bits", x.name().c_str());
        if (turn % 4 == 0)
            allocate(x, budgets);
        emulate::options().seed = 0;
        ra_cut_abandon(x.layer);
    }
}

static void not_finite()
{
    case_shape s;
    s.rows = 3, s.slots = {60}, s.ragged = false;
    twin x(s);
    std::fill_n(x.totals(), 3, 60);
    x.cut.route = draw_route(s);
    for (int pair = 0; pair < x.pairs; pair++)
        for (int i = 0; i < x.older(pair); i++)
            x.scores(pair)[i] = (float)normal();
    x.scores(3)[x.older(3) - 1] = NAN;
    int error = ra_cuda_cut_begin(&x.l, &x.cut, x.scratch, nullptr);
    if (!error)
        error = ra_cuda_allocate(&x.l, &x.cut, x.scratch, nullptr);
    if (!error)
        error = ra_cuda_choose(&x.l, &x.cut, x.scratch, nullptr);
    bool by_age = x.cut.keep[2] == 30 && x.cut.keep[3] == 30; /* so that it holds no more than the host takes it to */
    for (int pair = 2; by_age && pair < 4; pair++)
        by_age = x.kept(pair)[0] == x.l.slots[pair] - 30;
    if (error || x.l.fault[0] || x.l.fault[1] != RA_CUDA_FAULT_SCORES || x.l.fault[2] || !x.cut.cut[0] || !by_age ||
        x.cut.keep[0] + x.cut.keep[1] != 60)
        fail("scores that are no numbers: faults %u %u %u", x.l.fault[0], x.l.fault[1], x.l.fault[2]);
}

/* test_choose [times as many cases] */
int main(int count, char **arguments)
{
    seconds();
    const int times = count > 1 ? std::atoi(arguments[1]) : 1;
    const int heads[] = {1, 2, 3, 8, 64, 100}, dims[] = {5, 24, 64, 80, 96, 128, 256};
    int number = 0;
    for (int turn = 0; turn < 6 * times; turn++)
        for (int H : heads) {
            case_shape s;
            s.heads = H, s.dim = dims[number % 7], s.format = (ra_dtype)(number % 3), s.rows = H > 8 ? 1 : 3;
            s.group = H > 8 ? 1 + below(2) : 1 + below(16), s.window = 1 + below(33), s.ragged = below(4) != 0;
            s.slots = {1 + below(H > 8 ? 60 : 250), 1 + below(60), s.window};
            s.softcap = below(3) ? 0 : 2, s.sinks = below(2), s.scale = (float)(1 / std::sqrt((double)s.dim));
            s.crop = below(4) || s.ragged ? 0 : below(s.window + 2);
            cases(s, H > 8 ? 2 : 6);
            number++;
        }
    case_shape wide; /* more heads than stay in a block's shared memory */
    wide.heads = 300, wide.dim = 1, wide.group = 1, wide.slots = {20, 7}, wide.window = 2;
    cases(wide, 2);
    case_shape longer;
    longer.heads = 2, longer.dim = 16, longer.group = 4, longer.slots = {1500, 700}, longer.window = 8;
    cases(longer, 3);
    not_finite();
    std::printf(
        "%ld budgets (%ld rows not feasible) and %ld choices as the C core's, mass within %.1e, %d failures, %.1f s\n",
        (long)budgets_compared, (long)infeasible, (long)choices_compared, worst, failures(), seconds());
    return failures() != 0;
}
