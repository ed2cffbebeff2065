#include "attend_plain.cuh"

int ra_attend_plain_f32(const split_params &p, void *stream) { return launch_plain_any_size<float>(p, stream); }
