/* torch.ops.reasonalloc: schemas, and what every operator needs around its body.
 *
 * No operator has an autograd formula: they serve inference, and one would triple the cost of a call. */
#include "ops.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "../core/backend.h"
#include "torch_bridge.h"

enum { DEVICE_CPU = 1 }; /* as DLPack counts */

/* Tensors come first in every schema, `tensors` of them. */
static _Noreturn void refuse(const char *name, const char *why)
{
    char text[sizeof((ra_failure *)0)->text + 64];
    (void)snprintf(text, sizeof text, "reasonalloc::%s: %s", name, why);
    /* Throws through this frame: nothing may be owned here any more. */
    ra_torch.aoti_torch_check(false, name, __FILE__, __LINE__, text);
    abort(); /* not reached */
}

static void drop_tensors(const ra_stable_value *stack, uint64_t tensors)
{
    for (uint64_t i = 0; i < tensors; i++) /* a boxed kernel owns its arguments */
        (void)ra_torch.aoti_torch_delete_tensor_object(ra_handle_of(stack[i]));
}

static void call(const char *name, ra_op_body body, uint64_t tensors, ra_stable_value *stack, uint64_t outputs,
                 ra_place place)
{
    ra_tensor_handle out = NULL;
    ra_failure failure = {.text = ""};
    const char *fault = place.operators ? place.operators->fault() : NULL;
    const bool done = fault
                          ? ra_fail(&failure,
                                    "an operator before this one, on a CUDA device, was given %s; if it was append_, it"
                                    " has written nothing",
                                    fault)
                          : body(stack, &place, &out, &failure);

    drop_tensors(stack, tensors);
    if (done) {
        if (outputs > 0)
            stack[0] = (ra_stable_value)(uintptr_t)out;
        return;
    }
    if (out != NULL)
        (void)ra_torch.aoti_torch_delete_tensor_object(out);
    refuse(name, failure.text);
}

/* What computes on CUDA tensors; in the emulation these are the CPU's. */
static _Atomic(const ra_device *) device;

/* Where any tensor is on a CUDA device. */
static void call_cuda(const char *name, ra_op_body body, uint64_t tensors, ra_stable_value *stack, uint64_t outputs)
{
    const ra_device *on_cuda = atomic_load(&device);
    if (on_cuda == NULL) { /* torch's own message would list dispatch keys */
        drop_tensors(stack, tensors);
        refuse(name,
               "a tensor is on a CUDA device, and reasonalloc was built without CUDA (REASONALLOC_CUDA=1 builds it"
               " with nvcc). Move its tensors with .cpu()");
    }
    const int32_t type = on_cuda->type == DEVICE_CPU ? ra_torch.aoti_torch_device_type_cpu()
                                                     : ra_torch.aoti_torch_device_type_cuda();
    call(name, body, tensors, stack, outputs, (ra_place){.operators = on_cuda->operators, .type = type});
}

/* X(name, body, tensors, schema after the name) */
#define OPERATORS(X)                                                                                                   \
    X(attend, ra_op_attend, 4, "(Tensor query, Tensor pages, Tensor table, Tensor lengths, float scale) -> Tensor")    \
    X(append_, ra_op_append, 5, "(Tensor(a!) pages, Tensor keys, Tensor values, Tensor table, Tensor lengths) -> ()")  \
    X(rkv_score, ra_op_rkv_score, 2,                                                                                   \
      "(Tensor queries, Tensor keys, float alpha, float threshold, int kernel) -> Tensor")                             \
    X(redundancy, ra_op_redundancy, 1, "(Tensor keys, float threshold) -> Tensor")                                     \
    X(importance, ra_op_importance, 2, "(Tensor queries, Tensor keys, int kernel) -> Tensor")

#define BOXED(name, body, tensors, schema)                                                                             \
    static void boxed_##name(ra_stable_value *stack, uint64_t inputs, uint64_t outputs)                                \
    {                                                                                                                  \
        (void)inputs;                                                                                                  \
        call(#name, body, tensors, stack, outputs, (ra_place){.type = ra_torch.aoti_torch_device_type_cpu()});         \
    }                                                                                                                  \
    static void cuda_##name(ra_stable_value *stack, uint64_t inputs, uint64_t outputs)                                 \
    {                                                                                                                  \
        (void)inputs;                                                                                                  \
        call_cuda(#name, body, tensors, stack, outputs);                                                               \
    }
OPERATORS(BOXED)

static const struct {
    const char *name, *schema;
    ra_boxed_kernel kernel, cuda;
} operators[] = {
#define ENTRY(name, body, tensors, schema) {#name, #name schema, boxed_##name, cuda_##name},
    OPERATORS(ENTRY)
#undef ENTRY
};

/* Schemas and kernels stay registered as long as these live: for good. */
static ra_library_handle schemas, kernels, cuda_kernels;

static const char *fill_libraries(void)
{
    if (ra_torch.aoti_torch_library_init_fragment("reasonalloc", __FILE__, __LINE__, &schemas) != 0 ||
        ra_torch.aoti_torch_library_init_impl("reasonalloc", "CPU", __FILE__, __LINE__, &kernels) != 0 ||
        ra_torch.aoti_torch_library_init_impl("reasonalloc", "CUDA", __FILE__, __LINE__, &cuda_kernels) != 0)
        return "torch did not open the library \"reasonalloc\"";
    for (size_t i = 0; i < sizeof operators / sizeof operators[0]; i++) {
        if (ra_torch.aoti_torch_library_def(schemas, operators[i].schema) != 0)
            return "torch refused an operator's schema; is another copy of reasonalloc loaded?";
        const uint64_t version = ra_torch.aoti_torch_abi_version();
        if (ra_torch.torch_library_impl(kernels, operators[i].name, operators[i].kernel, version) != 0 ||
            ra_torch.torch_library_impl(cuda_kernels, operators[i].name, operators[i].cuda, version) != 0)
            return "torch refused an operator's kernel; is another copy of reasonalloc loaded?";
    }
    return NULL;
}

static void close_library(ra_library_handle *library)
{
    if (*library != NULL)
        (void)ra_torch.aoti_torch_delete_library_object(*library);
    *library = NULL;
}

static int register_once(const char **error)
{
    if (kernels != NULL)
        return 0;
    const char *missing = NULL;
    if (ra_torch_load(&missing) != 0) {
        static char text[128];
        (void)snprintf(text, sizeof text, "torch >= 2.10 is needed, not found: %s", missing);
        *error = text;
        return -1;
    }
    *error = fill_libraries();
    if (*error == NULL)
        return 0;
    close_library(&cuda_kernels);
    close_library(&kernels);
    close_library(&schemas);
    return -1;
}

int ra_torch_register(const ra_backend *backend, const char **error)
{
    atomic_store(&device, backend != NULL ? backend->device : NULL);
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    const char *text = NULL;
    pthread_mutex_lock(&lock);
    const int result = register_once(&text);
    pthread_mutex_unlock(&lock);
    if (error != NULL)
        *error = text;
    return result;
}
