/* What the host sets of the emulation. */
#include "machine.cuh"

#ifdef RA_EMULATE
extern "C" void ra_emulate_order(unsigned seed) { emulate::options().seed = seed; }
#endif
