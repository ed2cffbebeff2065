"""Answers in boxes: which there are, whose they are, whether they are right."""

from __future__ import annotations

import pytest

from reasonalloc.lab.evaluate.grading import boxes, grade

pytest.importorskip("math_verify")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        (r"\boxed{1} and \boxed{2}", ["1", "2"]),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),  # a peer reads "\frac{1"
        (r"\boxed{1} \boxed{2", ["1"]),
        (r"\boxed{3 hmm, no: \boxed{5}", ["5"]),
        (r"\boxed{\left\{1\right.} then \boxed{2}", [r"\left\{1\right.", "2"]),
        ("\\boxed{1\\", []),
    ],
)
def test_boxes(text, found):
    assert boxes(text) == found


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        (r"\boxed{3} no, \boxed{0.5}", [r"\frac{1}{2}"], [True]),
        (r"\boxed{7}", ["8"], [False]),
        ("nothing", ["8"], [False]),
        (r"\boxed{1} \boxed{2}", ["1", "3", "4"], [True, False, False]),
        (r"\boxed{1} \boxed{2} \boxed{9}", ["1", "2"], [True, True]),
        (r"\boxed{x +}", ["8"], [False]),
    ],
)
def test_grade(text, answers, right):
    assert grade(text, answers).right == right


@pytest.mark.parametrize(
    ("text", "given"),
    [
        (r"Don has \boxed{1}. Answer 3: Ida has \boxed{3}. Answer 2: Jo has \boxed{2}.", ["1", "2", "3"]),
        (r"Don has \boxed{1}. Don has \boxed{7}.", ["1", "", ""]),  # the first word counts
        (r"\boxed{1}, \boxed{2}, \boxed{3}", ["1", "2", "3"]),
        (r"Jo, not Joan or Don's: Jo has \boxed{2}, and \boxed{1}", ["1", "2", ""]),
        (r"Joan has \boxed{1}", ["1", "", ""]),
        ("Don has \\boxed{1}. Don has 1.\nAnswer 2: Max has \\boxed{9}", ["1", "9", ""]),  # not a name asked for
        (r"Don has 1. So Ida has 3. All: \boxed{1}, \boxed{2}, \boxed{3}", ["1", "2", "3"]),
    ],
)
def test_boxes_belong_to_whom_they_name(text, given):
    assert grade(text, ["1", "2", "3"], ["Don", "Jo", "Ida"]).answers == given


def test_rules_for_boxes():
    """A chain that runs on after its answers: only the last boxes are of the second round."""
    text = r"Don has \boxed{1}. Jo has \boxed{2}. Again: Don has \boxed{5}."
    found = grade(text, ["1", "2"], ["Don", "Jo"])
    assert (found.answers, found.right, found.again) == (["1", "2"], [True, True], 1)
    assert found.by_rule == {"last": [False, True], "order": [True, True]}
    one = grade(r"\boxed{3}, so \boxed{4}", ["4"])
    assert (one.answers, one.right, one.by_rule, one.again) == (["4"], [True], {"first": [False]}, 1)
    plain = grade(r"\boxed{1}", ["1", "2"])
    assert (plain.answers, plain.right, plain.by_rule, plain.again) == (["1", ""], [True, False], {}, 0)
    assert grade("none", ["1"]).right == [False]
