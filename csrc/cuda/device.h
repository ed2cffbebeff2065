/* Memory of a device and the host's part in it: what backend.c needs of the CUDA runtime, or of its emulation
 * (-DRA_EMULATE), where the device's memory is the host's. Every function but ra_device_new works in the order of the
 * stream. Errors are cudaError_t; 0 is none. */
#ifndef RA_CUDA_DEVICE_H
#define RA_CUDA_DEVICE_H

#include <stddef.h>
#include <stdint.h>

/* Makes a device current for the calling thread; *before was. */
int ra_device_enter(int device, int *before);
void ra_device_leave(int before);
/* What an error is, in words. */
const char *ra_device_error(int error);

/* NULL without memory. */
void *ra_device_new(size_t bytes, void *stream);
void ra_device_free(void *memory, void *stream);
/* Host memory that kernels may write to at the same address, zeroed; NULL without memory. */
void *ra_device_new_shared(size_t bytes);
void ra_device_free_shared(void *memory);

int ra_device_zero(void *memory, size_t bytes, void *stream);
/* Host memory may change as soon as `up` returns, and holds what came after the next wait when `down` does. */
int ra_device_up(void *to, const void *from, size_t bytes, void *stream);
int ra_device_down(void *to, const void *from, size_t bytes, void *stream);
/* Down into shared memory. */
int ra_device_down_shared(void *to, const void *from, size_t bytes, void *stream);
int ra_device_move(void *to, const void *from, size_t bytes, void *stream);
/* `count` runs of `bytes`, each `pitch` behind the last. */
int ra_device_up_runs(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t bytes, size_t count,
                      void *stream);
int ra_device_down_runs(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t bytes, size_t count,
                        void *stream);
/* Marks a place in a stream; NULL without memory. */
void *ra_device_new_event(void);
void ra_device_free_event(void *event);
int ra_device_mark(void *event, void *stream);
/* The only functions that wait for the device: until all of a stream is done, until a mark is reached. */
int ra_device_wait(void *stream);
int ra_device_wait_for(void *event);

/* What comes on `to` comes after what is on `from` now. */
int ra_device_follow(void *event, void *from, void *to);
/* Whether a graph is made of what comes on the stream. Then only launches, and copies between memory of the device and
 * shared memory, are right. */
int ra_device_is_capturing(void *stream);

/* Since the library was loaded: waits, and allocations of any kind. */
int64_t ra_device_waits(void);
int64_t ra_device_allocations(void);

#endif
