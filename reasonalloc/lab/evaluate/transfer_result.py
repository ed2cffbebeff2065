"""What a comparison of waves found: waves by task, their distances, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

from reasonalloc.files import Json
from reasonalloc.lab.evaluate.distances import Matrix, Separation
from reasonalloc.lab.table import Section
from reasonalloc.policy.wave import PROBE_QUERIES, WaveProfile

SCHEMA = 1


@dataclass(frozen=True)
class Measuring:
    """How waves are measured, as by `ra.profile`; budget: slots of a KV head, for the layers' shares of it.

    seed: of the choice of prompts. samples: chains of each prompt, drawn with the seeds from `seed` on; more than one
    needs a temperature above 0 (0 is greedy). last: measure on no more than the newest tokens of prompt and chain, so
    that tasks of different length can be compared (None: on all).
    """

    prompts: int = 4
    max_new_tokens: int = 256
    rho: float = 0.93
    queries: int = PROBE_QUERIES
    temperature: float = 0.0
    samples: int = 1
    seed: int = 0
    budget: int = 128
    last: int | None = None

    def __post_init__(self) -> None:
        for name in ("prompts", "max_new_tokens", "queries", "samples", "budget"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.last is not None and self.last < self.queries:
            raise ValueError(f"last must be at least the {self.queries} queries, got {self.last}")
        if not 0 < self.rho < 1:
            raise ValueError(f"rho must lie between 0 and 1, got {self.rho}")
        if self.samples > 1 and not self.temperature:
            raise ValueError(
                f"{self.samples} samples of a prompt differ only with a temperature above 0, got {self.temperature}"
            )


@dataclass(frozen=True)
class Chain:
    """One prompt with one chain: its tokens and the demand of each layer."""

    task: str
    prompt: str
    seed: int
    prompt_tokens: int
    chain_tokens: int
    demand: tuple[float, ...]


@dataclass(frozen=True)
class Distances:
    """Earth Mover's Distances in layers, of waves or of the layers' budgets that follow from them.

    tasks: [T, T] between the tasks' waves. moved: [T, T] share of all slots that lie in another layer with the other
    task's wave. flat: [T] to the same for every layer. shuffled: mean over tasks of the distance to the same wave with
    its layers in random order, what unrelated waves of this shape would have. length: rank correlation, over pairs of
    prompts, of their distance with the difference of their log lengths (prompt and chain): tasks may differ because
    their texts are longer, and then it is large. chains: mean between chains of one
    prompt with different seeds (None with one each). prompts: single prompts within and between tasks.
    """

    tasks: Matrix
    moved: list[list[float]]
    flat: list[float]
    shuffled: float
    length: float | None
    chains: float | None
    prompts: Separation


@dataclass(frozen=True)
class Transfer:
    """All waves of one model, with their distances."""

    tasks: list[str]
    layers: tuple[int, ...]
    chains: list[Chain]
    profiles: dict[str, WaveProfile]
    wave: Distances
    budgets: Distances
    settings: Measuring
    provenance: Json = field(default_factory=dict)
    schema: int = SCHEMA

    def as_json(self) -> Json:
        return asdict(self)

    def save_profiles(self, folder: str | Path) -> list[Path]:
        """Writes each task's wave as a profile, `wave-TASK.json`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = []
        for task, profile in self.profiles.items():
            paths.append(Path(folder) / f"wave-{task}.json")
            profile.save(paths[-1])
        return paths

    def rich_tables(self) -> list[Table]:
        """For the terminal."""
        return [Section(title, rows[0], rows[1:]).rich() for title, rows in self._tables()]

    def markdown(self) -> str:
        parts = [
            f"{title}:\n\n{Section(title, rows[0], rows[1:]).markdown_rows().rstrip()}"
            for title, rows in self._tables()
        ]
        return "\n\n".join([*parts, *(f"- {x}" for x in self.statements())]) + "\n"

    def statements(self) -> list[str]:
        """What the distances say, in a sentence for waves and one for budgets."""
        return [f"{name}: {_sentence(x)}" for name, x in (("Waves", self.wave), ("Budgets", self.budgets))]

    def _tables(self) -> Iterator[tuple[str, list[list[str]]]]:
        moved = self.budgets.moved
        rows = self._square(
            lambda i, j: (
                ""
                if i == j
                else f"{_text(self.wave.tasks[i][j])} / {_text(self.budgets.tasks[i][j])} ({moved[i][j]:.1%})"
            )
        )
        rows.append(["flat", *(f"{a:.2f} / {b:.2f}" for a, b in zip(self.wave.flat, self.budgets.flat, strict=True))])
        yield "Distance of the tasks' waves in layers / of their budgets (slots in another layer)", rows
        ours, theirs = self.wave.prompts, self.budgets.prompts
        rows = self._square(
            lambda i, j: (
                f"{_text(ours.means[i][j])} / {_text(theirs.means[i][j])}"
                + (f" ({ours.pairwise_p[i][j]:.2g})" if ours.pairwise_p[i][j] is not None else "")
            )
        )
        yield "Distance of single prompts' waves in layers / of their budgets (p that the two tasks are one)", rows

    def _square(self, cell: Callable[[int, int], str]) -> list[list[str]]:
        size = range(len(self.tasks))
        return [["", *self.tasks], *([self.tasks[i], *(cell(i, j) for j in size)] for i in size)]


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _sentence(x: Distances) -> str:
    distances = x.prompts
    parts = [f"two prompts of one task {_text(distances.within)} layers apart, of two tasks {_text(distances.between)}"]
    if distances.difference is not None and distances.p is not None:
        p = f"permutation p = {distances.p:.2g} (least {distances.least_p:.2g})"
        parts.append(f"difference {distances.difference.text('.2f')}, {p}")
    if x.chains is not None:
        parts.append(f"two chains of one prompt {x.chains:.2f}")
    parts.append(f"with layers in random order {x.shuffled:.2f}")
    if x.length is not None:
        parts.append(f"rank correlation with the difference in length {x.length:.2f}")
    return "; ".join(parts)
