from __future__ import annotations

from typing import Any

import pytest

from rllib_exit.curriculum.exit import STRATEGIES
from rllib_exit.grpo.grpo_config import GRPOConfig


def config(**fields: Any) -> GRPOConfig:
    made = GRPOConfig().language_model("bundled:smollm2-135m-instruct").curriculum("exit", embedding_model="m")
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_the_defaults_are_valid_once_a_model_is_named() -> None:
    config().validate()


@pytest.mark.parametrize(
    ("field", "value", "mend"),
    [
        ("model_name", None, "name a model"),
        ("dtype", "float16", "use 'float32' or 'bfloat16'"),
        ("rollouts_per_prompt", 1, "at least 2 rollouts"),
        ("prompts_per_batch", 0, "1 or more"),
        ("max_response_tokens", 4096, "room for a prompt in max_model_len"),
        ("minibatch_size", 0, "None"),
        ("lr", float("nan"), "0 or more"),
        ("kl_coeff", -0.1, "0 or more"),
        ("clip_param", 0.0, "(0, 1)"),
        ("mismatch_clip", 0.0, "above 0"),
        ("ref_update_rate", 1.5, "[0, 1]"),
        ("loss_aggregation", "mean", "sequence_mean"),
        ("temperature", 0.0, "above 0"),
        ("top_p", 0.9, "evaluation_config"),
        ("top_k", 20, "evaluation_config"),
        ("self_iteration_prob", 1.5, "[0, 1]"),
        ("divergence_prob", -0.5, "[0, 1]"),
        ("buffer_size", 10, "min_buffer_size"),
        ("expansions_per_group", 0, "at least 1"),
        ("diversity_metric", "cosine", "edit_distance"),
        ("embedding_model", None, "name a model"),
        ("num_env_runners", 0, "1 or more"),
    ],
)
def test_a_bad_value_is_refused_with_field_value_and_mend(field: str, value: Any, mend: str) -> None:
    with pytest.raises(ValueError) as error:
        config(**{field: value}).validate()
    message = str(error.value)
    assert field in message and str(value) in message and mend in message


def test_evaluation_may_sample_as_it_likes() -> None:
    made = config().evaluation(evaluation_config=GRPOConfig.overrides(temperature=0.0, top_p=0.9, top_k=5))
    evaluation = made.get_evaluation_config_object()
    assert evaluation is not None
    evaluation.validate()


def test_strategies_are_presets_of_one_algorithm() -> None:
    for name, preset in STRATEGIES.items():
        made = GRPOConfig().curriculum(name)
        assert made.curriculum_config() == preset
    with pytest.raises(ValueError, match="strategy is 'ppo': use one of grpo, curriculum, improve, diverge, exit"):
        GRPOConfig().curriculum("ppo")


def test_a_config_survives_a_copy_and_a_round_trip() -> None:
    made = config(prompts_per_batch=7)
    assert made.copy().prompts_per_batch == 7
    assert GRPOConfig.from_state(made.get_state()).prompts_per_batch == 7
