/* Scores from what was kept of earlier cuts, beside scores from nothing: the same bits, through cuts that keep any tokens,
 * new tokens, rows that are left alone, and thresholds that change. */
#include "cut_case.h"

using namespace check;

extern int ra_emulate_capability;

static int cuts, used;

struct known_lists {
    arena memory;
    int32_t *cached, *similar;
    float *cached_threshold, *cosine;

    explicit known_lists(const twin &x)
    {
        const size_t entries = (size_t)x.pairs * entries_of(x.l);
        cached = memory.array<int32_t>(x.pairs);
        cached_threshold = memory.array<float>(x.pairs, 0xff);
        similar = memory.array<int32_t>(entries, 0xff);
        cosine = memory.array<float>(entries, 0xff);
    }
    void give(ra_cuda_layer &l) const
    {
        l.cached = cached, l.cached_threshold = cached_threshold, l.similar = similar, l.cosine = cosine;
    }
    static void take(ra_cuda_layer &l) { l.cached = l.similar = nullptr, l.cached_threshold = l.cosine = nullptr; }
};

static std::vector<float> scores_of(twin &x)
{
    std::fill_n(x.cut.scores, x.pairs * entries_of(x.l), NAN);
    std::memset(x.scratch, 0xff, ra_cuda_cut_bytes(&x.l, x.most_slots));
    demand(!ra_cuda_cut_begin(&x.l, &x.cut, x.scratch, nullptr) && !ra_cuda_score(&x.l, &x.cut, x.scratch, nullptr),
           "launch");
    return {x.cut.scores, x.cut.scores + x.pairs * entries_of(x.l)};
}
static bool same(const std::vector<float> &a, const std::vector<float> &b)
{
    return !std::memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

/* Heads keep any of their tokens; the rows that are not cut keep all. */
static void evict(twin &x)
{
    for (int pair = 0; pair < x.pairs; pair++) {
        const int n = x.l.slots[pair], odds = 1 + below(9), start = below(3) ? 0 : below(n + 1);
        int keep = 0;
        for (int i = 0; i < n; i++)
            if (i < start || below(10) < odds)
                x.kept(pair)[keep++] = i;
        x.cut.keep[pair] = x.cut.cut[pair / x.shape.heads] ? keep : n;
    }
    demand(!ra_cuda_apply(&x.l, &x.cut, x.scratch, nullptr), "apply");
}

static void run(const case_shape &shape, int capability)
{
    twin x(shape);
    known_lists lists(x);
    arena memory;
    const std::vector<int> all(x.l.slots, x.l.slots + x.pairs);
    x.there.refs = memory.array<int32_t>(4096), x.there.free_ids = memory.array<int32_t>(4096);
    ra_emulate_capability = capability;
    x.cut.scorer = RA_CUDA_RKV_CENTRED, x.cut.alpha = 0.1f, x.cut.kernel = 3, x.cut.threshold = 0.5f;
    for (int pair = 0; pair < x.pairs; pair++)
        x.l.slots[pair] = 1 + below(all[pair]);
    for (int turn = 0; turn < 6; turn++, cuts++) {
        if (turn == 4)
            x.cut.threshold = below(2) ? -0.1f : 0.8f;
        for (int row = 0; row < shape.rows; row++)
            x.totals()[row] = below(4) ? 0 : -1;
        lists.give(x.l);
        emulate::options().seed = (unsigned)below(3);
        const std::vector<float> kept = scores_of(x);
        const std::vector<float> again = scores_of(x); /* nothing is new */
        known_lists::take(x.l);
        const std::vector<float> fresh = scores_of(x);
        emulate::options().seed = 0;
        if (!same(kept, fresh) || !same(again, fresh))
            return void(
                fail("%s, sm_%d, turn %d: scores are not those from nothing", x.name().c_str(), capability, turn));
        lists.give(x.l);
        const size_t entries = (size_t)x.pairs * entries_of(x.l);
        const std::vector<int32_t> similar(lists.similar, lists.similar + entries);
        const std::vector<float> cosines(lists.cosine, lists.cosine + entries);
        std::fill_n(lists.similar, entries, 0); /* a claim that is not true is believed: nothing is searched again */
        std::fill_n(lists.cosine, entries, 0.9f);
        used += !same(scores_of(x), fresh);
        std::copy(similar.begin(), similar.end(), lists.similar);
        std::copy(cosines.begin(), cosines.end(), lists.cosine);
        for (int pair = 0; pair < x.pairs; pair++)
            if (x.cut.cut[pair / shape.heads] && lists.cached[pair] != x.l.slots[pair])
                fail("%s: %d slots of %d are cached", x.name().c_str(), lists.cached[pair], x.l.slots[pair]);
        evict(x);
        x.there.free_count = 0;
        for (int pair = 0; pair < x.pairs; pair++) { /* what lies behind the survivors is there still, as new tokens */
            if (lists.cached[pair] > x.l.slots[pair])
                fail("%s: more slots are known than there are", x.name().c_str());
            x.l.slots[pair] += below(3) ? below(all[pair] - x.l.slots[pair] + 1) : 0;
            x.l.slots[pair] = std::max(1, (int)x.l.slots[pair]);
        }
    }
}

int main()
{
    seconds();
    int turn = 0;
    for (int D : {64, 128, 24, 5})
        for (ra_dtype format : {RA_BF16, RA_F16, RA_F32})
            for (int length : {40, 150, 400}) {
                case_shape s;
                s.dim = D, s.format = format, s.heads = 2, s.rows = 2, s.window = 2;
                s.slots = {length, length - 30}, s.ragged = false;
                s.like = length == 150 ? 0.9f : 0.4f;
                if (length < 400 || D == 64)
                    run(s, turn++ % 5 == 4 ? 70 : 90);
            }
    case_shape s; /* squares that float32 cannot hold */
    s.format = RA_BF16, s.dim = 64, s.slots = {100}, s.large = 1e22f, s.scale = 1e-22f, s.ragged = false;
    run(s, 90);
    if (used < cuts * 9 / 10)
        fail("what is known was used at %d of %d cuts", used, cuts);
    std::printf("cached keys: %d cuts, %d failures, %.1f s\n", cuts, failures(), seconds());
    return failures() != 0;
}
