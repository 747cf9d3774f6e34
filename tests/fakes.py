"""Fakes that several tests use."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from envs.base import Message, Outcome, SelfImprovementEnv, Task
from envs.bfcl.env import BFCLEnv
from envs.prompts import DIVERGE, IMPROVE
from envs.tool_use.calls import TASK_ERROR
from rllib_exit.chat import ChatTokenizer
from rllib_exit.env_runners.engine_guard import end_with_this_process
from rllib_exit.env_runners.engine_stats import EngineStats
from rllib_exit.env_runners.generator import EngineError, Generation, SamplingParams


class CounterEnv(SelfImprovementEnv):
    """Reach a target by adding the integers of the responses to a counter that starts at 0.

    An episode ends after ``turns`` responses. The quality is 1 at the target and falls with the distance.
    A response that is no integer adds nothing and is not valid.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        config = config or {}
        self.max_turns: int = config.get("turns", 3)
        targets = range(1, 1 + config.get("tasks", 4))
        super().__init__([Task(f"count/{n}", f"Count to {n}.", {"target": n}) for n in targets])
        self.count = 0
        self.responses = 0

    def prompt(self, task: Task) -> list[Message]:
        return [{"role": "system", "content": "You count."}, {"role": "user", "content": task.prompt}]

    def begin(self, task: Task) -> None:
        self.count = 0
        self.responses = 0

    def respond(self, task: Task, response: str) -> Outcome:
        self.responses += 1
        try:
            self.count += int(response)
            valid = True
        except ValueError:
            valid = False
        return Outcome(
            quality=1 / (1 + abs(task.data["target"] - self.count)),
            feedback=f"The counter is at {self.count}.",
            done=self.responses == self.max_turns,
            valid=valid,
            metrics={"count": float(self.count)},
        )


def vllm_stats(queries: int, tokens: int) -> tuple[Any, Any]:
    """What vLLM gives its stat loggers after a pass in which one request began and ended."""
    prefix_cache = SimpleNamespace(queries=queries, hits=0)
    scheduler = SimpleNamespace(
        num_running_reqs=1, num_waiting_reqs=0, kv_cache_usage=0.5, prefix_cache_stats=prefix_cache
    )
    return scheduler, SimpleNamespace(num_generation_tokens=tokens, num_preempted_reqs=0)


class ScriptedGenerator:
    """Answers with ``script(prompt_text, seed)``, encoded, and a log-probability of -1 for every token."""

    def __init__(
        self,
        model: str,
        script: Callable[[str, int], str],
        *,
        dtype: str = "float32",
        max_model_len: int = 512,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        self.chat = ChatTokenizer(model)
        self.script = script
        self.prompts: list[list[int]] = []
        self.updates: list[Sequence[Sequence[np.ndarray]]] = []
        self.patches: list[Sequence[Sequence[np.ndarray]]] = []
        self.stats = EngineStats()
        self._max_model_len = max_model_len

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    def start(self) -> None:
        pass

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int) -> Generation:
        await asyncio.sleep(0)
        self.prompts.append(list(prompt_ids))
        return self._encoded(self.script(self.chat.tokenizer.decode(prompt_ids), seed), prompt_ids, sampling)

    def _encoded(self, text: str, prompt_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        ids = self.chat.tokenizer.encode(text, add_special_tokens=False)
        truncated = len(ids) >= sampling.max_tokens
        ids = ids[: sampling.max_tokens] if truncated else [*ids, self.chat.eos_token_ids[0]]
        self.stats.record(*vllm_stats(len(prompt_ids), len(ids)))
        return Generation(tuple(ids), np.full(len(ids), -1.0, np.float32), truncated)

    async def update_weights(self, files: Sequence[Sequence[np.ndarray]]) -> float:
        self.updates.append(files)
        return 0.0

    async def patch_weights(self, patches: Sequence[Sequence[Sequence[np.ndarray]]]) -> float:
        self.patches.extend(patches)
        return 0.0

    def read_stats(self) -> dict[str, float]:
        return self.stats.read()

    async def checksums(self) -> dict[str, int]:
        return {}

    async def sleep(self) -> None:
        pass

    async def close(self) -> None:
        pass


# Answers every line of its input with a number, or with something that is none.
ENGINE = """
import sys, time, zlib  # scripted engine
for line in sys.stdin:
    time.sleep(0.01)
    print([-1, 0, 1, 2, 3, "none"][zlib.crc32(line.encode()) % 6], flush=True)
"""


class EngineProcess(ScriptedGenerator):
    """Has a process of its own make the responses, a function of weights, prompt and seed: one bit changes them all.

    Args:
        model: The model, for its tokenizer.
        generating: A directory in which every response touches the file that is named after this process.
        **kwargs: Others of :class:`ScriptedGenerator`.
    """

    def __init__(self, model: str, *, generating: Path, **kwargs: Any) -> None:
        super().__init__(model, lambda prompt, seed: "", **kwargs)
        self._touched = generating / str(os.getpid())
        self._weights = 0
        self._one_at_a_time = asyncio.Lock()
        self._engine = subprocess.Popen(
            [sys.executable, "-ISc", ENGINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        end_with_this_process([self._engine.pid])

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int) -> Generation:
        async with self._one_at_a_time:
            self._touched.touch()
            text = await asyncio.to_thread(self._ask, f"{self._weights} {seed} {[*prompt_ids]}\n")
        return self._encoded(text, prompt_ids, sampling)

    def _ask(self, line: str) -> str:
        assert self._engine.stdin and self._engine.stdout
        with suppress(OSError):
            self._engine.stdin.write(line)
            self._engine.stdin.flush()
            if answer := self._engine.stdout.readline():
                return answer.strip()
        raise EngineError("the engine died")

    async def update_weights(self, files: Sequence[Sequence[np.ndarray]]) -> float:
        self._weights = functools.reduce(lambda crc, part: zlib.crc32(part.tobytes(), crc), itertools.chain(*files), 0)
        return 0.0

    async def close(self) -> None:
        self._engine.kill()


def tool_user(prompt: str, seed: int, requests: str = "first") -> str:
    """A script that follows the ground truth of a BFCL task.

    Of answers afresh, one in three gives up instead; self-iteration steps differ in a word, as every response would.
    """
    asked, *answers = prompt.split("<|im_start|>assistant\n")[:-1]
    env = _bfcl(requests)
    [task] = [task for task in env.tasks.values() if f"<|im_start|>user\n{task.prompt}<|im_end|>" in asked]
    iterating = bool(answers) and (IMPROVE in answers[-1] or DIVERGE in answers[-1])
    if not iterating and seed // 7 % 3 == 0:
        return TASK_ERROR
    answer = env.demonstration(task)[len(answers) - iterating]
    return f"Attempt {seed}: {answer}" if iterating else answer


@functools.cache
def _bfcl(requests: str) -> BFCLEnv:
    return BFCLEnv({"split": "all", "requests": requests, "schemas": "short"})
