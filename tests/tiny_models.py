"""A tiny random Llama with a chat tokenizer, for tests that need some language model but no sense."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SENTENCES = [
    "The answer to the question is a number, and the number is the sum of the other numbers.",
    "What is the sum of three and four? Answer with just the number.",
    "You are a helpful assistant. Think about the task, then give the solution.",
    "The user asks for a better response than the last one: improve on it, or take a different approach.",
    "A tool returns a result, the assistant reads the result and calls the next tool with its arguments.",
    "When the task is finished, say so; when there is an error, read the error and try again.",
    "def add(first, second):\n    return first + second\n",
    "Every history of turns ends with a response, and every response has feedback from the environment.",
    "The quality of a solution lies between zero and one, and the reward is what the training uses.",
    "Exploration finds new tasks; selection draws those from which the policy can still learn.",
]


def make_tiny_model(
    directory: str | Path,
    *,
    vocab_size: int = 512,
    tied: bool = True,
    seed: int = 0,
    chat_template: str = CHAT_TEMPLATE,
    max_positions: int = 1024,
) -> str:
    """Writes a random two-layer Llama (0.4 million parameters, float32) that transformers and vLLM load.

    It is written file by file, without torch, so that it is quick and the same everywhere. Attention heads have 32
    dimensions: the least that vLLM's CPU attention has.

    Args:
        directory: Where to; made if need be.
        vocab_size: At most so many tokens, at least 259 (the sentences above fill 545).
        tied: Whether the output layer is the embedding.
        seed: Of the weights.
        chat_template: By default ChatML.
        max_positions: The most tokens that it says it can take.

    Returns:
        The directory.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(vocab_size)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(chat_template)

    hidden, intermediate, heads, kv_heads, layers = 128, 256, 4, 2, 2
    vocab = tokenizer.get_vocab_size()
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": max_positions,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        **ids,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
    }
    for name, content in [
        ("config", config),
        ("generation_config", ids),
        ("tokenizer_config", tokenizer_config),
    ]:
        (directory / f"{name}.json").write_text(json.dumps(content, indent=2))

    rng = np.random.default_rng(seed)

    def linear(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    kv = kv_heads * (hidden // heads)
    weights = {"model.embed_tokens.weight": linear(vocab, hidden), "model.norm.weight": np.ones(hidden, np.float32)}
    for layer in range(layers):
        shapes = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
        }
        for name, shape in shapes.items():
            weights[f"model.layers.{layer}.{name}.weight"] = linear(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = np.ones(hidden, np.float32)
    if not tied:
        weights["lm_head.weight"] = linear(vocab, hidden)
    save_file(weights, str(directory / "model.safetensors"), metadata={"format": "pt"})
    return str(directory)


def make_tokenizer(vocab_size: int = 512, special_tokens: tuple[str, ...] = (PAD, BOS, EOS)) -> Tokenizer:
    """A byte-level BPE tokenizer trained on the sentences above; the special tokens have the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer
