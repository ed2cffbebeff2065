/* Which kernel serves a step's attention. */
#include "attend.cuh"

int ra_cuda_attend_any(const ra_cuda_layer *layer, const ra_cuda_step *step, void *stream);

extern "C" size_t ra_cuda_attend_tickets(const ra_cuda_layer *layer, const ra_cuda_step *step)
{
    (void)layer, (void)step;
    return 1;
}

extern "C" size_t ra_cuda_attend_bytes(const ra_cuda_layer *layer, const ra_cuda_step *step)
{
    (void)layer, (void)step;
    return 256;
}

extern "C" int ra_cuda_attend(const ra_cuda_layer *layer, const ra_cuda_step *step, uint32_t *tickets, void *scratch,
                              void *stream)
{
    (void)tickets, (void)scratch;
    if (step->tokens < 1)
        return 0;
    return ra_cuda_attend_any(layer, step, stream);
}
