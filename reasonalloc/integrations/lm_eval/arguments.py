"""What `--model_args` may say, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from reasonalloc.config import Config
from reasonalloc.lab.models import DTYPES
from reasonalloc.policy.wave import WaveProfile

INSTALL = "pip install '.[lm-eval]' in a checkout of reasonalloc"
SCORED = ("cache", "full")

# Options of lm_eval's own model that go on to it; those that say how to load a model are not among them.
PASSED_ON = (
    "add_bos_token", "prefix_token_id", "truncation", "max_length", "think_end_token", "enable_thinking",
    "chat_template_args",
)  # fmt: skip


class ArgumentError(ValueError):
    """Model arguments that cannot be used; one line."""


@dataclass(frozen=True)
class Arguments:
    """Model arguments that fit together.

    config: of every cache. dtype: a key of `models.DTYPES`. rows: in a batch. scored: one of `SCORED`. passed_on:
    options of lm_eval's own model.
    """

    config: Config
    dtype: str
    rows: int
    scored: str
    passed_on: dict[str, object]


def check(*, dtype: str, batch_size: int | str | None, loglikelihood: str, settings: Mapping[str, object]) -> Arguments:
    """settings: fields of `ra.Config` (profile: a WaveProfile or its file) and options in `PASSED_ON`.

    Raises ArgumentError naming what was given and what is allowed.
    """
    names = {field.name for field in fields(Config)}
    unknown = sorted(set(settings) - names - set(PASSED_ON))
    if unknown:
        raise ArgumentError(
            f"unknown model argument {unknown[0]!r}; allowed are pretrained, dtype, device, loglikelihood,"
            f" {', '.join(PASSED_ON)} and the fields of ra.Config: {', '.join(x.name for x in fields(Config))}"
        )
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if loglikelihood not in SCORED:
        raise ArgumentError(f"loglikelihood must be one of {', '.join(SCORED)}, got {loglikelihood!r}")
    return Arguments(
        _config({name: value for name, value in settings.items() if name in names}),
        dtype,
        _rows(batch_size),
        loglikelihood,
        {name: value for name, value in settings.items() if name in PASSED_ON},
    )


def _rows(batch_size: int | str | None) -> int:
    text = "1" if batch_size is None else str(batch_size)
    if not text.isdecimal() or not int(text):
        raise ArgumentError(f"batch_size must be a whole number from 1 ('auto' is not supported), got {batch_size!r}")
    return int(text)


def _config(given: dict[str, Any]) -> Config:
    try:
        if isinstance(given.get("profile"), str):
            given["profile"] = WaveProfile.load(given["profile"])
        return Config(**given)
    except OSError as error:
        name = next((x for x in ("profile", "calibration") if isinstance(given.get(x), str)), "options")
        raise ArgumentError(f"{name} {given.get(name)!r} cannot be read: {error.strerror or error}") from error
    except (TypeError, ValueError) as error:
        raise ArgumentError(str(error)) from error
