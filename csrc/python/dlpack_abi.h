/* The part of DLPack 1.x that is used here (github.com/dmlc/dlpack, include/dlpack/dlpack.h, Apache-2.0), declared by
 * hand so that building needs no torch. Layouts are fixed by DLPack's major version 1, which the caller checks. */
#ifndef RA_DLPACK_ABI_H
#define RA_DLPACK_ABI_H

#include <stdint.h>

typedef struct dl_version {
    uint32_t major, minor;
} dl_version;

typedef struct dl_device {
    int32_t type, id;
} dl_device;

typedef struct dl_data_type {
    uint8_t code, bits;
    uint16_t lanes;
} dl_data_type;

enum { DL_CPU = 1, DL_CUDA = 2 };
enum { DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_BFLOAT = 4, DL_BOOL = 6 };

typedef struct dl_tensor {
    void *data;
    dl_device device;
    int32_t ndim;
    dl_data_type dtype;
    int64_t *shape, *strides; /* strides count elements */
    uint64_t byte_offset;
} dl_tensor;

/* Function table that a tensor type offers as type.__dlpack_c_exchange_api__, a capsule of the name below. */
#define DL_EXCHANGE_API_NAME "dlpack_exchange_api"

typedef struct dl_exchange_header {
    dl_version version;
    struct dl_exchange_header *previous; /* an older major version, or NULL */
} dl_exchange_header;

typedef struct dl_exchange_api {
    dl_exchange_header header;
    void *managed_tensor_allocator;
    void *managed_tensor_from_py_object;
    void *managed_tensor_to_py_object;
    int (*tensor_from_py_object)(void *object, dl_tensor *out); /* borrowed view; may be NULL */
    int (*current_work_stream)(int32_t device_type, int32_t device_id, void **out);
} dl_exchange_api;

#endif
