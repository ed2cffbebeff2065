#include "attend_matrix.cuh"

int ra_attend_matrix_logits_bf16(const split_params &p, void *stream) { return launch_matrix_any_size<bf16, true>(p, stream); }
