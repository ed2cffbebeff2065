"""docs/pictures.py: the pictures that are kept are of the results that are kept."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs" / "results.md"


def test_pictures_are_of_these_results(tmp_path):
    """`python docs/pictures.py` draws them anew."""
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(ROOT / "docs"))
    import pictures

    pictures.main(tmp_path)
    for name in pictures.PICTURES:
        drawn, kept = ((folder / name).read_bytes() for folder in (tmp_path, ROOT / "docs"))
        source = [re.search(rb"benchmarks/results/\S+ sha256 [0-9a-f]{64}", x) for x in (drawn, kept)]
        assert source[0] and source[1] and source[0][0] == source[1][0], name
        for page in (README, DOCS):
            assert f"{name})" in page.read_text(encoding="utf-8")


def test_labels_that_are_close_are_moved_apart():
    sys.path.insert(0, str(ROOT / "docs"))
    import pictures

    assert pictures.spread([1.0, 5.0], 2.0) == [1.0, 5.0]
    assert pictures.spread([1.0, 1.0, 9.0], 2.0) == [0.0, 2.0, 9.0]
    assert pictures.spread([0.0, 1.0, 2.0], 2.0) == [-1.0, 1.0, 3.0]
