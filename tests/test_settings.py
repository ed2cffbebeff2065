"""`--set KEY=VALUE`: every field of ra.Config from the command line."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields

import pytest

import reasonalloc as ra
from reasonalloc.cli import parser, settings
from reasonalloc.cli.options import config_of

# A value other than the default for each field, as text and as it is read.
GIVEN = {
    "method": ("RKV", "rkv"), "budget": ("64", 64), "ratio": ("0.25", 0.25), "max_bytes": ("512M", "512M"),
    "interval": ("32", 32), "window": ("16", 16), "scorer": ("importance", "importance"), "layers": ("wave", "wave"),
    "heads": ("pooled", "pooled"), "keep_prompt": ("yes", True), "sinks": ("4", 4), "alpha": ("0.3", 0.3),
    "threshold": ("0.6", 0.6), "kernel": ("5", 5), "gamma": ("1", 1.0), "lo": ("0.5", 0.5), "hi": ("3", 3.0),
    "mu": ("0.1", 0.1), "safeguard": ("0.3", 0.3), "rho": ("0.9", 0.9), "beta": ("10", 10.0),
    "smoothing": ("0.5", 0.5), "seed": ("3", 3), "device": ("cpu", "cpu"),
}  # fmt: skip


def config(*given: str) -> ra.Config:
    return config_of(parser().parse_args(["generate", "--prompt", "x", *given]))


@pytest.mark.parametrize("field", [x.name for x in fields(ra.Config) if x.name not in ("options", "profile", "method")])
def test_every_field_can_be_given(field):
    text, value = GIVEN.get(field, (None, None))
    if text is None:  # a field that came later: by the type of its default
        default = next(x.default for x in fields(ra.Config) if x.name == field)
        assert default is not MISSING
        text, value = ("none", None) if default is None else (str(default), default)
    size = [] if field in ("budget", "ratio", "max_bytes") else ["--budget", "64"]
    assert getattr(config("--set", f"{field}={text}", *size), field) == value


def test_options_of_a_method_and_a_profile(register, tmp_path):
    @register("with-options")
    @dataclass(frozen=True)
    class WithOptions(ra.Method):
        weights: tuple = ()
        label: str = ""

    wave = ra.WaveProfile((1.0, 2.0), (0, 1), {"model_type": "x"})
    ra.Config("with-options", budget=64)  # it is a method
    path = wave.save_pretrained(tmp_path)
    own = ["--set", "options.weights=[1, 2]", "--set", "options.label=a name", "--set", f"profile={path}"]
    args = parser().parse_args(["generate", "--prompt", "x", "--method", "reasonalloc", "--budget", "64", *own])
    args.method = "with-options"  # the list of the command line is made before a test's own method
    found = config_of(args)
    assert found.options == {"weights": [1, 2], "label": "a name"} and found.profile == wave


def test_several_at_once():
    found = config("--budget", "64", "--set", "keep-prompt=true", "--set", "sinks=none", "--set", "alpha=0.2")
    assert (found.keep_prompt, found.sinks, found.alpha) == (True, None, 0.2)
    for twice in (["options.span=4", "options.span=8"], ["alpha=0.2", "alpha=0.3"], ["keep_prompt=1", "keep-prompt=1"]):
        name = twice[0].partition("=")[0]
        with pytest.raises(ValueError, match=f"--set {twice[1]}: {name} is given twice"):
            settings.parse(twice)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("alpha", "it must be like alpha=0.3"),
        ("alhpa=1", "did you mean alpha?"),
        ("alpha=much", "it must be a number"),
        ("window=1.5", "it must be a whole number"),
        ("keep_prompt=maybe", "it must be true or false"),
        ("alpha=none", "it has no None"),
        ("alpha=3", "alpha must lie between 0 and 1, got 3"),
        ("scorer=nosuch", "'nosuch' is unknown"),
        ("method=rkv", "--method gives it"),
        ("budget=12", "budget is given twice"),
        ("profile=none.json", "'none.json' is no file"),
        ("options.nosuch=1", "has no option 'nosuch'"),
        ("device=gpu", '"cpu" or "model"'),
    ],
)
def test_what_cannot_be_given(given, told):
    with pytest.raises(ValueError) as error:
        config("--budget", "64", "--set", given)
    assert told in str(error.value)


def test_a_command_that_varies_a_field_does_not_take_it():
    for field in settings.VARIED:
        with pytest.raises(ValueError, match="varies it"):
            settings.parse([f"{field}=1"], settings.VARIED)
    assert settings.parse(["options.x=1"], settings.VARIED) == {"options": {"x": 1}}
    with pytest.raises(ValueError, match="this command chooses its own"):
        settings.parse(["options.x=1"], settings.CHOSEN)
