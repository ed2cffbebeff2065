/* What the device can do. */
#include "common.cuh"

#ifdef RA_EMULATE
int ra_emulate_capability = 90; /* 10 * major + minor; tests set it */
int ra_cuda_capability() { return ra_emulate_capability; }
size_t ra_cuda_shared_bytes() { return (size_t)(ra_emulate_capability == 90 ? 227 : 99) << 10; }
extern "C" int ra_cuda_probe(void) { return 0; }
#else
/* Built for the same architectures as every other kernel. */
__global__ void nothing() {}

extern "C" int ra_cuda_probe(void)
{
    cudaFuncAttributes attributes;
    return take_error(cudaFuncGetAttributes(&attributes, nothing));
}

/* Of the current device, asked for once, which is no wait: capability << 16 | KiB of shared memory, 0 if it cannot be
 * known. In one word, so that threads that ask at once see both or none: memory and launches of a step must agree. */
static uint32_t facts_of_device()
{
    static uint32_t cached[64];
    int device = 0, major = 0, minor = 0, shared_bytes = 0;
    if (take_error(cudaGetDevice(&device)))
        return 0;
    const uint32_t known = device < 64 ? __atomic_load_n(&cached[device], __ATOMIC_RELAXED) : 0;
    if (known)
        return known;
    if (take_error(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)) ||
        take_error(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device)) ||
        take_error(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)))
        return 0;
    const uint32_t found = (uint32_t)(10 * major + minor) << 16 | (uint32_t)shared_bytes >> 10;
    if (device < 64)
        __atomic_store_n(&cached[device], found, __ATOMIC_RELAXED);
    return found;
}

int ra_cuda_capability() { return (int)(facts_of_device() >> 16); }
size_t ra_cuda_shared_bytes() { return (size_t)(facts_of_device() & 0xffff) << 10; }
#endif
