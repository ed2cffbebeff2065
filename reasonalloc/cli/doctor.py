"""`reasonalloc doctor`: what was found on this machine, and what is supported."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

import torch
from packaging.requirements import Requirement
from packaging.version import Version
from rich.table import Table
from rich.text import Text
from transformers import CONFIG_MAPPING
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from reasonalloc import __version__, _core, uninstall
from reasonalloc.cli import options
from reasonalloc.fingerprint import fingerprint
from reasonalloc.hf import attention
from reasonalloc.hf.architectures import ARCHITECTURES, architecture, groups
from reasonalloc.hf.check import compare
from reasonalloc.hf.compat import NEWEST_TESTED, is_full_attention, stock_layers
from reasonalloc.lab.models import (
    EMBEDDED_INSTALL,
    EMBEDDED_LABEL,
    REASONER_INSTALL,
    REASONER_PACKAGE,
    REASONERS,
    adapter_folder,
    embedded_folder,
    missing_for_embedded,
)
from reasonalloc.protocols import Model
from reasonalloc.store.backends import backend_for


@dataclass(frozen=True)
class Check:
    """state: "ok", "note" (works, but look) or "broken"."""

    what: str
    state: str
    found: str


def run(args: argparse.Namespace) -> int:
    checks = [*_packages(), *_machine(), *_parts(), *_models()]
    if args.model is not None:
        checks += _model(args)
    out = options.console(args)
    styles = {"ok": "green", "note": "yellow", "broken": "red"}
    table = Table(show_header=False, box=None)
    for check in checks:
        table.add_row(Text(check.state, styles[check.state]), check.what, check.found)
    out.print(table, highlight=False)
    broken = sum(x.state == "broken" for x in checks)
    out.print(f"{broken} broken" if broken else "nothing required is broken", highlight=False)
    options.write_json(args.json, {"schema": 1, "ok": not broken, "checks": [asdict(x) for x in checks]})
    return 1 if broken else 0


def _packages() -> Iterator[Check]:
    yield Check("reasonalloc", "ok", f"{__version__}, Python {platform.python_version()}")
    for text in requires("reasonalloc") or []:
        requirement = Requirement(text)
        extra = requirement.marker is not None
        if extra and not requirement.marker.evaluate({"extra": "demo"}):  # type: ignore[union-attr]
            continue
        wanted = f"needs {requirement.specifier}" if requirement.specifier else "any"
        if requirement.name == "transformers":
            wanted += f", newest tested {NEWEST_TESTED}"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Check(requirement.name, "note" if extra else "broken", f"not installed ({wanted})")
            continue
        untested = requirement.name == "transformers" and Version(found) > Version(NEWEST_TESTED)
        fits = requirement.specifier.contains(found, prereleases=True)
        state = "broken" if not (fits or extra) else "note" if untested or not fits else "ok"
        yield Check(requirement.name, state, f"{found} ({wanted})")


def _machine() -> Iterator[Check]:
    usable = list(_core.isas())
    yield Check("instruction sets", "ok", f"{', '.join(usable)}; in use: {_core.isa()}")
    wish = os.environ.get("REASONALLOC_CPU")
    if wish is not None:
        state, note = ("ok", "") if wish in usable else ("note", f", ignored: this machine has {', '.join(usable)}")
        yield Check("REASONALLOC_CPU", state, f"{wish!r}{note}")
    yield Check("threads", "ok", f"{torch.get_num_threads()} of torch, {os.cpu_count()} CPUs")
    built = find_spec("reasonalloc._cuda") is not None
    yield Check("CUDA backend", "ok", "built" if built else "not built (REASONALLOC_CUDA=1 builds it with nvcc)")
    if torch.cuda.is_available():
        try:
            backend = backend_for(torch.device("cuda", torch.cuda.current_device()))
            state, where = "note" if backend.note else "ok", f"caches of models on it: {backend}"
        except ValueError as error:
            state, where = "broken", str(error)
        yield Check("GPU", state, f"{torch.cuda.get_device_name()}; {where}")


def _parts() -> Iterator[Check]:
    try:
        import reasonalloc.ops  # noqa: F401  (registers them)

        x = torch.ones(1, 3, 4)
        share = torch.ops.reasonalloc.redundancy(x, 0.5)
        yield Check(
            "torch operators", "ok" if abs(float(share.sum()) - 1) < 1e-4 else "broken", "torch.ops.reasonalloc"
        )
    except (ImportError, RuntimeError, AttributeError) as error:
        yield Check("torch operators", "broken", str(error).partition("\n")[0] or type(error).__name__)
    registered = attention.NAME in ALL_ATTENTION_FUNCTIONS
    yield Check("attention interface", "ok" if registered else "broken", f"{attention.NAME!r} in transformers")


def _models() -> Iterator[Check]:
    missing = missing_for_embedded()
    found = str(embedded_folder()) if not missing else f"needs {', '.join(missing)}: {EMBEDDED_INSTALL}"
    yield Check(f"model {EMBEDDED_LABEL}", "note" if missing else "ok", found)
    for reasoner in REASONERS.values():
        folder = adapter_folder(reasoner)
        found = str(folder) if folder else f"needs {REASONER_PACKAGE}: {REASONER_INSTALL}"
        yield Check(f"adapter {reasoner}", "ok" if folder else "note", found)
    here = {kind: each for kind, each in ARCHITECTURES.items() if kind in CONFIG_MAPPING}
    for each, kinds in groups(here).items():
        what = {"supported": "models", "limited": "models, with a note", "refused": "models refused"}[each.state]
        yield Check(
            what, "ok", f"{each.note}: {', '.join(kinds)}" if each.note else f"supported, tested: {', '.join(kinds)}"
        )
    yield Check("other models", "ok", "try --model: its logits are compared with those of transformers' cache")


def _model(args: argparse.Namespace) -> Iterator[Check]:
    model, _, label = options.load_model(args)
    try:
        yield Check(f"model {label}", "ok", _shape(model))
        known = architecture(model)
        if known is not None and known.note:
            yield Check("its family", "note" if known.state == "limited" else "broken", known.note)
        found = compare(model)
        supported = f"supported: logits within {found.logits:.1g} of their spread of those with transformers' cache"
        yield Check("its cache", "broken" if found.problem else "ok", found.problem or supported)
    except Exception as error:  # whatever the model's own code raises: a report, not a traceback
        yield Check("its cache", "broken", " ".join(str(error).split()) or type(error).__name__)
    finally:
        uninstall(model)


def _shape(model: Model) -> str:
    shape = fingerprint(model)
    kinds = [is_full_attention(x) for x in stock_layers(model)]
    return (
        f"{shape['model_type']}, {model.dtype}; {sum(kinds)} layers with full attention, {len(kinds) - sum(kinds)}"
        f" others; {shape['query_heads']} query and {shape['kv_heads']} KV heads of size {shape['head_dim']}"
    )
