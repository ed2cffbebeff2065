/* The CPU backend: pages in host memory, kernels of cpu/simd. */
#include "step.h"

const ra_backend ra_backend_cpu = {
    .name = "cpu",
    .step_bytes = ra_cpu_step_bytes,
    .step = ra_cpu_step,
    .score = ra_cpu_score,
    .choose = ra_cpu_choose,
    .apply_pages = ra_cpu_apply_pages,
    .apply = ra_cpu_apply,
};
