"""The offline waves of an evaluation, measured once and kept in its folder.

On problems that a seed of their own draws: of a task that makes its problems others than those evaluated, of a dataset
maybe some of these. No answer of them is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from reasonalloc.files import locked
from reasonalloc.fingerprint import digest
from reasonalloc.lab.tasks import REGISTRY, items, prompts
from reasonalloc.policy.wave import WaveProfile

SEED = 20_000  # of the problems measured on; `reasonalloc evaluate` draws its own by --seed


@dataclass
class Waves:
    """Waves of a model on a task. profile: `wave.profile` of that model, given prompts, max_new_tokens and rho. about:
    what tells this model from others, kept with a wave. tokens: of a measured chain at most."""

    profile: Callable[..., WaveProfile]
    task: str
    folder: Path
    about: dict[str, object] = field(default_factory=dict)
    tokens: int = 512
    _measured: dict[tuple[str, int, float], WaveProfile] = field(default_factory=dict)

    def get(self, count: int = 4, rho: float = 0.93, task: str | None = None) -> WaveProfile:
        """The wave over `count` prompts (1 to 8); a file of the folder if it has been measured before."""
        task = task or self.task
        key = task, count, rho
        if key not in self._measured:
            path = self.folder / f"wave-{_name(task)}-{count}-{rho:g}.json"
            if path.is_file():
                self._measured[key] = self._read(path)
                return self._measured[key]
            with locked(self.folder / ".waves.lock"):  # shards that start together have one wave
                self._measured[key] = self._read(path) if path.is_file() else self._measure(path, task, count, rho)
        return self._measured[key]

    def _read(self, path: Path) -> WaveProfile:
        found = WaveProfile.load(path)
        for name, value in (self.about | {"max_new_tokens": self.tokens}).items():
            if (saved := found.source.get(name)) != value:
                raise ValueError(f"{path} was measured with {name} {saved!r}, now {value!r}: take another folder")
        return found

    def _measure(self, path: Path, task: str, count: int, rho: float) -> WaveProfile:
        chosen = [x.problem for x in prompts(task, count, SEED)] if task in REGISTRY else _of_file(task, count)
        found = self.profile(chosen, max_new_tokens=self.tokens, rho=rho)
        found = replace(found, source={**found.source, **self.about})
        found.save(path)
        return found


@dataclass
class GivenWave:
    """Stands in for `Waves` where there is one wave and no other can be measured."""

    task: str
    wave: WaveProfile | None

    def get(self, count: int = 4, rho: float = 0.93, task: str | None = None) -> WaveProfile:
        if self.wave is None:
            raise ValueError("it needs a layer wave: --profile FILE")
        if (count, rho, task) != (4, 0.93, None):
            raise ValueError(
                "it compares waves, and one is given: without a profile `reasonalloc ablate` measures them"
            )
        return self.wave


def _name(task: str) -> str:
    """Of a task in a file's name; two files of the same name are two tasks."""
    return task if task in REGISTRY else f"{Path(task).stem}-{digest(str(Path(task).resolve()))[:6]}"


def _of_file(task: str, count: int) -> list[str]:
    """A file's own problems: it has no others."""
    every = items(task)
    return [x.prompt for x in every[: min(count, len(every))]]
