"""Where Ray places learners and env runners."""

from __future__ import annotations

from ray.tune import PlacementGroupFactory


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
