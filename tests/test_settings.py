from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import Field, NonNegativeFloat, PositiveInt, ValidationError

from rllib_exit.settings import Fraction, LoRASettings, TrainingSettings
from rllib_exit.settings_group import Settings, allowed_values, check, unknown_name


class Example(Settings):
    """An example."""

    count: Annotated[int, Field(ge=2)] = 2
    limit: PositiveInt | None = None
    share: Fraction = 0.5
    part: Annotated[float, Field(gt=0, lt=1)] = 0.5
    size: NonNegativeFloat | Literal["auto"] = "auto"
    any_number: float = 0.0
    kind: Literal["a", "b"] = "a"
    on: bool = False
    text: str | None = None
    options: dict[str, Any] = {}


def made(**values: Any) -> Example:
    return Example(**values)


def message(**values: Any) -> str:
    with pytest.raises(ValueError) as error:
        Example(**values)
    assert "\n" not in str(error.value) and not isinstance(error.value, ValidationError)
    return str(error.value)


def test_a_bad_field_is_named_with_value_and_mend():
    check(SimpleNamespace(lr=1), "lr", True, "use 1")
    with pytest.raises(ValueError, match="lr is 'fast': use 1"):
        check(SimpleNamespace(lr="fast"), "lr", False, "use 1")


def test_integers():
    assert made(count=2).count == 2 and made(count=np.int64(3)).count == 3
    assert type(made(count=np.int64(3)).count) is int
    for value in (1, np.int64(1), True, 2.0, "2", None, np.float64(2)):
        assert message(count=value) == f"count is {value!r}: use an integer of 2 or more"


def test_numbers():
    for value in (0, 1, 1.0, np.float32(0.5), np.int64(1)):
        assert made(share=value).share == value
        assert type(made(share=value).share) is float
    for value in (-0.1, 1.1, True, "1", None, float("nan"), float("inf")):
        assert message(share=value) == f"share is {value!r}: use a number in [0, 1]"
    for value in (float("nan"), float("inf"), -float("inf"), np.float64("nan"), False):
        assert message(any_number=value) == f"any_number is {value!r}: use a number"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("limit", 0, "None or an integer of 1 or more"),
        ("part", 1, "a number in (0, 1)"),
        ("size", -1, "a number of 0 or more or 'auto'"),
        ("kind", [object], "one of a, b"),
        ("on", 1, "True or False"),
        ("text", 3, "None or a string"),
        ("options", [], "a dict with strings as keys"),
        ("options", {1: 2}, "a dict with strings as keys"),
    ],
)
def test_what_a_field_takes_follows_from_its_type(name: str, value: Any, words: str):
    assert allowed_values(Example, name) == words
    assert message(**{name: value}) == f"{name} is {value!r}: use {words}"


def test_a_list_is_as_good_as_a_tuple():
    betas: Any = [0, 0.5]
    assert TrainingSettings(adam_betas=betas).adam_betas == (0.0, 0.5)
    betas = [0.9, True]
    with pytest.raises(ValueError, match=r"adam_betas is \[0.9, True\]: use two numbers in \[0, 1\)"):
        TrainingSettings(adam_betas=betas)


def test_a_wrong_name_is_answered_with_those_that_may_be_meant():
    assert message(cuont=3) == "Example has no field 'cuont'; did you mean count?"
    assert unknown_name("x", "field", "prob", ["self_iteration_prob", "lr"]).endswith(
        "did you mean self_iteration_prob?"
    )
    assert unknown_name("x", "field", "zzz", ["lr"]).endswith("see docs/config.md for all of them")


def test_settings_are_taken_from_a_config_and_never_change():
    made = LoRASettings.of(
        SimpleNamespace(lora_r=4, lora_alpha=np.float32(8), lora_target_modules=["q"], lora_sync="merged", lr=1)
    )
    assert (made.lora_r, made.lora_alpha, made.lora_target_modules) == (4, 8.0, ["q"])
    with pytest.raises(ValidationError, match="frozen"):
        made.lora_r = 5  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(made)) == made
    assert made.replace(lora_r=None) == LoRASettings(lora_alpha=8.0, lora_target_modules=["q"], lora_sync="merged")
    with pytest.raises(ValueError, match="lora_alpha is 0: use a number above 0"):
        made.replace(lora_alpha=0)
