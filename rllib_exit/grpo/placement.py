"""Where Ray places learners, env runners and embedders, and who shares a GPU with whom."""

from __future__ import annotations

from typing import Any

from ray.tune import PlacementGroupFactory

from rllib_exit.embeddings import num_embedders
from rllib_exit.settings_group import check


def validate(config: Any) -> None:
    """Checks a GRPOConfig's settings of placement against each other.

    Raises:
        ValueError: Names the field, its value and the mend.
    """
    gpus, learner_gpus = config.num_gpus_per_env_runner, config.num_gpus_per_learner
    check(
        config,
        "num_gpus_per_env_runner",
        gpus == config.engine_size if gpus >= 1 else config.engine_size == 1 or gpus == 0,
        f"an engine with these engine_args has {config.engine_size} workers, and each needs a GPU of its own",
    )
    if config.weight_transfer == "nccl":
        check(config, "num_gpus_per_env_runner", gpus >= 1, "weight_transfer='nccl' needs whole GPUs")
        check(config, "num_gpus_per_learner", learner_gpus >= 1, "weight_transfer='nccl' needs whole GPUs")
        check(config, "num_learners", config.num_learners >= 1, "weight_transfer='nccl' needs 1 or more")
    if config.colocated and not config.in_evaluation:
        mend = "colocated, learner and env runner share a GPU: use parts that add up to 1, such as 0.5 and 0.5"
        check(config, "num_gpus_per_env_runner", gpus > 0 and learner_gpus > 0 and gpus + learner_gpus == 1, mend)
        check(
            config,
            "num_env_runners",
            config.num_env_runners == config.num_learners,
            f"colocated, each shares a GPU with a learner: use as many as num_learners ({config.num_learners})",
        )
        check(config, "max_policy_lag", config.max_policy_lag == 0, "colocated, engines and learners take turns: use 0")
        check(
            config,
            "evaluation_num_env_runners",
            config.evaluation_num_env_runners == 0,
            "colocated, evaluation runs on the training's engines: use 0",
        )


def request(rllibs: PlacementGroupFactory, config: Any) -> PlacementGroupFactory:
    """What a run asks Ray for: RLlib's request, a bundle for each embedder, and shared GPUs if they are colocated."""
    if config.colocated:
        rllibs = colocated(rllibs, config.num_env_runners)
    embedders = [{"CPU": 1.0, "GPU": config.num_gpus_per_embedder}] * num_embedders(config)
    return PlacementGroupFactory([*rllibs.bundles, *embedders], strategy=rllibs.strategy)


def colocated(request: PlacementGroupFactory, num_env_runners: int) -> PlacementGroupFactory:
    """Merges RLlib's bundles so that the i-th env runner and one learner share a bundle, and so a GPU.

    RLlib places each env runner in the bundle of its number. The room that it leaves there is for one learner, and no
    other bundle has any.

    Args:
        request: RLlib's request: the main process's bundle, the env runners', and as many learners'.
        num_env_runners: The number of env runners.
    """
    main, *bundles = request.bundles
    pairs = zip(bundles[:num_env_runners], bundles[num_env_runners:], strict=True)
    shared = [{key: a.get(key, 0) + b.get(key, 0) for key in a | b} for a, b in pairs]
    return PlacementGroupFactory([main, *shared], strategy=request.strategy)
