"""Sharded learners under RLlib: two actors train, sync, save; one process goes on."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.learner.learner_group import GRPOLearnerGroup, LearnerError, learner_errors
from rllib_exit.learner.sharding.collectives import rank
from tests.grpo.test_algorithm import make_config
from tests.processes import wait_for_end

pytestmark = [pytest.mark.ray, pytest.mark.deepspeed, pytest.mark.slow]


def shard(config: GRPOConfig, name: str) -> GRPOConfig:
    return config.fsdp2() if name == "fsdp2" else config.deepspeed(zero_stage=3)


@pytest.mark.parametrize("name", [pytest.param("fsdp2", marks=pytest.mark.full), "zero3"])
def test_a_run_with_two_sharded_learners_goes_on_with_one(
    name: str, tiny_model: str, ray_session: None, tmp_path: Path
) -> None:
    config = make_config(tiny_model, kl_coeff=0.1, num_learners=2, max_tokens_per_micro_batch=64)
    two: Any = shard(config, name).build_algo()
    one: Any = None
    try:
        assert two.train()["learner"]["grad_norm"] > 0
        checkpoint = two.save_to_path(tmp_path / "checkpoint")
        one = make_config(tiny_model, kl_coeff=0.1).build_algo()
        one.restore_from_path(checkpoint)
        np.testing.assert_array_equal(*(algo.learner_group.collect_weights() for algo in (one, two)))
        # Both go on alike: the tasks, the weights, the optimizer and the reference policy are the same.
        results = [algo.train()["learner"] for algo in (one, two)]
        for key in results[0].keys() & {"loss", "kl", "entropy", "grad_norm", "logprob_abs_diff_mean"}:
            assert results[0][key] == pytest.approx(results[1][key], rel=1e-4, abs=1e-6), key
        assert one.policy_version == two.policy_version == 2
    finally:
        for algo in filter(None, (one, two)):
            algo.stop()


@pytest.fixture
def group(tiny_model: str, ray_session: None) -> Iterator[tuple[GRPOLearnerGroup, list[int]]]:
    """Two learners, and their process ids."""
    config = make_config(tiny_model, num_learners=2, num_cpus_per_learner=1).fault_tolerance(learner_timeout_s=4)
    space = gym.spaces.Text(8)
    spec = config.get_multi_rl_module_spec(spaces={"default_policy": (space, space)})
    learners = GRPOLearnerGroup(config=config, module_spec=spec)
    yield learners, learners._all(lambda _: os.getpid())
    learners.shutdown()


@pytest.mark.parametrize("how", ["killed", "stopped", "raises"])
def test_learners_fail_together(how: str, group: tuple[GRPOLearnerGroup, list[int]]) -> None:
    learners, pids = group

    def work(learner: Any) -> None:
        if rank() == 1 and how == "raises":
            raise MemoryError("out of memory")
        time.sleep(600)  # as it would in an operation that the other never joins

    def stop(signal_: int) -> None:
        os.kill(pids[1], signal_)

    if how != "raises":
        threading.Timer(1, stop, [signal.SIGKILL if how == "killed" else signal.SIGSTOP]).start()
    start = time.monotonic()
    with pytest.raises(LearnerError) as error, learner_errors():
        learners._all(work)
    seconds = time.monotonic() - start
    wait_for_end(pids)
    print(f"{how}: LearnerError after {seconds:.1f} s, all ended after {time.monotonic() - start:.1f} s")
    assert seconds < 30  # the others would wait for 600
    said = {"killed": "ActorDied", "stopped": r"learners \[1\] gave no sign of life", "raises": "MemoryError"}[how]
    assert re.search(said, str(error.value))
