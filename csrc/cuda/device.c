#include "device.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static _Atomic(int64_t) waits, allocations;

int64_t ra_device_waits(void) { return atomic_load(&waits); }
int64_t ra_device_allocations(void) { return atomic_load(&allocations); }

#ifdef RA_EMULATE

#include "launch.h"

enum { NO_CAPTURE = 900 }; /* cudaErrorStreamCaptureUnsupported */

int ra_device_enter(int device, int *before)
{
    (void)device;
    *before = 0;
    return 0;
}
void ra_device_leave(int before) { (void)before; }
const char *ra_device_error(int error) { return error ? "an emulated error" : "no error"; }

int ra_device_is_capturing(void *stream)
{
    (void)stream;
    return ra_emulate_capturing();
}

/* Aligned as the driver's memory is, and full of what is no number: kernels may rely on nothing. */
void *ra_device_new(size_t bytes, void *stream)
{
    (void)stream;
    if (ra_emulate_capturing())
        return NULL;
    atomic_fetch_add(&allocations, 1);
    size_t whole = (bytes + 255) / 256 * 256;
    void *memory = aligned_alloc(256, whole ? whole : 256);
    if (memory)
        memset(memory, 0xff, bytes);
    return memory;
}
void ra_device_free(void *memory, void *stream)
{
    (void)stream;
    free(memory);
}
void *ra_device_new_shared(size_t bytes)
{
    if (ra_emulate_capturing())
        return NULL;
    atomic_fetch_add(&allocations, 1);
    return calloc(1, bytes ? bytes : 1);
}
void ra_device_free_shared(void *memory) { free(memory); }

int ra_device_zero(void *memory, size_t bytes, void *stream)
{
    (void)stream;
    if (ra_emulate_capturing())
        return NO_CAPTURE;
    memset(memory, 0, bytes);
    return 0;
}
static int copy(void *to, const void *from, size_t bytes)
{
    if (ra_emulate_capturing())
        return NO_CAPTURE;
    if (bytes)
        memcpy(to, from, bytes);
    return 0;
}
int ra_device_up(void *to, const void *from, size_t bytes, void *stream)
{
    (void)stream;
    return copy(to, from, bytes);
}
int ra_device_down(void *to, const void *from, size_t bytes, void *stream)
{
    (void)stream;
    return copy(to, from, bytes);
}
int ra_device_down_shared(void *to, const void *from, size_t bytes, void *stream)
{
    (void)stream;
    return ra_emulate_capturing() ? ra_emulate_record_copy(to, from, bytes) : copy(to, from, bytes);
}
int ra_device_move(void *to, const void *from, size_t bytes, void *stream)
{
    (void)stream;
    return copy(to, from, bytes);
}
static int copy_runs(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t bytes, size_t count)
{
    if (ra_emulate_capturing())
        return NO_CAPTURE;
    for (size_t i = 0; i < count; i++)
        copy((char *)to + i * to_pitch, (const char *)from + i * from_pitch, bytes);
    return 0;
}
int ra_device_up_runs(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t bytes, size_t count,
                      void *stream)
{
    (void)stream;
    return copy_runs(to, to_pitch, from, from_pitch, bytes, count);
}
int ra_device_down_runs(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t bytes, size_t count,
                        void *stream)
{
    (void)stream;
    return copy_runs(to, to_pitch, from, from_pitch, bytes, count);
}
void *ra_device_new_event(void) { return &waits; } /* everything is done at once */
void ra_device_free_event(void *event) { (void)event; }
int ra_device_mark(void *event, void *stream)
{
    (void)event, (void)stream;
    return 0;
}
int ra_device_follow(void *event, void *from, void *to)
{
    (void)event, (void)from, (void)to;
    return 0;
}
int ra_device_wait(void *stream)
{
    (void)stream;
    if (ra_emulate_capturing())
        return NO_CAPTURE;
    atomic_fetch_add(&waits, 1);
    return 0;
}
int ra_device_wait_for(void *event)
{
    (void)event;
    return ra_emulate_capturing() ? NO_CAPTURE : 0;
}

#else

#include "take_error.h"

int ra_device_enter(int device, int *before)
{
    *before = device;
    int error = take_error(cudaGetDevice(before));
    return !error && *before != device ? take_error(cudaSetDevice(device)) : error;
}
void ra_device_leave(int before)
{
    int now;
    if (!take_error(cudaGetDevice(&now)) && now != before)
        (void)take_error(cudaSetDevice(before));
}
const char *ra_device_error(int error) { return cudaGetErrorString((cudaError_t)error); }

void *ra_device_new(size_t bytes, void *stream)
{
    void *memory = NULL;
    if (ra_device_is_capturing(stream)) /* it would be a node of the graph, and memory only while that runs */
        return NULL;
    atomic_fetch_add(&allocations, 1);
    return take_error(cudaMallocAsync(&memory, bytes ? bytes : 1, stream)) ? NULL : memory;
}
void ra_device_free(void *memory, void *stream)
{
    if (memory)
        (void)take_error(cudaFreeAsync(memory, stream));
}
void *ra_device_new_shared(size_t bytes)
{
    void *memory = NULL;
    atomic_fetch_add(&allocations, 1);
    if (take_error(cudaHostAlloc(&memory, bytes ? bytes : 1, cudaHostAllocMapped | cudaHostAllocPortable)))
        return NULL;
    memset(memory, 0, bytes);
    return memory;
}
void ra_device_free_shared(void *memory)
{
    if (memory)
        (void)take_error(cudaFreeHost(memory));
}

int ra_device_zero(void *memory, size_t bytes, void *stream)
{
    return take_error(cudaMemsetAsync(memory, 0, bytes, stream));
}
static int copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, void *stream)
{
    return bytes ? take_error(cudaMemcpyAsync(to, from, bytes, kind, stream)) : 0;
}
int ra_device_up(void *to, const void *from, size_t bytes, void *stream)
{
    return copy(to, from, bytes, cudaMemcpyHostToDevice, stream);
}
int ra_device_down(void *to, const void *from, size_t bytes, void *stream)
{
    return copy(to, from, bytes, cudaMemcpyDeviceToHost, stream);
}
int ra_device_down_shared(void *to, const void *from, size_t bytes, void *stream)
{
    return copy(to, from, bytes, cudaMemcpyDeviceToHost, stream);
}
int ra_device_move(void *to, const void *from, size_t bytes, void *stream)
{
    return copy(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
}
int ra_device_up_runs(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t bytes, size_t count,
                      void *stream)
{
    if (!bytes || !count)
        return 0;
    return take_error(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, bytes, count, cudaMemcpyHostToDevice, stream));
}
int ra_device_down_runs(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t bytes, size_t count,
                        void *stream)
{
    if (!bytes || !count)
        return 0;
    return take_error(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, bytes, count, cudaMemcpyDeviceToHost, stream));
}
void *ra_device_new_event(void)
{
    cudaEvent_t event;
    return take_error(cudaEventCreateWithFlags(&event, cudaEventDisableTiming)) ? NULL : event;
}
void ra_device_free_event(void *event)
{
    if (event)
        (void)take_error(cudaEventDestroy(event));
}
int ra_device_is_capturing(void *stream)
{
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (take_error(cudaStreamIsCapturing(stream, &status)))
        return 0; /* it was the legacy stream while another one is captured, and says nothing of itself */
    return status != cudaStreamCaptureStatusNone;
}
/* In a graph it is marked at each replay. */
int ra_device_mark(void *event, void *stream)
{
    unsigned flags = ra_device_is_capturing(stream) ? cudaEventRecordExternal : cudaEventRecordDefault;
    return take_error(cudaEventRecordWithFlags(event, stream, flags));
}
int ra_device_follow(void *event, void *from, void *to)
{
    int error = take_error(cudaEventRecord(event, from));
    return error ? error : take_error(cudaStreamWaitEvent(to, event, 0));
}
int ra_device_wait(void *stream)
{
    atomic_fetch_add(&waits, 1);
    return take_error(cudaStreamSynchronize(stream));
}
int ra_device_wait_for(void *event)
{
    cudaError_t error = cudaEventQuery(event);
    if (error != cudaErrorNotReady)
        return take_error(error);
    atomic_fetch_add(&waits, 1);
    return take_error(cudaEventSynchronize(event));
}

#endif
