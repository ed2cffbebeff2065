"""Times on a GPU, by CUDA events; on the CPU by the clock, so that every part runs without a GPU too."""

from __future__ import annotations

import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Samples = dict[str, list[float]]
Call = Callable[[], Any]
WARM_UP = 2
PROFILED = 8  # calls


class Clock:
    """Of one device. cache_bytes: its last-level cache. most_copies: of a layer, no more than models have."""

    def __init__(self, device: torch.device, most_copies: int = 32) -> None:
        self.device, self.most_copies = device, most_copies
        self.has_graphs = device.type == "cuda"
        properties = torch.cuda.get_device_properties(device) if self.has_graphs else None
        self.cache_bytes = properties.L2_cache_size if properties is not None else 1 << 16
        self.generator = torch.Generator(device).manual_seed(0)

    def random(self, dtype: torch.dtype, *size: int) -> torch.Tensor:
        return torch.randn(*size, generator=self.generator, device=self.device, dtype=dtype)

    def wait(self) -> None:
        if self.has_graphs:
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Call) -> float:
        """Of the device, from the first thing that the call starts to the last."""
        if not self.has_graphs:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def graph(self, call: Call) -> Call:
        """The call captured: what replays it. Peers have run before."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def copy_rate(self) -> float:
        """Bytes a second that a copy reads and writes: the bandwidth that there is."""
        source = torch.empty(1 << (30 if self.has_graphs else 22), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        times = [self.seconds(lambda: target.copy_(source)) for _ in range(12)]
        return 2 * source.numel() / statistics.median(times[WARM_UP:])


def in_turn(
    clock: Clock,
    contenders: Mapping[str, Call],
    rounds: int,
    copies: int,
    before: Mapping[str, Call] | None = None,
) -> Samples:
    """Seconds a copy of each contender, in turn, `rounds` times after one that is thrown away.

    before: what a contender does untimed before each call but the first.
    """
    samples: Samples = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, call in contenders.items():
            if number and before and name in before:
                before[name]()
                clock.wait()
            taken = clock.seconds(call) / copies
            if number:
                samples[name].append(taken)
    return samples


def profiled(clock: Clock, call: Callable[[], Any], after: Callable[[], None] | None = None) -> dict[str, float]:
    """Mean microseconds of a launch of each kernel; empty without a GPU. after: not profiled, after each call."""
    found: dict[str, list[float]] = {}
    for _ in range(PROFILED if clock.has_graphs else 0):
        clock.wait()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            call()
            clock.wait()
        if after is not None:
            after()
        for event in profiler.events() or ():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                found.setdefault(_short(event.name), []).append(event.device_time)
    return {name: round(sum(x) / len(x), 2) for name, x in found.items()}


def _short(name: str) -> str:
    """Of a kernel, without its arguments' types."""
    plain = re.sub(r"^void |\(anonymous namespace\)::|\([^()]*\)$", "", name)
    return re.sub(r"\((?:ra_)?\w+\)(\d+)", r"\1", plain)


def gpu_state() -> dict[str, str]:
    """Driver, clocks, power and temperature as nvidia-smi says; empty without it."""
    fields = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,temperature.gpu"
    try:
        told = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = told.stdout.splitlines()
    return dict(zip(fields.split(","), map(str.strip, lines[0].split(",")), strict=False)) if lines else {}
