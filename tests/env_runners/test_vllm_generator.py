from __future__ import annotations

import asyncio
import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.base import TaskInstance, Turn
from envs.bfcl.env import BFCLEnv
from rllib_exit.chat import ChatTokenizer
from rllib_exit.env_runners.generator import EngineError, Generation, SamplingParams
from rllib_exit.env_runners.player import Player
from rllib_exit.env_runners.vllm_generator import VLLMGenerator
from rllib_exit.learner import lora
from rllib_exit.learner.module import PACK, CausalLMRLModule
from rllib_exit.metrics import METRICS
from rllib_exit.objective.packing import Row, pack
from rllib_exit.rollouts import Rollout
from rllib_exit.weight_sync.patches import make_patch, safetensors_file
from tests.fakes import CounterEnv
from tests.processes import children, wait_for_end
from tests.tiny_models import make_tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROMPT = list(range(10, 110))


class Engine:
    """A generator with its event loop."""

    def __init__(self, model: str, dtype: str = "float32", **engine_args: Any) -> None:
        self.loop = asyncio.Runner()
        self.generator = VLLMGenerator(model, dtype=dtype, max_model_len=8192, engine_args=engine_args)

    def generate(self, *prompts: list[int], seed: int = 0, **sampling: Any) -> list[Generation]:
        async def run() -> list[Generation]:
            params = SamplingParams(**{"max_tokens": 16, **sampling})
            return await asyncio.gather(*(self.generator.generate(p, params, seed + i) for i, p in enumerate(prompts)))

        return self.loop.run(run())

    def update_weights(self, module: CausalLMRLModule) -> None:
        self.loop.run(self.generator.update_weights(files(module)))

    def patch_weights(self, old: CausalLMRLModule, new: CausalLMRLModule) -> None:
        self.loop.run(self.generator.patch_weights([patch(old, new)]))

    def checksums(self) -> dict[str, Any]:
        return self.loop.run(self.generator.checksums())


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model that takes prompts of thousands of tokens."""
    return make_tiny_model(tmp_path_factory.mktemp("long-model"), vocab_size=2048, max_positions=8192)


@pytest.fixture(scope="module")
def engine(long_model: str) -> Iterator[Engine]:
    """One engine for all tests, the last of which kills it."""
    engine = Engine(long_model)
    yield engine
    engine.loop.run(engine.generator.close())
    engine.loop.close()


def make_module(model: str, **config: Any) -> CausalLMRLModule:
    return CausalLMRLModule(
        model_config={
            "model": model,
            "dtype": "float32",
            "temperature": 1.0,
            "attn_implementation": "sdpa",
            "gradient_checkpointing": False,
            "reference": False,
            **config,
        }
    )


def buckets(module: CausalLMRLModule) -> list[dict[str, torch.Tensor]]:
    """The weights in several parts, whose edges cut layers in two."""
    weights = list(module.model.named_parameters())
    return [{name: w.detach() for name, w in weights[i : i + 5]} for i in range(0, len(weights), 5)]


def files(module: CausalLMRLModule) -> list[list[np.ndarray]]:
    return [safetensors_file(bucket) for bucket in buckets(module)]


def patch(old: CausalLMRLModule, new: CausalLMRLModule) -> list[list[np.ndarray]]:
    pairs = zip(buckets(old), buckets(new), strict=True)
    return [safetensors_file(make_patch(*pair)[0]) for pair in pairs]


def change_some(module: CausalLMRLModule, seed: int) -> CausalLMRLModule:
    """A model of which every hundredth weight is another one."""
    changed = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in changed.model.parameters():
            some = torch.rand(parameter.shape, generator=generator) < 0.01
            parameter += some * 5 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return changed


def learner_logprobs(module: CausalLMRLModule, prompt: list[int], generation: Generation) -> np.ndarray:
    ids = np.array([*prompt, *generation.token_ids], np.int32)
    mask = np.arange(len(ids)) >= len(prompt)
    [packed] = pack([Row(ids, mask, np.zeros(len(ids), np.float32), 1.0, 1.0)], 4096)
    with torch.no_grad():
        return module.forward_train({PACK: packed})["logprobs"].numpy()


def test_the_engine_takes_the_learners_weights_in_place(engine: Engine, long_model: str) -> None:
    module = make_module(long_model)
    [before] = engine.generate(PROMPT)
    np.testing.assert_allclose(before.logprobs, learner_logprobs(module, PROMPT, before), atol=2e-4)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in module.model.parameters():  # the embeddings, tied to the output layer, among them
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    assert np.abs(before.logprobs - learner_logprobs(module, PROMPT, before)).max() > 0.05

    engine.update_weights(module)
    # The same prompt: a prefix cached under the old weights would show.
    [after] = engine.generate(PROMPT)
    np.testing.assert_allclose(after.logprobs, learner_logprobs(module, PROMPT, after), atol=2e-4)

    engine.update_weights(make_module(long_model))
    [again] = engine.generate(PROMPT)
    assert again.token_ids == before.token_ids
    np.testing.assert_allclose(again.logprobs, before.logprobs, atol=1e-5)


def test_the_engine_applies_adapters_in_place_also_to_responses_under_way(long_model: str) -> None:
    def adapters(seed: int, module: Any) -> list[list[np.ndarray]]:
        generator = torch.Generator().manual_seed(seed)
        saved = {}
        with torch.no_grad():
            for name, p in module.model.named_parameters():
                if ".lora_" in name:
                    p.copy_(0.1 * torch.randn(p.shape, generator=generator))
                    saved[lora.saved_name(name)] = p.detach().clone()
        config = json.dumps(lora.saved_config(module.model)).encode()
        return [[np.frombuffer(config, np.uint8)], safetensors_file(saved)]

    module = make_module(long_model, lora={"r": 4, "alpha": 6.0, "target_modules": "all-linear"})
    engine = Engine(long_model, enable_lora=True, max_loras=1, max_lora_rank=8)
    try:
        [before] = engine.generate(PROMPT)  # no adapters yet, and new ones change nothing
        np.testing.assert_allclose(before.logprobs, learner_logprobs(module, PROMPT, before), atol=2e-4)
        for seed in (1, 2):
            engine.loop.run(engine.generator.update_adapters(adapters(seed, module)))
            # The same prompt: a prefix cached under the old adapters would show.
            [after] = engine.generate(PROMPT)
            np.testing.assert_allclose(after.logprobs, learner_logprobs(module, PROMPT, after), atol=2e-4)
            assert np.abs(after.logprobs - learner_logprobs(make_module(long_model), PROMPT, after)).max() > 0.05

        async def under_way() -> Generation:
            engine.generator.read_stats()
            long = asyncio.ensure_future(engine.generator.generate(PROMPT, SamplingParams(max_tokens=400), 0))
            while not engine.generator.read_stats().get("tokens_per_s"):
                await asyncio.sleep(0.01)
            await engine.generator.update_adapters(adapters(3, module))
            return await long

        changed = engine.loop.run(under_way())
        ours = learner_logprobs(module, PROMPT, changed)
        np.testing.assert_allclose(changed.logprobs[-100:], ours[-100:], atol=2e-4)
        assert np.abs(changed.logprobs[:1] - ours[:1]).max() > 1e-3
    finally:
        engine.loop.run(engine.generator.close())
        engine.loop.close()


def test_it_is_known_what_the_engine_does(engine: Engine) -> None:
    engine.generate(PROMPT)
    engine.generator.read_stats()
    start = time.perf_counter()
    generations = engine.generate(PROMPT, PROMPT, PROMPT[:50])
    seconds = time.perf_counter() - start
    stats = engine.generator.read_stats()
    assert stats.keys() == {metric.name for metric in METRICS if metric.row == "engine"}
    tokens = sum(len(generation.token_ids) for generation in generations)
    assert stats["tokens_per_s"] == pytest.approx(tokens / seconds, rel=0.5)
    assert 0 < stats["requests_running"] <= 3 and 0 <= stats["requests_waiting"] <= 3
    assert 0 < stats["kv_cache_usage"] <= stats["kv_cache_usage_max"] < 1
    # Of each prompt, whole blocks of 32 tokens.
    assert stats["prefix_cache_hit_rate"] == pytest.approx((96 + 96 + 32) / 250)
    assert stats["preemptions"] == 0 and 0 <= stats["bubble_s"] < seconds / 2
    idle = engine.generator.read_stats()
    assert idle.keys() == {"tokens_per_s", "preemptions", "bubble_s"} and idle["tokens_per_s"] == 0 < idle["bubble_s"]


@pytest.mark.full
def test_a_small_cache_is_seen_to_be_full(long_model: str) -> None:
    """What three requests need to end does not fit into eight blocks of 32 tokens at once."""
    engine = Engine(long_model, num_gpu_blocks_override=9, max_model_len=256)
    assert engine.generator.read_stats() == {}  # it has not started
    generations = engine.generate(PROMPT[:60], PROMPT[10:70], PROMPT[20:80], max_tokens=60, stop=("never",))
    stats = engine.generator.read_stats()
    assert stats["preemptions"] > 0 and stats["kv_cache_usage_max"] > 0.8 and stats["requests_waiting"] > 0
    assert len(generations) == 3
    engine.loop.run(engine.generator.close())
    engine.loop.close()


def test_the_engine_takes_patches(engine: Engine, long_model: str) -> None:
    module = make_module(long_model)
    engine.update_weights(module)
    for seed in range(2):
        old, module = module, change_some(module, seed)
        [before] = engine.generate(PROMPT)
        assert np.abs(before.logprobs - learner_logprobs(module, PROMPT, before)).max() > 0.02
        engine.patch_weights(old, module)
        [after] = engine.generate(PROMPT)
        np.testing.assert_allclose(after.logprobs, learner_logprobs(module, PROMPT, after), atol=2e-4)
    # One after the other: what is computed together with other prompts is rounded otherwise.
    patched = [engine.generate(prompt)[0] for prompt in (PROMPT, PROMPT[::-1])]
    engine.update_weights(module)
    for one, prompt in zip(patched, (PROMPT, PROMPT[::-1]), strict=True):
        [other] = engine.generate(prompt)
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.full)])
def test_an_engine_that_keeps_weights_as_they_came_is_patched_in_place(
    long_model: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: what two workers share, and what vLLM joins (qkv), is found by the model's own loaders."""
    engine = Engine(
        long_model,
        dtype="bfloat16",
        worker_extension_cls="tests.unpacked_loader.UnpackedLoader",
        **({"tensor_parallel_size": 2, "distributed_executor_backend": "mp"} if workers == 2 else {}),
    )
    module = make_module(long_model)
    module.model.bfloat16()
    engine.update_weights(module)
    reloads: list[str] = []
    rpc = engine.generator._rpc
    monkeypatch.setattr(engine.generator, "_rpc", lambda method, *args: reloads.append(method) or rpc(method, *args))
    started = engine.checksums()
    for seed in range(3):
        old, module = module, change_some(module, seed)
        engine.patch_weights(old, module)
    assert "start_loading" not in reloads and reloads.count("patch") > 3
    by_patches, [patched] = engine.checksums(), engine.generate(PROMPT)
    engine.update_weights(module)
    assert engine.checksums() == by_patches
    assert all(by_patches[name] != started[name] for name in started if not name.endswith("norm.weight"))
    [loaded] = engine.generate(PROMPT)
    assert patched.token_ids == loaded.token_ids
    np.testing.assert_allclose(patched.logprobs, loaded.logprobs, atol=1e-5)
    engine.loop.run(engine.generator.close())
    engine.loop.close()


@pytest.mark.full
def test_an_engine_of_two_workers_takes_the_learners_weights(long_model: str) -> None:
    engine = Engine(long_model, tensor_parallel_size=2, distributed_executor_backend="mp")
    module = make_module(long_model)
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter *= 1.5
    [before] = engine.generate(PROMPT)
    assert np.abs(before.logprobs - learner_logprobs(module, PROMPT, before)).max() > 0.05
    engine.update_weights(module)
    [after] = engine.generate(PROMPT)
    np.testing.assert_allclose(after.logprobs, learner_logprobs(module, PROMPT, after), atol=2e-4)
    engine.loop.run(engine.generator.close())
    engine.loop.close()


def test_responses_under_way_go_on_under_new_weights(engine: Engine, long_model: str) -> None:
    """Up to the update they have the old weights' probabilities, after it those of the new weights alone."""
    old, new = make_module(long_model), make_module(long_model)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        for parameter in new.model.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    prompts = [[(7 * i + j) % 200 + 10 for j in range(40)] for i in range(8)]
    params = SamplingParams(max_tokens=400)
    engine.update_weights(old)  # starts the engine, if no other test has
    start = time.monotonic()
    engine.generate(*prompts, max_tokens=400)
    seconds = time.monotonic() - start

    async def run() -> list[Generation]:
        tasks = [asyncio.create_task(engine.generator.generate(p, params, i)) for i, p in enumerate(prompts)]
        await asyncio.sleep(0.4 * seconds)
        await engine.generator.update_weights(files(new))
        return await asyncio.gather(*tasks)

    generations = engine.loop.run(run())
    engine.update_weights(old)
    switched = 0
    for prompt, generation in zip(prompts, generations, strict=True):
        before = np.abs(generation.logprobs - learner_logprobs(old, prompt, generation)) < 1e-3
        after = np.abs(generation.logprobs - learner_logprobs(new, prompt, generation)) < 1e-3
        switch = int(np.argmin(before)) if not before.all() else len(before)
        assert after[switch:].all()
        switched += 0 < switch < len(before)
    assert switched >= 4  # the others had ended before


def test_seeds_repeat_and_differ(engine: Engine) -> None:
    first = engine.generate(PROMPT, PROMPT, seed=7)
    second = engine.generate(PROMPT, PROMPT, seed=7)
    assert [g.token_ids for g in first] == [g.token_ids for g in second]
    assert first[0].token_ids != first[1].token_ids


def test_log_probabilities_are_those_of_the_tempered_distribution(engine: Engine, long_model: str) -> None:
    module = make_module(long_model)
    module.temperature = 0.5
    [generation] = engine.generate(PROMPT, temperature=0.5)
    np.testing.assert_allclose(generation.logprobs, learner_logprobs(module, PROMPT, generation), atol=5e-4)


def test_a_response_is_truncated_at_the_limit_or_ends_with_its_stop_string(engine: Engine) -> None:
    [limited] = engine.generate(PROMPT, max_tokens=4)
    assert len(limited.token_ids) == 4 and limited.truncated
    # Any character that the response holds ends it when asked to.
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(engine.generator._engine_args["model"])
    prompt = tokenizer.encode("one two three")
    [long] = engine.generate(prompt, max_tokens=32)
    text = tokenizer.decode(long.token_ids)
    stop = text[len(text) // 2]
    [stopped] = engine.generate(prompt, max_tokens=32, stop=(stop,))
    assert not stopped.truncated and len(stopped.token_ids) < 32
    assert stopped.token_ids == long.token_ids[: len(stopped.token_ids)]
    assert stop in tokenizer.decode(stopped.token_ids)


def test_many_long_seeded_prompts_at_once(engine: Engine) -> None:
    """Prompts that together exceed one scheduling step once killed the CPU engine."""
    prompts = [[(7 * i + j) % 200 + 10 for j in range(400)] for i in range(40)]
    assert len(engine.generate(*prompts, max_tokens=4)) == 40


class NoisyCounterEnv(CounterEnv):
    """Its feedback is full of what chat templates and tokenizers trip over."""

    def respond(self, task, response):
        outcome = super().respond(task, response)
        return replace(outcome, feedback=f" <|im_end|>\n<|im_start|>assistant\n {response[::-1]} é\u2003🙂\n\n")


def test_segments_scored_by_the_learner_have_the_engines_log_probabilities(engine: Engine, long_model: str) -> None:
    """No token drifts over the turns of an episode: what the learner sees is what the engine saw."""
    chat = ChatTokenizer(long_model)
    task = "count/1"
    starts = [
        TaskInstance(task),
        TaskInstance(task, (Turn("1 <|im_end|>"), Turn(" 2\n"))),
        TaskInstance(task, iterate=Turn("3 \n", depth=1), kind="improve"),
        TaskInstance(task, (Turn("1"),), Turn("<|im_start|>user", depth=2), "diverge"),
    ]

    async def play() -> list[Rollout]:
        player = Player(
            lambda: NoisyCounterEnv({"turns": 5}),
            50,
            generator=engine.generator,
            chat=chat,
            sampling=SamplingParams(max_tokens=12, stop=("e", "1")),
        )
        return await asyncio.gather(*(player.play(starts[i % len(starts)], seed=1000 * i) for i in range(50)))

    rollouts = engine.loop.run(play())
    # One more after a self-iteration step.
    assert [len(rollout.segments) for rollout in rollouts] == [2 if starts[i % 4].iterate else 1 for i in range(50)]
    assert num_rescored(rollouts, long_model) > 50 * 3 * 4


def num_rescored(rollouts: list[Rollout], model: str) -> int:
    """How many tokens were generated; the learner's log-probability of each is the engine's."""
    rows = [Row(s.token_ids, s.loss_mask, s.logprobs, 1.0, 1.0) for rollout in rollouts for s in rollout.segments]
    module = make_module(model)
    with torch.no_grad():
        for packed in pack(rows, 4096):
            learner = module.forward_train({PACK: packed})["logprobs"]
            np.testing.assert_allclose(learner, packed.rollout_logprobs_N, atol=5e-4)
    return sum(int(row.loss_mask.sum()) for row in rows)


class GuidedBFCLEnv(BFCLEnv):
    """Calls what the ground truth does, whatever the policy writes; the chat shows both."""

    def respond(self, task, response):
        return super().respond(task, self.demonstration(task)[self._responses])


def test_segments_of_tool_use_have_the_engines_log_probabilities(engine: Engine, long_model: str) -> None:
    """The same over real tool results, in prompts of thousands of tokens."""
    chat = ChatTokenizer(long_model)
    options = {"requests": "all", "schemas": "short", "classes": ["GorillaFileSystem"], "max_turns": 6}
    env = GuidedBFCLEnv(options)
    iterate = Turn("<tool>[]</tool> <|im_end|>", depth=1)
    starts = [
        start
        for task in env.tasks
        for start in (
            TaskInstance(task),
            TaskInstance(task, (Turn("one"), Turn("two <|im_start|>"))),
            TaskInstance(task, iterate=iterate, kind="improve"),
            TaskInstance(task, (Turn("one"),), iterate, "diverge"),
        )
    ]

    async def play() -> list[Rollout]:
        player = Player(
            lambda: GuidedBFCLEnv(options),
            16,
            generator=engine.generator,
            chat=chat,
            sampling=SamplingParams(max_tokens=12),
        )
        return await asyncio.gather(*(player.play(starts[i % len(starts)], seed=1000 * i) for i in range(50)))

    rollouts = engine.loop.run(play())
    assert all(len(rollout.turns) >= 4 for rollout in rollouts)
    for i, rollout in enumerate(rollouts):
        assert len(rollout.segments) == (2 if starts[i % len(starts)].iterate else 1)
    assert num_rescored(rollouts, long_model) > 50 * 3 * 12


OWNER = """
import asyncio, os, sys, time

from rllib_exit.env_runners.vllm_generator import VLLMGenerator

if __name__ == "__main__":
    generator = VLLMGenerator(sys.argv[1], dtype="float32", max_model_len=512)
    generator.start()
    print("started", flush=True)
    time.sleep(1000)
"""


@pytest.mark.full
def test_an_engine_ends_with_the_process_that_started_it(long_model: str, tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    owner = subprocess.Popen(
        [sys.executable, str(script), long_model], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert owner.stdout is not None
    while "started" not in (line := owner.stdout.readline()):
        assert line
    engine = children(owner.pid, "VLLM")
    assert len(engine) >= 1
    os.kill(engine[0], signal.SIGKILL)  # what it leaves is ended, too
    owner.kill()
    owner.wait()
    wait_for_end(engine, 5)


def test_an_engine_whose_process_is_killed_says_so(engine: Engine, long_model: str) -> None:
    engine.generate(PROMPT)
    [core] = children(os.getpid(), "EngineCore")

    async def run() -> None:
        os.kill(core, signal.SIGSTOP)  # so that it does not answer first
        task = asyncio.create_task(engine.generator.generate(PROMPT, SamplingParams(max_tokens=16), 0))
        await asyncio.sleep(0.2)
        os.kill(core, signal.SIGKILL)
        async with asyncio.timeout(30):
            await task

    with pytest.raises(EngineError, match="engine process died"):
        engine.loop.run(run())
    with pytest.raises(EngineError):
        engine.generate(PROMPT)
    with pytest.raises(EngineError):
        engine.update_weights(make_module(long_model))
