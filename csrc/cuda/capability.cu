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
    const int error = (int)cudaFuncGetAttributes(&attributes, nothing);
    (void)cudaGetLastError(); /* or the next launch would tell of it */
    return error;
}
struct facts {
    int capability, shared_bytes;
};

/* Of the current device, asked for once; that is no wait. Zeros if it cannot be known. */
static facts facts_of_device()
{
    static facts cached[64];
    int device = 0, major = 0, minor = 0, shared_bytes = 0;
    if (cudaGetDevice(&device)) {
        (void)cudaGetLastError();
        return {};
    }
    if (device < 64 && cached[device].capability)
        return cached[device];
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) ||
        cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) {
        (void)cudaGetLastError();
        return {};
    }
    const facts found = {10 * major + minor, shared_bytes};
    if (device < 64)
        cached[device] = found;
    return found;
}

int ra_cuda_capability() { return facts_of_device().capability; }
size_t ra_cuda_shared_bytes() { return (size_t)facts_of_device().shared_bytes; }
#endif
