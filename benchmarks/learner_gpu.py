"""Tokens per second and model FLOPs utilisation of GRPO's forward and backward pass, on one GPU.

    python benchmarks/learner_gpu.py --output qwen.json
    python benchmarks/learner_gpu.py --quick            # tiny shapes; also on a CPU

Needs torch and transformers; no Ray and no vLLM. Weights are random, in the shapes of Qwen3-0.6B and Qwen2.5-7B
(``--layers`` takes fewer of them where memory needs it: MFU stays comparable, tokens per second do not). bfloat16
weights, gradient checkpointing, packs of ragged rows that fill the given number of tokens.

``plain`` computes all logits at once, ``blocks`` is what the learner does. FLOPs are counted by
:mod:`rllib_exit.learner.flops`. An update of the weights is not part of it.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen2Config, Qwen3Config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from side_by_side import alternate, arguments, write

from rllib_exit.learner.flops import PEAKS, ModelFlops
from rllib_exit.objective.logprobs import OutputLayer
from rllib_exit.objective.loss import grpo_loss
from rllib_exit.objective.packing import Pack, Row, pack

SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen3-0.6b": lambda: Qwen3Config(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, max_position_embeddings=40_960,
    ),
    "qwen2.5-7b": lambda: Qwen2Config(
        vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, tie_word_embeddings=False, max_position_embeddings=32_768,
    ),
    "tiny": lambda: Qwen3Config(
        vocab_size=2_000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, tie_word_embeddings=True,
    ),
}  # fmt: skip


def make_pack(tokens: int, vocabulary: int, seed: int = 0) -> Pack:
    """Rows of a sixteenth to a quarter of the tokens, the first third of each its prompt, that fill one pack."""
    rng = np.random.default_rng(seed)
    rows, left = [], tokens
    while left:
        length = min(left, int(rng.integers(max(4, tokens // 16), max(5, tokens // 4))))
        if left - length < 4:
            length = left
        mask = np.arange(length) >= max(1, length // 3)
        ids = rng.integers(0, vocabulary, length).astype(np.int32)
        rows.append(Row(ids, mask, np.where(mask, -10, 0).astype(np.float32), float(rng.normal()), 1 / tokens))
        left -= length
    packs = pack(rows, tokens)
    return max(packs, key=lambda p: len(p.token_ids_T))


def flops(model: Any, packed: Pack) -> float:
    """Of a forward and a backward pass."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    of_model = ModelFlops.of(model.config, shapes, shapes)
    assert of_model is not None
    return of_model.of_passes([packed], forward=1, backward=1)


def passes(model: Any, packed: Pack, blocks: bool, attention: str) -> None:
    """What the learner does with a pack."""
    layer: OutputLayer = model.get_output_embeddings()
    with layer.scoring(packed.targets_N, 1.0) if blocks else nullcontext():
        output = model(
            input_ids=packed.token_ids_T[None],
            position_ids=packed.position_ids_T[None],
            attention_mask=packed.mask_for(attention),
            logits_to_keep=packed.sources_N,
            use_cache=False,
        ).logits
    if blocks:
        logprobs_N = output[0]
    else:
        logprobs_NV = output[0].float().log_softmax(-1)
        logprobs_N = logprobs_NV.gather(-1, packed.targets_N[:, None])[:, 0]
        with torch.no_grad():
            _ = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    loss, _ = grpo_loss(
        logprobs_N, logprobs_N.detach(), packed.rollout_logprobs_N, None, packed.advantages_N, packed.weights_N,
        clip_param=0.2, kl_coeff=0.0, mismatch_clip=2.0,
    )  # fmt: skip
    loss.backward()
    model.zero_grad(set_to_none=True)


def make_model(config: PreTrainedConfig, attention: str, device: torch.device) -> Any:
    with device:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    model.set_output_embeddings(OutputLayer(model.get_output_embeddings()))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def measure(model: Any, packed: Pack, attention: str, repeats: int) -> dict[str, tuple[float, float]]:
    """The median seconds and the peak bytes of each contender; infinite seconds where memory runs out."""
    on_gpu = packed.token_ids_T.is_cuda
    memory = {"plain": math.nan, "blocks": math.nan}

    def seconds(contender: str) -> float:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        try:
            passes(model, packed, contender == "blocks", attention)
        except torch.OutOfMemoryError:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            return math.inf
        if on_gpu:
            torch.cuda.synchronize()
            memory[contender] = torch.cuda.max_memory_allocated()
        return time.perf_counter() - start

    figures = alternate({name: lambda name=name: seconds(name) for name in memory}, repeats)
    return {name: (statistics.median(values), memory[name]) for name, values in figures.items()}


def main() -> None:
    parser = arguments(__doc__, "learner_gpu")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["qwen3-0.6b", "qwen2.5-7b"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[4096, 16_384])
    parser.add_argument("--layers", type=int, help="use fewer layers")
    parser.add_argument("--attention", nargs="+", default=["sdpa"], help="also flex_attention and flash_attention_2")
    parser.add_argument("--peak-tflops", type=float, help="of the device, dense; known for some")
    parser.add_argument("--profile", type=Path, help="a Chrome trace of one pass with blocks, for the last setting")
    args = parser.parse_args()
    if args.quick:
        args.shapes, args.tokens, args.repeats = ["tiny"], [256], 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    peak = args.peak_tflops * 1e12 if args.peak_tflops else PEAKS.get(name)
    table = []
    for shape, attention in itertools.product(args.shapes, args.attention):
        config = SHAPES[shape]()
        if args.layers:
            config.num_hidden_layers = args.layers
        model = make_model(config, attention, device)
        for tokens in args.tokens:
            packed = make_pack(tokens, config.vocab_size).to(device)
            for contender, (seconds, memory) in measure(model, packed, attention, args.repeats).items():
                achieved = flops(model, packed) / seconds
                row = {"shape": shape, "layers": config.num_hidden_layers, "attention": attention}
                row |= {"tokens": len(packed.token_ids_T), "contender": contender}
                row |= {"tokens/s": len(packed.token_ids_T) / seconds, "TFLOP/s": achieved / 1e12}
                row |= {"MFU %": 100 * achieved / peak if peak else math.nan, "peak GiB": memory / 2**30}
                table.append(row)
            if args.profile:
                with torch.profiler.profile() as profiler:
                    passes(model, packed, True, attention)
                profiler.export_chrome_trace(str(args.profile))
                sort = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
                print(profiler.key_averages().table(sort_by=sort, row_limit=25))
        del model
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    write(args, table, device=name)


if __name__ == "__main__":
    main()
