"""What the README shows is true: its code runs, its table of methods is the table, its commands exist."""

import re
from pathlib import Path

import models
import pytest
from test_wave import Words

import reasonalloc as ra
from reasonalloc.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_five_lines_run():
    model, tokenizer = models.tiny(), Words()
    names = {
        "model": model,
        "tokenizer": tokenizer,
        "prompts": ["one two three"],
        "inputs": {"input_ids": models.prompt(300)},
    }
    five = BLOCKS[0].replace("generate(**inputs)", "generate(**inputs, max_new_tokens=4, do_sample=False)")
    exec(five.replace("prompts)", "prompts, max_new_tokens=8, progress=False)"), names)
    stats = names["session"].last_cache.stats()
    assert stats["routings"] == 1
    assert stats["wave"] == "profile"


def test_a_method_of_ones_own_runs(register):
    code, model = BLOCKS[1], models.tiny()
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    names: dict = {"__name__": "readme"}
    exec(code, names)
    for name in ("config", "borrowed"):
        cache = ra.ReasonAllocCache(model, names[name])
        model.generate(models.prompt(200), max_new_tokens=4, do_sample=False, past_key_values=cache)
        assert cache.stats()["evicted"] > 0


def test_the_table_is_the_table():
    section = README.split("## Methods")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)) == ra.methods()


def test_the_commands_exist(capsys):
    listed = re.search(r"`reasonalloc ([a-z |\n]+)`, each with `--help`", README)
    assert listed
    for words in listed[1].split("|"):
        with pytest.raises(SystemExit) as stop:
            main([*words.split(), "--help"])
        assert stop.value.code == 0
        assert "usage" in capsys.readouterr().out
