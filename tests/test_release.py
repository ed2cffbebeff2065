"""What a release is made of: the source distribution, the workflow, README as an index shows it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from reasonalloc.lab import models

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import absolute  # noqa: E402

LEFT_OUT = re.compile(r"\.gitignore|training/runs/.*|docs/repository/.*")  # of the source distribution
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.slow
def test_the_source_distribution_is_complete(tmp_path):
    pytest.importorskip("build")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not listed:
        pytest.skip("not a checkout")
    copy = tmp_path / "checkout"  # as setuptools leaves files beside the sources
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(copy)]
    subprocess.run(command, capture_output=True, check=True)
    (archive,) = tmp_path.glob("reasonalloc-*.tar.gz")
    with tarfile.open(archive) as file:
        packed = {x.name.partition("/")[2] for x in file.getmembers()}
    missing = {x for x in listed.splitlines() if (copy / x).exists() and not LEFT_OUT.fullmatch(x)} - packed
    assert not missing
    assert not [x for x in packed if x.endswith((".so", ".pyc"))]


@pytest.mark.slow
def test_the_adapter_is_a_wheel_of_its_own(tmp_path):
    """Built, unpacked, and found by a reasonalloc that lies elsewhere; without it the error says what to install."""
    pytest.importorskip("build")
    shutil.copytree(ROOT / "ledger", tmp_path / "ledger", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), "ledger"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("reasonalloc_ledger-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    cards = tmp_path / "site" / "reasonalloc_ledger"
    for name in models.REASONERS.values():
        ours = ROOT / "ledger/reasonalloc_ledger" / name
        assert {x.name for x in (cards / name).iterdir()} == {x.name for x in ours.iterdir()}
    shutil.copytree(ROOT / "reasonalloc", tmp_path / "own" / "reasonalloc")
    code = (
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'reasonalloc_ledger' and {hide} else found(name, *a)\n"
        "from reasonalloc.lab import models\n"
        "for name in models.REASONERS.values():\n"
        "    print(models.fingerprint(name), models.adapter_folder(name))"
    )
    path = {**os.environ, "PYTHONPATH": f"{tmp_path / 'own'}{os.pathsep}{tmp_path / 'site'}"}
    for hide in (False, True):
        command = [sys.executable, "-P", "-c", code.format(hide=hide)]
        done = subprocess.run(command, env=path, cwd=tmp_path, capture_output=True, text=True, check=False)
        if hide:
            assert done.returncode and "reasonalloc-ledger: pip install ./ledger" in done.stderr
        else:
            told = [f"{models.fingerprint(x)} {cards / x}" for x in models.REASONERS.values()]
            assert done.stdout.splitlines() == told, done.stderr


def test_the_main_wheel_has_no_weights():
    assert not [x for x in (ROOT / "reasonalloc").rglob("*.safetensors")]
    for name in models.REASONERS.values():  # a checkout finds them by itself
        assert models.adapter_folder(name) == ROOT / "ledger/reasonalloc_ledger" / name
    made = json.loads((ROOT / "benchmarks/results/paper/ledger.json").read_text())["provenance"]
    assert models.fingerprint("ledger-135m") == made["weights"]  # chains that are kept are still gone on from


def test_wheels_are_of_the_stable_abi_and_tested():
    wheels = PROJECT["tool"]["cibuildwheel"]
    assert wheels["build"] == "cp311-manylinux_*" and PROJECT["project"]["requires-python"] == ">=3.11"
    assert {wheels[f"manylinux-{x}-image"] for x in ("x86_64", "aarch64")} == {"manylinux_2_28"}
    repair = wheels["linux"]["repair-wheel-command"]
    assert "--strip" in repair[0] and "abi3audit --strict" in repair[1]
    tests = re.findall(r"\{project\}/(\S+)", wheels["test-command"])
    assert tests and all((ROOT / x).is_file() for x in tests)


def test_only_a_tag_is_published_and_only_after_the_checks():
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    publish = jobs["publish"]
    assert publish["needs"] == "check" and publish["if"] == "github.ref_type == 'tag'"
    assert publish["permissions"] == {"id-token": "write"} and publish["environment"] == "pypi"
    assert [x for x in jobs if "permissions" in jobs[x]] == ["publish"]
    checks = " ".join(x.get("run", "") for x in jobs["check"]["steps"])
    assert all(x in checks for x in ("twine check --strict", "abi3audit --strict", "Project-URL: Repository"))
    script = next(x["run"] for x in jobs["sdist"]["steps"] if "docs/" in x.get("run", ""))
    assert (ROOT / script.split()[1]).is_file()


def test_links_of_readme_are_absolute_in_a_release():
    text = "![an image](docs/a.png) [page](docs/a.md#part), [site](https://x.org/x) [here](#start)\n[w\nrap](LICENSE)"
    assert absolute.absolute(text, "https://github.com/o/n/", "abc") == (
        "![an image](https://github.com/o/n/raw/abc/docs/a.png) [page](https://github.com/o/n/blob/abc/docs/a.md#part),"
        " [site](https://x.org/x) [here](#start)\n[w\nrap](https://github.com/o/n/blob/abc/LICENSE)"
    )
    readme = absolute.absolute((ROOT / "README.md").read_text(), "https://github.com/o/n", "abc")
    targets = re.findall(r"\]\(([^)\s]+)\)", readme)
    assert targets and all(x.startswith("https://") for x in targets)
