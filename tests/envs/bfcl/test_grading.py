from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.bfcl.grading import canonical, contained
from envs.tool_use.calls import Call

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, 1.0, 0.5]) | st.sampled_from("ab"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("value", "same"),
    [
        (1, 1.0),
        ([1, [2]], (1.0, (2,))),
        ({"a": 1, "b": [True]}, {"b": (True,), "a": 1.0}),
        (None, None),
        ("a", "a"),
        (10**400, 10**400),
    ],
)
def test_the_same_argument(value: Any, same: Any):
    assert canonical(value) == canonical(same)
    assert hash(canonical(value)) == hash(canonical(same))


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (1, True),
        (0, False),
        (0, None),
        ([1], [True]),
        ({"a": 1}, {"a": True}),
        ("1", 1),
        ("a", ["a"]),
        ([1, 2], [2, 1]),
        ([], {}),
        ([["a", 1]], {"a": 1}),
        ({"a": None}, {}),
        (True, ["bool", True]),
        ([1], ["list", [1]]),
    ],
)
def test_different_arguments(value: Any, other: Any):
    assert canonical(value) != canonical(other)


@given(VALUES, VALUES)
def test_canonical_forms_are_equal_only_for_the_same(value: Any, other: Any):
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, bool) != isinstance(b, bool):
            return False
        if isinstance(a, list) and isinstance(b, list):
            return len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        return a == b

    assert (canonical(value) == canonical(other)) == same(value, other)


A, B, C = Call("f", {"x": 1}), Call("f", {"x": 2}), Call("g", {"x": 1})


@pytest.mark.parametrize(
    ("ground_truth", "made", "expected"),
    [
        ([], [], True),
        ([], [A], True),
        ([A], [], False),
        ([A, B], [B, C, A], True),
        ([A, A], [A], False),
        ([A, A], [A, B, A], True),
        ([A], [B, C], False),
        ([A], [Call("f", {"x": 1.0})], True),
        ([A], [Call("f", {"x": True})], False),
    ],
)
def test_contained(ground_truth: list[Call], made: list[Call], expected: bool):
    assert contained(ground_truth, made) is expected
