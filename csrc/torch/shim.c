#include "shim.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "torch_bridge.h"

struct ra_torch_symbols ra_torch;
struct ra_torch_cuda_symbols ra_torch_cuda;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

typedef struct symbol {
    const char *name;
    size_t offset;
} symbol;

static const symbol symbols[] = {
#define RA_TORCH_ENTRY(result, name, parameters) {#name, offsetof(struct ra_torch_symbols, name)},
    RA_TORCH_SYMBOLS(RA_TORCH_ENTRY)
#undef RA_TORCH_ENTRY
};
static const symbol cuda_symbols[] = {
#define RA_TORCH_ENTRY(result, name, parameters) {#name, offsetof(struct ra_torch_cuda_symbols, name)},
    RA_TORCH_CUDA_SYMBOLS(RA_TORCH_ENTRY)
#undef RA_TORCH_ENTRY
};

/* Returns what is missing, or NULL. */
static const char *load(const char *file, const char *hint, const symbol *list, size_t count, void *to)
{
    /* torch loads its libraries RTLD_LOCAL, so only this handle sees their symbols; it is kept for good. */
    void *library = dlopen(file, RTLD_LAZY | RTLD_NOLOAD);
    if (library == NULL)
        return hint;
    for (size_t i = 0; i < count; i++) {
        void *found = dlsym(library, list[i].name);
        if (found == NULL)
            return list[i].name;
        memcpy((char *)to + list[i].offset, &found, sizeof found);
    }
    return NULL;
}

static int load_once(atomic_bool *loaded, const char *file, const char *hint, const symbol *list, size_t count,
                     void *to, const char **missing)
{
    if (atomic_load_explicit(loaded, memory_order_acquire))
        return 0;
    pthread_mutex_lock(&lock);
    const char *absent = atomic_load(loaded) ? NULL : load(file, hint, list, count, to);
    if (absent == NULL)
        atomic_store_explicit(loaded, true, memory_order_release);
    pthread_mutex_unlock(&lock);
    if (absent != NULL && missing != NULL)
        *missing = absent;
    return absent == NULL ? 0 : -1;
}

int ra_torch_load(const char **missing)
{
    static atomic_bool loaded;
    return load_once(&loaded, "libtorch_cpu.so", "libtorch_cpu.so (import torch first)", symbols,
                     sizeof symbols / sizeof symbols[0], &ra_torch, missing);
}

int ra_torch_load_cuda(const char **missing)
{
    static atomic_bool loaded;
    return load_once(&loaded, "libtorch_cuda.so", "libtorch_cuda.so (this torch has no CUDA)", cuda_symbols,
                     sizeof cuda_symbols / sizeof cuda_symbols[0], &ra_torch_cuda, missing);
}
