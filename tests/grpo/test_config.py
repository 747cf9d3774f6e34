from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from envs.base import TaskInstance
from envs.dataset.rewards import exact_match
from rllib_exit.curriculum.exit import STRATEGIES, CurriculumConfig
from rllib_exit.env_runners.environments import make_env
from rllib_exit.grpo.config import GRPOConfig


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
        ("dtype", "float16", "use one of float32, bfloat16"),
        ("rollouts_per_prompt", 1, "at least 2 rollouts"),
        ("prompts_per_batch", 0, "1 or more"),
        ("max_response_tokens", 4096, "room for a prompt in max_model_len"),
        ("lr_decay_steps", 0, "number of updates"),
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
        ("min_p", 0.1, "use 0: training samples from the whole distribution; set it in evaluation_config only"),
        ("repetition_penalty", 1.05, "use 1: training samples from the whole distribution"),
        ("self_iteration_prob", 1.5, "[0, 1]"),
        ("divergence_prob", -0.5, "[0, 1]"),
        ("buffer_size", 10, "min_buffer_size"),
        ("expansions_per_group", 0, "1 or more"),
        ("diversity_metric", "cosine", "edit_distance"),
        ("embedding_model", None, "name a model"),
        ("num_env_runners", 0, "1 or more"),
        ("sharding", "fsdp", "ddp, fsdp2, deepspeed"),
        ("lora_r", 0, "1 or more"),
        ("lora_alpha", 0, "above 0"),
        ("weight_transfer", "ipc", "object_store, nccl"),
    ],
)
def test_a_bad_value_is_refused_with_field_value_and_mend(field: str, value: Any, mend: str) -> None:
    with pytest.raises(ValueError) as error:
        config(**{field: value}).validate()
    message = str(error.value)
    assert field in message and str(value) in message and mend in message


OWN_FIELDS = sorted({name for name in vars(GRPOConfig()) if not name.startswith("_")} - vars(AlgorithmConfig()).keys())


@pytest.mark.parametrize("value", ["a word", object(), [object()]], ids=["text", "object", "list"])
@pytest.mark.parametrize("name", OWN_FIELDS)
def test_a_value_of_another_type_is_refused(name: str, value: Any) -> None:
    if value == "a word" and name in ("model_name", "embedding_model", "attn_implementation", "lora_target_modules"):
        return
    with pytest.raises(ValueError, match=name):
        config(**{name: value}).validate()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("evaluation_interval", ["None", 0, 1.5, True]),
        ("evaluation_num_env_runners", ["1", -1, None]),
        ("num_env_runners", ["1", 1.5, None]),
        ("num_learners", ["1", -1, None]),
        ("num_gpus_per_env_runner", ["1", -1, None]),
        ("num_gpus_per_learner", ["1", -1, None]),
        ("num_cpus_per_env_runner", ["1", -1, None]),
        ("num_cpus_per_learner", ["many", -1, None]),
        ("env_config", ["tasks", None]),
        ("evaluation_config", ["tasks", 1]),
        ("seed", ["1", -1, 1.5]),
        ("learner_threads", [0]),
        ("stop", ["abc", [""]]),
        ("adam_betas", [(0.9,), (0.9, 1.0)]),
        ("zero_stage", [1.5, True]),
    ],
)
def test_what_would_fail_later_is_refused(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{name} is {re.escape(repr(value))}: use"):
            config(**{name: value}).validate()


def test_bfloat16_without_masters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"zero_stage is 0: .*bfloat16.*use 1, 2, 3 or \.ddp\(\)"):
        config(dtype="bfloat16").deepspeed(zero_stage=0).validate()
    config(dtype="float32").deepspeed(zero_stage=0).validate()
    for stage in (1, 2, 3):
        config(dtype="bfloat16").deepspeed(zero_stage=stage, offload_optimizer=True).validate()
    with pytest.raises(ValueError, match="zero_stage is 4: use 0, 1, 2 or 3"):
        config().deepspeed(zero_stage=4).validate()
    with pytest.raises(ValueError, match="offload_optimizer is True: there is nothing to offload at zero_stage 0"):
        config(dtype="float32").deepspeed(zero_stage=0, offload_optimizer=True).validate()


def test_a_missing_deepspeed_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "deepspeed" else find(name, *a))
    config().fsdp2().validate()
    with pytest.raises(ValueError, match=r"pip install deepspeed==0\.19\.8"):
        config().deepspeed().validate()


def test_with_adapters_the_reference_policy_cannot_follow() -> None:
    with pytest.raises(ValueError, match=r"ref_update_rate is 1\.0: with LoRA"):
        config(kl_coeff=0.1).lora(r=8).validate()
    config(kl_coeff=0.1, ref_update_rate=0).lora(r=8).validate()
    config(kl_coeff=0).lora(r=8).validate()


def test_engines_get_adapters_alone_or_merged_weights() -> None:
    args = config(kl_coeff=0).lora(r=9).all_engine_args
    assert args["enable_lora"] and args["max_loras"] == 1 and args["max_lora_rank"] == 16
    assert "enable_lora" not in config(kl_coeff=0).lora(r=9, sync="merged").all_engine_args
    assert "enable_lora" not in config().all_engine_args
    with pytest.raises(ValueError, match=r"lora_r is 513: vLLM applies adapters of rank 512 or less"):
        config(kl_coeff=0).lora(r=513).validate()
    config(kl_coeff=0).lora(r=513, sync="merged").validate()
    with pytest.raises(ValueError, match=r"weight_transfer is 'nccl': adapters go through the object store"):
        config(kl_coeff=0, weight_transfer="nccl").lora(r=8).validate()


def test_flex_attention_on_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="attn_implementation is 'flex_attention': it has no backward pass on CPU"):
        config(attn_implementation="flex_attention").validate()
    config(attn_implementation="flex_attention").learners(num_gpus_per_learner=1).validate()


def test_with_adapters_there_is_no_warm_start() -> None:
    with pytest.raises(ValueError, match=r"warm_start_epochs is 3: with LoRA .* `rllib sft`"):
        config(kl_coeff=0).lora(r=8).warm_start(epochs=3).validate()
    config().warm_start(epochs=3).validate()


def test_the_back_end_is_the_last_one_named() -> None:
    made = config().deepspeed(zero_stage=3)
    assert (made.sharding, made.zero_stage, made.copy().fsdp2().sharding) == ("deepspeed", 3, "fsdp2")
    assert made.ddp().sharding == "ddp"


def test_evaluation_may_sample_as_it_likes() -> None:
    made = config().evaluation(
        evaluation_config=GRPOConfig.overrides(temperature=0.0, top_p=0.9, top_k=5, repetition_penalty=1.1)
    )
    evaluation = made.get_evaluation_config_object()
    assert evaluation is not None
    evaluation.validate()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"temprature": 0}, "evaluation_config has no field 'temprature'; did you mean temperature"),
        ({"temperature": -1}, "evaluation_config: temperature is -1: use a number of 0 or more"),
        ({"top_p": "x"}, "evaluation_config: top_p is 'x': use a number in (0, 1]"),
        ({"top_p": 0}, "evaluation_config: top_p is 0: use"),
        ({"top_k": -1}, "evaluation_config: top_k is -1: use an integer of 0 or more"),
    ],
)
def test_what_evaluation_overrides_is_checked_too(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        config().evaluation(evaluation_config=overrides).validate()


def test_strategies_are_presets_of_one_algorithm() -> None:
    for name, preset in STRATEGIES.items():
        made = GRPOConfig().curriculum(name)
        assert CurriculumConfig.of(made) == preset
    with pytest.raises(ValueError, match="strategy is 'ppo': use one of grpo, curriculum, improve, diverge, exit"):
        GRPOConfig().curriculum("ppo")


def test_a_config_survives_a_copy_and_a_round_trip() -> None:
    made = config(prompts_per_batch=7)
    assert made.copy().prompts_per_batch == 7
    assert GRPOConfig.from_state(made.get_state()).prompts_per_batch == 7


TWO_WORKERS = {"tensor_parallel_size": 2}


@pytest.mark.parametrize(
    ("fields", "field", "mend"),
    [
        ({"num_gpus_per_env_runner": 2}, "num_gpus_per_env_runner is 2", "has 1 workers"),
        ({"num_gpus_per_env_runner": 1, "engine_args": TWO_WORKERS}, "num_gpus_per_env_runner is 1", "has 2 workers"),
        ({"num_gpus_per_env_runner": 0.5, "engine_args": TWO_WORKERS}, "num_gpus_per_env_runner", "a GPU of its own"),
        ({"weight_transfer": "nccl"}, "num_gpus_per_env_runner is 0", "whole GPUs"),
        ({"weight_transfer": "nccl", "num_gpus_per_env_runner": 1}, "num_gpus_per_learner is 0", "whole GPUs"),
        (
            {"weight_transfer": "nccl", "num_gpus_per_env_runner": 1, "num_gpus_per_learner": 1},
            "num_learners is 0",
            "1 or more",
        ),
    ],
)
def test_engines_and_gpus_must_fit(fields: dict[str, Any], field: str, mend: str) -> None:
    with pytest.raises(ValueError, match=field) as error:
        config(**fields).validate()
    assert mend in str(error.value)


def colocated(**fields: Any) -> GRPOConfig:
    shared = {"num_learners": 2, "num_gpus_per_learner": 0.5, "num_env_runners": 2, "num_gpus_per_env_runner": 0.5}
    return config(**{**shared, **fields}).colocate()


@pytest.mark.parametrize(
    ("field", "value", "mend"),
    [
        ("num_gpus_per_env_runner", 0.25, "add up to 1"),
        ("num_gpus_per_env_runner", 0, "add up to 1"),
        ("num_env_runners", 3, "as many as num_learners"),
        ("max_policy_lag", 1, "take turns"),
        ("evaluation_num_env_runners", 1, "training's engines"),
    ],
)
def test_what_shares_gpus_must_come_in_pairs(field: str, value: Any, mend: str) -> None:
    colocated().validate()
    with pytest.raises(ValueError, match=field) as error:
        colocated(**{field: value}).validate()
    assert mend in str(error.value)


def test_engines_get_what_other_settings_ask_of_them() -> None:
    assert config(num_envs_per_env_runner=7).all_engine_args == {"max_num_seqs": 7}
    assert config(num_envs_per_env_runner=7, engine_args={"max_num_seqs": 5}).all_engine_args == {"max_num_seqs": 5}
    assert colocated().all_engine_args == {"max_num_seqs": 256, "enable_sleep_mode": True}
    transfer = config(weight_transfer="nccl", engine_args=TWO_WORKERS)
    assert transfer.engine_size == 2
    assert transfer.all_engine_args == {
        "max_num_seqs": 256,
        "weight_transfer_config": {"backend": "nccl"},
        "distributed_executor_backend": "mp",
        **TWO_WORKERS,
    }


def test_colocated_a_learner_and_an_env_runner_share_a_bundle() -> None:
    from rllib_exit.grpo.algorithm import GRPO

    made = colocated(num_cpus_per_env_runner=4, num_cpus_per_learner=2)
    assert GRPO.default_resource_request(made.to_dict()).bundles == [
        {"CPU": 1.0},
        {"CPU": 6.0, "GPU": 1.0},
        {"CPU": 6.0, "GPU": 1.0},
    ]
    made.colocated = False
    assert len(GRPO.default_resource_request(made.to_dict()).bundles) == 5


def test_your_own_data_in_ten_lines() -> None:
    rows = [{"question": f"What is {i} + {i}?", "gold": f"{2 * i}"} for i in range(100)]
    made = config(diversity_metric="edit_distance")
    made.dataset(rows, prompt="question", answer="gold").reward(exact_match, (lambda response: 0.5, 2))
    made.validate()
    evaluation: Any = made.get_evaluation_config_object()
    train, test = make_env(made.env, made.env_config), make_env(evaluation.env, evaluation.env_config)
    assert len(train.tasks) + len(test.tasks) == 100 and not train.tasks.keys() & test.tasks.keys()
    assert made.splits == {"test": {"split": "test"}}
    train.reset(options={"instance": TaskInstance(next(iter(train.tasks)))})
    assert train.step(train.demonstration(train.task)[0])[1] == pytest.approx(2 / 3)


def test_a_data_set_of_which_nothing_is_held_out() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"prompt": "Q", "answer": "A"}])
    made = config().reward(exact_match).dataset(rows, test_fraction=0)
    assert len(make_env(made.env, made.env_config).tasks) == 1 and not made.splits
