from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.tune.schedulers import ASHAScheduler
from safetensors.torch import load_file

from envs.base import Message, Outcome, SelfImprovementEnv, Task
from envs.bfcl.env import BFCLEnv
from rllib_exit.checkpoints import Checkpoint, CheckpointError
from rllib_exit.grpo.algorithm import GRPO, RolloutError
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.rollouts import RolloutRequest
from tests.cli.helpers import SkillEnv
from tests.fakes import ScriptedGenerator, tool_user
from tests.learner.sharding.learners import tensors
from tests.tiny_models import make_tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class GuessEnv(SelfImprovementEnv):
    """Name the task's digit; the answer is a function of the prompt and the seed (see ``guess``)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__([Task(f"t{i}", f"Digit {i}?") for i in range(config.get("num_tasks", 10))])
        self.broken_if = config.get("broken_if")

    def prompt(self, task: Task) -> list[Message]:
        return [{"role": "user", "content": task.prompt}]

    def respond(self, task: Task, response: str) -> Outcome:
        if self.broken_if and Path(self.broken_if).exists():
            raise ZeroDivisionError("in the reward")
        return Outcome(float(int(response) % 3 == 0))


def guess(prompt: str, seed: int) -> str:
    return str((seed // 7) % 10)


def make_config(model: str, **overrides: Any) -> GRPOConfig:
    config = (
        GRPOConfig()
        .environment(GuessEnv)
        .language_model(model, dtype="float32", max_model_len=512)
        .generation(max_response_tokens=8, generator_class=partial(ScriptedGenerator, script=guess))
        .training(lr=1e-3, prompts_per_batch=6, rollouts_per_prompt=4, learner_threads=1)
        .curriculum("exit", buffer_size=12, min_buffer_size=4, diversity_metric="edit_distance")
        .debugging(seed=3)
    )
    for name, value in overrides.items():
        setattr(config, name, value)
    return config


class Callbacks(RLlibCallback):
    """Those of an RLlib user: they log, add to results, and keep what they were called with."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def on_episode_end(self, *, episode: Any, metrics_logger: Any, **kwargs: Any) -> None:
        metrics_logger.log_value("first_digit", float(str(episode.get_actions()[0])), reduce="mean", window=100)

    def on_sample_end(self, *, samples: list[Any], metrics_logger: Any, **kwargs: Any) -> None:
        metrics_logger.log_value("num_sampled", len(samples), reduce="sum")

    def on_train_result(self, *, algorithm: Any, result: dict, **kwargs: Any) -> None:
        result["doubled"] = 2 * result["env_runners"]["episode_return_mean"]

    def on_evaluate_start(self, *, algorithm: Any, **kwargs: Any) -> None:
        self.called.append("on_evaluate_start")

    def on_evaluate_end(self, *, algorithm: Any, evaluation_metrics: dict, **kwargs: Any) -> None:
        evaluation_metrics["seen"] = 1.0
        self.called.append("on_evaluate_end")

    def on_checkpoint_loaded(self, *, algorithm: Any, **kwargs: Any) -> None:
        self.called.append("on_checkpoint_loaded")


def selections(algo: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Records every selection from now on."""
    seen: list[Any] = []
    select = algo.replay.curriculum.select
    monkeypatch.setattr(algo.replay.curriculum, "select", lambda n: seen.append(select(n)) or seen[-1])
    return seen


def record_updates(algo: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[RolloutRequest]]:
    """Records the requests of the groups that every update of the curriculum gets from now on."""
    seen: list[list[RolloutRequest]] = []
    update = algo.replay.curriculum.update
    monkeypatch.setattr(
        algo.replay.curriculum, "update", lambda groups: seen.append([g.request for g in groups]) or update(groups)
    )
    return seen


class SleepyGenerator(ScriptedGenerator):
    """Generates only while it is awake; a file says what it was told."""

    def __init__(self, *args: Any, told: Path, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.told, self.asleep = told, False

    async def generate(self, *args: Any) -> Any:
        assert not self.asleep
        return await super().generate(*args)

    async def update_weights(self, files: Any) -> float:
        self.asleep = False
        self._tell("weights")
        return await super().update_weights(files)

    async def sleep(self) -> None:
        self.asleep = True
        self._tell("sleep")

    def _tell(self, what: str) -> None:
        with self.told.open("a") as file:
            file.write(f"{what}\n")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``broken`` makes the reward raise, and ``told`` says what the engine was told."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def algo(tiny_model: str, ray_session: None, files: Path) -> Iterator[Any]:
    """One algorithm for all tests: each reads where it stands, and leaves it able to go on."""
    config = make_config(tiny_model, env_config={"broken_if": str(files / "broken")}, self_improvement_steps=2)
    config.generation(generator_class=partial(SleepyGenerator, script=guess, told=files / "told"))
    config.evaluation(evaluation_interval=1, evaluation_config=GRPOConfig.overrides(env_config={"num_tasks": 20}))
    config.callbacks(Callbacks)
    algo: Any = config.build_algo()
    yield algo
    algo.stop()


def test_an_iteration_reports_every_metric_of_the_design(algo: Any) -> None:
    version = algo.train()["policy_version"]
    result = algo.train()
    assert set(result["curriculum"]) >= {
        "buffer_size", "buffer_score_min", "buffer_score_mean", "buffer_score_max", "selected_fraction",
        "starting_turn_plateau",
        "improve_fraction", "diverge_fraction", "depth_mean", "starting_turn_mean", "distinct_tasks_total",
        "distinct_instances_total", "group_variance_mean", "zero_variance_fraction",
    }  # fmt: skip
    assert set(result["rollouts"]) >= {
        "return_mean", "quality_mean", "response_tokens_mean", "truncated_fraction", "invalid_fraction", "tokens_per_s",
    }  # fmt: skip
    assert set(result["learner"]) >= {
        "loss", "kl", "clip_fraction", "entropy", "grad_norm", "logprob_abs_diff_mean", "logprob_abs_diff_max",
        "tokens_per_s",
    }  # fmt: skip
    assert set(result["timers"]) >= {"select", "rollout", "embed", "update", "sync"}
    assert result["policy_version"] == version + 1 and result["policy_lag_max"] == 0
    assert result["curriculum"]["selected_fraction"] > 0 and result["learner"]["grad_norm"] > 0
    assert all(np.isfinite(value) for part in ("curriculum", "rollouts", "learner") for value in result[part].values())


def test_an_rllib_users_metrics_and_callbacks_work(algo: Any, tmp_path: Path) -> None:
    before = algo.train()
    result = algo.train()
    of = result["env_runners"]
    assert of["episode_return_mean"] == result["rollouts"]["return_mean"] == result["doubled"] / 2
    assert of["num_episodes"] == of["num_env_steps_sampled"] == of["num_sampled"] == 24 and 0 <= of["first_digit"] <= 9
    assert of["num_episodes_lifetime"] == before["env_runners"]["num_episodes_lifetime"] + 24
    assert result["num_env_steps_sampled_lifetime"] == of["num_env_steps_sampled_lifetime"]
    learners = result["learners"]["default_policy"]
    assert learners["total_loss"] == result["learner"]["loss"] and learners["entropy"] > 0
    assert result["evaluation"]["seen"] == 1
    [callbacks] = algo.callbacks
    assert callbacks.called[-2:] == ["on_evaluate_start", "on_evaluate_end"]
    algo.restore(algo.save(str(tmp_path / "checkpoint")))
    assert callbacks.called[-1] == "on_checkpoint_loaded"
    assert algo.train()["env_runners"]["num_episodes_lifetime"] == of["num_episodes_lifetime"] + 24


def test_a_restored_run_selects_what_the_uninterrupted_one_does(
    algo: Any, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algo.train()
    before = algo.train()
    time_total_s, version = before["time_total_s"], before["policy_version"]
    checkpoint = algo.save_to_path(tmp_path / "checkpoint")
    expected = selections(algo, monkeypatch)
    versions = [algo.train()["policy_version"] for _ in range(2)]
    restored: Any = GRPO.from_checkpoint(checkpoint)
    try:
        seen = selections(restored, monkeypatch)
        results = [restored.train() for _ in range(2)]
        assert [result["policy_version"] for result in results] == versions == [version + 1, version + 2]
        assert results[0]["time_total_s"] == time_total_s + results[0]["time_this_iter_s"]
        assert seen == expected
        assert restored.training_iteration == algo.training_iteration == before["training_iteration"] + 2
        states = [a.replay.curriculum.buffer.get_state() for a in (restored, algo)]
        assert repr(states[0]) == repr(states[1])
        # The optimizer and the reference were restored too: the same updates gave the same weights.
        states = [_learners_state(a, tmp_path / f"{i}") for i, a in enumerate((restored, algo))]
        assert states[0].keys() == states[1].keys() == {"policy", "exp_avg", "exp_avg_sq", "reference"}
        for kind in states[0]:
            np.testing.assert_allclose(states[0][kind], states[1][kind], atol=1e-5)
    finally:
        restored.stop()


def _learners_state(algo: Any, path: Path) -> dict[str, np.ndarray]:
    """The learners' tensors, flat, by kind."""
    saved = tensors(Checkpoint(algo.save_to_path(path)))
    kinds = {name.partition("/")[0] for name in saved}
    return {
        kind: np.concatenate([t.ravel() for name, t in sorted(saved.items()) if name.startswith(f"{kind}/")])
        for kind in kinds
    }


def test_rolling_back_to_an_older_checkpoint_loads_its_weights(algo: Any, tmp_path: Path) -> None:
    version = algo.policy_version
    checkpoint = algo.save_to_path(f"file://{tmp_path}/start")
    before = _learners_state(algo, tmp_path / "before")
    algo.train()
    algo.restore_from_path(checkpoint)
    after = _learners_state(algo, tmp_path / "after")
    for kind in before:
        np.testing.assert_array_equal(before[kind], after[kind])
    assert algo.policy_version == version


def test_a_damaged_checkpoint_is_refused(algo: Any, tmp_path: Path) -> None:
    checkpoint = Path(algo.save_to_path(tmp_path / "checkpoint"))
    state = next(checkpoint.rglob("policy/*.safetensors"))
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"policy/00000\.00000\.safetensors was changed"):
        algo.restore_from_path(checkpoint)


def test_a_lost_env_runner_costs_no_group(algo: Any) -> None:
    version = algo.train()["policy_version"]
    runner = algo.env_runner_group._worker_manager.actors()[1]
    ray.kill(runner, no_restart=False)
    result = algo.train()
    assert result["policy_version"] == version + 1 and result["rollouts"]["skipped_prompts"] == 0


def test_a_reward_that_raises_ends_training_with_the_task_the_cause_and_a_checkpoint(
    algo: Any, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = algo.train()
    (files / "broken").touch()
    with pytest.raises(RolloutError, match=r"task 't\d' failed twice: ZeroDivisionError: in the reward") as error:
        algo.train()
    checkpoint = str(error.value).rsplit(" ", 1)[-1]
    (files / "broken").unlink()
    trained_on = record_updates(algo, monkeypatch)
    algo.train()
    state = algo.replay.get_state()
    algo.restore_from_path(checkpoint)
    assert algo.training_iteration == before["training_iteration"] and algo.policy_version == before["policy_version"]
    # What was selected when it failed is neither lost nor selected anew.
    algo.train()
    assert trained_on[0] == trained_on[1] and repr(algo.replay.get_state()) == repr(state)


def test_tool_use_is_trained_on_from_partial_histories(tmp_path: Path, ray_session: None) -> None:
    model = make_tiny_model(tmp_path, max_positions=8192)
    config = make_config(model, max_model_len=8192, prompts_per_batch=4)
    config.environment(BFCLEnv, env_config={"schemas": "short", "classes": ["GorillaFileSystem"]})
    config.generation(max_response_tokens=512, generator_class=partial(ScriptedGenerator, script=tool_user))
    config.curriculum(self_iteration_prob=1.0, buffer_size=40)
    algo: Any = config.build_algo()
    try:
        results = [algo.train() for _ in range(5)]
        replayed = [result["curriculum"] for result in results if result["curriculum"]["selected_fraction"]]
        assert max(result["starting_turn_mean"] for result in replayed) > 0
        assert max(result["depth_mean"] for result in replayed) > 0
        # A script's log-probabilities are made up, but its tokens were trained on.
        assert all(result["learner"]["grad_norm"] > 0 for result in results)
        assert 0 < results[-1]["rollouts"]["first_turn_accuracy"] < 1
    finally:
        algo.stop()


class DemonstratedEnv(GuessEnv):
    def demonstration(self, task: Task) -> list[str]:
        return [task.id[1:]]


def test_training_begins_with_the_warm_model_as_policy_and_reference(
    tiny_model: str, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLLIB_EXIT_CACHE", str(tmp_path / "cache"))
    config = make_config(tiny_model, lr=0.0).environment(DemonstratedEnv).warm_start(epochs=2, lr=3e-3, batch_size=4)
    algo: Any = config.build_algo()
    try:
        result = algo.train()
        [directory] = [path for path in (tmp_path / "cache" / "warm-start").iterdir() if path.is_dir()]
        warm, cold = load_file(directory / "model.safetensors"), load_file(Path(tiny_model) / "model.safetensors")
        for model, _, names in algo.learner_group._learner._state().values():
            held = model.gather("master", names) if names else {}
            assert held.keys() == warm.keys() and all(torch.equal(held[name], warm[name]) for name in warm)
        assert not all(torch.equal(warm[name], cold[name]) for name in warm)
        assert result["learner"]["kl"] == pytest.approx(0, abs=1e-6)  # they are the same model
        # The engine got it before the first rollout: once for that, once after the update.
        assert result["policy_version"] == 1
        assert result["warm_start"]["demonstrations"] == 10 and result["warm_start"]["quality_mean"] == 0.4
        checkpoint = algo.save_to_path(tmp_path / "checkpoint")
    finally:
        algo.stop()
    # It is done once: a restored run goes on with what it learned since.
    monkeypatch.setattr("rllib_exit.grpo.algorithm.warm_start", None)
    restored: Any = GRPO.from_checkpoint(checkpoint)
    try:
        assert restored.train()["warm_start"] == result["warm_start"]
    finally:
        restored.stop()


def test_evaluation_reports_accuracy_and_corrections_by_step(algo: Any) -> None:
    evaluation = algo.train()["evaluation"]
    assert evaluation["num_tasks"] == 20
    assert set(evaluation["accuracy"]) == set(evaluation["net_corrections"]) == {"step_0", "step_1", "step_2"}
    assert evaluation["net_corrections"]["step_0"] == 0
    assert evaluation["improvement"] == evaluation["accuracy"]["step_2"] - evaluation["accuracy"]["step_0"]


def test_colocated_engines_sleep_while_the_learners_work(
    algo: Any, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = algo.train()["policy_version"]
    # What it takes to be colocated are GPUs, which is all that the config's check is about.
    monkeypatch.setitem(vars(algo.config), "colocated", True)
    monkeypatch.setitem(vars(algo.config), "evaluation_interval", None)  # an evaluation loads weights, too
    (files / "told").write_text("")
    update = algo.learner_group.update

    def checked_update(**kwargs: Any) -> Any:
        assert (files / "told").read_text().endswith("sleep\n")
        return update(**kwargs)

    monkeypatch.setattr(algo.learner_group, "update", checked_update)
    results = [algo.train() for _ in range(2)]
    assert [result["policy_version"] for result in results] == [version + 1, version + 2]
    assert results[0]["sync"]["bytes"] > 1e6
    assert (files / "told").read_text().split() == ["sleep", "weights"] * 2


def test_an_rllib_users_scheduler_stop_conditions_and_callbacks_run_unchanged(
    tmp_path: Path, tiny_model: str, ray_session: None
) -> None:
    config: Any = (
        make_config(tiny_model, prompts_per_batch=2, kl_coeff=0.0)
        .environment(SkillEnv, env_config={"skill": tune.grid_search([0.75, 0.25])})
        .callbacks(Callbacks)
    )
    tuner = tune.Tuner(
        GRPO,
        param_space=config,
        tune_config=tune.TuneConfig(
            metric="env_runners/episode_return_mean",
            mode="max",
            scheduler=ASHAScheduler(grace_period=1, max_t=9, reduction_factor=2),
            max_concurrent_trials=1,
        ),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path), stop={"env_runners/num_episodes_lifetime": 24, "doubled": 9}, verbose=0
        ),
    )
    good, poor = tuner.fit()
    assert good.metrics is not None and poor.metrics is not None and not good.error and not poor.error
    assert good.metrics["env_runners"]["episode_return_mean"] == 0.75 and good.metrics["doubled"] == 1.5
    # The good one trains until the stop condition on episodes holds, 8 an iteration; ASHA ends the other at once.
    assert (good.metrics["training_iteration"], poor.metrics["training_iteration"]) == (3, 1)
