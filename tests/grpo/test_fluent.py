from __future__ import annotations

import inspect
from typing import Any, Literal

import pytest
from ray import tune
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.tune.search.sample import Float
from ray.tune.search.variant_generator import generate_variants

from rllib_exit.grpo.config import GROUPS, AllSettings, GRPOConfig

METHODS = [
    "language_model", "generation", "training", "deepspeed", "lora", "fault_tolerance", "curriculum",
    "self_improvement", "reporting", "warm_start",
]  # fmt: skip


def test_signature_and_help_show_arguments_types_defaults_and_meanings() -> None:
    parameters = inspect.signature(GRPOConfig.training).parameters
    assert (parameters["clip_param_high"].annotation, parameters["clip_param_high"].default) == (float | None, None)
    assert (parameters["lr"].annotation, parameters["lr"].default) == (float, 1e-6)
    assert parameters["lr"].kind is inspect.Parameter.KEYWORD_ONLY
    strategy = inspect.signature(GRPOConfig.curriculum).parameters["strategy"]
    assert strategy.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert strategy.annotation == Literal["grpo", "curriculum", "improve", "diverge", "exit"]
    assert "\n    lr: The learning rate" in (GRPOConfig.training.__doc__ or "")
    assert "\n    r: The adapters' rank." in (GRPOConfig.lora.__doc__ or "")


def test_every_field_has_its_meaning_and_a_method_of_ours_or_rllibs() -> None:
    ours = {field for name in METHODS for field in vars(GRPOConfig)[name].fields.values()}
    others = {"sharding", "max_policy_lag", "colocated", *GROUPS[-1].model_fields}
    assert ours | others == AllSettings.model_fields.keys()
    assert all(field.description and field.description.endswith(".") for field in AllSettings.model_fields.values())
    assert sum(len(group.model_fields) for group in GROUPS) == len(AllSettings.model_fields)


def test_what_is_not_given_stays_as_it_is() -> None:
    made = GRPOConfig().training(lr=1.0, kl_coeff=0.5).training(lr=2.0)
    assert (made.lr, made.kl_coeff, made.num_epochs) == (2.0, 0.5, 1)
    made = GRPOConfig().language_model("a").language_model(dtype="float32").language_model(model="b")
    assert (made.model_name, made.dtype) == ("b", "float32")
    made.lora(r=2, alpha=3, target_modules=["q"]).self_improvement(steps=7)
    assert (made.lora_r, made.lora_alpha, made.lora_target_modules, made.self_improvement_steps) == (2, 3, ["q"], 7)


def test_a_strategy_comes_before_what_is_given_with_it() -> None:
    made = GRPOConfig().curriculum("curriculum", self_iteration_prob=0.2, embedding_model="m")
    assert (made.strategy, made.self_iteration_prob, made.self_iteration) == ("curriculum", 0.2, False)
    assert made.curriculum(buffer_size=3).strategy == "curriculum"
    assert (made.buffer_size, made.embedding_model) == (3, "m")


def test_rllibs_arguments_go_to_rllib() -> None:
    made = GRPOConfig().training(gamma=0.5, lr=3.0).fault_tolerance(env_runner_restore_timeout_s=9, env_timeout_s=8)
    assert (made.gamma, made.lr, made.env_runner_restore_timeout_s, made.env_timeout_s) == (0.5, 3.0, 9, 8)
    assert made.reporting(min_time_s_per_iteration=1, log_rollouts=True).min_time_s_per_iteration == 1
    assert made.training(**AlgorithmConfig.overrides(gamma=0.6)).gamma == 0.6


@pytest.mark.parametrize(
    ("method", "argument", "said"),
    [
        ("training", "kl_coef", "GRPOConfig.training() has no argument 'kl_coef'; did you mean kl_coeff?"),
        ("training", "gama", "did you mean gamma?"),
        ("generation", "temprature", "did you mean temperature?"),
        ("generation", "kl_coeff", "GRPOConfig.generation() has no argument 'kl_coeff'"),
        ("language_model", "model_nam", "did you mean model"),
        ("deepspeed", "stage", "did you mean zero_stage"),
        ("deepspeed", "sharding", "no argument 'sharding'"),
    ],
)
def test_an_unknown_argument_is_answered_with_those_that_may_be_meant(method: str, argument: str, said: str) -> None:
    made = GRPOConfig()
    with pytest.raises(TypeError) as error:
        getattr(made, method)(**{argument: 1})
    assert said in str(error.value)


def test_a_search_space_may_stand_in_any_field_until_a_trial_resolves_it() -> None:
    made = GRPOConfig().language_model("m").curriculum("exit", embedding_model="m")
    values = {name: getattr(made, name) for name in AllSettings.model_fields}
    for name in AllSettings.model_fields:
        swept: Any = made.copy()
        setattr(swept, name, tune.grid_search([values[name]]))
        [(resolved, config)] = generate_variants(swept.to_dict())
        assert list(resolved) == [(name,)]
        GRPOConfig.from_dict(config).validate()
    swept = GRPOConfig().training(lr=tune.loguniform(1e-6, 1e-4)).generation(temperature=tune.choice([0.5, 1.0]))
    assert isinstance(swept.lr, Float)
