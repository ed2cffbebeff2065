/* Eviction beside the C core: the same page numbers, owners and free pages in their order, slots, positions, bits of keys and
 * values, whatever stays; among rows that share pages too. A pool without the pages that this takes is reported. */
#include "beside.h"

using namespace check;

static int64_t cuts, heads_cut, heads_fresh, refusals, dropped_shared;

static void grow(beside &x, int most_new)
{
    new_tokens t;
    std::vector<int> fresh(x.shape.rows, 0);
    int most_fresh = 0;
    for (int row = 0; row < x.shape.rows; row++) {
        int slots = 0;
        for (int h = 0; h < x.shape.heads; h++)
            slots = most(slots, x.layer->slots[row * x.shape.heads + h]);
        fresh[row] = least(below(most_new + 1), x.shape.pages * PAGE - slots);
        most_fresh = most(most_fresh, fresh[row]);
    }
    if (!most_fresh)
        return;
    x.draw(t, most_fresh, fresh);
    if (x.step(t))
        x.push(true);
}

/* Which slots stay: drawn, the first ones, all but few, hardly any. */
static void draw_scores(float *score, int64_t count, int kind)
{
    for (int64_t i = 0; i < count; i++)
        score[i] = kind == 0   ? (float)uniform()
                   : kind == 1 ? (float)-i
                   : kind == 2 ? (float)i
                               : (float)(below(20) ? -i : i);
}

/* A pool with a page too few: a fault, and nothing else happens. */
static bool check_refusal(beside &x, const ra_cuda_cut &c, char *scratch, int64_t need)
{
    const std::vector<char> whole = x.snapshot();
    x.there->free_count = (int32_t)need - 1;
    const std::vector<char> before = x.snapshot();
    const int error = ra_cuda_apply(&x.l, &c, scratch, nullptr);
    const bool told = x.l.fault[0] == RA_CUDA_FAULT_PAGES;
    x.l.fault[0] = 0;
    refusals++;
    if (error || !told || x.snapshot() != before)
        return fail("%s: a pool with a page too few: %s", x.name().c_str(),
                    told ? "something has changed" : "no fault");
    x.restore(whole);
    return true;
}

static bool cut(beside &x)
{
    const int R = x.shape.rows, H = x.shape.heads, window = x.shape.window;
    std::vector<int64_t> totals(R), protect(R), budgets(x.pairs, 0);
    for (int row = 0; row < R; row++) {
        int64_t held = 0;
        for (int h = 0; h < H; h++)
            held += x.layer->slots[row * H + h];
        totals[row] = below(4) ? below((int)held + 1) : below(2) ? -1 : held;
        protect[row] = below(3) ? 0 : below(40);
    }
    demand(ra_cut_score(x.layer, totals.data(), nullptr, nullptr, nullptr) == RA_OK, "score");
    check::arena memory;
    const int64_t entries = entries_of(x.l);
    ra_cuda_cut c = {};
    c.most_slots = x.most_slots() + below(20);
    c.cut = memory.array<int32_t>(R);
    c.keep = memory.array<int32_t>(x.pairs);
    c.kept = memory.array<int32_t>(x.pairs * entries, 0xff);
    const int kind = below(4);
    for (int pair = 0; pair < x.pairs; pair++) {
        int64_t count = 0;
        float *score = ra_cut_scores(x.layer, pair / H, pair % H, &count);
        if (!score)
            continue;
        draw_scores(score, count, kind);
        const int n = x.layer->slots[pair];
        budgets[pair] = below(6) == 0   ? n
                        : below(6) == 0 ? most(window, n - below(20))
                                        : window + below(most(1, n - window + 1));
    }
    demand(ra_cut_choose(x.layer, protect.data(), budgets.data(), nullptr, nullptr) == RA_OK, "choose");
    for (int row = 0; row < R; row++)
        c.cut[row] = x.layer->cut.cut[row];
    for (int pair = 0; pair < x.pairs; pair++) {
        int64_t keep = x.layer->slots[pair];
        const int32_t *kept = ra_cut_kept(x.layer, pair / H, pair % H, &keep);
        c.keep[pair] = (int32_t)keep;
        if (kept)
            std::copy_n(kept, keep, c.kept + pair * entries);
        heads_cut += kept != nullptr;
    }
    char *scratch = memory.array<char>(ra_cuda_cut_bytes(&x.l, c.most_slots), 0xff);
    const int64_t free_before = x.pool->free_count, shared_before = x.pool->info.shared;
    const std::vector<int32_t> table(x.l.table, x.l.table + (size_t)x.pairs * x.shape.pages);
    const std::vector<char> before = x.snapshot();
    const int64_t need = x.pool->backend->apply_pages(x.layer);
    if (need && below(3) == 0 && !check_refusal(x, c, scratch, need))
        return false;
    int64_t missing;
    const ra_status status = ra_cut_apply(x.layer, nullptr, &missing);
    if (ra_cuda_apply(&x.l, &c, scratch, nullptr))
        return fail("%s: launch", x.name().c_str());
    if (status == RA_ERR_NO_PAGES) {
        refusals++;
        ra_cut_abandon(x.layer);
        const bool told = x.l.fault[0] == RA_CUDA_FAULT_PAGES;
        x.l.fault[0] = 0;
        if (!told || x.snapshot() != before)
            return fail("%s: a pool without pages: %s", x.name().c_str(), told ? "something has changed" : "no fault");
        x.release(below(R));
        return true;
    }
    demand(status == RA_OK, "apply");
    cuts++;
    dropped_shared += shared_before > x.pool->info.shared;
    for (int pair = 0; pair < x.pairs; pair++)
        for (int page = 0; page < pages_for(x.layer->slots[pair]); page++)
            if (ra_pages_of(x.layer, pair)[page] != table[(size_t)pair * x.shape.pages + page]) {
                heads_fresh++;
                break;
            }
    if (x.there->least_free > free_before)
        return fail("%s: least_free", x.name().c_str());
    return x.same("a cut");
}

static void run(const beside_shape &shape, int count, int most_new, int forks = 8)
{
    beside x(shape);
    for (int i = 0; i < count; i++) {
        emulate::options().seed = below(3) ? (unsigned)below(1000) : 0;
        grow(x, most_new);
        const int what = below(forks);
        if (what == 0)
            x.fork();
        else if (what == 1)
            x.reorder();
        else if (what == 2)
            x.crop(20);
        if (!cut(x))
            return;
    }
}

int main(int count, char **arguments) /* another seed of the numbers, if any */
{
    seconds();
    if (count > 1)
        state() = (uint64_t)std::atoll(arguments[1]);
    const int dims[] = {1, 5, 16, 64, 80, 128, 256, 1024, 24, 33};
    for (int dim : dims)
        for (int format = 0; format < RA_DTYPES; format++) {
            beside_shape shape;
            shape.format = (ra_dtype)format, shape.dim = dim, shape.group = 1;
            shape.rows = 1 + below(5), shape.heads = 1 + below(4);
            shape.window = 1 + below(9);
            shape.pages = 8 + below(20);
            shape.all_pages = dim > 128 ? 60 : 100 + below(150);
            run(shape, dim > 128 ? 10 : 25, 80);
        }
    beside_shape many;
    many.format = RA_BF16, many.dim = 8, many.rows = 50, many.heads = 3, many.group = 1, many.all_pages = 1000;
    run(many, 10, 60);
    beside_shape longer;
    longer.dim = 3, longer.rows = 2, longer.heads = 1, longer.pages = 300, longer.all_pages = 900;
    run(longer, 16, 4000, 3);
    std::printf("apply: %lld cuts of %lld heads (%lld moved into fresh pages; after %lld fewer pages were shared), "
                "%lld pools too "
                "small; %d bad, %.1f s\n",
                (long long)cuts, (long long)heads_cut, (long long)heads_fresh, (long long)dropped_shared,
                (long long)refusals, failures(), seconds());
    return failures() > 0;
}
