"""ExIt on one machine, without Ray and vLLM: ``python tuned_examples/exit_loop.py --iterations 10``.

Transformers samples, AdamW trains. The small model takes one to two minutes for an iteration on an idle CPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import typer
from transformers import AutoModelForCausalLM, GenerationConfig

from envs.base import SelfImprovementEnv
from envs.competition_math.env import CompetitionMathEnv
from rllib_exit.chat import ChatTokenizer
from rllib_exit.curriculum.exit import STRATEGIES, CurriculumConfig, ExIt
from rllib_exit.env_runners.generator import Generation, SamplingParams
from rllib_exit.exit_loop import exit_loop
from rllib_exit.models import SMOLLM2, resolve_model
from rllib_exit.objective.loss import grpo_loss
from rllib_exit.rollouts import ScoredGroup, Segment

Strategy = Literal["grpo", "curriculum", "improve", "diverge", "exit"]


class Policy:
    """A causal language model that samples responses, one at a time, and learns from groups of rollouts.

    Args:
        model: A name that :func:`rllib_exit.models.resolve_model` takes.
        lr: The learning rate.
    """

    max_model_len = 512

    def __init__(self, model: str, lr: float) -> None:
        directory = resolve_model(model)
        self.chat = ChatTokenizer(directory)
        self.model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        # What is trained is the model's own distribution, whatever its authors advise for sampling.
        eos = list(self.chat.eos_token_ids)
        self.model.generation_config = GenerationConfig(
            do_sample=True,
            top_k=0,
            eos_token_id=eos,
            pad_token_id=eos[0],
            output_scores=True,
            return_dict_in_generate=True,
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.0)

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int) -> Generation:
        """Samples one response at the temperature 1."""
        torch.manual_seed(seed)
        prompt = torch.tensor([list(prompt_ids)])
        output = self.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=sampling.max_tokens)
        logprobs_1N = self.model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
        ids = output.sequences[0, len(prompt_ids) :].tolist()
        return Generation(tuple(ids), logprobs_1N[0].numpy(), truncated=ids[-1] not in self.chat.eos_token_ids)

    async def update(self, groups: Sequence[ScoredGroup]) -> None:
        """Takes one step on the GRPO objective (Eq. 4), without a KL term."""
        rollouts = [pair for scored in groups for pair in zip(scored.group.rollouts, scored.advantages_G, strict=True)]
        for rollout, advantage in rollouts:
            if advantage == 0:
                continue  # its gradient is 0
            num_tokens = sum(int(segment.loss_mask.sum()) for segment in rollout.segments)
            for segment in rollout.segments:
                logprobs_N = self.logprobs(segment)
                loss, _ = grpo_loss(
                    logprobs_N,
                    logprobs_N.detach(),  # a batch has one update: π_old is π_θ
                    torch.from_numpy(segment.logprobs[segment.loss_mask]),
                    None,
                    torch.full_like(logprobs_N, advantage),
                    torch.full_like(logprobs_N, 1 / (len(rollouts) * num_tokens)),
                    clip_param=0.2,
                    kl_coeff=0.0,
                )
                loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def logprobs(self, segment: Segment) -> torch.Tensor:
        """(N,) log π_θ of the tokens of a segment that the policy generated."""
        ids_T = torch.from_numpy(segment.token_ids).long()
        logits_TV = self.model(ids_T[None]).logits[0]
        logprobs_T = logits_TV[:-1].log_softmax(-1).gather(1, ids_T[1:, None])[:, 0]
        return logprobs_T[torch.from_numpy(segment.loss_mask[1:])]


async def train(
    policy: Policy, make_env: Callable[[], SelfImprovementEnv], config: CurriculumConfig, seed: int, **options: Any
) -> list[float]:
    """Trains the policy; ``options`` are those of ``exit_loop``. Returns the mean return of each iteration."""
    curriculum = ExIt(config, list(make_env().tasks), np.random.default_rng(seed))
    returns: list[float] = []
    async for groups, metrics in exit_loop(curriculum, make_env, policy, policy.chat, policy.update, **options):
        returns.append(float(np.mean([scored.group.returns_G.mean() for scored in groups])))
        buffer, selected = metrics["buffer_size"], metrics["selected_fraction"]
        print(f"iteration {len(returns)}: return {returns[-1]:.3f}, buffer {buffer:.0f}, selected {selected:.0%}")
    return returns


def main(
    model: str = SMOLLM2, strategy: Strategy = "exit", iterations: int = 10, lr: float = 4e-5, seed: int = 0
) -> None:
    """Trains a small model to add two digits."""
    make_env = partial(CompetitionMathEnv, {"levels": ["add1"]})
    config = STRATEGIES[strategy].replace(buffer_size=32, min_buffer_size=8)
    sizes = {"prompts_per_batch": 8, "rollouts_per_prompt": 8, "sampling": SamplingParams(max_tokens=24)}
    asyncio.run(train(Policy(model, lr), make_env, config, seed, num_iterations=iterations, **sizes))


if __name__ == "__main__":
    typer.run(main)
