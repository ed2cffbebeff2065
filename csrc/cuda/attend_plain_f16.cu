#include "attend_plain.cuh"

int ra_attend_plain_f16(const split_params &p, void *stream) { return launch_plain_any_size<f16>(p, stream); }
