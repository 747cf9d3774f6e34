"""RLlib's callbacks of an env runner: its episodes are texts."""

from __future__ import annotations

from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils import force_list

from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest


class EpisodeCallbacks:
    """Calls ``on_episode_end`` for every rollout of a group, then ``on_sample_end``.

    Args:
        env_runner: Whose callbacks these are; they log into its ``metrics``.
    """

    def __init__(self, env_runner: Any) -> None:
        self._env_runner = env_runner
        self._objects = [made() for made in force_list(env_runner.config.callbacks_class)]

    def __call__(self, group: RolloutGroup) -> None:
        runner = self._env_runner
        if not wanted(runner.config):
            return
        common = {"env_runner": runner, "metrics_logger": runner.metrics}
        episodes = []
        for g, rollout in enumerate(group.rollouts):
            episodes.append(
                as_episode(group.request, g, rollout, runner.env.tasks[group.request.instance.task_id].prompt)
            )
            arguments = {"episode": episodes[-1], "prev_episode_chunks": [], "env": runner.env, "env_index": g}
            functions = runner.config.callbacks_on_episode_end
            make_callback("on_episode_end", self._objects, functions, kwargs={**common, **arguments, "rl_module": None})
        functions = runner.config.callbacks_on_sample_end
        make_callback("on_sample_end", self._objects, functions, kwargs={**common, "samples": episodes})


def wanted(config: Any) -> bool:
    """Whether a config has callbacks that an env runner may have to call."""
    functions = config.callbacks_on_episode_end or config.callbacks_on_sample_end
    return bool(functions) or force_list(config.callbacks_class) != [RLlibCallback]


def as_episode(request: RolloutRequest, g: int, rollout: Rollout, prompt: str) -> SingleAgentEpisode:
    """A rollout as RLlib's episode: observations and actions are texts, the return is the last reward.

    ``custom_data`` has the request and the rollout, with its tokens. Changing the episode changes nothing in training.

    Args:
        request: What was asked for.
        g: The rollout's number in its group.
        rollout: The rollout.
        prompt: The task's prompt.
    """
    start = request.instance.starting_turn
    before, new = rollout.turns[:start], rollout.turns[start:]
    first = before[-1].feedback or "" if before else prompt
    episode = SingleAgentEpisode(
        id_=f"{request.group_id}/{g}",
        observations=[first, *(turn.feedback or "" for turn in new)],
        actions=[turn.response for turn in new],
        rewards=[*(0.0 for _ in new[1:]), rollout.return_],
        infos=[{} for _ in range(len(new) + 1)],
        terminated=not rollout.truncated,
        truncated=rollout.truncated,
        len_lookback_buffer=0,
    )
    episode.custom_data.update(request=request, rollout=rollout)
    return episode
