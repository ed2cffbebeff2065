"""The board: entries out of results, and the page that shows all entries.

python benchmarks/board/build.py                     ours anew, then the page
python benchmarks/board/build.py RESULTS.json ...    entries of your own results too, as `reasonalloc evaluate accuracy`
                                                     writes them; --by NAME, --data ADDRESS of the chains
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import yaml

from reasonalloc.cli import options, settings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENTRIES = HERE / "entries"
STUDIES = ROOT / "benchmarks" / "studies"
WAVE = "reasonalloc-wave 384"
PARTS = (f"{WAVE} wave=notch-only", f"{WAVE} wave=no-notch")
SPARED = (f"{WAVE} prompt=spared", "reasonalloc 384", "reasonalloc 384 prompt=spared")
# Folders of entries: the file of benchmarks/results, and the cells that are shown; none: all.
OURS: dict[str, tuple[str, tuple[str, ...]]] = {
    "paper": ("paper/ledger", ()),
    "restated": ("restated/accuracy", ()),
    "prompt": ("prompt/prompt", ()),
    "heads": ("heads/heads", ()),
    "recall": ("recall/recall", ()),
    "rlkv": ("rlkv-accuracy/rlkv", ()),
    "table": ("table/table", ()),
    "evidence": ("evidence/evidence", ()),
    "evidence-search": ("evidence-search/evidence-search-part", ()),
    "notch": ("notch/notch", ("full", "rkv 384", WAVE, *PARTS, f"{WAVE} wave=notch-kept-5")),
    "spared": ("notch/spared", SPARED),
    "order": ("order/notch", ("full", "rkv 384", WAVE, f"{WAVE} wave=notch-kept-5")),
}
US = "the reasonalloc authors"


def entries(
    results: dict[str, Any], commit: str, by: str, data: str, cells: tuple[str, ...] = (), study: Path | None = None
) -> dict[str, dict[str, Any]]:
    """An entry for each row of an accuracy's JSON, by the name of its file.

    cells: that are wanted; none: all. study: the file that made the results, where one did."""
    made = results["provenance"]
    plan, machines, found = plan_of(made, study), machines_of(made), {}
    for row in results["rows"]:
        if cells and row["cell"] not in cells:
            continue
        method, settings, variant, own = cell_of(row, made, plan)
        found[re.sub(r"[^a-z0-9.=-]+", "-", row["cell"].lower())] = {
            "schema": 2,
            "model": {"name": made["model"], "revision": made["weights"], "dtype": made["dtype"]},
            "task": {
                "name": made["task"],
                "setting": ", ".join(x for x in row["groups"] if x),
                "problems": row["problems"],
                "samples": row["samples"],
                "seed": made["seed"],
                "temperature": made["temperature"],
                "top_p": made["top_p"],
                "max_new_tokens": made["max_new_tokens"],
            },
            "method": {
                "name": method,
                "budget": row["budget"],
                "ratio": row["ratio"],
                "settings": settings | ({"variant": variant} if variant else {}),
                "own": own,
            },
            "bytes": {"mean": round(row["mean_bytes"]), "peak": row["peak_bytes"]},
            "score": {"metric": "pass@1"} | {name: round(row["accuracy"][name], 6) for name in ("mean", "low", "high")},
            "chains": {"tokens": round(row["tokens"], 1), "cut_off": row["truncated"]},
            "machines": machines,
            "versions": made["versions"],
            "command": made["command"],
            "commit": commit,
            "created": made["created"],
            "by": by,
            "data": data,
        }
    return found


def machines_of(made: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that made the chains, each once; where the results do not say, that which made the tables."""
    every = [x["machine"] for x in made.get("runs", [])] or [made["machine"]]
    found = [{name: x[name] for name in ("processor", "cpus", "gpus")} for x in every]
    return [x for i, x in enumerate(found) if x not in found[:i]]


def plan_of(made: dict[str, Any], study: Path | None) -> dict[str, Any]:
    """What a study file says of its cells; nothing for results that none made."""
    if "study" not in made:
        return {}
    path = study or STUDIES / made["study"]
    text = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(text).hexdigest() != made["study_sha256"]:
        raise SystemExit(f"{path} is not the study that made the results: name it by --study FILE")
    return dict(yaml.safe_load(text))


def cell_of(
    row: dict[str, Any], made: dict[str, Any], plan: dict[str, Any]
) -> tuple[str, dict[str, Any], str, dict[str, Any]]:
    """Method, what all cells of the results have set, what tells a row from others of its method, and its settings."""
    if not plan:
        return row["method"], settings_of(made["command"], made["task"]), " ".join(row["cell"].split()[2:]), {}
    label, common = row["cell"].split()[0], plan.get("config", {})
    own = {**common, **plan["cells"][label]}
    settings = {key: value for key, value in own.items() if key in common or key == "keep_prompt"}
    said = {*settings, "method", "budget", "ratio", "max_bytes"}
    more = {key: value for key, value in own.items() if key not in said}
    return own["method"], {k: x for k, x in settings.items() if x is not False}, label if more else "", more


def settings_of(command: str, task: str) -> dict[str, Any]:
    """What a command says of every cell's cache."""
    words = shlex.split(command)
    given = options.settings_of(_cache_options().parse_known_args(words)[0])
    # `paper` keeps the prompt of ledger's problems unless told otherwise
    if task == "ledger" and (words[1:2] == ["paper"] or Path(words[0]).name == "paper.py"):
        given = {"keep_prompt": True} | given
    return {key: x for key, x in given.items() if x is not False}


def _cache_options() -> argparse.ArgumentParser:
    """The command line's own, abbreviated or not; what is not of the cache is left."""
    parser = argparse.ArgumentParser(add_help=False)
    for add in (options.add_interval, options.add_keep_prompt, options.add_alpha, options.add_profile, settings.add):
        add(parser)
    return parser


def commit_of(path: Path) -> str | None:
    """That which last changed a file of this repository; None outside of git."""
    command = ["git", "log", "-1", "--format=%H", "--", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def write(folder: Path, made: dict[str, dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, entry in made.items():
        (folder / f"{name}.json").write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")


def page() -> str:
    every = [json.loads(x.read_text(encoding="utf-8")) for x in sorted(ENTRIES.rglob("*.json"))]
    data = json.dumps(every, separators=(",", ":")).replace("<", "\\u003c")  # it could end the element that holds it
    return (HERE / "template.html").read_text(encoding="utf-8").replace("/*DATA*/", data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULTS.json")
    parser.add_argument("--by", help="who measured them")
    parser.add_argument("--data", help="address of the chains")
    parser.add_argument("--commit", default=commit_of(ROOT), help="of the code that ran (this checkout's)")
    parser.add_argument("--study", type=Path, metavar="FILE", help="that made them, if it was a study file of your own")
    args = parser.parse_args()
    if args.results and not (args.by and args.data and args.commit):
        parser.error("results of your own need --by, --data and, outside of a git checkout, --commit")
    for folder, (name, cells) in OURS.items():
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        if commit := commit_of(path):  # without git ours stay as they are
            data = f"benchmarks/results/{Path(name).parent}"
            write(ENTRIES / folder, entries(json.loads(path.read_text()), commit, US, data, cells))
    for path in args.results:
        folder = re.sub(r"[^a-z0-9-]+", "-", f"{args.by}-{path.resolve().parent.name}".lower())
        results = json.loads(path.read_text())
        write(ENTRIES / folder, entries(results, args.commit, args.by, args.data, study=args.study))
    (HERE / "index.html").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
