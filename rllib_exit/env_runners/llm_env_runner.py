"""RLlib's EnvRunner around a generator: rolls out groups and K-step self-improvement."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from envs.base import SelfImprovementEnv
from rllib_exit.chat import ChatTokenizer
from rllib_exit.env_runners.episodes import RolloutFailure, roll_out
from rllib_exit.env_runners.generator import Generator, SamplingParams
from rllib_exit.evaluation.self_improvement import Chain, self_improve
from rllib_exit.rollouts import RolloutGroup, RolloutRequest


class LLMEnvRunner(EnvRunner, Checkpointable):
    """Owns an inference engine and the environments that run against it.

    The engine starts with the first rollout, so that a restarted actor answers at once; weights that
    arrive before are kept and loaded then.
    """

    config: Any  # a GRPOConfig, which imports this module

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self._loop = asyncio.Runner()
        self._generator: Generator | None = None
        self._pending_weights: Any = None
        self._policy_version = 0
        self.make_env()

    def make_env(self) -> None:
        """Makes one environment, for its spaces; the rollouts make their own."""
        self.env = make_env(self.config.env, self.config.env_config)

    @cached_property
    def _chat(self) -> ChatTokenizer:
        return ChatTokenizer(self.config.model_path, template_kwargs=self.config.chat_template_kwargs)

    def roll_out(self, requests: Sequence[RolloutRequest]) -> list[RolloutGroup | RolloutFailure]:
        """Rolls out ``rollouts_per_prompt`` episodes for every request.

        Returns:
            One group per request, in order.
        """

        async def run() -> list[RolloutGroup | RolloutFailure]:
            return await roll_out(
                requests,
                self.config.rollouts_per_prompt,
                make_env=lambda: make_env(self.config.env, self.config.env_config),
                max_concurrent=self.config.num_envs_per_env_runner,
                generator=await self._engine(),
                chat=self._chat,
                sampling=sampling_params(self.config),
                policy_version=self._policy_version,
            )

        return self._run(run())

    def self_improve(self, task_ids: Sequence[str], config: Any, seed: int = 0) -> list[Chain | None]:
        """Runs K-step self-improvement on tasks of the evaluation's environment.

        Args:
            task_ids: The tasks.
            config: The evaluation's config: its environment, sampling and ``self_improvement_steps``.
            seed: Seeds the sampling.

        Returns:
            One chain per task, in order; None where the task's prompt does not fit the context.
        """

        async def run() -> list[Chain | None]:
            return await self_improve(
                task_ids,
                config.self_improvement_steps,
                make_env=lambda: make_env(config.env, config.env_config),
                max_concurrent=config.num_envs_per_env_runner,
                generator=await self._engine(),
                chat=self._chat,
                sampling=sampling_params(config),
                seed=seed,
            )

        return self._run(run())

    def _run(self, coroutine: Any) -> Any:
        # Environments block in threads: as many as may run at once.
        self._loop.get_loop().set_default_executor(self._threads)
        return self._loop.run(coroutine)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.config.num_envs_per_env_runner, thread_name_prefix="env")

    def _engine(self) -> Coroutine[Any, Any, Generator]:
        """The engine with the newest weights."""
        generator = self._generator
        if generator is None:
            generator = self._generator = self.config.generator_class(
                self.config.model_path,
                dtype=self.config.dtype,
                max_model_len=self.config.max_model_len,
                engine_args=self.config.engine_args,
            )
        weights, self._pending_weights = self._pending_weights, None
        return _with_weights(generator, weights)

    # What RLlib asks of an EnvRunner.

    def sample(self, *, num_timesteps: int | None = None, num_episodes: int | None = None, **kwargs: Any) -> Any:
        """Not used: rollouts start from task instances, see :meth:`roll_out`."""
        raise NotImplementedError("LLMEnvRunner rolls out task instances: call roll_out(requests)")

    def get_spaces(self) -> dict[str, Any]:
        spaces = (self.env.observation_space, self.env.action_space)
        return {INPUT_ENV_SPACES: spaces, DEFAULT_MODULE_ID: spaces}

    def get_metrics(self) -> Any:
        return self.metrics.reduce()

    def assert_healthy(self) -> None:
        assert self.env is not None

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        return {WEIGHTS_SEQ_NO: self._policy_version}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes the learner's weights, to be loaded before the next generation.

        They are loaded whatever their version is: after a restore it may be lower than the last one.
        """
        if COMPONENT_RL_MODULE in state:
            self._pending_weights = state[COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]["model"]
            self._policy_version = state[WEIGHTS_SEQ_NO]
            if self._generator is not None:
                self._run(self._engine())

    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list:
        return []

    def stop(self) -> None:
        if self._generator is not None:
            self._run(self._generator.close())
            self._generator = None
        self._loop.close()


# Not a method: Ray turns a class with a coroutine method into an asyncio actor.
async def _with_weights(generator: Generator, weights: np.ndarray | None) -> Generator:
    if weights is not None:
        await generator.update_weights(weights)
    return generator


def make_env(env: Any, env_config: Mapping[str, Any]) -> SelfImprovementEnv:
    """Makes an environment as RLlib does: a class or function that takes ``env_config``, or a registered name.

    Raises:
        TypeError: If it is no :class:`SelfImprovementEnv`.
    """
    if isinstance(env, str):
        from ray.tune.registry import ENV_CREATOR, _global_registry

        creator = _global_registry.get(ENV_CREATOR, env)
        if creator is None:
            raise ValueError(f"env is {env!r}, which is not registered: pass the class, or call ray.tune.register_env")
        env = creator
    made = env(dict(env_config))
    if not isinstance(made, SelfImprovementEnv):
        raise TypeError(f"env made a {type(made).__name__}: it must be a SelfImprovementEnv")
    return made


def sampling_params(config: Any) -> SamplingParams:
    """The sampling that a config asks for."""
    return SamplingParams(
        config.max_response_tokens, config.temperature, config.top_p, config.top_k, tuple(config.stop)
    )
