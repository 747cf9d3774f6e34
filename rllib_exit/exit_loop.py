"""Exploratory Iteration in one file: the paper's Algorithm 1, on one machine.

Read this file first. It needs no Ray, no vLLM and no torch. All that it knows of the language model is a ``generator``,
which samples responses, and ``update_policy``, which trains on them; ``tuned_examples/exit_loop.py`` writes both for a
Hugging Face model. One iteration of :func:`exit_loop` is:

1. **Selection.** The curriculum chooses P task instances (paper section 4). An instance is a base task, or a partial
   history from the task buffer, whose last response the policy improves on or diverges from.
2. **Expansion.** From each instance, G episodes are rolled out: a group. The first response of an episode is the
   self-iteration step.
3. **Score.** Every rollout gets an advantage within its group (Eq. 3), scaled by the diversity bonus (Eq. 6).
4. **Update the policy** θ on the scored groups, by the GRPO objective (Eq. 4 and 5).
5. **Update the curriculum.** A selected instance gets its group's variance of quality as its new score (section 4.1).
   New histories enter the task buffer with the score of the instance that they started from.

:class:`rllib_exit.grpo.algorithm.GRPO` does the same on a cluster. Given the same seed, environment and responses, it
selects the same instances and computes the same advantages; ``tests/test_exit_loop.py`` compares the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from envs.base import SelfImprovementEnv
from rllib_exit.chat import ChatTokenizer
from rllib_exit.curriculum.exit import ExIt
from rllib_exit.env_runners.generator import Sampler, SamplingParams
from rllib_exit.env_runners.player import Player, PromptTooLongError
from rllib_exit.objective.diversity import edit_diversity_coefficients
from rllib_exit.objective.scoring import Diversity, num_to_refill, score, to_train_on
from rllib_exit.rollouts import ScoredGroup


async def exit_loop(
    curriculum: ExIt,
    make_env: Callable[[], SelfImprovementEnv],
    generator: Sampler,
    chat: ChatTokenizer,
    update_policy: Callable[[Sequence[ScoredGroup]], Awaitable[None]],
    *,
    sampling: SamplingParams,
    num_iterations: int,
    prompts_per_batch: int = 128,
    rollouts_per_prompt: int = 8,
    refill_zero_variance: int = 0,
    normalize_std: bool = True,
    diversity: Diversity = edit_diversity_coefficients,
    num_envs: int = 256,
) -> AsyncIterator[tuple[list[ScoredGroup], dict[str, float]]]:
    """Trains a policy with ExIt.

    Between two iterations, ``curriculum.get_state()`` is all that has to be saved beside the policy for training to go
    on later as if it had not stopped.

    Examples:
        >>> env = FirstLetterEnv()
        >>> curriculum = ExIt(STRATEGIES["exit"], list(env.tasks), np.random.default_rng(0))
        >>> sampling = SamplingParams(max_tokens=16)
        >>> async for groups, metrics in exit_loop(
        ...     curriculum, FirstLetterEnv, policy, policy.chat, policy.update, sampling=sampling, num_iterations=100
        ... ):
        ...     print(np.mean([scored.group.returns_G.mean() for scored in groups]), metrics["buffer_size"])

    Args:
        curriculum: Selects task instances and learns from their groups. Its config is the strategy (Table 1), its
            base tasks are those of the environment.
        make_env: Makes one more environment.
        generator: Samples responses from the policy.
        chat: The policy's tokenizer.
        update_policy: Trains the policy on an iteration's groups. When it returns, the generator samples from the
            new weights.
        sampling: How to sample a response.
        num_iterations: How many iterations to train.
        prompts_per_batch: P, the task instances of an iteration.
        rollouts_per_prompt: G, the group size.
        refill_zero_variance: The most prompts that an iteration selects in place of those whose group has nothing to
            teach, as a multiple of P; see :func:`rllib_exit.objective.scoring.num_to_refill`.
        normalize_std: Whether Eq. 3 divides by the standard deviation.
        diversity: Used if the curriculum's config has the ``diversity_bonus``. The default, the edit distance, needs
            no embedding model. For the paper's bonus, give a function that embeds the solutions and calls
            :func:`rllib_exit.objective.diversity.diversity_coefficients`.
        num_envs: The most episodes that run at once.

    Yields:
        After each iteration, the groups that the policy was trained on, in the order of selection, and what
        :meth:`ExIt.update` says of them.

    Raises:
        ValueError: If there would be nothing to train on: no prompts, or groups without two rollouts to compare.
        PromptTooLongError: If no prompt of an iteration fits the generator's context.
        EpisodeError: If an episode failed twice.
    """
    if prompts_per_batch < 1:
        raise ValueError(f"prompts_per_batch is {prompts_per_batch}: use an integer of 1 or more")
    if rollouts_per_prompt < 2:
        raise ValueError(f"rollouts_per_prompt is {rollouts_per_prompt}: use an integer of 2 or more")
    player = Player(make_env, num_envs, generator=generator, chat=chat, sampling=sampling)
    bonus = diversity if curriculum.config.diversity_bonus else None

    for iteration in range(num_iterations):
        scored_groups: list[ScoredGroup] = []
        # Selection. With refill, groups that have nothing to teach are replaced.
        while requests := curriculum.select(num_to_refill(scored_groups, prompts_per_batch, refill_zero_variance)):
            # Expansion. All episodes of all groups run at the same time.
            rolled_out = await asyncio.gather(
                *(player.roll_out(request, rollouts_per_prompt, policy_version=iteration) for request in requests)
            )
            # Score.
            scored_groups += [score(group, bonus, normalize_std=normalize_std) for group in rolled_out]
        groups = [scored.group for scored in scored_groups]
        if all(group.skipped for group in groups):
            raise PromptTooLongError(
                f"no prompt of this iteration fits the context: max_model_len is {generator.max_model_len} and "
                f"max_tokens {sampling.max_tokens}; raise the one or lower the other"
            )
        # Update the policy.
        batch = to_train_on(scored_groups, refill_zero_variance)
        await update_policy(batch)
        # Update the curriculum. Groups that were skipped count too: their instances leave the task buffer.
        yield batch, curriculum.update(groups)
