/* The CUDA backend: pages and lists in device memory, kernels of this folder. */
#include "backend.h"

#include "operators.h"

/* Scratch lies on the device: `reserve` sees to it. */
static size_t no_host_scratch(const ra_layer *layer, int64_t tokens, int64_t slots)
{
    (void)layer, (void)tokens, (void)slots;
    return 0;
}

static int down_now(const ra_pool *pool, void *to, const void *page, size_t bytes)
{
    int error = ra_device_down(to, page, bytes, pool->stream);
    return error ? error : ra_device_wait(pool->stream);
}

static RA_CUDA_HOOK(up, pool, ra_cuda_status(ra_device_up(page, from, bytes, pool->stream)), ra_pool *pool, void *page,
                    const void *from, size_t bytes)
static RA_CUDA_HOOK(down, pool, ra_cuda_status(down_now(pool, to, page, bytes)), ra_pool *pool, void *to,
                    const void *page, size_t bytes)
static RA_CUDA_HOOK(move, pool, ra_cuda_status(ra_device_move(to, from, bytes, pool->stream)), ra_pool *pool, void *to,
                    const void *from, size_t bytes)

static bool capturing(const ra_pool *pool) { return ra_device_is_capturing(pool->stream); }

static const ra_device device = {
#ifdef RA_EMULATE
    .type = 1, /* the CPU's memory */
#else
    .type = 2,
#endif
    .pool_open = ra_cuda_pool_open,
    .pool_close = ra_cuda_pool_close,
    .layer_close = ra_cuda_layer_close,
    .reserve = ra_cuda_reserve,
    .pull = ra_cuda_pull,
    .up = up,
    .down = down,
    .move = move,
    .cut = ra_cuda_cut_on,
    .figures = ra_cuda_figures,
    .fold = ra_cuda_fold,
    .fault = ra_cuda_fault,
    .set_stream = ra_cuda_set_stream,
    .capturing = capturing,
    .push = ra_cuda_push_on,
    .send = ra_cuda_send,
    .has_sent = ra_cuda_has_sent,
    .cut_again = ra_cuda_cut_again,
    .generation = ra_cuda_generation,
    .operators = &ra_cuda_operators,
};

const ra_backend ra_backend_cuda = {
#ifdef RA_EMULATE
    .name = "cuda-emulated",
#else
    .name = "cuda",
#endif
    .supports = ra_cuda_supports,
    .step_bytes = no_host_scratch,
    .step = ra_cuda_step_on,
    .score = ra_cuda_score_on,
    .choose = ra_cuda_choose_on,
    .apply_pages = ra_cuda_apply_pages,
    .apply = ra_cuda_apply_on,
    .device = &device,
};
