"""What nvcc makes of the kernels: registers and spills of every one, and the width of loads and stores. No GPU is
needed, but nvcc is; REASONALLOC_CUDA_ARCHS says for which architectures. Compile times go to the terminal with -s."""

import os
import re
import resource
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KERNELS = sorted(path.stem for path in (ROOT / "csrc/cuda").glob("attend_*.cu") if path.stem != "attend_any")
OTHER_KERNELS = ("append", "append_prompt", "apply", "score", "score_logits", "score_redundancy", "score_similar",
                 "score_attention", "score_values", "score_dkv", "score_triattention", "score_gathered", "gather",
                 "allocate", "choose")  # fmt: skip
ARCHITECTURES = (os.environ.get("REASONALLOC_CUDA_ARCHS") or "75 90").split()
HOME = os.environ.get("CUDA_HOME", "/usr/local/cuda")
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path=f"{HOME}/bin")
CUOBJDUMP = os.environ.get("CUOBJDUMP") or shutil.which("cuobjdump") or shutil.which("cuobjdump", path=f"{HOME}/bin")
# Blocks of 128 threads that the registers of an SM (65,536) must have room for, by source.
ROOM = {
    "append": 8, "append_prompt": 4, "apply": 5, "attend_matrix": 2, "attend_plain": 3, "score": 8,
    "score_attention": 8, "score_dkv": 5, "score_gathered": 8, "score_logits": 4, "score_redundancy": 5,
    "score_similar": 3, "score_triattention": 8, "score_values": 8, "gather": 8, "allocate": 5, "choose": 8,
}  # fmt: skip


def most_registers(source: str) -> int:
    """Of a thread: what ROOM leaves, in the eights that they are given out in."""
    name = next(x for x in sorted(ROOM, key=len, reverse=True) if source.startswith(x))
    return min(255, 65_536 // (128 * ROOM[name]) // 8 * 8)


pytestmark = [pytest.mark.slow, pytest.mark.skipif(NVCC is None, reason="no nvcc")]


class Compiled:
    def __init__(self, source: str, arch: str, folder: Path) -> None:
        self.source = source
        self.object = folder / f"{source}.sm_{arch}.o"
        command = [str(NVCC), "-std=c++17", "-O3", f"-arch=sm_{arch}", "-Xptxas=-v", "-Icsrc/include", "-Icsrc/cuda"]
        command += ["-c", f"csrc/cuda/{source}.cu", "-o", str(self.object)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.seconds = after.ru_utime - before.ru_utime
        self.report = done.stderr


@pytest.fixture(
    scope="module", params=[(kernel, arch) for kernel in KERNELS for arch in ARCHITECTURES], ids="-sm_".join
)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(*request.param, tmp_path_factory.mktemp("cuda"))


def without_spills(compiled: Compiled) -> int:
    """Number of the kernels, none of which spills."""
    pattern = (
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    kernels = re.findall(pattern, compiled.report, re.DOTALL)
    assert len(kernels) == compiled.report.count("entry function")
    for name, stack, stores, loads, registers in kernels:
        assert (int(stack), int(stores), int(loads)) == (0, 0, 0), name
        assert int(registers) <= most_registers(compiled.source), name
    most = max(int(kernel[4]) for kernel in kernels)
    print(f"\n{compiled.object.stem}: {len(kernels)} kernels, at most {most} registers, {compiled.seconds:.1f} s")
    return len(kernels)


def test_registers_without_spills(compiled: Compiled) -> None:
    assert without_spills(compiled) >= 5  # a head size each


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source", OTHER_KERNELS)
def test_other_kernels_without_spills(source: str, arch: str, tmp_path: Path) -> None:
    assert without_spills(Compiled(source, arch, tmp_path)) >= 1


def functions(sass: str) -> dict[str, str]:
    parts = re.split(r"\n\s+Function : (\w+)\n", sass)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def instructions(code: str) -> list[tuple[int, str, str]]:
    """(address, name, operands) of each."""
    pattern = r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)\s*([^;]*);"
    return [(int(at, 16), name, rest) for at, name, rest in re.findall(pattern, code)]


def longest_loop(code: list[tuple[int, str, str]]) -> list[str]:
    """Of the loops, the one with most arithmetic that attention is made of: its instructions."""
    loops = []
    for at, name, rest in code:
        if name.startswith("BRA") and (target := re.search(r"0x([0-9a-f]+)", rest)) and int(target[1], 16) < at:
            loops.append([other for place, other, _ in code if int(target[1], 16) <= place <= at])
    return max(loops, key=lambda inside: sum(name.startswith(("HMMA", "FFMA")) for name in inside), default=[])


needs_cuobjdump = pytest.mark.skipif(
    CUOBJDUMP is None, reason="no cuobjdump: it is in PyPI's nvidia-cuda-cuobjdump, beside -nvdisasm"
)


def machine_code(compiled: Compiled) -> dict[str, str]:
    done = subprocess.run([str(CUOBJDUMP), "-sass", str(compiled.object)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return functions(done.stdout)


@needs_cuobjdump
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("source", "kernel"), [("append", "append_token"), ("append_prompt", "write_tokens"), ("apply", "move_slots")]
)
def test_tokens_are_written_16_bytes_at_a_time(source: str, kernel: str, arch: str, tmp_path: Path) -> None:
    bodies = [body for name, body in machine_code(Compiled(source, arch, tmp_path)).items() if kernel in name]
    assert len(bodies) >= 3  # a format each
    for body in bodies:
        names = [name for _, name, _ in instructions(body)]
        assert any(re.match(r"STG?\..*128", name) for name in names)
    loading = [any(re.match(r"LDG?\..*128", name) for _, name, _ in instructions(body)) for body in bodies]
    # Rows of V that are no whole vectors have a kernel of their own.
    assert sum(loading) == (2 if kernel == "move_slots" else len(bodies))


@needs_cuobjdump
def test_keys_and_values_come_16_bytes_at_a_time(compiled: Compiled) -> None:
    seen = 0
    for name, body in machine_code(compiled).items():
        if "attend_" not in name:
            continue
        code = instructions(body)
        if len(code) < 50:  # matrix units before sm_80: nothing is compiled, and no launcher asks for it
            assert "matrix" in name
            continue
        loop = longest_loop(code)
        assert sum(each.startswith(("HMMA", "FFMA")) for each in loop) >= 32, name
        loads = Counter(
            next((bits for bits in ("128", "64", "16", "8") if re.search(rf"\.[US]?{bits}\b", each)), "32")
            for each in loop
            if re.match(r"LDG?(STS)?\.", each)
        )
        assert loads["128"] >= 4, (name, loads)
        # Besides: page numbers (32), addresses of pages (64), and under a mask positions (32) and its bytes (8).
        assert loads["16"] == 0, (name, loads)
        assert loads["32"] + loads["64"] + loads["8"] <= 16, (name, loads)
        assert not any(each.startswith(("LDL", "STL")) for each in loop), name
        seen += 1
    assert seen or ("matrix" in compiled.source and compiled.object.name.endswith("sm_75.o"))


# ---- Occupancy: what an SM holds at a time, from registers and shared memory ----

# Of an SM: warps, blocks and bytes of shared memory (CUDA C++ Programming Guide, technical specifications).
MACHINES = {"75": (32, 16, 64 << 10), "80": (64, 32, 164 << 10), "90": (64, 32, 228 << 10), "100": (64, 32, 228 << 10),
            "120": (48, 24, 100 << 10)}  # fmt: skip
REGISTERS, THREADS, SHARED_RESERVED = 65_536, 128, 1 << 10  # of an SM; of a block; of a block, by the system


def resident_warps(registers: int, shared: int, arch: str) -> int:
    """Warps of blocks of 128 threads that an SM holds. shared: bytes of a block."""
    warps, blocks, memory = MACHINES[arch]
    a_warp = -(-registers * 32 // 256) * 256  # registers go to warps by 256
    by_shared = memory // (-(-(shared + SHARED_RESERVED) // 128) * 128)
    return min(REGISTERS // a_warp // 4, blocks, warps // 4, by_shared) * 4


def test_the_arithmetic_of_occupancy() -> None:
    assert resident_warps(32, 0, "90") == 64
    assert resident_warps(255, 0, "90") == 8  # as CUDA's occupancy calculator has it
    assert resident_warps(128, 0, "80") == 16
    assert resident_warps(168, 0, "90") == 12
    assert resident_warps(64, 48 << 10, "75") == 4
    assert resident_warps(40, 0, "75") == 32
    assert resident_warps(24, 0, "120") == 48


def shared_bytes(name: str) -> int:
    """What the launch of a kernel asks for: the constants of attend_matrix.cuh, select.cuh and apply.cu."""
    if sizes := re.search(r"attend_matrixI\w+?Li(\d+)ELi(\d+)E", name):
        dim, tiles = int(sizes[1]), int(sizes[2])
        warp = (2 if dim <= 64 else 1) * 4 * (2 * dim + 2) * 16
        return tiles * 8 * (dim * 2 + 4) + 16 + 4 * warp
    if "move_slots" in name:
        return 4096
    if "similar_matrix" in name:
        return 4096
    return 1280 if "choose_slots" in name else 512


# Least warps of an SM by a part of the name. A warp of attention has 16 KB of copies under way (20 or 32 for other head
# sizes) and as much on its way to the cache; 18 (H100) to 37 KB (B200) an SM fill the bus, less where an SM has 100 KB.
# The rest: 8, two blocks, of which one works while the other waits at a barrier.
LEAST_WARPS = {"attend_matrix": 4, "append_token": 16, "combine_scores": 16, "choose_slots": 16, "plan_moves": 16,
               "settle_pages": 16, "move_slots": 16, "similar_matrix": 12}  # fmt: skip


@pytest.mark.parametrize("arch", MACHINES)
@pytest.mark.parametrize(
    "source", ["attend_matrix_bf16", "append", "score", "score_redundancy", "score_similar", "choose", "apply"]
)
def test_enough_warps_are_resident(source: str, arch: str, tmp_path: Path) -> None:
    report = Compiled(source, arch, tmp_path).report
    kernels = re.findall(r"entry function '(\w+)'.*?Used (\d+) registers", report, re.DOTALL)
    assert kernels
    for name, registers in kernels:
        if shared_bytes(name) + SHARED_RESERVED > MACHINES[arch][2]:
            assert "attend_matrix" in name  # no launcher asks for it there
            continue
        least = next((warps for part, warps in LEAST_WARPS.items() if part in name), 8)
        held = resident_warps(int(registers), shared_bytes(name), arch)
        assert held >= least, f"{name}: {registers} registers, {held} warps"
