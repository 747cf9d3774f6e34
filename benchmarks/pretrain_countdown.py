"""Makes ``bundled:countdown-1m``: a Llama of 1 million parameters that plays countdown, trained from nothing on a CPU.

    python benchmarks/pretrain_countdown.py --output rllib_exit/bundled/countdown-1m

It reads and writes what a policy of :class:`CountdownEnv` reads and writes: whole episodes of task, answer, feedback,
request to improve or to diverge, answer. Its answers are a mixture of solutions and of random expressions of the
numbers, and its self-iterations a mixture of the old answer and of new ones, whether the old one was right or wrong. So
it learns the format and some arithmetic, and nothing of self-improvement, which is left to reinforcement learning.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from envs.base import Kind, Message, TaskInstance
from envs.countdown.env import CountdownEnv
from envs.countdown.tasks import expressions, solutions

PAD, END, UNKNOWN = "<|endoftext|>", "<|im_end|>", "<|unknown|>"
# ChatML with one token for each header and without line breaks between messages: a third fewer tokens.
HEADERS = {role: f"<|im_start|>{role}\n" for role in ("system", "user", "assistant")}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = (
    "make value is right guess too low high uses twice often lacks not given an expression divides by zero improve "
    "diverge"
)
CONTEXT = 128

# The share of answers that are solutions; of the others, those that use other numbers than the given ones.
SOLUTIONS, MISUSES = 0.6, 0.05
# The share of self-iterations that give the old answer again.
REPEATS: dict[Kind, float] = {"improve": 0.5, "diverge": 0.1}
# The share of episodes whose target is hidden, where all answers are random, and of those with two numbers, not three.
HIDDEN, TWO_NUMBERS = 0.15, 0.15


class Player:
    """Plays episodes with answers that know nothing of the feedback."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.envs = [
            [CountdownEnv({"numbers": count, "hidden_target": hidden}) for count in (3, 2)] for hidden in (False, True)
        ]

    def episode(self) -> list[Message]:
        """The chat of one episode: task, answer, request to improve or diverge, answer, and another request."""
        hidden = self.rng.random() < HIDDEN
        env = self.envs[hidden][self.rng.random() < TWO_NUMBERS]
        task_id = list(env.tasks)[self.rng.integers(len(env.tasks))]
        env.reset(options={"instance": TaskInstance(task_id)})
        numbers, target = env.task.data["numbers"], env.task.data["target"]
        first = self.answer(numbers, target, hidden)
        env.step(first)
        kind = self.kind()
        repeated = self.rng.random() < REPEATS[kind]
        second = first if repeated else self.answer(numbers, target, hidden)
        env.reset(options={"instance": TaskInstance(task_id, iterate=env.turns[0], kind=kind)})
        chat = env.messages()
        env.step(second)
        # The policy never sees an episode go on so. The second feedback is there to learn arithmetic from.
        request = env.self_iteration_prompt(env.task, env.turns[-1], self.kind())
        return [*chat, {"role": "assistant", "content": second}, {"role": "user", "content": request}]

    def kind(self) -> Kind:
        return "improve" if self.rng.random() < 0.5 else "diverge"

    def answer(self, numbers: tuple[int, ...], target: int, hidden: bool) -> str:
        if not hidden and self.rng.random() < SOLUTIONS:
            texts = solutions(numbers, "+-*", range(target, target + 1))[target]
            return texts[self.rng.integers(len(texts))]
        if self.rng.random() < MISUSES:
            changed = list(numbers)
            changed[self.rng.integers(len(changed))] = int(self.rng.integers(1, 17))
            numbers = tuple(sorted(changed))
        found = expressions(numbers, "+-*")
        return found[self.rng.integers(len(found))].text


def render(chat: list[Message]) -> str:
    """The chat as the template writes it."""
    return "".join(f"{HEADERS[message['role']]}{message['content']}{END}" for message in chat)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole numbers (up to three digits), words and characters, which leaves spaces out."""
    special = [PAD, END, UNKNOWN, *HEADERS.values()]
    tokens = dict.fromkeys([*special, *map(chr, range(33, 127)), *WORDS.split(), *map(str, range(1000))])
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"\d{1,3}|[A-Za-z]+|."), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=list(HEADERS.values()),
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: Any) -> LlamaForCausalLM:
    """A new model. Its attention heads have 32 dimensions, the least that vLLM's CPU attention has."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def batches(player: Player, tokenizer: PreTrainedTokenizerFast, size: int) -> Iterator[torch.Tensor]:
    """(B, T) token ids of episodes, padded."""
    backend = tokenizer.backend_tokenizer
    backend.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=PAD)
    while True:
        texts = [render(player.episode()) for _ in range(size)]
        yield torch.tensor([encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)])


def train(model: LlamaForCausalLM, data: Iterator[torch.Tensor], steps: int, lr: float) -> None:
    """Trains for some steps, over which the learning rate falls to 0. The loss is of all tokens.

    The feedback's tokens teach arithmetic: what an expression is worth.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    begin, losses, tokens = time.monotonic(), [], 0
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(step / 100, (steps - step) / (steps - 100))
        ids = next(data)
        padding = ids == model.config.pad_token_id
        logits = model(input_ids=ids[:, :-1]).logits  # padding is on the right, where causal attention does not look
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].masked_fill(padding[:, 1:], -100).flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        tokens += ids.numel()
        if step % 100 == 0:
            speed = tokens / (time.monotonic() - begin)
            print(f"step {step} of {steps}  loss {np.mean(losses[-100:]):.3f}  {speed:.0f} tokens/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, batches(Player(args.seed), tokenizer, args.batch_size), args.steps, args.lr)
    save(model, tokenizer, args.output)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes the model in bfloat16, with its tokenizer, for transformers and vLLM."""
    tokenizer.backend_tokenizer.no_padding()
    model.bfloat16().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for file in directory.glob("*.json"):  # without what changes from machine to machine
        file.write_text(json.dumps(json.loads(file.read_text()), ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
