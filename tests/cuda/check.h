/* What the tests of the CUDA kernels share: random numbers, memory of exact size, counting of what failed. */
#pragma once
#include <chrono>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "machine.cuh"

namespace check
{

inline uint64_t &state()
{
    static uint64_t s = 1;
    return s;
}
inline double uniform()
{
    state() = state() * 6364136223846793005u + 1442695040888963407u;
    return (double)(state() >> 11) * 0x1p-53;
}
inline int below(int n) { return (int)(uniform() * n); }
inline double normal() { return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()); }

/* Arrays that live as long as this: of exact size, so that ASan sees what lies past them. */
class arena
{
    std::vector<void *> owned;

  public:
    arena() = default;
    arena(const arena &) = delete;
    ~arena()
    {
        for (void *x : owned)
            std::free(x);
    }
    /* Every byte is `fill`: 0xff makes NaN of all floats. */
    template <class T> T *array(size_t count, int fill = 0)
    {
        void *memory = nullptr;
        if (posix_memalign(&memory, 16, count ? count * sizeof(T) : 1))
            std::abort();
        std::memset(memory, fill, count * sizeof(T));
        owned.push_back(memory);
        return (T *)memory;
    }
};

inline int &failures()
{
    static int n = 0;
    return n;
}
inline bool fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
inline bool fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    std::printf("BAD ");
    std::vprintf(format, arguments);
    std::printf("\n");
    va_end(arguments);
    failures()++;
    return false;
}

inline double seconds()
{
    static const auto start = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

} // namespace check
