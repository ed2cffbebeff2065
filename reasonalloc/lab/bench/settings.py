"""What a run of the benchmarks is to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from reasonalloc.methods import Method

INTERVAL = Method.interval  # tokens between two cuts, of ours and of the peers
PARTS = ("kernels", "throughput", "memory", "kvpress")
MEMORY_LIMIT, QUICK_MEMORY_LIMIT = 2_000_000_000, 150_000_000  # bytes of a cache at equal memory
MOST_ROWS = 128
KVPRESS_PYTHON = ".venv-kvpress/bin/python"
MEMORY_METHODS = ("dynamic", "static", "full", "reasonalloc-128", "reasonalloc-256", "reasonalloc-512")


@dataclass(frozen=True)
class Settings:
    """The options of `reasonalloc bench`; None: the part's own default, which depends on `quick`."""

    parts: tuple[str, ...] = PARTS
    quick: bool = False
    runs: int | None = None
    output: Path | None = None
    rkv_repo: str | None = None
    kvpress_python: str | None = None
    memory_limit: int | None = None
    chains: tuple[int, ...] | None = None
    budgets: tuple[int, ...] | None = None
    most_rows: int | None = None
    whole_chains: bool = False
    memory_tokens: int | None = None
    memory_methods: tuple[str, ...] | None = None

    def rounds(self, full: int, quick: int) -> int:
        """Timed rounds: as asked, or these."""
        return self.runs if self.runs is not None else quick if self.quick else full

    def as_json(self) -> dict[str, object]:
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
