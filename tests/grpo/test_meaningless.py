from __future__ import annotations

from typing import Any

import pytest

from rllib_exit.grpo.config import GRPOConfig


@pytest.mark.parametrize(
    ("method", "arguments", "said"),
    [
        ("training", {"gamma": 0.9}, "gamma is 0.9: an episode has one return"),
        ("training", {"train_batch_size": 64}, "train_batch_size is 64: .* use prompts_per_batch"),
        ("training", {"train_batch_size_per_learner": 64}, "train_batch_size_per_learner is 64: .*prompts_per_batch"),
        ("env_runners", {"explore": False}, "explore is False: .* use temperature"),
        ("env_runners", {"rollout_fragment_length": 7}, "rollout_fragment_length is 7: "),
        ("evaluation", {"evaluation_duration": 7}, "evaluation_duration is 7: evaluation plays every task"),
    ],
)
def test_what_means_nothing_is_refused_with_what_to_use(method: str, arguments: dict[str, Any], said: str) -> None:
    config: Any = GRPOConfig().language_model("m").curriculum("exit", embedding_model="m")
    config.validate()
    with pytest.raises(ValueError, match=said):
        getattr(config, method)(**arguments).validate()


def test_the_models_name_is_model_name() -> None:
    config: Any = GRPOConfig().language_model("m").curriculum("exit", embedding_model="m")
    config.model = "foo"
    with pytest.raises(ValueError, match="model is 'foo': the model's name is model_name"):
        config.validate()
