#include "attend_matrix.cuh"

int ra_attend_matrix_left_bf16(const split_params &p, void *stream) { return launch_matrix_any_size<bf16, true>(p, stream); }
