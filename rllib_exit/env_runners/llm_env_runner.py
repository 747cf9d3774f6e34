"""RLlib's EnvRunner around a generator: rolls out groups and plays the episodes of evaluations."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from envs.base import TaskInstance
from rllib_exit.env_runners.callbacks import EpisodeCallbacks
from rllib_exit.env_runners.dispatcher import Dispatcher
from rllib_exit.env_runners.environments import make_env
from rllib_exit.env_runners.generator import EngineError, Generator
from rllib_exit.env_runners.player import Player
from rllib_exit.pulse import Watch, start_pulse
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest
from rllib_exit.stages import stage
from rllib_exit.weight_sync.weight_store import Files, StoredWeights

T = TypeVar("T")

# What an engine has of the learners' weights before it got any: of which full copy, and how many patches.
NOTHING = ("", 0)

# A node's custom Ray resource: how many sandboxed scripts may run on it at once.
SANDBOX_SLOTS = "sandbox_slots"


class LLMEnvRunner(EnvRunner, Checkpointable):
    """Owns an inference engine and the environments that run against it.

    Its coroutine methods make it an asyncio actor: many calls run at once, and RLlib's own calls, which are not
    coroutines, between them. The engine starts at once, while the learners are made; one that is colocated, and
    measures how much memory is free, starts with the first rollout or weights.

    An env runner whose engine died or hangs raises :class:`EngineError` from every call. It is of no more use:
    whoever calls it has it restarted.
    """

    config: Any  # a GRPOConfig, which imports this module

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        if slots := _resources_of_this_node().get(SANDBOX_SLOTS):
            os.environ["SANDBOX_SLOTS"] = str(int(slots))
        self._policy_version = 0
        self._loaded = NOTHING
        self._evaluation_players: dict[str | None, Player] = {}  # by split
        self.make_env()
        self._call_back = EpisodeCallbacks(self)
        if ray.is_initialized() and (actor_id := ray.get_runtime_context().get_actor_id()):
            start_pulse(actor_id)
        if not config.colocated:
            threading.Thread(target=self._start_engine, name="engine start", daemon=True).start()

    def make_env(self) -> None:
        """Makes one environment, for its spaces; the rollouts make their own."""
        self.env = make_env(self.config.env, self.config.env_config)

    async def roll_out(self, request: RolloutRequest) -> RolloutGroup:
        """Rolls out ``rollouts_per_prompt`` episodes.

        Raises:
            EpisodeError: If one of them failed twice.
            EngineError: If the engine died, or hangs.
        """
        group_size, version = self.config.rollouts_per_prompt, self._policy_version
        group = await self._player.roll_out(request, group_size, policy_version=version)
        self._call_back(group)
        return group

    async def play(self, instance: TaskInstance, seed: int, steps: int = 0, split: str | None = None) -> Rollout:
        """Plays one episode of an evaluation.

        Args:
            instance: Where the episode starts.
            seed: See :meth:`Player.play_once`.
            steps: See :meth:`Player.play_once`.
            split: Plays in the environment of this one of the config's ``splits``; None for the evaluation's own.

        Returns:
            The episode without its segments, since nobody trains on it.

        Raises:
            PromptTooLongError: If the first prompt leaves no room for a response.
            EpisodeError: If the episode failed twice.
            EngineError: If the engine died, or hangs.
        """
        if split not in self._evaluation_players:
            config = self.config if self.config.in_evaluation else self.config.get_evaluation_config_object()
            env_config = config.env_config if split is None else {**config.env_config, **config.splits[split]}
            self._evaluation_players[split] = Player.from_config(config, self._engine, env_config)
        episode = await self._evaluation_players[split].play(instance, seed=seed, steps=steps)
        return replace(episode, segments=())

    async def update_weights(self, weights: StoredWeights) -> float:
        """Loads new weights in place; responses that are under way go on under them.

        Args:
            weights: Their version may be lower than the last one's, after a restore. Only what the engine lacks is
                asked for: the patches that are new to it, or the full copy and all patches.

        Returns:
            How many seconds the engine itself took.

        Raises:
            EngineError: If the engine died, or hangs.
            ValueError: If patches gave it other weights than a full copy.
        """
        seconds, by_patches = 0.0, None
        if weights.as_patches is not None and self._loaded[0] == weights.as_patches.base:
            seconds += await self._load(weights.as_patches)
            by_patches = await self._in_time(self._engine.checksums())
        seconds += await self._load(weights)
        if by_patches is not None:
            in_full = await self._in_time(self._engine.checksums())
            if odd := [name for name, checksum in in_full.items() if by_patches[name] != checksum]:
                raise ValueError(
                    f"the engine has other weights from patches than from a full copy: {len(odd)} tensors, {odd[0]} "
                    f"the first; full_weights_interval is {self.config.full_weights_interval}: set it to 1"
                )
        self._policy_version = weights.policy_version
        return seconds

    async def _load(self, weights: StoredWeights) -> float:
        """Has the engine load what it lacks of the full copy and the patches; returns the seconds that it took."""
        seconds = 0.0
        base, num_patches = self._loaded
        self._loaded = NOTHING  # until it stands
        if base != weights.base:
            load = self._engine.update_adapters if weights.are_adapters else self._engine.update_weights
            seconds += await self._in_time(load(await _files(weights.files)))
            num_patches = 0
        patches = [await _files(patch) for patch in weights.patches[num_patches:]]
        seconds += await self._in_time(self._engine.patch_weights(patches))
        self._loaded = weights.base, len(weights.patches)
        return seconds

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Has the engine join a group in which weights are broadcast, see :class:`NCCLTransfer`.

        Raises:
            EngineError: If the engine died, or hangs.
        """
        engine: Any = self._engine
        await self._in_time(engine.join_transfer(init_info))

    async def receive_weights(self, policy_version: int, update_info: dict[str, Any]) -> float:
        """As :meth:`update_weights`, from the learner's broadcast.

        Returns:
            0: the engine loads weights while others come.

        Raises:
            EngineError: If the engine died, or hangs.
        """
        engine: Any = self._engine
        self._loaded = NOTHING
        await self._in_time(engine.receive_weights(update_info))
        self._policy_version = policy_version
        return 0.0

    async def sleep(self) -> None:
        """Frees the engine's memory until the next weights.

        Raises:
            EngineError: If the engine died, or hangs.
        """
        await self._in_time(self._generator.sleep())

    async def read_engine_stats(self) -> tuple[int, Mapping[str, float]]:
        """The env runner's number, and what its engine did since the last call, see :meth:`EngineStats.read`."""
        return self.worker_index, self._generator.read_stats()

    async def _in_time(self, call: Coroutine[Any, Any, T]) -> T:
        timeout_s = self.config.generation_timeout_s
        try:
            return await asyncio.wait_for(call, timeout_s)
        except TimeoutError:
            raise EngineError(f"the engine took no weights within generation_timeout_s ({timeout_s} s)") from None

    async def close(self) -> None:
        """Ends the engine."""
        await self._generator.close()

    @cached_property
    def _generator(self) -> Generator:
        return self.config.generator_class(
            self.config.model_path,
            dtype=self.config.dtype,
            max_model_len=self.config.max_model_len,
            engine_args=self.config.all_engine_args,
        )

    def _start_engine(self) -> None:
        with suppress(Exception), stage("load engine"):  # every use of the engine raises it again
            self._generator.start()

    @property
    def _engine(self) -> Generator:
        """The generator, started."""
        self._generator.start()
        return self._generator

    @cached_property
    def _player(self) -> Player:
        return Player.from_config(self.config, self._engine)

    # What RLlib asks of an EnvRunner.

    def sample(self, *, num_timesteps: int | None = None, num_episodes: int | None = None, **kwargs: Any) -> Any:
        """Not used: rollouts start from task instances, see :meth:`roll_out`."""
        raise NotImplementedError("LLMEnvRunner rolls out task instances: call roll_out(request)")

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
        """Takes nothing: weights come by :meth:`update_weights`, which is awaited; RLlib's sync is not."""

    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list:
        return []

    def stop(self) -> None:
        """Does nothing; the engine ends with :meth:`close`, or with the process."""


async def _files(references: Files) -> list[Sequence[np.ndarray]]:
    """Files from the object store, of which nothing is copied on a node that has them."""
    if any(isinstance(file, ray.ObjectRef) for file in references):
        return await asyncio.gather(*references)
    return list(references)


def make_dispatcher(env_runners: Any, config: Any) -> Dispatcher:
    """Hands work to the env runners of RLlib's EnvRunnerGroup; the size of a call is in episodes at once."""
    actors = list(env_runners._worker_manager.actors().values())
    timeout_s = config.env_runner_timeout_s
    return Dispatcher(
        actors,
        capacity=config.num_envs_per_env_runner,
        is_lost=_is_lost,
        revive=_revive,
        patience_s=config.env_runner_restore_timeout_s,
        silent=Watch([actor._actor_id.hex() for actor in actors], timeout_s).silent if timeout_s else None,
    )


@contextmanager
def env_runners_of_its_own(config: Any) -> Iterator[Dispatcher]:
    """The env runners of a command that makes no algorithm; their engines end with the context.

    Args:
        config: With ``num_env_runners`` of 0 there is one env runner, in this process, which needs no Ray: if its
            engine dies, what is asked of it fails. With more they are actors of a Ray that has been started.
    """
    if config.num_env_runners:
        dispatcher = make_dispatcher(EnvRunnerGroup(config=config, local_env_runner=False), config)
    else:
        dispatcher = Dispatcher(
            [LLMEnvRunner(config=config)],
            capacity=config.num_envs_per_env_runner,
            is_lost=lambda error: False,
            revive=_revive,
            patience_s=None,
        )
    try:
        yield dispatcher
    finally:
        dispatcher.cancel()
        dispatcher.call_all(remote_call("close"))
        dispatcher.stop()


def remote_call(method: str, *args: Any) -> Callable[[Any], Awaitable[Any]]:
    """What a Dispatcher calls with an env runner's actor, or with an env runner of this process.

    It raises what the method raises, and ends the actor's work if it is cancelled.
    """

    async def call(actor: Any) -> Any:
        if isinstance(actor, LLMEnvRunner):
            return await getattr(actor, method)(*args)
        reference = getattr(actor, method).remote(*args)
        try:
            return await reference
        except RayTaskError as error:
            raise error.cause from error
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise

    return call


def _is_lost(error: BaseException) -> bool:
    """Whether an env runner's process is gone, or of no use without its engine."""
    return isinstance(error, EngineError | RayError)


async def _revive(actor: Any, error: BaseException) -> None:
    if not isinstance(error, RayError):
        # The process lives, with an engine that does not. Ray restarts what is killed.
        ray.kill(actor, no_restart=False)
    while True:
        await asyncio.sleep(0.5)
        try:
            return await actor.ping.remote()
        except RayError:
            continue


def _resources_of_this_node() -> dict[str, float]:
    if not ray.is_initialized():
        return {}
    node_id = ray.get_runtime_context().get_node_id()
    return next((node["Resources"] for node in ray.nodes() if node["NodeID"] == node_id), {})
