"""Plays countdown with a model and plain transformers: many tasks at once, no engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from envs.base import Kind, TaskInstance, Turn
from envs.countdown.env import CountdownEnv
from rllib_exit.chat import ChatTokenizer


class Player:
    """Answers instances with a model at temperature 1.

    Args:
        directory: The model's.
        env: The environment.
        seed: Of the sampling.
    """

    def __init__(self, directory: str, env: CountdownEnv, seed: int = 0) -> None:
        self.env = env
        self.chat = ChatTokenizer(directory)
        self.model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self.generator = torch.Generator().manual_seed(seed)

    def responses(self, prompts: Sequence[Sequence[int]], max_tokens: int = 12) -> list[str]:
        """Sampled responses to prompts, padded on the left."""
        eos = self.chat.eos_token_ids[0]
        width = max(map(len, prompts))
        ids = torch.tensor([[eos] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        mask = (torch.arange(width) >= width - lengths[:, None]).long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        generated, cache = [], None
        with torch.inference_mode():
            inputs = ids
            for _ in range(max_tokens):
                output = self.model(
                    input_ids=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
                )
                cache = output.past_key_values
                inputs = torch.multinomial(output.logits[:, -1].softmax(-1), 1, generator=self.generator)
                generated.append(inputs)
                mask = torch.cat([mask, torch.ones_like(inputs)], 1)
                positions = positions[:, -1:] + 1
        rows = torch.cat(generated, 1).tolist()
        return [self.chat.decode(row[: row.index(eos)] if eos in row else row) for row in rows]

    def turns(self, instances: Sequence[TaskInstance]) -> list[Turn]:
        """One sampled turn for each instance."""
        prompts = []
        for instance in instances:
            self.env.reset(options={"instance": instance})
            prompts.append(self.chat.encode(self.env.messages()))
        turns = []
        for instance, response in zip(instances, self.responses(prompts), strict=True):
            self.env.reset(options={"instance": instance})
            self.env.step(response)
            turns.append(self.env.turns[-1])
        return turns

    def chains(self, task_ids: Sequence[str], steps: int, kind: Kind = "improve") -> list[list[Turn]]:
        """For every step 0 … K, every task's iterate."""
        turns = [self.turns([TaskInstance(task_id) for task_id in task_ids])]
        for _ in range(steps):
            turns.append(
                self.turns(
                    [
                        TaskInstance(task_id, iterate=turn, kind=kind)
                        for task_id, turn in zip(task_ids, turns[-1], strict=True)
                    ]
                )
            )
        return turns


def qualities(chains: Sequence[Sequence[Turn]]) -> np.ndarray:
    """(K+1, N) the quality of every iterate."""
    return np.array([[turn.quality for turn in turns] for turns in chains])
