"""What a release is made of: the source distribution, the workflow, README as an index shows it."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

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
