#include "util.h"

const char *ra_status_text(ra_status status)
{
    switch (status) {
    case RA_OK: return "ok";
    case RA_ERR_ARGUMENT: return "an argument is out of range";
    case RA_ERR_DTYPE: return "dtype not supported: float32, bfloat16 and float16 are";
    case RA_ERR_NO_PAGES: return "the page pool is too small";
    case RA_ERR_NO_MEMORY: return "out of memory";
    case RA_ERR_NOT_FINITE: return "NaN or infinity";
    case RA_ERR_INFEASIBLE: return "the bounds exclude the total";
    case RA_ERR_EVICTED: return "the tokens were evicted";
    case RA_ERR_DEVICE: return "the device reports an error";
    case RA_ERR_CAPTURE:
        return "a CUDA graph cannot hold this: prepare() comes before the capture, and then steps of one token a row "
               "and "
               "cuts with the prepared totals whose figures are fetched later";
    }
    return "unknown status";
}

size_t ra_dtype_size(ra_dtype dtype)
{
    switch (dtype) {
    case RA_F32: return 4;
    case RA_BF16:
    case RA_F16: return 2;
    case RA_DTYPES: break;
    }
    return 0;
}
