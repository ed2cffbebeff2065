#include "attend_matrix.cuh"

int ra_attend_matrix_logits_f16(const split_params &p, void *stream) { return launch_matrix_any_size<f16, true>(p, stream); }
