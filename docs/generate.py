"""Pages and tables that say what the code says: methods, models, commands, figures of a cache.

`python docs/generate.py` renews the marked tables of README.md and docs/; tests hold that they are up to date. The site
(docs/hooks.py) makes the pages of systems and of the reference from here.
"""

from __future__ import annotations

import argparse
import inspect
import io
import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

import reasonalloc as ra
from reasonalloc.cli import parser
from reasonalloc.hf.architectures import as_markdown, groups
from reasonalloc.methods import METHODS
from reasonalloc.policy.heads import HEADS
from reasonalloc.policy.layers import LAYERS
from reasonalloc.policy.registry import Part, Registry
from reasonalloc.policy.scorers import SCORERS
from reasonalloc.policy.setting import Choice, Flag, Range

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SYSTEMS = yaml.safe_load((ROOT / "docs" / "systems.yaml").read_text(encoding="utf-8"))
# Tables of answers, the task and its setting that each is of.
ANSWERS = {"paper/ledger.json": "*doubting*, prompt kept", "restated/accuracy.json": "*restated*, prompt kept"}
STUDIES = ("evidence", "newer")  # their cells that are a method as it is, but for the prompt, are shown too


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(cell, x))} |" for x in lines) + "\n"


# ---- methods ---------------------------------------------------------------------------------------------------------


def doc(name: str) -> str:
    """A method's docstring."""
    return inspect.cleandoc(METHODS[name].__doc__ or "")


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence, without it."""
    flat = " ".join(text.split("\n\n")[0].split())
    return re.split(r"\.(?= [A-Z]|$)", flat)[0]


def part(name: str, kind: str) -> object:
    """A method's part: its name, or the part where the method has one of its own."""
    own = next(f for f in fields(METHODS[name]) if f.name == kind)
    return own.default if own.default_factory is MISSING else own.default_factory()


def part_class(value: object, registry: Registry[Any]) -> type[Part] | None:
    """Of a method's part; None where the method's own code takes its place."""
    if isinstance(value, str):
        return registry.classes.get(value)
    return type(value) if isinstance(value, Part) else None


def part_name(value: object) -> str:
    """A part's name, and the settings that the method gives it."""
    if not isinstance(value, Part):
        return f"`{value}`"
    own = [f for f in fields(value) if f.default is not MISSING and getattr(value, f.name) != f.default]
    return f"`{value.name}`" + "".join(f", {f.name} {getattr(value, f.name)}" for f in own)


def every(name: str) -> str:
    """When a method cuts."""
    method = METHODS[name]
    if method.unlimited:
        return "never"
    interval = next(f.default for f in fields(method) if f.name == "interval")
    return "every token" if interval == 1 else f"every {interval} tokens"


def methods_table(link: str = "") -> str:
    """link: where a method's page is, "{}" its name; none without it."""
    rows = [
        [f"[`{x}`]({link.format(x)})" if link else f"`{x}`", first_sentence(doc(x)), every(x)] for x in ra.methods()
    ]
    return table(["`method=`", "what it keeps", "cut"], rows)


def part_doc(value: object, registry: Registry[Any]) -> str:
    own = part_class(value, registry)
    return inspect.cleandoc(own.__doc__ or "") if own is not None else ""


def rows_of(file: str) -> list[dict[str, Any]]:
    """Rows of results, each with the dtype that they were made in."""
    found = json.loads((RESULTS / file).read_text())
    return [{**row, "dtype": found["provenance"]["dtype"]} for row in found["rows"]]


def plain_cells(study: str) -> dict[str, tuple[str, str]]:
    """Of a study's cells: the method and the setting of those that are a method as it is, but for prompt and window."""
    plan = yaml.safe_load((ROOT / "benchmarks" / "studies" / f"{study}.yaml").read_text(encoding="utf-8"))
    found = {}
    for label, own in plan["cells"].items():
        said = {**plan.get("config", {}), **own}
        if said.keys() <= {"method", "keep_prompt", "window"}:
            prompt = ", prompt kept" if said.get("keep_prompt") else ", prompt as any other text"
            if METHODS[said["method"]].unlimited:
                prompt = ""
            if "window" in said:
                prompt += f", window {said['window']}"
            found[label] = said["method"], f"*{plan['settings'][0]}*{prompt} (study {study}, seed {plan['seed']})"
    return found


def answers(name: str) -> list[list[str]]:
    """What was measured of a method: setting, budget, right, cut off, mean MB of a row, dtype."""
    chosen = [(setting, row) for file, setting in ANSWERS.items() for row in rows_of(file) if row["method"] == name]
    for study in STUDIES:
        cells = plain_cells(study)
        for row in rows_of(f"{study}/{study}.json"):
            method, setting = cells.get(row["cell"].split()[0], ("", ""))
            if method == name:
                chosen.append((setting, row))
    found = []
    for setting, row in chosen:
        right = row["accuracy"]
        interval = f"{right['mean']:.0%} [{right['low']:.0%}, {right['high']:.0%}]"
        budget = "all" if row["budget"] is None else str(row["budget"])
        size = f"{row['mean_bytes'] / 1e6:.1f}"
        found.append([setting, budget, interval, f"{row['truncated']:.0%}", size, row["dtype"]])
    return found


def needs(name: str) -> dict[str, str]:
    """Files that a method cannot do without, by the setting that names each, as on the command line."""
    found = {f"options.{file}": f"{file}.tsv" for file in METHODS[name].files}
    if part(name, "scorer") == "triattention":
        found["calibration"] = "calibration.safetensors"
    return found


def measure(name: str) -> str:
    """The command that measures a method."""
    files = "".join(f" --set {setting}={file}" for setting, file in needs(name).items())
    return f"reasonalloc evaluate accuracy --methods full,{name}{files}"


def system_page(name: str) -> str:
    """One method: what it keeps and why, its parts, what was measured."""
    lines = [f"# {name}\n", doc(name) + "\n", "## Parts\n"]
    rows = []
    for kind, registry in (("scorer", SCORERS), ("layers", LAYERS), ("heads", HEADS)):
        value = part(name, kind)
        rows.append([kind, part_name(value), part_doc(value, registry)])
    rows.append(["cut", every(name), "the prefill is never made smaller; the first cut comes right after it"])
    if METHODS[name].unlimited:
        lines.append("It has no parts: nothing is scored or cut.\n")
    else:
        lines.append(table(["part", "name", "what it does"], rows))
    lines.append(f"## Cost\n\n{cost(name)}\n")
    lines.append("## Use\n")
    sized = not METHODS[name].unlimited and getattr(part(name, "layers"), "sized", True)
    size = ", budget=256" if sized else ""
    files = needs(name)
    if options := {x.removeprefix("options."): file for x, file in files.items() if x.startswith("options.")}:
        size += f", options={json.dumps(options)}"
    size += "".join(f', {x}="{file}"' for x, file in files.items() if "." not in x)
    lines.append(f'```python\nimport reasonalloc as ra\n\nconfig = ra.Config(method="{name}"{size})\n```\n')
    measured = answers(name)
    lines.append("## Measured here\n")
    if measured:
        lines.append(
            "Answers of `ledger-135m`, a small reasoner, to problems of its own task: read the order of"
            " methods, not the level ([all results](../results.md)).\n"
        )
        head = ["task", "slots a head", "right [95 %]", "chains cut off", "mean MB of a row", "dtype"]
        lines.append(table(head, measured))
    else:
        lines.append(f"Nothing yet. `{measure(name)}` measures it.\n")
    lines += [f"{text}\n" for text in [SYSTEMS["remarks"].get(name)] if text]
    published = SYSTEMS["published"].get(name, [])
    lines.append("## Published\n")
    lines += [f"- {text}" for text in published] or ["No figure of a reasoning model was found that we could check."]
    if published:
        lines.append("\nOf other models, tasks and machines than ours: not to be compared with the figures above.")
    lines.append("")
    lines.append(f"Code: [methods/{METHODS[name].__module__.rpartition('.')[2]}.py](../../{source(name)})\n")
    return "\n".join(lines)


def statistics(scorer: str) -> tuple[list[str], bool]:
    """What a scorer in C keeps of each slot, by the names of csrc/stat, and whether it asks for the newest queries."""
    for path in sorted((ROOT / "csrc" / "scorer").glob("*.c")):
        for found in re.finditer(r"const ra_scorer ra_scorer_\w+ = \{(.*?)\};", path.read_text(encoding="utf-8"), re.S):
            if f'.name = "{scorer}"' in found[1]:
                own = re.findall(r"RA_STAT_(\w+)", found[1])
                return [x.lower().replace("_", "-") for x in own], ".queries = true" in found[1]
    raise ValueError(f"csrc/scorer has no {scorer!r}")


def cost(name: str) -> str:
    """What a method keeps beside keys and values, and when it works."""
    if METHODS[name].unlimited:
        return "Keys and values of every token, and attention over all of them."
    core = getattr(part_class(part(name, "scorer"), SCORERS), "core", None)
    if core is None:
        return "Its score is a function in Python, called for each head at each cut."
    kept, queries = statistics(core)
    lines = [f"- {x}: {SYSTEMS['costs'][x]}" for x in kept]
    lines += [f"- {text}" for text in [SYSTEMS["scorers"].get(core)] if text]
    if queries:
        lines.append("- the queries of the newest `window` tokens of each head; at a cut their products with all keys")
    if not lines:
        lines.append("- nothing is kept of a slot but its position (4 bytes)")
    head = "Beside keys and values (2 x head size numbers a slot):"
    return f"{head}\n\n" + "\n".join(lines) + '\n\nSeconds of each part are in `stats()["seconds"]`.'


def source(name: str) -> str:
    return str(Path(inspect.getfile(METHODS[name])).relative_to(Path(ra.__file__).parents[1]))


def systems_page() -> str:
    return (
        "# Systems\n\nEach is one file of `reasonalloc/methods`; this table and the pages behind it are made from its"
        " docstring, its parts and the results that lie in the repository.\n\n"
        + methods_table("{}.md")
        + "\nEvery scorer goes with every allocator, and a [method of your own](../methods.md) is a small class.\n"
    )


# ---- models ----------------------------------------------------------------------------------------------------------

_KNOWN = [
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "mistral",
    "ministral3",
    "mixtral",
    "phi3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "gpt_oss",
    "deepseek_v3",
    "olmo2",
    "granite",
    "glm4",
    "qwen3_5_text",
    "jamba",
    "qwen3_next",
    "smollm3",
    "llama4_text",
    "bart",
    "whisper",
    "falcon",
    "mamba",
    "deepseek_v32",
    "gpt2",
]


def models_table() -> str:
    """Families of transformers by what is known of them, the well-known ones by name."""
    words = {"supported": "work", "limited": "work, with a note", "refused": "do not"}
    rows = []
    for state, word in words.items():
        kinds = [kind for known, each in groups().items() if known.state == state for kind in each]
        shown = [x for x in kinds if x in _KNOWN]
        rows.append([f"**{len(kinds)} {word}**", ", ".join(f"`{x}`" for x in shown) + ", ..."])
    return table(["models", "[all of them and the notes](docs/models.md); `ra.supports(model)` says it of yours"], rows)


# ---- reference -------------------------------------------------------------------------------------------------------


def commands(found: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Of the command line, those with commands below them too."""
    if path:
        yield path
    for action in found._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, each in action.choices.items():
                yield from commands(each, (*path, name))


def cli_page() -> str:
    """Help of every command, as the terminal shows it."""
    lines = ["# Command line\n", "What `reasonalloc COMMAND --help` prints.\n"]
    for path in commands(parser()):
        out = io.StringIO()
        with redirect_stdout(out), suppress(SystemExit):
            parser().parse_args([*path, "--help"])
        lines += [f"## {' '.join(path)}\n", f"```text\n{out.getvalue().rstrip()}\n```\n"]
    return "\n".join(lines)


def types_of(cls: type) -> list[list[str]]:
    """Names of a class's annotations with their types."""
    hints = get_type_hints(cls).items()
    return [[f"`{name}`", f"`{x.__name__ if isinstance(x, type) and not get_args(x) else x}`"] for name, x in hints]


def allowed_values(allowed: object) -> str:
    """What a setting may be."""
    match allowed:
        case Range():
            ends = (f"{x:,}" if isinstance(x, int) else f"{x:g}" for x in (allowed.least, allowed.most))
            return f"{' to '.join(ends)}{', odd' if allowed.odd else ''}"
        case Choice():
            return " or ".join(f"`{text!r}`" for text in allowed.texts)
        case Flag():
            return "true or false"
    return ""


def stats_page() -> str:
    from reasonalloc.hf.stats import CacheStats, Seconds

    rows, seconds = types_of(CacheStats), types_of(Seconds)
    about = inspect.cleandoc(CacheStats.__doc__ or "")
    return (
        f"# Figures of a cache: stats()\n\n{about}\n\n{table(['key', 'type'], rows)}\n## seconds\n\n"
        f"{inspect.cleandoc(Seconds.__doc__ or '')}\n\n{table(['key', 'type'], seconds)}"
    )


def header_page() -> str:
    """The C library's manual, which is its header."""
    text = (ROOT / "csrc" / "include" / "reasonalloc.h").read_text(encoding="utf-8")
    return (
        "# The C library: reasonalloc.h\n\nThe header is the manual. [Driving it from an engine](../engine.md) is a"
        f" guide, [examples/engine.c](../../examples/engine.c) a program.\n\n```c\n{text}```\n"
    )


def config_page() -> str:
    rows = []
    for f in fields(ra.Config):
        default = "{}" if f.name == "options" else repr(f.default)
        rows.append([f"`{f.name}`", f"`{f.type}`", f"`{default}`", allowed_values(f.metadata.get("allowed"))])
    return (
        "# Settings: ra.Config\n\nOn the command line a field is `--set NAME=VALUE`, one of the options `--set"
        " options.NAME=VALUE`, where the command has no option of its own for it (`--help` lists which).\n\n"
        + table(["field", "type", "default", "allowed"], rows)
        + f"\n```text\n{inspect.cleandoc(ra.Config.__doc__ or '')}\n```\n"
    )


# ---- tables in files -------------------------------------------------------------------------------------------------

BLOCKS = {
    ("README.md", "methods"): methods_table,
    ("README.md", "models"): models_table,
    ("docs/models.md", "architectures"): as_markdown,
}


def renewed(text: str, name: str, block: str) -> str:
    """A page with the table between <!-- name --> and the next blank line made anew. ValueError if there is none."""
    pattern = re.compile(rf"(<!-- {name} -->\n)(?:\|[^\n]*\n)*")
    if not pattern.search(text):
        raise ValueError(f"no <!-- {name} --> there")
    return pattern.sub(lambda x: x[1] + block, text, count=1)


def main() -> None:
    for (page, name), make in BLOCKS.items():
        path = ROOT / page
        path.write_text(renewed(path.read_text(encoding="utf-8"), name, make()), encoding="utf-8")


if __name__ == "__main__":
    main()
