/* Scores beside the C core's: every scorer, format and head size, windows that lack queries, soft-capping, keys that resemble
 * each other, are the same, are nothing, or are too long for their squares; what is not finite is told; equal bits whatever
 * the order of blocks and threads. */
#include "cut_case.h"
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
extern "C" {
#include "layer.h"
#include "triattention.h"
}
#pragma GCC diagnostic pop

using namespace check;

extern int ra_emulate_capability;

struct how {
    ra_cuda_scorer scorer = RA_CUDA_RKV;
    float alpha = 0.3f, threshold = 0.5f;
    int kernel = 7;
    bool average = false;
    int n_large = -1, n_sink = 0, span = 0;
    bool interleaved = false, largest = false, group_mean = false, candidates = false;
};

/* In the C core. */
static const char *name_of(ra_cuda_scorer scorer)
{
    switch (scorer) {
    case RA_CUDA_RKV: return "rkv";
    case RA_CUDA_RKV_CENTRED: return "rkv-centred";
    case RA_CUDA_IMPORTANCE: return "importance";
    case RA_CUDA_RECENCY: return "recency";
    case RA_CUDA_RANDOM: return "random";
    case RA_CUDA_SNAPKV: return "snapkv-published";
    case RA_CUDA_VATP: return "vatp";
    case RA_CUDA_VASE: return "vase";
    case RA_CUDA_SPANS: return "spans";
    case RA_CUDA_DKV: return "dkv";
    case RA_CUDA_TRIATTENTION: return "triattention";
    default: return "of another test";
    }
}
static double worst;

/* VaSE's ranges are the same; what it draws are quotients by attention, down to the smallest: each is compared by itself. */
static double off_of(ra_cuda_scorer scorer, double got, double want, double largest)
{
    if (scorer != RA_CUDA_VASE)
        return got == want ? 0 : std::fabs(got - want) / largest;
    if (want >= 0)
        return got == want ? 0 : INFINITY;
    return want < -1e30 ? 0 : std::fabs(got / want - 1) / 100;
}

/* What "triattention" knows of queries; the device's copy is the C core's. */
static void give_centres(twin &x, const how &how)
{
    const int D = x.shape.dim, heads = x.shape.heads * x.shape.group, pairs = below(3) ? D / 2 : D / 4;
    std::vector<double> frequency(pairs);
    std::vector<float> mean((size_t)heads * D), length((size_t)heads * pairs);
    for (int f = 0; f < pairs; f++)
        frequency[f] = std::pow(1e4, -(double)f / pairs);
    for (float &m : mean)
        m = (float)normal();
    for (float &m : length)
        m = (float)(4 * uniform());
    ra_query_centres given = {};
    given.pairs = pairs, given.interleaved = how.interleaved, given.frequency = frequency.data();
    given.mean = mean.data(), given.length = length.data();
    given.largest = how.largest, given.group_mean = how.group_mean;
    demand(ra_layer_set_centres(x.layer, &given) == RA_OK, "centres");
    const ra_centres &c = *x.layer->centres;
    x.cut.centres = {(int)c.pairs,   (int)c.step, (int)c.apart, RA_OFFSETS, c.largest,
                     c.group_mean, c.frequency, c.turn,       c.mean,     c.spread};
    x.cut.candidates = how.candidates;
    for (int row = 0; row < x.shape.rows; row++)
        x.protect_below()[row] = below(3) ? below(40) : 1 << 20;
}

static bool is_exact(ra_cuda_scorer scorer) { return scorer == RA_CUDA_RECENCY || scorer == RA_CUDA_RANDOM; }

static bool launch(twin &x)
{
    std::fill_n(x.cut.scores, x.pairs * entries_of(x.l), NAN);
    std::memset(x.scratch, 0xff, ra_cuda_cut_bytes(&x.l, x.most_slots));
    int error = ra_cuda_cut_begin(&x.l, &x.cut, x.scratch, nullptr);
    return (error ? error : ra_cuda_score(&x.l, &x.cut, x.scratch, nullptr)) == 0 ||
           fail("%s: launch", x.name().c_str());
}

static void score(twin &x, const how &how, int capability, double tolerance)
{
    const std::string name = x.name() + ", " + name_of(how.scorer) + ", kernel " + std::to_string(how.kernel) +
                             (how.average ? ", average" : "") + ", threshold " + std::to_string(how.threshold) + ", sm_" + std::to_string(capability);
    ra_emulate_capability = capability;
    x.cut.scorer = how.scorer, x.cut.alpha = how.alpha, x.cut.threshold = how.threshold, x.cut.kernel = how.kernel;
    x.cut.seed = 12345, x.cut.average = how.average;
    x.cut.n_large = how.n_large, x.cut.n_sink = how.n_sink, x.cut.span = how.span;
    for (int row = 0; row < x.shape.rows; row++)
        x.totals()[row] = row % 3 == 1 ? -1 : row % 4 == 3 ? x.held(row) : x.held(row) / 2;
    std::vector<char> flags(x.shape.rows);
    if (how.scorer == RA_CUDA_TRIATTENTION)
        give_centres(x, how);
    ra_score_config config = {}; // by name: later fields keep their zeros
    config.scorer = ra_scorer_find(name_of(how.scorer)), config.alpha = how.alpha;
    config.threshold = how.threshold, config.kernel = how.kernel, config.seed = 12345;
    config.average = how.average, config.n_large = how.n_large, config.n_sink = how.n_sink;
    config.span = how.span;
    config.protect_below = how.candidates ? x.protect_below() : nullptr;
    demand(ra_cut_score(x.layer, x.totals(), &config, (bool *)flags.data(), nullptr) == RA_OK, "score of the C core");
    if (!launch(x))
        return;
    for (int pair = 0; pair < x.pairs; pair++) {
        const int row = pair / x.shape.heads, older = x.older(pair);
        if (x.cut.cut[row] != flags[row])
            fail("%s: row %d is cut or not", name.c_str(), row);
        if (x.l.fault[row])
            fail("%s: row %d has fault %u", name.c_str(), row, x.l.fault[row]);
        if (x.cut.before[pair] != x.l.slots[pair])
            fail("%s: head %d had %d slots", name.c_str(), pair, x.cut.before[pair]);
        int64_t count = 0;
        const float *want = ra_cut_scores(x.layer, row, pair % x.shape.heads, &count), *got = x.scores(pair);
        double size = 0;
        for (int i = 0; want && i < older; i++)
            size = std::max(size, std::fabs((double)want[i]));
        for (int i = 0; i < entries_of(x.l); i++) {
            if (!want || i >= older) {
                if (!std::isnan(got[i]))
                    return void(fail("%s: head %d, slot %d was written", name.c_str(), pair, i));
                continue;
            }
            const double off = off_of(how.scorer, (double)got[i], (double)want[i], size);
            if (!is_exact(how.scorer))
                worst = std::max(worst, off);
            if (!(!is_exact(how.scorer) ? off <= tolerance : got[i] == want[i]))
                return void(fail("%s: head %d, slot %d of %d: %.9g, C has %.9g", name.c_str(), pair, i, x.l.slots[pair],
                                 (double)got[i], (double)want[i]));
        }
    }
    if (is_exact(how.scorer))
        return;
    const std::vector<float> first(x.cut.scores, x.cut.scores + x.pairs * entries_of(x.l));
    emulate::options().seed = 1 + below(1000);
    const bool ran = launch(x);
    emulate::options().seed = 0;
    if (ran && std::memcmp(first.data(), x.cut.scores, first.size() * sizeof(float)))
        fail("%s: the order of threads changes scores", name.c_str());
    ra_cut_abandon(x.layer);
}

/* A query, or the length of a key, that is no number: the C core refuses, here the row's fault is set and its scores are no
 * numbers. */
static void not_finite(ra_dtype format, ra_cuda_scorer scorer)
{
    case_shape s;
    s.format = format, s.dim = 64, s.ragged = false, s.rows = 3, s.slots = {70, 90};
    for (int kind = 0; kind < 3; kind++) {
        twin x(s);
        ra_emulate_capability = 90;
        x.cut.scorer = scorer, x.cut.alpha = 0.5f, x.cut.threshold = 0.5f, x.cut.kernel = 3;
        std::fill_n(x.totals(), 3, 40);
        query_of(x.l, 2, x.l.q_end[2] - 1, 1)[70] = kind == 0 ? INFINITY : kind == 1 ? NAN : 3.0f;
        launch(x);
        const uint32_t want = kind == 2 ? 0 : (uint32_t)RA_CUDA_FAULT_SCORES;
        if (x.l.fault[0] || x.l.fault[1] || x.l.fault[2] != want)
            fail("format %d: faults %u %u %u of query kind %d", format, x.l.fault[0], x.l.fault[1], x.l.fault[2], kind);
        bool finite = true;
        for (int i = 0; i < x.older(5); i++)
            finite &= is_finite(x.scores(5)[i]);
        if (finite != (kind == 2))
            fail("format %d: scores of a query of kind %d", format, kind);
    }
    if (format == RA_F16 || scorer != RA_CUDA_RKV)
        return; /* their squares fit, or are not asked for */
    twin x(s);
    for (int c = 0; c < s.dim; c++) /* longer than float32 can say */
        store_element(page_at(x.l, 0, 1), c * PAGE + 3, format, 3e38f);
    x.cut.scorer = RA_CUDA_RKV_CENTRED, x.cut.alpha = 0.5f, x.cut.threshold = 0.5f, x.cut.kernel = 3;
    std::fill_n(x.totals(), 3, 40);
    launch(x);
    if (x.l.fault[0] != RA_CUDA_FAULT_SCORES || x.l.fault[1])
        fail("format %d: faults %u %u of a key", format, x.l.fault[0], x.l.fault[1]);
}

int main()
{
    seconds();
    std::vector<case_shape> shapes;
    auto add = [&](auto set) {
        case_shape s;
        set(s);
        shapes.push_back(s);
    };
    add([](case_shape &s) { s.rows = 4, s.slots = {130, 40, 3, 70}; });
    add([](case_shape &s) { s.group = 1, s.window = 1, s.slots = {33, 17}; });
    add([](case_shape &s) { s.group = 3, s.window = 5, s.slots = {150}, s.softcap = 3; });
    add([](case_shape &s) { s.group = 7, s.heads = 1, s.window = 33, s.slots = {90, 200}; });
    add([](case_shape &s) { s.group = 16, s.heads = 1, s.window = 8, s.slots = {140}, s.like = 1; });
    add([](case_shape &s) { s.group = 9, s.heads = 1, s.window = 2, s.slots = {66}, s.like = 0; });
    add([](case_shape &s) { s.rows = 1, s.group = 4, s.window = 8, s.slots = {330}, s.queries = RA_BF16; });
    add([](case_shape &s) { s.crop = 3, s.ragged = false, s.slots = {60}, s.queries = RA_F16; });
    add([](case_shape &s) { s.crop = 9, s.ragged = false, s.window = 5, s.slots = {60}; }); /* no query is left */
    add([](case_shape &s) { s.group = 5, s.window = 3, s.slots = {80, 21}, s.sinks = true; });
    add([](case_shape &s) { s.group = 2, s.window = 9, s.slots = {60, 130}, s.sinks = true, s.softcap = 2, s.crop = 4; });
    add([](case_shape &s) { s.scale = 1e-3f, s.slots = {50}, s.large = 3e3f; });
    const how ways[] = {{RA_CUDA_RKV, 0.3f, 0.5f, 7},
                        {RA_CUDA_RKV_CENTRED, 0.1f, 0.8f, 1},
                        {RA_CUDA_IMPORTANCE, 0.5f, 0.5f, 3},
                        {RA_CUDA_RKV, 0.07f, -0.2f, 5},
                        {RA_CUDA_RKV_CENTRED, 0.5f, 1.5f, 99},
                        {RA_CUDA_RECENCY, 0, 0, 1},
                        {RA_CUDA_RANDOM, 0, 0, 1},
                        {RA_CUDA_RKV, 0, 0, 1}};
    const how others[] = {{RA_CUDA_SNAPKV, 0, 0, 7},      {RA_CUDA_VATP, 0, 0, 5, true}, {RA_CUDA_SNAPKV, 0, 0, 1, true},
                            {RA_CUDA_SNAPKV, 0, 0, 99, true}, {RA_CUDA_VATP, 0, 0, 1},
                            {RA_CUDA_VASE, 0, 0, 5}, {RA_CUDA_VASE, 0, 0, 3, false, 7, 3}, {RA_CUDA_VASE, 0, 0, 1, false, 0, 2},
                            {RA_CUDA_VASE, 0, 0, 9, true, 1 << 30, 4}, {RA_CUDA_VASE, 0, 0, 1, false, 2, 5},
                            {RA_CUDA_SPANS, 0.1f, 0.5f, 7, true, 0, 0, 16}, {RA_CUDA_SPANS, 0.3f, 0.8f, 5, false, 0, 0, 7},
                            {RA_CUDA_SPANS, 0.3f, 0.5f, 1, false, 0, 0, 1}, {RA_CUDA_SPANS, 0.5f, 0.5f, 1, true, 0, 0, 1 << 30},
                            {RA_CUDA_DKV, 0, 0, 1},          {RA_CUDA_DKV, 0, 0, 1, false, 0, 3},
                            {RA_CUDA_TRIATTENTION},          {RA_CUDA_TRIATTENTION, 0, 0, 1, false, 0, 0, 0, true, true},
                            {RA_CUDA_TRIATTENTION, 0, 0, 1, false, 0, 0, 0, false, true, true, true},
                            {RA_CUDA_TRIATTENTION, 0, 0, 1, false, 0, 0, 0, true, false, true, true}};
    int turn = 0, count = 0;
    for (int D : {64, 128, 5, 24, 80, 96, 256, 1, 300})
        for (ra_dtype format : {RA_BF16, RA_F16, RA_F32})
            for (case_shape s : shapes) {
                if (turn++ % (D == 64 ? 1 : D == 128 ? 2 : 4))
                    continue;
                s.dim = D, s.format = format;
                s.scale *= std::sqrt(16.0f / (float)D);
                twin x(s);
                for (int i = 0; i < 2; i++, count++)
                    score(x, ways[(turn + i * 3) % 8], format == RA_BF16 && turn % 5 == 0 ? 75 : 90, 1e-5);
                score(x, others[turn % 20], format == RA_BF16 && turn % 5 == 0 ? 75 : 90, 1e-5), count++;
            }
    for (ra_dtype format : {RA_F32, RA_BF16}) { /* squares that float32 cannot hold */
        case_shape s;
        s.format = format, s.dim = 64, s.slots = {100}, s.large = 1e22f, s.scale = 1e-22f;
        twin x(s);
        for (const how &h : ways)
            score(x, h, 90, 1e-5);
    }
    for (ra_dtype format : {RA_F32, RA_BF16, RA_F16})
        for (ra_cuda_scorer scorer : {RA_CUDA_RKV, RA_CUDA_SNAPKV, RA_CUDA_VASE})
            not_finite(format, scorer);
    std::printf("scores: %d cases, at most %.1e of a head's largest off the C core's, %d failures, %.1f s\n", count,
                worst, failures(), seconds());
    return failures() != 0;
}
