/* Pages of float32. */
#include "names.h"

#define DTYPE RA_F32
#define ELEM uint32_t
#define SHORT f32
#define NAME "float32"
#include "dense.inc"
