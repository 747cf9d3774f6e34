import pytest

from envs.prompts import DIVERGE, IMPROVE, self_iteration_prompt


def test_the_two_requests():
    assert self_iteration_prompt("improve") == IMPROVE
    assert self_iteration_prompt("diverge") == DIVERGE
    assert "different approach" in DIVERGE and "different approach" not in IMPROVE


@pytest.mark.parametrize("kind", ["improve", "diverge"])
def test_feedback_comes_first(kind: str):
    prompt = self_iteration_prompt(kind, "Traceback: {x} %s")
    assert "Traceback: {x} %s" in prompt.split("\n\n")[0]
    assert prompt.endswith(self_iteration_prompt(kind))


def test_no_feedback_leaves_no_trace():
    assert self_iteration_prompt("improve", "") == IMPROVE


@pytest.mark.parametrize("kind", ["base", "", "IMPROVE"])
def test_an_unknown_kind_is_named(kind: str):
    with pytest.raises(ValueError, match=f"'{kind}'.*'improve' or 'diverge'"):
        self_iteration_prompt(kind)
