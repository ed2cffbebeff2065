"""What a cache is to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reasonalloc.methods import Method, resolve
from reasonalloc.policy.wave import WaveProfile

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_bytes(value: int | str) -> int:
    """ "512MiB", "2GB" or a number as bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if not match or match[2] not in _UNITS:
        raise ValueError(
            f"max_bytes must be a number or like '512MiB' (units {', '.join(list(_UNITS)[1:])}), got {value!r}"
        )
    return int(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True)
class Config:
    """A method and its settings; the defaults are the papers'.

    How much is kept, exactly one of (none for method "full"):
        budget: slots for each KV head, the mean over all heads and layers. A slot is one token of one head.
        ratio: the same as a share of what a full cache would hold at that time: each time the cache is cut, a row's
            budget is ratio x the tokens that the row has seen (padding not counted), at least 2 x window.
        max_bytes: the same for the whole cache, all rows together: the budget is the largest for which rows x heads x
            (budget + interval) slots, in whole pages, fit. A number or a text like "512MiB".
    The common denominator of all three is the full cache: `stats()["ratio"]` is slots kept / slots of a full cache.

    How it is shared out:
        method: a name of `ra.methods()`.
        profile: the layer wave (`ra.profile`); without one a method that needs it measures it on the first prefill.
        interval: tokens between two cuts; None: the method's own (128, StreamingLLM 1).
        window: newest tokens that always stay, whose queries score the others.
        scorer, layers, heads: replace the method's scorer, layer allocator and head allocator; each a name ("rkv",
            "rkv-centred", "importance", "recency", "random" / "uniform", "wave", "pyramid" / "uniform", "route",
            "pooled") or another method's name, whose part is taken.
        keep_prompt: evict tokens of the prompt last. The prompt is the first step and the steps of several tokens right
            after it: a prompt fed in chunks counts as one, but for a last chunk of a single token.
        sinks: evict the first tokens last. None, for both: the method's own.
        options: settings of the method's own, by name.
    Settings of the parts:
        alpha, threshold, kernel: R-KV's weight of importance, cosine that counts as similar, width of the max-pool.
        gamma, lo, hi: robustify's exponent and bounds (times the mean). mu: floor of head routing. safeguard: Ada-KV's.
        smoothing: weight of a token's past scores in an average over the cuts that decays exponentially; 0 for none.
        rho: attention mass that defines a layer's demand. beta: PyramidKV's slope. seed: of the random method.
    """

    method: str = "reasonalloc"
    budget: int | None = None
    ratio: float | None = None
    max_bytes: int | str | None = None
    profile: WaveProfile | None = None
    interval: int | None = None
    window: int = 8
    scorer: str | None = None
    layers: str | None = None
    heads: str | None = None
    keep_prompt: bool | None = None
    sinks: int | None = None
    alpha: float = 0.1
    threshold: float = 0.5
    kernel: int = 7
    gamma: float = 0.5
    lo: float = 0.25
    hi: float = 2.0
    mu: float = 0.25
    safeguard: float = 0.2
    rho: float = 0.93
    beta: float = 20.0
    smoothing: float = 0.0
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.profile is not None and not isinstance(self.profile, WaveProfile):
            raise ValueError(f"profile must be a WaveProfile (WaveProfile.load reads a file), got {self.profile!r}")
        method = self.resolve()  # raises for names and options that do not exist
        given = [name for name in ("budget", "ratio", "max_bytes") if getattr(self, name) is not None]
        if method.unlimited:
            if given:
                raise ValueError(f"method {self.method!r} keeps every token and takes no {given[0]}")
        elif len(given) != 1:
            raise ValueError(f"give exactly one of budget, ratio and max_bytes, got {', '.join(given) or 'none'}")
        self._check_range("window", 1, 4096, whole=True)
        if self.budget is not None:
            self._check_range("budget", 1, 2**31 - 1, whole=True)
            if self.budget <= self.window:
                raise ValueError(
                    f"budget must be above the window, whose {self.window} tokens every head keeps, got {self.budget}"
                )
        if self.ratio is not None:
            self._check_range("ratio", 0, 1)
            if not self.ratio:
                raise ValueError("ratio must be above 0")
        if self.max_bytes is not None:
            parse_bytes(self.max_bytes)
        if self.interval is not None:
            self._check_range("interval", 1, 2**31 - 1, whole=True)
        if self.sinks is not None:
            self._check_range("sinks", 0, 2**31 - 1, whole=True)
        for name in ("alpha", "mu", "safeguard", "lo"):
            self._check_range(name, 0, 1)
        self._check_range("threshold", -1, 1)
        self._check_range("rho", 0, 1)
        self._check_range("smoothing", 0, 0.999)
        self._check_range("gamma", 0, 16)
        self._check_range("hi", 1, 1e6)
        self._check_range("beta", 1, 1e6)
        self._check_range("kernel", 1, 4097, whole=True)
        self._check_range("seed", 0, 2**63 - 1, whole=True)
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")

    def _check_range(self, name: str, least: float, most: float, whole: bool = False) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int,) if whole else (int, float)):
            raise ValueError(f"{name} must be a {'whole number' if whole else 'number'}, got {value!r}")
        if not least <= value <= most:
            raise ValueError(f"{name} must lie between {least} and {most}, got {value}")

    def resolve(self) -> Method:
        """The method with this config's replacements; raises ValueError for names that do not exist."""
        return resolve(self)
