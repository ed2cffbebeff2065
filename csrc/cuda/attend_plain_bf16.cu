#include "attend_plain.cuh"

int ra_attend_plain_bf16(const split_params &p, void *stream) { return launch_plain_any_size<bf16>(p, stream); }
