"""What becomes of a run on several nodes, on simulated clusters.

A cluster lives in a process of its own: this module, run by name.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rllib_exit.grpo.algorithm import GRPO
from tests.grpo.test_algorithm import guess, make_config
from tests.grpo.test_asynchronous import SlowGenerator
from tests.grpo.test_faults import FaultyEnv, Run
from tests.processes import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def run(function: str, model: str) -> None:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.grpo.test_nodes", function, model]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=500)
    assert result.returncode == 0 and result.stdout.endswith("done\n"), result.stdout + result.stderr


def test_a_node_removed_in_mid_iteration_costs_no_group_and_its_env_runner_moves_to_a_new_one(tiny_model: str) -> None:
    run("lose_a_node", tiny_model)


def lose_a_node(model: str) -> None:
    import ray
    from ray.cluster_utils import Cluster

    # Each node has room for one env runner.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    removed = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    with tempfile.TemporaryDirectory() as directory:
        config = make_config(model, num_env_runners=2, num_envs_per_env_runner=4)
        config.environment(FaultyEnv, env_config={"faults": directory})
        config.generation(generator_class=partial(SlowGenerator, script=guess))
        algo: Any = config.build_algo()
        run = Run(algo, Path(directory), Path(directory))
        assert len(set(run.nodes())) == 2
        results = run.again(lambda: cluster.remove_node(removed, allow_graceful=False))
        assert sum(result["rollouts"]["lost_env_runners"] for result in results) == 1
        assert algo._env_runners.num_ready == 1
        added = cluster.add_node(num_cpus=1)
        wait_until(lambda: algo._env_runners.num_ready == 2, 120)
        assert added.node_id in run.nodes()
        algo.train()
        algo.stop()
    ray.shutdown()
    cluster.shutdown()


def test_learners_and_env_runners_share_gpus_in_pairs_or_have_nodes_of_their_own(tiny_model: str) -> None:
    run("place", tiny_model)


def place(model: str) -> None:
    import ray
    from ray.cluster_utils import Cluster
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    @ray.remote
    class Actor:
        def place(self) -> tuple[str, list[int]]:
            context = ray.get_runtime_context()
            return context.get_node_id(), context.get_accelerator_ids()["GPU"]  # type: ignore[return-value]

    def places(config: Any) -> list[list[tuple[str, list[int]]]]:
        """Where env runners and learners come to be; they are made as RLlib and Ray Train make them."""
        group: Any = GRPO.default_resource_request(config.to_dict())()
        ray.get(group.ready(), timeout=60)
        runners = [
            Actor.options(  # type: ignore[attr-defined]
                num_cpus=config.num_cpus_per_env_runner,
                num_gpus=config.num_gpus_per_env_runner,
                resources=config.custom_resources_per_env_runner,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, i + 1),
            ).remote()
            for i in range(config.num_env_runners)
        ]
        where = [ray.get([runner.place.remote() for runner in runners], timeout=60)]
        learners = [
            Actor.options(  # type: ignore[attr-defined]
                num_cpus=config.num_cpus_per_learner,
                num_gpus=config.num_gpus_per_learner,
                resources=config.custom_resources_per_learner,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group),
            ).remote()
            for _ in range(config.num_learners)
        ]
        where.append(ray.get([learner.place.remote() for learner in learners], timeout=60))
        ray.util.remove_placement_group(group)
        return where

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = {name: cluster.add_node(num_cpus=4, num_gpus=2, resources={name: 2}) for name in ("learner", "rollout")}
    ray.init(address=cluster.address, log_to_driver=False)
    config = make_config(model, num_learners=4, num_gpus_per_learner=0.5, num_cpus_per_learner=1)
    config.env_runners(num_env_runners=4, num_gpus_per_env_runner=0.5).colocate()
    runners, learners = places(config)
    assert sorted(runners) == sorted(learners) and len({(node, *gpus) for node, gpus in runners}) == 4

    config = make_config(model, num_learners=2, num_gpus_per_learner=1, num_cpus_per_learner=1)
    config.learners(custom_resources_per_learner={"learner": 1})
    config.env_runners(num_env_runners=2, num_gpus_per_env_runner=1, custom_resources_per_env_runner={"rollout": 1})
    runners, learners = places(config)
    assert {node for node, _ in runners} == {nodes["rollout"].node_id}
    assert {node for node, _ in learners} == {nodes["learner"].node_id}
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
    print("done")
