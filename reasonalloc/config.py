"""What a cache is to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from reasonalloc.fields import build
from reasonalloc.files import read_saved, replace_text
from reasonalloc.hub import Shared
from reasonalloc.methods import METHODS, Method, compose
from reasonalloc.policy.calibration import Calibration
from reasonalloc.policy.cold import Cold
from reasonalloc.policy.heads import Pooled, Route
from reasonalloc.policy.layers import Pyramid, Wave
from reasonalloc.policy.policy import Policy
from reasonalloc.policy.schedule import Schedule
from reasonalloc.policy.scorers import RKV, Random, Scorer
from reasonalloc.policy.setting import check_settings, flag, same_as
from reasonalloc.policy.size import Size, parse_bytes
from reasonalloc.policy.wave import WaveProfile

__all__ = ["Config", "parse_bytes"]

SCHEMA = 1


@dataclass(frozen=True)
class Config(Shared):
    """A method and its settings; the defaults are the papers'.

    How much is kept, exactly one of (none for the methods "full", "rlkv" and "duo"):
        budget: slots for each KV head, the mean over all heads and layers. A slot is one token of one head.
        ratio: the same as a share of what a full cache would hold at that time: each time the cache is cut, a row's
            budget is ratio x the tokens that the row has seen (padding not counted), at least 2 x window.
        max_bytes: the same for the whole cache, all rows together: the budget is the largest for which rows x heads x
            (budget + interval) slots, in whole pages, fit. A number or a text like "512MiB".
    The common denominator of all three is the full cache: `stats()["ratio"]` is slots kept / slots of a full cache.

    How it is shared out:
        method: a name of `ra.methods()`, in any case of letters.
        profile: the layer wave (`ra.profile`), or the file, folder or Hub repository that holds it; without one a
            method that needs it measures it on the first prefill.
        calibration: what was measured of the model (`ra.calibrate`), or the file, folder or Hub repository that holds
            it; "triattention" needs one. Its wave, where it has one, is the profile unless another is given.
        interval: tokens between two cuts; None: the method's own (128, StreamingLLM 1).
        window: newest tokens that always stay, whose queries score the others.
        scorer, layers, heads: replace the method's scorer, layer allocator and head allocator; each a name ("rkv",
            "rkv-centred", "importance", "recency", "random", "h2o", "lazy", "raas", "snapkv-published", "vatp", "vase",
            "dkv", "spans", "triattention" / "uniform", "wave", "pyramid", "pyramid-published", "dynamic" / "uniform",
            "route", "pooled", "profile", or one given to `ra.register`) or another method's name, whose part is taken
            with its options.
        keep_prompt: evict tokens of the prompt last. The prompt is the first step and the steps of several tokens right
            after it: a prompt fed in chunks counts as one, but for a last chunk of a single token where its length is
            not known.
        sinks: evict the first tokens last. None, for both: the method's own.
        recall: evicted tokens go to host memory, are scored again at each cut and can win their slots back. False: they
            are gone, as in the papers. Sizes count slots alone. cold_slots, cold_format: how many tokens of each KV
            head are kept there (None: all), "same" as in the cache or "int8" (`reasonalloc.policy.cold.Cold`).
        options: settings of the method and its parts that are no fields here, by name; each goes to all that have it.
        device: where the cache lies. "model": with each layer of the model, on a CUDA device if that is on one; "cpu":
            in host memory, wherever the model lies. None: as the environment variable REASONALLOC_BACKEND says ("cpu",
            "cuda"), else as "model". Where the CUDA backend was not built, or lacks the scorer, "model" is refused;
            with None the cache lies in host memory, which a warning and `stats()` say, and steps wait for it.
    Settings of the parts. One that is not at its default goes to every part that has it; the others do without:
        alpha, threshold, kernel: R-KV's weight of importance, cosine that counts as similar, width of the max-pool.
        gamma, lo, hi: robustify's exponent and bounds (times the mean). mu: floor of head routing. safeguard: Ada-KV's.
        smoothing: weight of a token's past scores in an average over the cuts that decays exponentially; 0 for none.
        rho: attention mass that defines a layer's demand. beta: PyramidKV's slope. seed: of the random method.
    """

    FILE: ClassVar[str] = "reasonalloc.json"

    method: str = "reasonalloc"
    budget: int | None = same_as(Size, "budget")
    ratio: float | None = same_as(Size, "ratio")
    max_bytes: int | str | None = None
    profile: WaveProfile | None = None
    calibration: Calibration | str | None = None
    interval: int | None = same_as(Schedule, "interval", None)
    window: int = same_as(Schedule, "window")
    scorer: str | None = None
    layers: str | None = None
    heads: str | None = None
    keep_prompt: bool | None = same_as(Schedule, "keep_prompt", None)
    sinks: int | None = same_as(Schedule, "sinks", None)
    alpha: float = same_as(RKV, "alpha")
    threshold: float = same_as(RKV, "threshold")
    kernel: int = same_as(RKV, "kernel")
    gamma: float = same_as(Wave, "gamma")
    lo: float = same_as(Wave, "lo")
    hi: float = same_as(Wave, "hi")
    mu: float = same_as(Route, "mu")
    safeguard: float = same_as(Pooled, "safeguard")
    rho: float = same_as(Wave, "rho")
    beta: float = same_as(Pyramid, "beta")
    smoothing: float = same_as(Scorer, "smoothing")
    seed: int = same_as(Random, "seed")
    recall: bool = flag(False)
    cold_slots: int | None = same_as(Cold, "cold_slots")
    cold_format: str = same_as(Cold, "cold_format")
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None

    def __post_init__(self) -> None:
        if self.device not in (None, "cpu", "model"):
            raise ValueError(f'device must be None, "cpu" or "model", got {self.device!r}')
        profile: object = self.profile
        if isinstance(profile, (str, Path)):
            object.__setattr__(self, "profile", WaveProfile.from_pretrained(profile))
        elif profile is not None and not isinstance(profile, WaveProfile):
            raise ValueError(f"profile must be a WaveProfile or the name of a saved one, got {profile!r}")
        self._take_calibration()
        if not isinstance(self.options, Mapping):
            raise ValueError(f"options must be a mapping of names to values, got {self.options!r}")
        if "calibration" in self.options:
            raise ValueError("a calibration is a keyword of its own, no option: Config(calibration=...)")
        object.__setattr__(self, "method", METHODS.own(self.method))
        check_settings(self)
        method, policy = compose(self)  # raises for names and options that do not exist
        policy.scorer.check_complete()
        given = self.size().given()
        if method.unlimited:
            if given:
                raise ValueError(f"method {self.method!r} keeps every token and takes no {given[0]}")
        elif not policy.layers.sized:
            if given:
                raise ValueError(
                    f"method {self.method!r} takes no {given[0]}: its option sparsity says how many heads keep every"
                    " token, its option recent and sinks what the others keep"
                )
        elif not given:
            raise ValueError("give exactly one of budget, ratio and max_bytes, got none")
        if self.recall and method.unlimited:
            raise ValueError(f"method {self.method!r} keeps every token, so there is none to recall: recall=False")
        if not self.recall and (self.cold_slots is not None or self.cold_format != "same"):
            raise ValueError("cold_slots and cold_format say what recall=True keeps, and recall is False")
        if self.recall and self.device == "model":
            raise ValueError('recall=True keeps the cache in host memory: device must be None or "cpu", got "model"')
        if self.budget is not None and self.budget <= self.window:
            raise ValueError(
                f"budget must be above the window, whose {self.window} tokens every head keeps, got {self.budget}"
            )

    def _take_calibration(self) -> None:
        calibration: object = self.calibration
        if isinstance(calibration, (str, Path)):
            calibration = Calibration.from_pretrained(calibration)
            object.__setattr__(self, "calibration", calibration)
        elif calibration is not None and not isinstance(calibration, Calibration):
            raise ValueError(f"calibration must be a Calibration or the name of a saved one, got {calibration!r:.80}")
        if isinstance(calibration, Calibration) and self.profile is None:
            object.__setattr__(self, "profile", calibration.wave)

    @property
    def measured(self) -> Calibration | None:
        """The calibration itself."""
        return self.calibration if isinstance(self.calibration, Calibration) else None

    def settings(self) -> dict[str, Any]:
        """What it says, in words of JSON as far as its options have them; a calibration is the name of its file."""
        values = {**vars(self), "options": dict(self.options)}
        values["profile"] = asdict(self.profile) if self.profile is not None else None
        del values["calibration"]
        calibration = self.measured
        return values if calibration is None else {**values, "calibration": calibration.path or calibration.digest}

    def file_settings(self) -> dict[str, Any]:
        """`settings` for a file; ValueError for a calibration that is in no file."""
        if self.measured is not None and self.measured.path is None:
            raise ValueError("the config has a calibration that is in no file, so that none can name it: save it first")
        return self.settings()

    def size(self) -> Size:
        """How much is kept."""
        return Size(self.budget, self.ratio, self.max_bytes)

    def resolve(self) -> Method:
        """The method with this config's replacements, by their names."""
        return compose(self)[0]

    def policy(self) -> Policy:
        """The method's parts, each with its settings."""
        return compose(self)[1]

    def save(self, path: str | Path) -> None:
        """Writes what is not at its default as JSON, the profile with it, whole or not at all.

        Raises ValueError for options that JSON has no form for.
        """
        given = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        values = self.file_settings()
        given |= {name: values[name] for name in values if name in given or name in ("method", "options")}
        try:
            text = json.dumps({"schema": SCHEMA, **given}, indent=1)
        except TypeError as error:
            raise ValueError(f"options of a config that is saved must be numbers, texts, lists: {error}") from error
        replace_text(path, text + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """Reads a saved config; ValueError if the file is none."""
        data = read_saved(path, "config", SCHEMA)
        try:
            return build(cls, {key: value for key, value in data.items() if key != "schema"}, "it")
        except ValueError as error:
            raise ValueError(f"{path} is not a config: {error}") from error


def check_config(config: object) -> None:
    """TypeError for anything but a Config."""
    if not isinstance(config, Config):
        hint = ": write ra.Config(**config)" if isinstance(config, Mapping) else ""
        raise TypeError(f"config must be a reasonalloc.Config, got the {type(config).__name__} {config!r:.80}{hint}")
