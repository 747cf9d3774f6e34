"""Your own data as an environment: a table of prompts and answers, and functions that say how good a response is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from envs.base import Message, Outcome, SelfImprovementEnv, Task
from envs.dataset.rewards import Reward
from envs.options import Options, PathText
from envs.sampling import stable_hash, subset
from envs.tables import Row, rows, text


def _rewards(given: Any) -> tuple[Reward, ...]:
    return tuple(map(Reward.of, given if isinstance(given, tuple | list) else [given]))


class DatasetOptions(Options):
    """The options of :class:`DatasetEnv`."""

    data: PathText | tuple[Mapping[str, Any], ...] = Field(
        description="A JSONL, Parquet or CSV file, a folder, a Hub data set, or the rows themselves."
    )
    data_split: str | None = Field(None, description="For a folder or a Hub data set, its own split; `train`.")
    data_config: str | None = Field(None, description="For a folder or a Hub data set, its configuration.")
    prompt: str = Field("prompt", description="The column of the prompt.")
    answer: str = Field("answer", description="The column of the answer; an empty text if the rewards need none.")
    rewards: Annotated[tuple[Reward, ...], BeforeValidator(_rewards)] = Field(
        description="What a response is worth: functions, each alone or with its weight. See `envs/dataset/rewards.py`."
    )
    split: Literal["train", "test", "all"] = Field(
        "all", description="Which of the rows: `test` is a share of `test_fraction`, by a hash of the prompt."
    )
    test_fraction: float = Field(0.1, ge=0, lt=1, description="The share of the rows that `test` has.")
    system_prompt: str | None = Field(None, description="The system message; none by default.")
    instruction: str | None = Field(None, description="What follows the prompt; nothing by default.")
    few_shot: NonNegativeInt = Field(
        0, description="So many of the first rows are shown before every prompt, with their answers, and are no tasks."
    )
    limit: PositiveInt | None = Field(None, description="How many tasks are drawn; all by default.")
    seed: int = Field(0, description="The seed of that draw.")


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
        tasks = _tasks(options)
        self._examples, tasks = tasks[: options.few_shot], tasks[options.few_shot :]
        if options.few_shot and not options.answer:
            raise ValueError(f"few_shot is {options.few_shot} but answer is empty: examples need a column of answers")
        mine = tuple(filter(self._in_split, tasks))
        if not mine:
            raise ValueError(
                f"split is {options.split!r}, which has none of {len(tasks)} rows: change test_fraction "
                f"({options.test_fraction}), or give more rows"
            )
        super().__init__(subset(mine, options.limit, options.seed))

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

    def _request(self, task: Task) -> str:
        return f"{task.prompt}\n\n{self.options.instruction}" if self.options.instruction else task.prompt

    def _in_split(self, task: Task) -> bool:
        split, share = self.options.split, self.options.test_fraction
        return split == "all" or (split == "test") == (stable_hash(task.prompt) % 10**6 < share * 10**6)


def _tasks(options: DatasetOptions) -> list[Task]:
    tasks = []
    where = options.data if isinstance(options.data, str) else "data"
    columns = {"prompt": options.prompt} | ({"answer": options.answer} if options.answer else {})
    for number, row in _rows(options):
        values = {option: _cell(where, number, row, option, column) for option, column in columns.items()}
        others = {name: value for name, value in row.items() if name not in columns.values()}
        # The number tells rows with the same prompt apart.
        tasks.append(Task(f"{number}", values["prompt"], {"row": {**others, **values}}))
    if not tasks:
        raise ValueError(f"{where}: there are no rows")
    return tasks


def _rows(options: DatasetOptions) -> Sequence[tuple[int, Row]]:
    if isinstance(options.data, str):
        return list(rows(options.data, options.data_split, options.data_config))
    return list(enumerate(options.data, start=1))


def _cell(where: str, number: int, row: Row, option: str, column: str) -> str:
    if column not in row:
        first = ", ".join(f"{name}={str(value)[:40]!r}" for name, value in row.items())
        raise ValueError(f"{option} is {column!r}: no such column in row {number} of {where}, which has {first}")
    if not (value := text(row[column])):
        raise ValueError(f"{where}: column {column!r} of row {number} is empty: fill it in, or leave the row out")
    return value
