"""Plays countdown, and learns it by ExIt, with a small model in plain transformers: all rollouts at once, no engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from envs.base import Kind, TaskInstance
from envs.countdown.env import CountdownEnv
from rllib_exit.chat import ChatTokenizer
from rllib_exit.curriculum.exit import CurriculumConfig, ExIt
from rllib_exit.objective.advantages import group_advantages
from rllib_exit.objective.diversity import edit_diversity_coefficients
from rllib_exit.rollouts import Rollout, RolloutGroup, Segment


class Policy:
    """A model that answers instances at temperature 1 and learns from groups of rollouts.

    Args:
        directory: The model's.
        env: The environment; one turn a task.
        seed: Of the sampling.
        lr: The learning rate.
    """

    def __init__(self, directory: str, env: CountdownEnv, seed: int = 0, lr: float = 3e-4) -> None:
        self.env = env
        self.chat = ChatTokenizer(directory)
        self.eos = self.chat.eos_token_ids[0]
        self.model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.0)
        self.generator = torch.Generator().manual_seed(seed)

    @torch.inference_mode()
    def sample(self, prompts: Sequence[Sequence[int]], max_tokens: int = 12) -> list[list[int]]:
        """The ids of one response to each prompt, the end of the turn included."""
        width = max(map(len, prompts))
        inputs = torch.tensor([[self.eos] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache, columns = None, []
        while len(columns) < max_tokens:
            output = self.model(
                input_ids=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            cache = output.past_key_values
            inputs = torch.multinomial(output.logits[:, -1].softmax(-1), 1, generator=self.generator)
            mask = torch.cat([mask, torch.ones_like(inputs)], 1)
            positions = positions[:, -1:] + 1
            columns.append(inputs)
        rows = torch.cat(columns, 1).tolist()
        return [row[: row.index(self.eos) + 1] if self.eos in row else row for row in rows]

    def roll_out(self, instances: Sequence[TaskInstance]) -> list[Rollout]:
        """One episode from each instance."""
        prompts = []
        for instance in instances:
            self.env.reset(options={"instance": instance})
            prompts.append(self.chat.encode(self.env.messages()))
        rollouts = []
        for instance, prompt, ids in zip(instances, prompts, self.sample(prompts), strict=True):
            self.env.reset(options={"instance": instance})
            outcome = self.env.step(self.chat.decode(ids))[4]["outcome"]
            mask = np.arange(len(prompt) + len(ids)) >= len(prompt)
            segment = Segment(np.array([*prompt, *ids], np.int32), mask, np.zeros(len(mask), np.float32))
            return_, truncated = self.env.episode_return(outcome.quality), ids[-1] != self.eos
            rollouts.append(Rollout((segment,), self.env.turns, return_, outcome.quality, outcome.valid, truncated))
        return rollouts

    def chains(self, task_ids: Sequence[str], steps: int, kind: Kind = "improve") -> list[list[Rollout]]:
        """For every step 0 … K, every task's rollout."""
        chains = [self.roll_out([TaskInstance(task_id) for task_id in task_ids])]
        for _ in range(steps):
            iterates = zip(task_ids, (rollout.turns[-1] for rollout in chains[-1]), strict=True)
            chains.append(self.roll_out([TaskInstance(task, iterate=turn, kind=kind) for task, turn in iterates]))
        return chains

    def update(self, groups: Sequence[RolloutGroup], advantages: Sequence[np.ndarray]) -> None:
        """One step of policy gradient, each token weighted as in GRPO's objective (Eq. 4); on-policy no ratio clips."""
        pairs = [
            (rollout.segments[0], advantage)
            for group, advantages_G in zip(groups, advantages, strict=True)
            for rollout, advantage in zip(group.rollouts, advantages_G, strict=True)
        ]
        width = max(len(segment.token_ids) for segment, _ in pairs)
        ids, weights = np.full((len(pairs), width), self.eos), np.zeros((len(pairs), width), np.float32)
        for row, (segment, advantage) in enumerate(pairs):
            ids[row, : len(segment.token_ids)] = segment.token_ids
            weights[row, : len(segment.token_ids)] = segment.loss_mask * advantage / segment.loss_mask.sum()
        kept = weights.any(axis=1)
        if not kept.any():
            return
        targets = torch.from_numpy(ids[kept])
        logits = self.model(input_ids=targets[:, :-1]).logits
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), reduction="none")
        (losses @ torch.from_numpy(weights[kept, 1:].flatten()) / len(pairs)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def train(
        self, config: CurriculumConfig, iterations: int, *, prompts: int = 64, group_size: int = 8, seed: int = 0
    ) -> Iterator[float]:
        """Trains by ExIt; yields the mean return of every iteration."""
        curriculum = ExIt(config, list(self.env.tasks), np.random.default_rng(seed))
        for _ in range(iterations):
            requests = curriculum.select(prompts)
            rollouts = self.roll_out([request.instance for request in requests for _ in range(group_size)])
            groups = [
                RolloutGroup(request, tuple(rollouts[i * group_size : (i + 1) * group_size]))
                for i, request in enumerate(requests)
            ]
            advantages = [group_advantages(group.returns_G) for group in groups]
            if config.diversity_bonus:
                solutions = [[self.env.solution(r.turns[-1].response) for r in group.rollouts] for group in groups]
                advantages = [
                    edit_diversity_coefficients(texts) * advantages_G
                    for texts, advantages_G in zip(solutions, advantages, strict=True)
                ]
            self.update(groups, advantages)
            curriculum.update(groups)
            yield float(np.mean([group.returns_G.mean() for group in groups]))


def qualities(chains: Sequence[Sequence[Rollout]]) -> np.ndarray:
    """(K+1, N) the quality of every iterate."""
    return np.array([[rollout.quality for rollout in rollouts] for rollouts in chains])
