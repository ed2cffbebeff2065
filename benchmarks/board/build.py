"""The board: entries out of results, and the page that shows all entries.

python benchmarks/board/build.py                     ours anew, then the page
python benchmarks/board/build.py RESULTS.json ...    entries of your own results too, as `reasonalloc evaluate accuracy`
                                                     writes them; --by NAME, --data ADDRESS of the chains
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENTRIES = HERE / "entries"
OURS = ("paper/ledger", "restated/accuracy")  # of benchmarks/results
US = "the reasonalloc authors"


def entries(results: dict[str, Any], commit: str, by: str, data: str) -> dict[str, dict[str, Any]]:
    """An entry for each row of an accuracy's JSON, by the name of its file."""
    made = results["provenance"]
    machine = {name: made["machine"][name] for name in ("processor", "cpus", "gpus")}
    settings, found = settings_of(made["command"], made["task"]), {}
    for row in results["rows"]:
        variant = row["cell"].split()[2:]
        found[re.sub(r"[^a-z0-9.=-]+", "-", row["cell"].lower())] = {
            "schema": 1,
            "model": {"name": made["model"], "revision": made["weights"], "dtype": made["dtype"]},
            "task": {
                "name": made["task"],
                "setting": ", ".join(x for x in row["groups"] if x),
                "problems": row["problems"],
                "samples": row["samples"],
                "temperature": made["temperature"],
                "top_p": made["top_p"],
                "max_new_tokens": made["max_new_tokens"],
            },
            "method": {
                "name": row["method"],
                "budget": row["budget"],
                "ratio": row["ratio"],
                "settings": settings | ({"variant": " ".join(variant)} if variant else {}),
            },
            "bytes": {"mean": round(row["mean_bytes"]), "peak": row["peak_bytes"]},
            "score": {"metric": "pass@1"} | {name: round(row["accuracy"][name], 6) for name in ("mean", "low", "high")},
            "chains": {"tokens": round(row["tokens"], 1), "cut_off": row["truncated"]},
            "machine": machine,
            "versions": made["versions"],
            "command": made["command"],
            "commit": commit,
            "created": made["created"],
            "by": by,
            "data": data,
        }
    return found


def settings_of(command: str, task: str) -> dict[str, Any]:
    """What a command says of every cell's cache."""
    words = shlex.split(command)
    found: dict[str, Any] = {}
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word in ("--interval", "--alpha"):
            found[word.removeprefix("--")] = float(value)
        elif word == "--set":
            key, _, text = value.partition("=")
            found[key] = text
    # `paper` keeps the prompt of ledger's problems unless told otherwise
    if "--keep-prompt" in words or ("paper" in command and task == "ledger" and "--drop-prompt" not in words):
        found["keep_prompt"] = True
    return found


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
    args = parser.parse_args()
    if args.results and not (args.by and args.data and args.commit):
        parser.error("results of your own need --by, --data and, outside of a git checkout, --commit")
    for name in OURS:
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        if commit := commit_of(path):  # without git ours stay as they are
            data = f"benchmarks/results/{Path(name).parent}"
            write(ENTRIES / name.split("/")[0], entries(json.loads(path.read_text()), commit, US, data))
    for path in args.results:
        folder = re.sub(r"[^a-z0-9-]+", "-", f"{args.by}-{path.resolve().parent.name}".lower())
        write(ENTRIES / folder, entries(json.loads(path.read_text()), args.commit, args.by, args.data))
    (HERE / "index.html").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
