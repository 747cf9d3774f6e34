"""Your own data as an environment: a table of prompts and answers, and functions that say how good a response is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, NonNegativeInt

from envs.base import Message, Outcome, SelfImprovementEnv, Task
from envs.dataset.rewards import Reward
from envs.dataset.rows import RowOptions, all_tasks, select


def _rewards(given: Any) -> tuple[Reward, ...]:
    return tuple(map(Reward.of, given if isinstance(given, tuple | list) else [given]))


class DatasetOptions(RowOptions):
    """The options of :class:`DatasetEnv`."""

    answer: str = Field("answer", description="The column of the answer; an empty text if the rewards need none.")
    rewards: Annotated[tuple[Reward, ...], BeforeValidator(_rewards)] = Field(
        description="What a response is worth: functions, each alone or with its weight. See `envs/dataset/rewards.py`."
    )
    system_prompt: str | None = Field(None, description="The system message; none by default.")
    instruction: str | None = Field(None, description="What follows the prompt; nothing by default.")
    few_shot: NonNegativeInt = Field(
        0, description="So many of the first rows are shown before every prompt, with their answers, and are no tasks."
    )


class DatasetEnv(SelfImprovementEnv):
    """One row, one response; the quality is the weighted mean of the rewards.

    Args:
        config: The options, see :class:`DatasetOptions`; also as RLlib's ``env_config``.

    Raises:
        ValueError: If an option is unknown or has an impossible value, a column does not exist, or a row has no prompt
            or no answer.
        FileNotFoundError: If there is no such file.
    """

    max_turns = 1

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self.options = options = DatasetOptions.parse(config)
        if not options.rewards:
            raise ValueError("rewards is (): give at least one, as by .reward(math_reward)")
        self._rewards = [(reward, reward.resolve()) for reward in options.rewards]
        tasks = all_tasks(options, **({"answer": options.answer} if options.answer else {}))
        self._examples, tasks = tasks[: options.few_shot], tasks[options.few_shot :]
        if options.few_shot and not options.answer:
            raise ValueError(f"few_shot is {options.few_shot} but answer is empty: examples need a column of answers")
        super().__init__(select(tasks, options))

    def prompt(self, task: Task) -> list[Message]:
        chat: list[Message] = []
        if self.options.system_prompt:
            chat.append({"role": "system", "content": self.options.system_prompt})
        for example in self._examples:
            chat.append({"role": "user", "content": self._request(example)})
            chat.append({"role": "assistant", "content": example.data["row"]["answer"]})
        return [*chat, {"role": "user", "content": self._request(task)}]

    def respond(self, task: Task, response: str) -> Outcome:
        results = [(reward, *function(response, task.data["row"])) for reward, function in self._rewards]
        weights = sum(reward.weight for reward, _, _ in results)
        feedback = [said for _, _, said in results if said]
        return Outcome(
            quality=sum(reward.weight * value for reward, value, _ in results) / weights,
            feedback="\n".join(feedback) or None,
            metrics={reward.name: value for reward, value, _ in results} if len(results) > 1 else {},
        )

    def demonstration(self, task: Task) -> Sequence[str]:
        """The row's answer."""
        return [task.data["row"]["answer"]] if self.options.answer else super().demonstration(task)

    def gold(self, task: Task) -> str | None:
        """The row's answer."""
        return str(task.data["row"]["answer"]) if self.options.answer else None

    def _request(self, task: Task) -> str:
        return f"{task.prompt}\n\n{self.options.instruction}" if self.options.instruction else task.prompt
