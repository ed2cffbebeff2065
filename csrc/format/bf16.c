/* Pages of bfloat16. */
#include "names.h"

#define DTYPE RA_BF16
#define ELEM uint16_t
#define SHORT bf16
#define NAME "bfloat16"
#include "dense.inc"
