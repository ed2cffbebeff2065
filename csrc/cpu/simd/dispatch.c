/* Which kernels run: the table of the best instruction set, chosen once, or the one that the user names. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#ifdef RA_HAVE_X86
#include <cpuid.h>

/* __builtin_cpu_supports knows "f16c" in newer compilers only. */
static bool has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

static _Atomic(const ra_kernels *) current; /* NULL until the first call */

/* Set number `index` of those compiled in, worst first; NULL past the end. */
static const ra_kernels *compiled(size_t index)
{
    static const ra_kernels *const all[] = {
        &ra_kernels_serial,
#ifdef RA_HAVE_NEON
        &ra_kernels_neon,
#endif
#ifdef RA_HAVE_X86
        &ra_kernels_avx2,
        &ra_kernels_avx512,
#endif
    };
    return index < sizeof all / sizeof all[0] ? all[index] : NULL;
}

/* __builtin_cpu_supports also asks whether the operating system saves the registers. */
static bool runs_here(const ra_kernels *kernels)
{
#ifdef RA_HAVE_NEON
    if (kernels == &ra_kernels_neon)
        return true;
#endif
#ifdef RA_HAVE_X86
    if (kernels == &ra_kernels_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (kernels == &ra_kernels_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
    return kernels == &ra_kernels_serial;
}

/* NULL if there is no such set or this machine lacks it. */
static const ra_kernels *find(const char *name)
{
    const ra_kernels *kernels;
    for (size_t i = 0; (kernels = compiled(i)) != NULL; i++)
        if (strcmp(kernels->name, name) == 0)
            return runs_here(kernels) ? kernels : NULL;
    return NULL;
}

static const ra_kernels *choose(void)
{
    const char *wish = getenv("REASONALLOC_CPU");
    const ra_kernels *best = wish ? find(wish) : NULL, *kernels;
    if (best)
        return best;
    for (size_t i = 0; (kernels = compiled(i)) != NULL; i++)
        if (runs_here(kernels))
            best = kernels;
    return best;
}

const ra_kernels *ra_kernels_get(void)
{
    const ra_kernels *kernels = atomic_load_explicit(&current, memory_order_acquire);
    if (kernels)
        return kernels;
    const ra_kernels *chosen = choose();
    /* A ra_set_isa of another thread that came first stays. */
    if (atomic_compare_exchange_strong_explicit(&current, &kernels, chosen, memory_order_acq_rel, memory_order_acquire))
        return chosen;
    return kernels;
}

const char *ra_isa(void) { return ra_kernels_get()->name; }

ra_status ra_set_isa(const char *name)
{
    const ra_kernels *kernels = name ? find(name) : NULL;
    if (!kernels)
        return RA_ERR_ARGUMENT;
    atomic_store_explicit(&current, kernels, memory_order_release);
    return RA_OK;
}

const char *ra_isa_available(size_t index)
{
    const ra_kernels *kernels;
    for (size_t i = 0; (kernels = compiled(i)) != NULL; i++)
        if (runs_here(kernels) && index-- == 0)
            return kernels->name;
    return NULL;
}

void ra_read_probe(const void *memory, size_t bytes, bool streamed)
{
    volatile float top = ra_kernels_get()->read(memory, bytes / 512 * 128, streamed); /* volatile: not optimised away */
    (void)top;
}
