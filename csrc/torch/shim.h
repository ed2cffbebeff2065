/* The part of torch's stable C interface that we use. torch's own shim.h says "C" but needs a C++ compiler, and reading
 * it would make torch a build dependency. Everything here exists since torch 2.10 and is kept compatible by torch. */
#ifndef RA_TORCH_SHIM_H
#define RA_TORCH_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ra_aten_tensor *ra_tensor_handle;
typedef struct ra_aten_library *ra_library_handle;
typedef struct ra_aten_guard *ra_cuda_guard;
typedef uint64_t ra_stable_value; /* a tensor handle, an int64, the bits of a double, ... by the operator's schema */
typedef int32_t ra_torch_error;   /* 0: fine */
typedef void (*ra_boxed_kernel)(ra_stable_value *stack, uint64_t inputs, uint64_t outputs);
typedef void (*ra_torch_body)(int64_t begin, int64_t end, void *context);

/* X(result, name, parameters): one list, so that what is declared is what is looked up. */
#define RA_TORCH_SYMBOLS(X)                                                                                            \
    X(uint64_t, aoti_torch_abi_version, (void))                                                                        \
    X(int32_t, aoti_torch_device_type_cpu, (void))                                                                     \
    X(int32_t, aoti_torch_device_type_cuda, (void))                                                                    \
    X(int32_t, aoti_torch_dtype_float32, (void))                                                                       \
    X(int32_t, aoti_torch_dtype_bfloat16, (void))                                                                      \
    X(int32_t, aoti_torch_dtype_float16, (void))                                                                       \
    X(int32_t, aoti_torch_dtype_float64, (void))                                                                       \
    X(int32_t, aoti_torch_dtype_int32, (void))                                                                         \
    X(int32_t, aoti_torch_dtype_int64, (void))                                                                         \
    X(ra_torch_error, aoti_torch_get_dim, (ra_tensor_handle tensor, int64_t * out))                                    \
    X(ra_torch_error, aoti_torch_get_sizes, (ra_tensor_handle tensor, int64_t * *out))                                 \
    X(ra_torch_error, aoti_torch_get_dtype, (ra_tensor_handle tensor, int32_t * out))                                  \
    X(ra_torch_error, aoti_torch_get_device_type, (ra_tensor_handle tensor, int32_t * out))                            \
    X(ra_torch_error, aoti_torch_get_device_index, (ra_tensor_handle tensor, int32_t * out))                           \
    X(ra_torch_error, aoti_torch_is_contiguous, (ra_tensor_handle tensor, bool *out))                                  \
    X(ra_torch_error, torch_get_const_data_ptr, (ra_tensor_handle tensor, const void **out))                           \
    X(ra_torch_error, torch_get_mutable_data_ptr, (ra_tensor_handle tensor, void **out))                               \
    X(ra_torch_error, aoti_torch_empty_strided,                                                                        \
      (int64_t dim, const int64_t *sizes, const int64_t *strides, int32_t dtype, int32_t device_type,                  \
       int32_t device_index, ra_tensor_handle *out))                                                                   \
    X(ra_torch_error, aoti_torch_delete_tensor_object, (ra_tensor_handle tensor))                                      \
    X(ra_torch_error, aoti_torch_library_init_fragment,                                                                \
      (const char *name, const char *file, uint32_t line, ra_library_handle *out))                                     \
    X(ra_torch_error, aoti_torch_library_init_impl,                                                                    \
      (const char *name, const char *key, const char *file, uint32_t line, ra_library_handle *out))                    \
    X(ra_torch_error, aoti_torch_library_def, (ra_library_handle library, const char *schema))                         \
    X(ra_torch_error, aoti_torch_delete_library_object, (ra_library_handle library))                                   \
    X(ra_torch_error, torch_library_impl,                                                                              \
      (ra_library_handle library, const char *name, ra_boxed_kernel kernel, uint64_t build_version))                   \
    X(void, aoti_torch_check,                                                                                          \
      (bool condition, const char *function, const char *file, uint32_t line, const char *text))                       \
    X(ra_torch_error, torch_parallel_for,                                                                              \
      (int64_t begin, int64_t end, int64_t grain, ra_torch_body body, void *context))

/* Of torch's CUDA library, looked up when the first CUDA tensor comes. */
#define RA_TORCH_CUDA_SYMBOLS(X)                                                                                       \
    X(ra_torch_error, aoti_torch_create_cuda_guard, (int32_t index, ra_cuda_guard * out))                              \
    X(ra_torch_error, aoti_torch_delete_cuda_guard, (ra_cuda_guard guard))                                             \
    X(ra_torch_error, aoti_torch_get_current_cuda_stream, (int32_t index, void **out))

struct ra_torch_symbols {
#define RA_TORCH_MEMBER(result, name, parameters) result(*name) parameters;
    RA_TORCH_SYMBOLS(RA_TORCH_MEMBER)
};
struct ra_torch_cuda_symbols {
    RA_TORCH_CUDA_SYMBOLS(RA_TORCH_MEMBER)
#undef RA_TORCH_MEMBER
};

/* Filled by ra_torch_load. */
extern struct ra_torch_symbols ra_torch;
/* Filled by ra_torch_load_cuda: 0, or -1 with *missing naming what is not there. */
extern struct ra_torch_cuda_symbols ra_torch_cuda;
int ra_torch_load_cuda(const char **missing);

#endif
