"""Peak memory of log-probabilities and entropies, forward and backward: all logits at once, and block by block.

    python benchmarks/learner_memory.py

The default is a pack of 4,096 trained tokens, a vocabulary of 49,152 and hidden states of 576 (SmolLM2-135M). The
peak is that of torch's allocations, the gradients of hidden states and weight (117 MiB) among them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from side_by_side import alternate, arguments, medians, write
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from rllib_exit.memory import keep_freed_memory
from rllib_exit.objective.logprobs import score


def whole(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The plain way: logits, log_softmax, gather; the entropy without gradient."""
    logprobs_NV = torch.nn.functional.linear(hidden_ND, weight_VD).float().log_softmax(-1)
    with torch.no_grad():
        entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    return torch.stack([logprobs_NV.gather(-1, targets_N[:, None])[:, 0], entropy_N])


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that torch has allocated at once during ``run``, over what it had before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiled: Any = profiler.profiler
    events = [event for event in profiled.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def main() -> None:
    parser = arguments(__doc__, "learner_memory")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    if args.quick:
        args.tokens, args.vocabulary, args.repeats = 1024, 49_152, 1
    keep_freed_memory()  # as the learner does
    dtype = getattr(torch, args.dtype)
    hidden_ND = torch.randn(args.tokens, args.hidden).to(dtype).requires_grad_()
    weight_VD = (torch.randn(args.vocabulary, args.hidden) / args.hidden**0.5).to(dtype).requires_grad_()
    targets_N = torch.randint(args.vocabulary, (args.tokens,))

    def passes(scores: Callable[[], Tensor]) -> float:
        """The seconds of a forward and a backward pass."""
        start = time.perf_counter()
        scores()[0].sum().backward()
        return time.perf_counter() - start

    def measure(function: Callable[[Callable[[], Tensor]], float], scores: Callable[[], Tensor]) -> float:
        hidden_ND.grad = weight_VD.grad = None
        return function(scores)

    contenders: dict[str, Callable[[], Tensor]] = {
        "whole logits": lambda: whole(hidden_ND, weight_VD, targets_N),
        "blocks": lambda: score(hidden_ND, weight_VD, None, targets_N),
    }
    times = medians(alternate({n: lambda s=s: measure(passes, s) for n, s in contenders.items()}, args.repeats))
    peaks = {name: measure(lambda s: peak_bytes(lambda: passes(s)), scores) for name, scores in contenders.items()}
    reference = "whole logits"
    rows = [
        {
            "contender": name,
            "peak MiB": peaks[name] / 2**20,
            "seconds": times[name],
            "peak / whole": peaks[name] / peaks[reference],
            "seconds / whole": times[name] / times[reference],
        }
        for name in contenders
    ]
    write(args, rows)


if __name__ == "__main__":
    main()
