/* What would go silently wrong on a GPU is an error in the emulation: one small kernel for each fault, and one for each
 * that is right. A report names kernel, block, thread and line. */
#include "check.h"
#include "common.cuh"

/* A fault leaves threads where they stand, with what their frames own. */
extern "C" const char *__asan_default_options();
extern "C" const char *__asan_default_options() { return "detect_leaks=0"; }

static void sum_by_tree(float *out, bool forget_barrier)
{
    shared<float> x = shared_at<float>(0);
    x[threadIdx.x] = (float)threadIdx.x;
    block_sync();
    for (unsigned half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half)
            x[threadIdx.x] += (float)x[threadIdx.x + half];
        if (!forget_barrier)
            block_sync();
    }
    block_sync();
    if (threadIdx.x == 0)
        *out = x[0];
}

static void barrier_in_branch()
{
    if (threadIdx.x < 40)
        block_sync();
}

static void different_barriers()
{
    if (threadIdx.x < 64)
        block_sync();
    else
        block_sync();
}

static void early_exit_before_barrier()
{
    if (threadIdx.x == 7)
        return;
    block_sync();
}

static void shuffle_in_branch(float *out)
{
    float x = (float)threadIdx.x;
    if (threadIdx.x % 32 < 16)
        x += shuffle_xor(x, 1);
    out[threadIdx.x] = x;
}

static void different_shuffles(float *out)
{
    float x = (float)threadIdx.x;
    if (threadIdx.x % 2)
        x += shuffle_xor(x, 1);
    else
        x += shuffle_xor(x, 1);
    out[threadIdx.x] = x;
}

static void read_unwritten(float *out)
{
    shared<float> x = shared_at<float>(0);
    if (threadIdx.x != 5)
        x[threadIdx.x] = 1;
    block_sync();
    out[threadIdx.x] = x[threadIdx.x];
}

static void past_the_end()
{
    shared<float> x = shared_at<float>(0);
    x[threadIdx.x + 1] = 1;
}

static void both_write()
{
    shared<int> x = shared_at<int>(0);
    x[0] = (int)threadIdx.x / 32;
}

static void warps_exchange(float *out, bool sync)
{
    shared<float> x = shared_at<float>(0);
    x[threadIdx.x] = (float)threadIdx.x;
    if (sync)
        warp_sync();
    out[threadIdx.x] = x[threadIdx.x ^ 1];
}

static void global_past_the_end(float *out) { out[threadIdx.x + 1] = 1; }

static void misaligned(const float *in) { load16(in + 1, true); }

static void count_atomically(int *out)
{
    shared<int> x = shared_at<int>(0);
    if (threadIdx.x == 0)
        x[0] = 0;
    block_sync();
    shared_add(x, 0, 1);
    block_sync();
    if (threadIdx.x == 0)
        *out = x[0];
}

/* Two rounds of copies through a ring of two. wait: for all but the newest one, as is right, or for fewer. */
template <int WAIT> static void copies(const float *in, float *out, unsigned from_lane)
{
    const shared<vec16> ring = shared_at<vec16>(0);
    const size_t lane = threadIdx.x;
    for (int i = 0; i < 4; i++) {
        if (i > 1)
            copy_wait<WAIT>();
        if (i > 1)
            out[lane] = as_float(((vec16)ring[i % 2 * 128 + (lane ^ from_lane)]).w[0]);
        copy_async(ring, i % 2 * 128 + lane, in);
        copy_commit();
    }
}
static void misaligned_copy(const float *in) { copy_async(shared_at<vec16>(0), threadIdx.x, in + 1); }

static void misaligned_store(float *out) { store16(out + 1, vec16{{0, 0, 0, 0}}); }

/* What a kernel is said to have done: "nothing" where it is right. words: NULL where it must be right. */
template <class Body> static void expect(const char *what, const char *words, size_t shared_bytes, Body body)
{
    std::string said = "nothing";
    try {
        emulate::launch(what, dim3(2), dim3(128), shared_bytes, body);
    } catch (const std::runtime_error &error) {
        said = error.what();
    }
    if (words ? said.find(words) == std::string::npos : said != "nothing")
        check::fail("%s: expected %s, got %s", what, words ? words : "nothing", said.c_str());
    else
        std::printf("ok  %s: %s\n", what, said.c_str());
}

template <class T> static void expect_equal(const char *what, T got, T want)
{
    if (!(got == want))
        check::fail("%s: %g instead of %g", what, (double)got, (double)want);
}

int main(int argc, char **)
{
    alignas(16) static float out[128];
    float sum = 0;
    int count = 0;
    for (unsigned seed : {0u, 3u, 11u}) {
        emulate::options().seed = seed;
        sum = 0, count = 0;
        expect("tree", nullptr, 512, [&] { sum_by_tree(&sum, false); });
        expect_equal("tree", sum, 128.0f * 127 / 2);
        expect("atomics", nullptr, 4, [&] { count_atomically(&count); });
        expect_equal("atomics", count, 128);
        expect("warp exchange", nullptr, 512, [&] { warps_exchange(out, true); });
        expect("tree without its barrier", "race", 512, [&] { sum_by_tree(&sum, true); });
        expect("barrier in a branch", "barrier", 0, [&] { barrier_in_branch(); });
        expect("two barriers", "divergent barrier", 0, [&] { different_barriers(); });
        expect("exit before a barrier", "ended", 0, [&] { early_exit_before_barrier(); });
        expect("shuffle in a branch", "deadlock", 0, [&] { shuffle_in_branch(out); });
        expect("shuffles of two lines", "divergent warp", 0, [&] { different_shuffles(out); });
        expect("read of unwritten", "never written", 512, [&] { read_unwritten(out); });
        expect("past the end of shared", "ends at", 512, [&] { past_the_end(); });
        expect("write by all", "race", 4, [&] { both_write(); });
        expect("warp exchange without warp_sync", "shared memory", 512, [&] { warps_exchange(out, false); });
        expect("misaligned load", "not aligned", 0, [&] { misaligned(out); });
        expect("misaligned store", "not aligned", 0, [&] { misaligned_store(out); });
        alignas(16) static const float in[4] = {7, 8, 9, 10};
        expect("copies", nullptr, 4096, [&] { copies<1>(in, out, 0); });
        expect_equal("a copy", out[4], 7.0f);
        expect("copies that are not waited for", "never written", 4096, [&] { copies<2>(in, out, 0); });
        expect("copies for another", "shared memory", 4096, [&] { copies<1>(in, out, 1); });
        expect("copies past the end", "ends at", 4095, [&] { copies<1>(in, out, 0); });
        expect("misaligned copy", "not aligned", 4096, [&] { misaligned_copy(in); });
        expect("tree once more", nullptr, 512, [&] { sum_by_tree(&sum, false); }); /* an error leaves nothing behind */
    }
    const int status = emulate::launched("launched", dim3(1), dim3(128), 0, barrier_in_branch);
    if (!status)
        check::fail("a launcher says nothing of a fault");
    std::printf("faults: %s\n", check::failures() ? "BAD" : "good");
    if (argc > 1) { /* must end in ASan's report */
        float *exact = (float *)std::malloc(128 * sizeof(float));
        emulate::launch("global", dim3(1), dim3(128), 0, [&] { global_past_the_end(exact); });
        std::free(exact);
    }
    return check::failures() != 0;
}
