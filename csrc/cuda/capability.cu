/* What the device can do. */
#include "common.cuh"

#ifdef RA_EMULATE
int ra_emulate_capability = 90; /* 10 * major + minor; tests set it */
int ra_cuda_capability() { return ra_emulate_capability; }
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
/* 10 * major + minor of the current device, asked for once; that is no wait. */
int ra_cuda_capability()
{
    static int cached[64];
    int device = 0, major = 0, minor = 0;
    if (cudaGetDevice(&device))
        return 0;
    if (device < 64 && cached[device])
        return cached[device];
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device))
        return 0;
    if (device < 64)
        cached[device] = 10 * major + minor;
    return 10 * major + minor;
}
#endif
