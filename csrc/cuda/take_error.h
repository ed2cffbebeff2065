/* An error of the runtime that the caller reports: it is not left for the next launch, which asks for the newest one. */
#pragma once
#include <cuda_runtime_api.h>

static inline int take_error(cudaError_t error)
{
    if (error != cudaSuccess)
        (void)cudaGetLastError();
    return (int)error;
}
