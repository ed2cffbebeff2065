#include "shim.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "torch_bridge.h"

struct ra_torch_symbols ra_torch;

static atomic_bool loaded;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static const struct {
    const char *name;
    size_t offset;
} symbols[] = {
#define RA_TORCH_ENTRY(result, name, parameters) {#name, offsetof(struct ra_torch_symbols, name)},
    RA_TORCH_SYMBOLS(RA_TORCH_ENTRY)
#undef RA_TORCH_ENTRY
};

/* Returns what is missing, or NULL. */
static const char *load(void)
{
    /* torch loads its libraries RTLD_LOCAL, so only this handle sees their symbols; it is kept for good. */
    void *library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    if (library == NULL)
        return "libtorch_cpu.so (import torch first)";
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        void *symbol = dlsym(library, symbols[i].name);
        if (symbol == NULL)
            return symbols[i].name;
        memcpy((char *)&ra_torch + symbols[i].offset, &symbol, sizeof symbol);
    }
    return NULL;
}

int ra_torch_load(const char **missing)
{
    if (atomic_load_explicit(&loaded, memory_order_acquire))
        return 0;
    pthread_mutex_lock(&lock);
    const char *absent = atomic_load(&loaded) ? NULL : load();
    if (absent == NULL)
        atomic_store_explicit(&loaded, true, memory_order_release);
    pthread_mutex_unlock(&lock);
    if (absent != NULL && missing != NULL)
        *missing = absent;
    return absent == NULL ? 0 : -1;
}
