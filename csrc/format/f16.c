/* Pages of float16. */
#include "names.h"

#define DTYPE RA_F16
#define ELEM uint16_t
#define SHORT f16
#define NAME "float16"
#include "dense.inc"
