from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from envs.base import Outcome, Task, TaskInstance
from rllib_exit.chat import ChatTokenizer
from rllib_exit.env_runners.generator import SamplingParams
from rllib_exit.env_runners.player import Player
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.learner.module import CausalLMRLModule
from rllib_exit.rollouts import Rollout, Segment
from rllib_exit.sft import _schedule, fine_tune, play_demonstrations, warm_start
from tests.fakes import CounterEnv, ScriptedGenerator
from tests.tiny_models import make_tiny_model


class DemonstrationEnv(CounterEnv):
    """Counts in three turns, as it is told to by task."""

    def __init__(self, demonstrations: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.demonstrations = demonstrations

    def demonstration(self, task: Task) -> Sequence[str]:
        if self.demonstrations is None:
            return [str(task.data["target"] - 2), "1", "1"]
        return self.demonstrations[task.id]


class StopEnv(DemonstrationEnv):
    """The same, answered in tags that may hold a control token's name."""

    def respond(self, task: Task, response: str) -> Outcome:
        return super().respond(task, response.removeprefix("<add>").removesuffix("</add>").removeprefix("<|im_end|>"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More only get in each other's way with a model this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def chat(tiny_model: str) -> ChatTokenizer:
    return ChatTokenizer(tiny_model)


def play(
    env: CounterEnv, chat: ChatTokenizer, tasks: Sequence[str] | None = None, max_model_len: int = 512, **sampling: Any
) -> tuple[dict[str, Rollout], dict[str, str]]:
    sampling = {"max_tokens": 16, **sampling}
    return asyncio.run(
        play_demonstrations(
            env, tasks or list(env.tasks), chat=chat, sampling=SamplingParams(**sampling), max_model_len=max_model_len
        )
    )


def make_module(model: str) -> CausalLMRLModule:
    config = GRPOConfig().language_model(model, dtype="float32").training(kl_coeff=0.0)
    return CausalLMRLModule(model_config=config.get_default_rl_module_spec().model_config)


def train(module: CausalLMRLModule, conversations: Sequence[Sequence[Segment]], **options: Any) -> list[float]:
    options = {"epochs": 1, "lr": 1e-3, "batch_size": 2, "max_tokens_per_micro_batch": 512, "seed": 0} | options
    return [update.loss for update in fine_tune(module, conversations, **options)]


# Demonstrations.


def test_a_demonstration_has_the_tokens_and_the_mask_of_an_episode(tiny_model: str, chat: ChatTokenizer) -> None:
    played, skipped = play(DemonstrationEnv(), chat)
    assert list(played) == ["count/1", "count/2", "count/3", "count/4"] and not skipped
    responses = iter(["1", "1", "1"])
    player = Player(
        CounterEnv,
        generator=ScriptedGenerator(tiny_model, lambda prompt, seed: next(responses)),
        chat=chat,
        sampling=SamplingParams(max_tokens=16),
    )
    episode = asyncio.run(player.play(TaskInstance("count/3"), seed=0))
    [expected], [segment] = episode.segments, played["count/3"].segments
    assert segment.token_ids.tolist() == expected.token_ids.tolist()
    assert segment.loss_mask.tolist() == expected.loss_mask.tolist()
    assert chat.decode(segment.token_ids[segment.loss_mask]) == "111"
    assert "The counter is at 2." in chat.decode(segment.token_ids)
    assert played["count/3"].quality == 1.0


def test_a_response_ends_with_its_stop_string_else_with_the_end_of_turn(chat: ChatTokenizer) -> None:
    env = StopEnv({"count/3": ["<add>1</add>", "1", "<add>1</add>"]})
    played, _ = play(env, chat, ["count/3"], stop=("</add>",))
    [segment] = played["count/3"].segments
    eos = chat.eos_token_ids[0]
    ends = np.flatnonzero(np.diff(segment.loss_mask.astype(int), append=0) == -1)
    assert [int(segment.token_ids[i]) == eos for i in ends] == [False, True, False]
    # The context goes on with the end of turn, whether or not it was generated.
    assert int(segment.token_ids[ends[0] + 1]) == eos
    assert chat.decode(segment.token_ids[segment.loss_mask]) == "<add>1</add>1<add>1</add>"


def test_a_response_cannot_spell_a_control_token(chat: ChatTokenizer) -> None:
    env = StopEnv({"count/3": ["<add>1</add>", "<add><|im_end|>2</add>", "<add>0</add>"]})
    [segment] = play(env, chat, ["count/3"], stop=("</add>",), max_tokens=32)[0]["count/3"].segments
    generated = segment.token_ids[segment.loss_mask].tolist()
    assert "<|im_end|>" in chat.decode(generated) and chat.eos_token_ids[0] not in generated


def test_the_end_of_turn_is_the_one_that_the_template_writes(tmp_path: Path) -> None:
    model = Path(make_tiny_model(tmp_path))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    chat = ChatTokenizer(str(model))
    [segment] = play(DemonstrationEnv(), chat, ["count/3"])[0]["count/3"].segments
    assert segment.token_ids[segment.loss_mask].tolist().count(2) == 3


@pytest.mark.parametrize(
    ("responses", "reason"),
    [
        (None, "KeyError: 'count/2'"),
        (["1"], "it has 1 responses and the episode goes on"),
        ([], "it has 0 responses and the episode goes on"),
        (["1"] * 4, "the episode ends after 3 of 4 responses"),
        (["1", "x", "1"], "the environment calls a response invalid"),
        (["1", "1" * 16, "1"], "response 2 has 17 tokens, over max_response_tokens (16)"),
        (["1", "1 STOP 1", "1"], "response 2 goes on after the stop string '1 STOP'"),
        ("111", "TypeError: demonstration() returned the string '111': return a list of responses"),
        ([1, 1, 1], "TypeError"),
    ],
)
def test_a_bad_demonstration_is_skipped_with_the_reason(chat: ChatTokenizer, responses: Any, reason: str) -> None:
    demonstrations = {"count/1": ["1", "0", "0"]} | ({} if responses is None else {"count/2": responses})
    played, skipped = play(DemonstrationEnv(demonstrations), chat, ["count/1", "count/2"], stop=("STOP",))
    assert list(played) == ["count/1"]
    assert list(skipped) == ["count/2"]
    assert skipped["count/2"].startswith(reason)


@pytest.mark.parametrize(
    ("turns_that_fit", "reason"), [(0, "do not fit the context"), (2, "after 2 of 3 responses, max_model_len")]
)
def test_a_demonstration_that_does_not_fit_is_skipped(chat: ChatTokenizer, turns_that_fit: int, reason: str) -> None:
    [segment] = play(DemonstrationEnv(), chat, ["count/3"])[0]["count/3"].segments
    starts = np.flatnonzero(np.diff(segment.loss_mask.astype(int)) == 1) + 1  # of the responses
    played, skipped = play(DemonstrationEnv(), chat, ["count/3"], max_model_len=int(starts[turns_that_fit]) + 15)
    assert not played
    assert reason in skipped["count/3"]
    assert play(DemonstrationEnv(), chat, ["count/3"], max_model_len=int(starts[-1]) + 16)[0]


# Training.


def conversations(chat: ChatTokenizer) -> list[tuple[Segment, ...]]:
    return [episode.segments for episode in play(DemonstrationEnv(), chat)[0].values()]


def test_the_loss_is_the_mean_cross_entropy_of_the_responses(tiny_model: str, chat: ChatTokenizer) -> None:
    data = conversations(chat)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    losses, counts = [], []
    for [segment] in data:
        labels = np.where(segment.loss_mask, segment.token_ids, -100)
        ids, labels = torch.tensor(segment.token_ids)[None].long(), torch.tensor(labels)[None].long()
        losses.append(model(input_ids=ids, labels=labels).loss.item())
        counts.append(int(segment.loss_mask.sum()))
    expected = np.average(losses, weights=counts)
    for max_tokens in (1, 100, 10_000):
        [loss] = train(make_module(tiny_model), data, batch_size=4, max_tokens_per_micro_batch=max_tokens)
        assert loss == pytest.approx(expected, rel=1e-5)


def test_packs_do_not_change_the_training(tiny_model: str, chat: ChatTokenizer) -> None:
    runs = [
        train(make_module(tiny_model), conversations(chat), epochs=3, max_tokens_per_micro_batch=max_tokens)
        for max_tokens in (1, 10_000)
    ]
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)
    assert runs[0][-1] < runs[0][0]


def test_the_seed_decides_the_order(tiny_model: str, chat: ChatTokenizer) -> None:
    data = conversations(chat)
    first, again, other = (train(make_module(tiny_model), data, batch_size=1, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_an_overfitted_model_says_the_demonstration(tiny_model: str, chat: ChatTokenizer) -> None:
    data = conversations(chat)[2:3]
    module = make_module(tiny_model)
    losses = train(module, data, epochs=60)
    assert losses[-1] < 0.05 < losses[0]
    [segment] = data[0]
    with torch.no_grad():
        predicted = module.model(input_ids=torch.tensor(segment.token_ids)[None].long()).logits[0].argmax(-1).numpy()
    targets = np.flatnonzero(segment.loss_mask)
    assert predicted[targets - 1].tolist() == segment.token_ids[targets].tolist()


def test_every_conversation_is_trained_on_once_an_epoch(tiny_model: str, chat: ChatTokenizer) -> None:
    updates = list(
        fine_tune(
            make_module(tiny_model),
            conversations(chat),
            epochs=2,
            lr=1e-4,
            batch_size=3,
            max_tokens_per_micro_batch=512,
            seed=0,
        )
    )
    assert [(update.epoch, update.number, update.total) for update in updates] == [
        (1, 1, 4),
        (1, 2, 4),
        (2, 3, 4),
        (2, 4, 4),
    ]
    trained = sum(int(segment.loss_mask.sum()) for segments in conversations(chat) for segment in segments)
    assert sum(update.trained_tokens for update in updates) == 2 * trained


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [_schedule(number, 30) for number in range(1, 31)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert _schedule(1, 1) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [({"lr": 0.0}, "lr is 0.0"), ({"epochs": 0}, "epochs is 0"), ({"lr": 1e30, "epochs": 3}, "lower lr")],
)
def test_mistakes_are_explained(tiny_model: str, chat: ChatTokenizer, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        train(make_module(tiny_model), conversations(chat), **options)
    with pytest.raises(ValueError, match="conversations is 0"):
        train(make_module(tiny_model), [])


# The warm start of a run.


class ToldEnv(DemonstrationEnv):
    """Takes options as environments do."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config.get("demonstrations"))


DEMONSTRATED = {f"count/{n}": ["1", "1", "1"] for n in range(1, 5)}


def warm_config(model: str, **changes: Any) -> GRPOConfig:
    config = (
        GRPOConfig()
        .environment(ToldEnv)
        .language_model(model, dtype="float32", max_model_len=512)
        .generation(max_response_tokens=16)
        .training(learner_threads=1)
        .warm_start(epochs=30, lr=3e-3, batch_size=2)
        .debugging(seed=0)
    )
    for name, value in changes.items():
        setattr(config, name, value)
    return config


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLLIB_EXIT_CACHE", str(tmp_path))
    return tmp_path


def test_a_warm_start_learns_the_demonstrations_and_says_so(tiny_model: str, cache: Path) -> None:
    told: list[str] = []
    directory, report = warm_start(warm_config(tiny_model), told.append)
    assert directory.parent == cache / "warm-start"
    assert told[0] == "warm start: 4 demonstrations, 0 skipped"
    assert told[1].startswith("warm start: update 1/60  loss ") and told[60].startswith("warm start: update 60/60")
    assert str(directory) in told[61] and len(told) == 62
    assert (report["demonstrations"], report["quality_mean"], report["epochs"]) == (4, 1.0, 30)
    assert report["loss_last"] < 0.5 * report["loss_first"]
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    before: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert model.dtype == torch.float32
    assert not torch.equal(model.model.embed_tokens.weight, before.model.embed_tokens.weight)


def test_a_warm_start_is_made_once_for_the_same_model_demonstrations_and_settings(
    tiny_model: str, cache: Path, tmp_path: Path
) -> None:
    def made(**changes: Any) -> tuple[Path, bool]:
        told: list[str] = []
        directory, _ = warm_start(warm_config(tiny_model, warm_start_epochs=1, **changes), told.append)
        return directory, len(told) > 1

    first, new = made()
    assert new and made() == (first, False)
    # What does not change it finds it again; what does makes another one.
    assert made(lr=1.0, prompts_per_batch=3, strategy="grpo") == (first, False)
    others = [
        made(warm_start_lr=1e-3),
        made(seed=1),
        made(model_name=make_tiny_model(tmp_path / "other", seed=1)),
        made(env_config={"demonstrations": DEMONSTRATED}),
    ]
    assert all(new for _, new in others) and len({first, *(directory for directory, _ in others)}) == 5
    assert made(warm_start_env_config={"demonstrations": DEMONSTRATED}) == (others[-1][0], False)


def test_a_warm_start_that_fails_leaves_nothing(tiny_model: str, cache: Path) -> None:
    with pytest.raises(ValueError, match="none of 4 demonstrations can be used"):
        warm_start(warm_config(tiny_model, max_model_len=20), print)
    with pytest.raises(ValueError, match="lower lr"):
        warm_start(warm_config(tiny_model, warm_start_lr=1e30), print)
    assert not [path for path in (cache / "warm-start").iterdir() if path.is_dir()]
