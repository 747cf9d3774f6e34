"""The plans for one GPU and for one node fit by `rllib check`, and the page's table has what it works out."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig, Qwen2Config

from rllib_exit.cli import check
from rllib_exit.cli.config import load_file
from rllib_exit.grpo import memory_plan
from rllib_exit.grpo.memory_plan import ModelShape
from tests.tuned_examples.examples import EXAMPLES

PAGE = EXAMPLES.parent / "docs" / "howto" / "small_gpu.md"


def model(cls: Any, *sizes: int, **more: Any) -> Any:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return cls(**dict(zip(names, sizes, strict=True)), **more)


# As their configs on the Hub have them: the tests do without the Hub.
MODELS = {
    "Qwen/Qwen2.5-0.5B-Instruct": model(Qwen2Config, 896, 4864, 24, 14, 2, vocab_size=151936, tie_word_embeddings=True),
    "Qwen/Qwen2.5-1.5B-Instruct": model(
        Qwen2Config, 1536, 8960, 28, 12, 2, vocab_size=151936, tie_word_embeddings=True
    ),
    "Qwen/Qwen2.5-3B-Instruct": model(Qwen2Config, 2048, 11008, 36, 16, 2, vocab_size=151936, tie_word_embeddings=True),
    "meta-llama/Llama-3.2-3B-Instruct": model(
        LlamaConfig, 3072, 8192, 28, 24, 8, head_dim=128, vocab_size=128256, tie_word_embeddings=True
    ),
    "Qwen/Qwen2.5-7B-Instruct": model(Qwen2Config, 3584, 18944, 28, 28, 4, vocab_size=152064),
}
# An example, the GB of a GPU, and the models that it is planned for, its own one first.
PLANS = [
    ("gsm8k_24gb", 24, ["Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"]),
    ("math_exit_80gb", 80, ["meta-llama/Llama-3.2-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct"]),
    ("bfcl_exit_8x80gb", 80, ["Qwen/Qwen2.5-7B-Instruct"]),
]
EACH = [(example, gb, name) for example, gb, names in PLANS for name in names]


@pytest.mark.parametrize(("example", "gb", "names"), PLANS)
def test_an_example_is_valid_and_names_the_first_model(example: str, gb: int, names: list[str]):
    config, stop, _ = load_file(EXAMPLES / f"{example}.py")
    config.validate()
    assert config.colocated and config.model_name == names[0] and stop["training_iteration"] > 0
    # Each learner shares a GPU with an engine: as many GPUs as the example's name says.
    assert config.num_learners == config.num_env_runners == (8 if "8x" in example else 1)
    assert f"{gb}gb" in example


@pytest.mark.parametrize(("example", "gb", "name"), EACH)
def test_the_memory_of_each_plan_fits(example: str, gb: int, name: str):
    config, shape = load_file(EXAMPLES / f"{example}.py")[0], ModelShape.of(MODELS[name])
    findings = {finding.check: finding for finding in check._memory(config, shape, gb * 1e9)}
    for which in ("learner's memory", "engine's memory", "shared GPU"):
        assert findings[which].good, findings[which].text


@pytest.mark.parametrize(("example", "gb", "name"), EACH)
def test_the_page_has_what_the_plan_works_out(example: str, gb: int, name: str):
    """If it fails: the message has the line that the page lacks."""
    config, shape = load_file(EXAMPLES / f"{example}.py")[0], ModelShape.of(MODELS[name])
    update = sum(memory_plan.learner(shape, config).values())
    rests = sum(memory_plan.resting_learner(shape, config).values())
    share = memory_plan.engine_share(config) * gb * 1e9
    contexts = memory_plan.cache_tokens(shape, config, gb * 1e9) / config.max_model_len
    numbers = (f"{size / 1e9:.1f}" for size in (update, rests + share, share))
    row = f"| {' | '.join([f'`{example}.py`', name.split('/')[1], *numbers, f'{contexts:,.0f}'])} |"
    assert row in PAGE.read_text(), f"write: {row}"
