"""What is asked of the CUDA runtime beside launches: an error is told once. The runtime here is one that always fails:
no GPU is needed, and no toolkit."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "csrc/cuda/device.c"

HEADER = """
#pragma once
#include <stddef.h>
typedef int cudaError_t;
typedef void *cudaStream_t, *cudaEvent_t;
enum { cudaSuccess, cudaErrorNotReady = 600 };
enum { cudaEventRecordDefault, cudaEventRecordExternal, cudaEventDisableTiming = 2 };
enum { cudaHostAllocPortable = 1, cudaHostAllocMapped };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
static int newest;
static int cudaGetLastError(void) { int was = newest; newest = 0; return was; }
static const char *cudaGetErrorString(int error) { return error ? "wrong" : ""; }
"""

PROGRAM = """
#include <stdio.h>
#include "cuda_runtime_api.h"
#include "device.c"
#define CHECK(call) if (((void)(call), newest)) return printf("%s leaves its error\\n", #call), 1
int main(void)
{
    int before;
    char x[8];
    CHECK(ra_device_enter(1, &before));
    CHECK(ra_device_leave(1));
    CHECK(ra_device_new(1, x));
    CHECK(ra_device_free(x, x));
    CHECK(ra_device_new_shared(1));
    CHECK(ra_device_free_shared(x));
    CHECK(ra_device_zero(x, 1, x));
    CHECK(ra_device_up(x, x, 1, x));
    CHECK(ra_device_down(x, x, 1, x));
    CHECK(ra_device_down_shared(x, x, 1, x));
    CHECK(ra_device_move(x, x, 1, x));
    CHECK(ra_device_up_runs(x, 1, x, 1, 1, 1, x));
    CHECK(ra_device_down_runs(x, 1, x, 1, 1, 1, x));
    CHECK(ra_device_new_event());
    CHECK(ra_device_free_event(x));
    CHECK(ra_device_mark(x, x));
    CHECK(ra_device_follow(x, x, x));
    CHECK(ra_device_wait(x));
    CHECK(ra_device_wait_for(x));
    CHECK(ra_device_is_capturing(x));
    return ra_device_wait(x) == 900 && ra_device_up(x, x, 1, x) == 900 ? 0 : 2;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_an_error_is_not_left_for_the_next_launch(tmp_path: Path) -> None:
    text = SOURCE.read_text()
    called = sorted(set(re.findall(r"\bcuda[A-Z]\w*(?=\()", text)) - {"cudaGetLastError", "cudaGetErrorString"})
    assert len(called) >= 15
    failing = "".join(f"#define {name}(...) (newest = 900)\n" for name in called)
    (tmp_path / "cuda_runtime_api.h").write_text(HEADER + failing)
    (tmp_path / "program.c").write_text(PROGRAM)
    command = ["cc", "-std=c11", "-w", f"-I{tmp_path}", f"-I{SOURCE.parent}", str(tmp_path / "program.c")]
    done = subprocess.run([*command, "-o", str(tmp_path / "program")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
