from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback

from envs.base import Task, TaskInstance, Turn
from rllib_exit.env_runners.callbacks import EpisodeCallbacks, as_episode, wanted
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest

OLD, NEW, LAST = Turn("1", "more"), Turn("2", "still more"), Turn("3")
REQUEST = RolloutRequest("00000007", TaskInstance("t", history=(OLD,)))
ROLLOUTS = (Rollout((), (OLD, NEW, LAST), 0.75, 0.5), Rollout((), (OLD, LAST), 0.25, 0.5, truncated=True))
seen: list[Any] = []


class Own(RLlibCallback):
    def on_episode_end(self, *, episode: Any, env_runner: Any, metrics_logger: Any, env: Any, **kwargs: Any) -> None:
        assert env_runner.metrics is metrics_logger and env is env_runner.env and kwargs["env_index"] in (0, 1)
        seen.append(episode)

    def on_sample_end(self, *, env_runner: Any, metrics_logger: Any, samples: Any, **kwargs: Any) -> None:
        seen.append(samples)


def env_runner(config: GRPOConfig) -> Any:
    return SimpleNamespace(config=config, metrics=object(), env=SimpleNamespace(tasks={"t": Task("t", "How many?")}))


def test_a_rollout_is_an_episode_of_texts() -> None:
    episode = as_episode(REQUEST, 0, ROLLOUTS[0], "How many?")
    assert list(episode.get_observations()) == ["more", "still more", ""]
    assert list(episode.get_actions()) == ["2", "3"] and list(episode.get_rewards()) == [0, 0.75]
    assert episode.get_return() == 0.75 and len(episode) == 2 and episode.id_ == "00000007/0"
    assert episode.is_terminated and not as_episode(REQUEST, 1, ROLLOUTS[1], "").is_terminated
    assert episode.custom_data["rollout"] is ROLLOUTS[0]
    first = as_episode(RolloutRequest("1", TaskInstance("t")), 0, Rollout((), (LAST,), 1.0, 1.0), "How many?")
    assert list(first.get_observations()) == ["How many?", ""]


def test_callbacks_are_called_for_every_episode_and_then_for_the_group() -> None:
    seen.clear()
    config = GRPOConfig().callbacks(Own, on_episode_end=lambda **kwargs: seen.append(kwargs["episode"].id_))
    EpisodeCallbacks(env_runner(config))(RolloutGroup(REQUEST, ROLLOUTS))
    ids = [
        one if isinstance(one, str) else getattr(one, "id_", len(one) if isinstance(one, list) else 0) for one in seen
    ]
    assert ids == ["00000007/0", "00000007/0", "00000007/1", "00000007/1", 2]


def test_without_callbacks_nothing_is_made() -> None:
    assert not wanted(GRPOConfig()) and wanted(GRPOConfig().callbacks(Own))
    EpisodeCallbacks(env_runner(GRPOConfig()))(RolloutGroup(REQUEST, (None,)))  # type: ignore[arg-type]
