import inspect
from typing import Any

import pytest

from envs.bfcl.calls import bind, parse_ground_truth
from envs.tool_use.calls import Call


def cp(source: str, destination: str = ".", tags: list[str] = []) -> None: ...  # noqa: B006


CP = inspect.signature(cp)


def test_bind_fills_in_the_defaults():
    assert bind(Call("cp", {"source": "a"}), CP) == Call("cp", {"source": "a", "destination": ".", "tags": []})


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ({}, "missing a required argument: 'source'; cp takes source, destination, tags"),
        ({"source": "a", "self": 1}, "unexpected keyword argument 'self'"),
        ({"source": "a", "args": [], "kwargs": {}}, "unexpected keyword argument"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(args: dict[str, Any], problem: str):
    with pytest.raises(ValueError, match=problem):
        bind(Call("cp", args), CP)


@pytest.mark.parametrize("text", ["cp('a', 'b')", "cp('a', destination='b')", " cp(destination='b',source='a')"])
def test_ground_truth_arguments_get_their_names(text: str):
    assert parse_ground_truth(text, {"cp": CP}) == Call("cp", {"source": "a", "destination": "b"})


@pytest.mark.parametrize("text", ["cp(open('a'))", "cp(source=1 + x)", "rm('a')", "os.remove('a')", "cp"])
def test_ground_truth_is_not_evaluated(text: str):
    with pytest.raises(ValueError):
        parse_ground_truth(text, {"cp": CP})
