"""Any environment of ours as an environment of the package ``verifiers``.

Verifiers finds an environment by the name of an installed package; this is that package. Its command evaluates a model
behind an API on one of our environments::

    vf-eval rllib-exit-verifiers --push False -m MODEL --env.taskset.env envs.countdown.env:CountdownEnv

``--env.taskset.env_config`` has the environment's options. The seat ``agent`` plays all turns of an episode, and the
reward is the quality of its end. The model is asked by a small loop in the evaluation's own process; tools that a chat
template would show (``tool_format="native"``) are not shown.
"""

from __future__ import annotations

import asyncio
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any

from envs.base import SelfImprovementEnv, TaskInstance
from envs.extras import extra

with extra("verifiers", "an environment of verifiers needs that package"):
    import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]
    from openai import AsyncOpenAI
    from verifiers.v1.dialects import parse_message  # pyright: ignore[reportMissingImports]
    from verifiers.v1.dialects.chat import message_to_wire  # pyright: ignore[reportMissingImports]

__all__ = ["ChatHarness", "RLlibExItEnv", "RLlibExItTaskset"]

QUALITY = "rllib_exit_quality"
METRICS = "rllib_exit_metrics"


class TasksetOptions(vf.TasksetConfig):
    """Which environment it is."""

    env: str = ""
    """The environment's class as ``module:class``."""
    env_config: dict[str, Any] = {}
    """The environment's options."""


class TaskRow(vf.TaskData):
    """One task of the environment, with the chat before the first response."""

    task_id: str


class RLlibExItTask(vf.Task[TaskRow]):
    """A task, whose reward is the quality that the environment gave the episode."""

    @property
    def key(self) -> str:
        return self.data.task_id

    @vf.reward
    async def quality(self, trace: vf.Trace) -> float:
        """The quality of the episode's end; 0 if it has no response."""
        return trace.info.get(QUALITY, 0.0)

    @vf.metric
    async def metrics(self, trace: vf.Trace) -> dict[str, float]:
        """The domain's metrics of the last response."""
        return trace.info.get(METRICS, {})


class RLlibExItTaskset(vf.Taskset[RLlibExItTask, TasksetOptions]):
    """The tasks of an environment."""

    def load(self) -> Iterable[RLlibExItTask]:
        """All tasks, in the environment's order."""
        env = make_env(self.config.env, self.config.env_config)
        try:
            for task_id in env.tasks:
                env.reset(options={"instance": TaskInstance(task_id)})
                prompt = [parse_message({"role": m["role"], "content": m["content"]}) for m in env.messages()]
                yield RLlibExItTask(TaskRow(id=task_id, task_id=task_id, prompt=prompt), self.config.task)
        finally:
            env.close()


class ChatHarness(vf.Harness[vf.HarnessConfig]):
    """Asks the model for one response to a chat, in this process: no program is started, and none is downloaded."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """Sends the chat to verifiers' own endpoint, which asks the model and records what it answers."""
        system, prompt = self.resolve_prompt(data)
        chat: list[Any] = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, str):
            chat = [message_to_wire(message) for message in prompt]
        if system is not None:
            chat.insert(0, {"role": "system", "content": system})
        async with AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0) as client:
            await client.chat.completions.create(model=ctx.model, messages=chat)
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")


class RLlibExItEnvConfig(vf.EnvConfig):
    """The seat of the model that plays."""

    agent: vf.AgentConfig = vf.AgentConfig(runtime={"type": "subprocess"})
    respond_timeout_s: float = 600.0
    """The seconds that the environment's answer to a response may take."""


class RLlibExItEnv(vf.Env[RLlibExItEnvConfig]):
    """An episode: the model answers, the environment answers, until the environment ends it."""

    def __init__(self, config: RLlibExItEnvConfig) -> None:
        super().__init__(config)
        # Making an environment may mean to load data: one that has played an episode plays further ones.
        self._idle: list[SelfImprovementEnv] = []

    async def run(self, task: RLlibExItTask, agents: vf.Agents) -> None:
        """Plays the episode, and leaves the last quality on the trace for the task's reward."""
        options = {"instance": TaskInstance(task.data.task_id)}
        env = self._idle.pop() if self._idle else await self._in_time(self._make)
        # An environment that failed, or is busy still, plays no further episode.
        await self._in_time(env.reset, options=options)
        async with agents.agent.interaction(task) as interaction:
            segment = await interaction.turn()
            while not segment.terminated:
                response = segment.messages[-1].content or ""
                feedback, _, done, _, info = await self._in_time(env.step, response)
                outcome = info["outcome"]
                interaction.trace.info[QUALITY] = outcome.quality
                interaction.trace.info[METRICS] = {name: float(value) for name, value in outcome.metrics.items()}
                if done:
                    break
                segment = await interaction.turn(feedback)
        self._idle.append(env)

    async def stop(self) -> None:
        """Closes the environments."""
        while self._idle:
            self._idle.pop().close()

    def _make(self) -> SelfImprovementEnv:
        return make_env(self.taskset.config.env, self.taskset.config.env_config)

    async def _in_time(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a function returns that may take its time, from a thread of its own."""
        return await asyncio.wait_for(asyncio.to_thread(function, *args, **kwargs), self.config.respond_timeout_s)


def make_env(name: str, options: dict[str, Any]) -> SelfImprovementEnv:
    """The environment of a name.

    Raises:
        ValueError: If the name is not ``module:class``, or what it names is no environment of ours.
    """
    if ":" not in name:
        raise ValueError(f"env is {name!r}: give it as module:class, such as envs.countdown.env:CountdownEnv")
    made = pkgutil.resolve_name(name)
    if not (isinstance(made, type) and issubclass(made, SelfImprovementEnv)):
        raise ValueError(f"env is {name!r}: it must be a class derived from SelfImprovementEnv")
    return made(options)  # pyright: ignore[reportCallIssue, reportArgumentType]
