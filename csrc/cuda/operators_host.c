/* Torch's operators on the device: what is wrong in memory that only kernels look at is kept for the next call. */
#include <pthread.h>

#include "backend.h"
#include "operators.h"

static volatile uint8_t *faults; /* host memory that kernels write to; made once, for good */

static uint32_t *fault_word(void)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    if (!faults)
        faults = ra_device_new_shared(sizeof(uint32_t));
    uint32_t *word = (uint32_t *)(uintptr_t)faults;
    pthread_mutex_unlock(&lock);
    return word;
}

static ra_status attend(const ra_paged *pages, const void *queries, float scale, void *out, void *scratch, void *stream)
{
    uint32_t *fault = fault_word();
    return fault ? ra_cuda_status(ra_cuda_attend_paged(pages, queries, scale, out, fault, scratch, stream))
                 : RA_ERR_NO_MEMORY;
}

static ra_status append(const ra_paged *pages, const void *keys, const void *values, void *scratch, void *stream)
{
    uint32_t *fault = fault_word();
    return fault ? ra_cuda_status(ra_cuda_append_paged(pages, keys, values, fault, scratch, stream)) : RA_ERR_NO_MEMORY;
}

static ra_status score(const ra_dense *keys, float *out, void *scratch, void *stream)
{
    uint32_t *fault = fault_word();
    return fault ? ra_cuda_status(ra_cuda_score_dense(keys, out, fault, scratch, stream)) : RA_ERR_NO_MEMORY;
}

static const char *take_fault(void)
{
    static const char *const messages[] = {
        [RA_FAULT_LENGTHS] = "lengths out of range",
        [RA_FAULT_TABLE] = "a page that does not exist",
        [RA_FAULT_NOT_FINITE] = "NaN or infinity",
    };
    for (size_t i = 0; faults && i < sizeof messages / sizeof messages[0]; i++)
        if (faults[i]) {
            faults[i] = 0;
            return messages[i];
        }
    return NULL;
}

const ra_operators ra_cuda_operators = {
    .attend_bytes = ra_cuda_attend_paged_bytes,
    .attend = attend,
    .append_bytes = ra_cuda_append_paged_bytes,
    .append = append,
    .score_bytes = ra_cuda_score_dense_bytes,
    .score = score,
    .fault = take_fault,
};
