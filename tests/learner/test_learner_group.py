"""Sharded learners under RLlib: two actors train, sync, save; one process goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rllib_exit.grpo.config import GRPOConfig
from tests.grpo.test_algorithm import make_config

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
