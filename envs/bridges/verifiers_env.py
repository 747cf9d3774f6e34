"""A taskset of the package ``verifiers`` as an environment: its rows are tasks, its rewards are the quality."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Mapping
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from envs.base import InfrastructureError, Message, Outcome, SelfImprovementEnv, Task
from envs.bridges.rewards import RewardRange, quality_of
from envs.extras import extra
from envs.options import Options


class VerifiersOptions(Options):
    """The options of :class:`VerifiersEnv`."""

    taskset: Any = Field(description="The id of an installed taskset, such as `gsm8k-v1`, or a `Taskset` itself.")
    taskset_config: dict[str, Any] = Field({}, description="The fields of the taskset's own configuration.")
    limit: PositiveInt | None = Field(None, description="So many of the first tasks; all by default.")
    reward_range: RewardRange = Field(
        (0.0, 1.0), description="The least and the greatest sum of rewards, which become the qualities 0 and 1."
    )
    scoring_timeout_s: PositiveFloat = Field(60.0, description="The seconds that the rewards of a response may take.")


class VerifiersEnv(SelfImprovementEnv):
    """A taskset of ``verifiers`` 0.4, with one response for each task.

    The weighted sum of the taskset's rewards and judges becomes the quality, and all rewards and metrics are reported
    by their names. The taskset's code runs in this process, with the rights of whoever trains. The responses are
    answered without a runtime: tools, containers, tasks that prepare or inspect a runtime, and packages with a
    conversation of their own are refused.

    Args:
        config: The options, see :class:`VerifiersOptions`; also as RLlib's ``env_config``.

    Raises:
        ModuleNotFoundError: If ``verifiers`` or the taskset is not installed.
        ValueError: If an option is unknown or has an impossible value, or the taskset needs what is refused.

    Example:
        ::

            config.environment(VerifiersEnv, env_config={"taskset": "gsm8k-v1", "limit": 1000})
    """

    max_turns = 1

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self.options = options = VerifiersOptions.parse(config)
        with extra("verifiers", "a taskset of verifiers needs that package"):
            import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]
        self._vf = vf
        taskset = _load(vf, options)
        if not taskset.bounded and options.limit is None:
            raise ValueError("limit is None: it must be a number, because the taskset has no end")
        self._theirs = list(itertools.islice(taskset, options.limit))
        tasks = []
        for number, theirs in enumerate(self._theirs):
            _refuse(theirs)
            tasks.append(Task(str(theirs.key), theirs.data.prompt_text, {"number": number}))
        super().__init__(tasks)
        for task in tasks:
            self.prompt(task)

    def prompt(self, task: Task) -> list[Message]:
        data = self._theirs[task.data["number"]].data
        chat: list[Message] = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
        if isinstance(data.prompt, str):
            return [*chat, {"role": "user", "content": data.prompt}]
        for message in data.prompt or ():
            if not isinstance(message.content, str) or message.role not in ("system", "user", "assistant"):
                raise ValueError(f"task {task.id!r}: its prompt has a message of {message.role} that is no plain text")
            chat.append({"role": message.role, "content": message.content})
        if not chat or chat[-1]["role"] != "user":
            raise ValueError(f"task {task.id!r}: its prompt does not end with a message of the user")
        return chat

    def respond(self, task: Task, response: str) -> Outcome:
        trace = self._trace(task, response)
        theirs = self._theirs[task.data["number"]]
        try:
            asyncio.run(asyncio.wait_for(theirs.score(trace), self.options.scoring_timeout_s))
        except (self._vf.RolloutError, TimeoutError) as error:
            raise InfrastructureError(f"task {task.id!r}: its rewards failed: {error!r}") from error
        what = f"task {task.id!r}: the sum of its rewards"
        quality = quality_of(trace.reward, self.options.reward_range, what)
        rewards = {name: reward.score for name, reward in trace.rewards.items() if reward is not None}
        metrics = {name: value for name, value in trace.metrics.items() if value is not None}
        return Outcome(quality, metrics={**metrics, **rewards})

    def gold(self, task: Task) -> str | None:
        """The field ``answer`` of the task's data, if it has one."""
        answer = getattr(self._theirs[task.data["number"]].data, "answer", None)
        return None if answer is None else str(answer)

    def _trace(self, task: Task, response: str) -> Any:
        """The record of one response, as verifiers makes it when a model has answered the task."""
        from verifiers.v1.dialects import parse_message  # pyright: ignore[reportMissingImports]
        from verifiers.v1.rollout import state_cls  # pyright: ignore[reportMissingImports]

        vf, theirs = self._vf, self._theirs[task.data["number"]]
        trace = vf.Trace(
            task=vf.TraceTask(type=type(theirs).__name__, data=theirs.data, key=theirs.key, hash=theirs.hash),
            state=state_cls(type(theirs))(),
            agent=vf.AgentInfo(config=vf.AgentConfig(model="policy")),
        )
        chat = [*self.prompt(task), Message(role="assistant", content=response)]
        for number, message in enumerate(chat):
            parent = number - 1 if number else None
            sampled = number == len(chat) - 1
            trace.nodes.append(vf.MessageNode(parent=parent, message=parse_message(dict(message)), sampled=sampled))
        trace.stop("agent_completed")
        trace.ok = True
        return trace


def _load(vf: Any, options: VerifiersOptions) -> Any:
    """The taskset.

    Raises:
        ValueError: If it is none, or it needs more than an answer.
    """
    if isinstance(options.taskset, str):
        if vf.environment_class(options.taskset) is not vf.SingleAgentEnv:
            raise ValueError(f"taskset is {options.taskset!r}: it has a conversation of its own, which is not played")
        config = vf.taskset_config_type(options.taskset).model_validate(
            {**options.taskset_config, "id": options.taskset}
        )
        taskset = vf.load_taskset(config)
    else:
        taskset = options.taskset
    if not isinstance(taskset, vf.Taskset):
        raise ValueError(f"taskset is {options.taskset!r}: it must be an id or a verifiers.v1.Taskset")
    if type(taskset).toolsets(taskset.config):
        raise ValueError(f"taskset is {options.taskset!r}: it has tools, which are not played")
    return taskset


def _refuse(theirs: Any) -> None:
    """Refuses a task of verifiers that an answer alone cannot be scored for.

    Raises:
        ValueError: If it needs tools or a runtime.
    """
    import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]

    scoring = [*theirs.hooks("reward"), *theirs.hooks("metric"), *(judge.score for judge in theirs.plugged_judges())]
    needs = {
        "tools": bool(theirs.toolsets(theirs.config)),
        "a container": theirs.NEEDS_CONTAINER or theirs.data.image is not None,
        "a runtime to prepare": any(
            getattr(type(theirs), hook) is not getattr(vf.Task, hook) for hook in ("setup", "finalize")
        ),
        "a runtime to score": any(
            "runtime" in (names := inspect.signature(function).parameters)
            and names["runtime"].default is inspect.Parameter.empty
            for function in scoring
        ),
        "someone who begins the conversation": theirs.data.prompt is None,
    }
    if needed := [name for name, true in needs.items() if true]:
        raise ValueError(f"task {theirs.key!r} of the taskset needs {' and '.join(needed)}, which is not played")
