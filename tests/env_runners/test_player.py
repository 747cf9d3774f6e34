from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from envs.base import InfrastructureError, Message, Outcome, SelfImprovementEnv, Task, TaskInstance, Turn
from rllib_exit.chat import ChatTokenizer
from rllib_exit.env_runners.generator import EngineError, Generation, SamplingParams
from rllib_exit.env_runners.player import EpisodeError, Player, PromptTooLongError
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest
from tests.fakes import CounterEnv, ScriptedGenerator
from tests.tiny_models import make_tiny_model


class CountEnv(SelfImprovementEnv):
    """Say the next number, three turns long; quality is the fraction said right."""

    def __init__(self, turns: int = 3) -> None:
        super().__init__([Task("count", "count up")])
        self.num_turns = turns

    def prompt(self, task: Task) -> list[Message]:
        return [{"role": "user", "content": "Count up from 1."}]

    def begin(self, task: Task) -> None:
        self.right = 0
        self.taken = 0

    def respond(self, task: Task, response: str) -> Outcome:
        self.taken += 1
        self.right += response.strip() == str(self.taken)
        return Outcome(self.right / self.num_turns, feedback="next", done=self.taken == self.num_turns)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def episode(
    model: str, instance: TaskInstance, script: Callable[[str, int], str], **kwargs: Any
) -> tuple[Rollout, ScriptedGenerator]:
    generator = ScriptedGenerator(model, script, **kwargs)
    player = Player(CountEnv, generator=generator, chat=ChatTokenizer(model), sampling=SamplingParams(max_tokens=16))
    return asyncio.run(player.play(instance, seed=0)), generator


def counter() -> Callable[[str, int], str]:
    numbers = iter(range(1, 100))
    return lambda prompt, seed: str(next(numbers))


def test_a_base_episode_is_one_segment_whose_mask_covers_what_was_generated(model: str) -> None:
    rollout, generator = episode(model, TaskInstance("count"), counter())
    assert rollout.quality == rollout.return_ == 1.0
    assert [turn.response for turn in rollout.turns] == ["1", "2", "3"]
    [segment] = rollout.segments
    tokenizer = generator.chat.tokenizer
    generated = segment.token_ids[segment.loss_mask]
    assert tokenizer.decode(generated, skip_special_tokens=True) == "123"
    # Every prompt that the engine saw is a prefix of the segment: no token was made anew.
    for prompt in generator.prompts:
        assert segment.token_ids[: len(prompt)].tolist() == prompt
    assert (segment.logprobs[segment.loss_mask] == -1).all() and not segment.logprobs[~segment.loss_mask].any()


def test_after_a_self_iteration_step_a_new_segment_sees_only_the_new_iterate(model: str) -> None:
    old = Turn("7", "next", 0.0, depth=1)
    answers = iter(["1", "2", "3"])
    rollout, generator = episode(model, TaskInstance("count", iterate=old, kind="improve"), lambda p, s: next(answers))
    assert len(rollout.segments) == 2
    decode = generator.chat.tokenizer.decode
    assert "7" in decode(generator.prompts[0]) and "7" not in decode(rollout.segments[1].token_ids)
    first, second = rollout.segments
    assert decode(first.token_ids[first.loss_mask], skip_special_tokens=True) == "1"
    # The new iterate is context in the second segment, not trained on again.
    assert decode(second.token_ids[second.loss_mask], skip_special_tokens=True) == "23"
    assert [turn.depth for turn in rollout.turns] == [2, 0, 0]
    assert rollout.quality == 1.0


def test_a_history_is_replayed_and_not_trained_on(model: str) -> None:
    history = (Turn("1"), Turn("5"))
    rollout, _ = episode(model, TaskInstance("count", history), lambda p, s: "3")
    assert rollout.quality == pytest.approx(2 / 3)
    assert len(rollout.turns) == 3 and rollout.segments[0].loss_mask.sum() == 2  # "3" and the end of sequence


def test_a_prompt_that_does_not_fit_is_refused_and_one_that_grows_too_long_truncates(model: str) -> None:
    with pytest.raises(PromptTooLongError, match="do not fit the context of 20"):
        episode(model, TaskInstance("count"), counter(), max_model_len=20)
    prompt = len(ChatTokenizer(model).encode(CountEnv().prompt(Task("count", ""))))
    rollout, _ = episode(model, TaskInstance("count"), counter(), max_model_len=prompt + 20)
    assert rollout.truncated and len(rollout.turns) == 1 and rollout.return_ == pytest.approx(1 / 3)


def test_responses_without_a_valid_ending_are_marked(model: str) -> None:
    answers = iter(["1", "no number", "1", "1111111111"])
    generator = ScriptedGenerator(model, lambda prompt, seed: next(answers))
    chat, sampling = ChatTokenizer(model), SamplingParams(max_tokens=10)
    player = Player(lambda: CounterEnv({"turns": 4}), generator=generator, chat=chat, sampling=sampling)
    rollout = asyncio.run(player.play(TaskInstance("count/1"), seed=0))
    assert rollout.truncated and rollout.valid
    [segment] = rollout.segments
    assert segment.ended_mask is not None and not segment.ended_mask[~segment.loss_mask].any()
    kept = chat.tokenizer.decode(segment.token_ids[segment.ended_mask], skip_special_tokens=True)
    assert kept == "11"


@pytest.mark.parametrize(("answers", "valid"), [(["one", "1"], True), (["1", "one"], False)])
def test_an_episode_is_valid_if_its_last_response_is(model: str, answers: list[str], valid: bool) -> None:
    script = iter(answers)
    generator = ScriptedGenerator(model, lambda prompt, seed: next(script))
    chat, sampling = ChatTokenizer(model), SamplingParams(max_tokens=10)
    player = Player(lambda: CounterEnv({"turns": 2}), generator=generator, chat=chat, sampling=sampling)
    assert asyncio.run(player.play(TaskInstance("count/1"), seed=0)).valid is valid


class ChattyEnv(CountEnv):
    """A CountEnv whose feedback fills the context."""

    def respond(self, task: Task, response: str) -> Outcome:
        outcome = super().respond(task, response)
        return Outcome(outcome.quality, feedback=f"<{self.taken}{'x' * 200}>", done=outcome.done)


def test_a_history_that_outgrows_the_context_is_compacted(model: str) -> None:
    prompt = len(ChatTokenizer(model).encode(CountEnv().prompt(Task("count", ""))))

    def run(compact_history_chars: int | None) -> tuple[Rollout, list[str]]:
        generator = ScriptedGenerator(model, counter(), max_model_len=prompt + 400)
        chat, sampling = ChatTokenizer(model), SamplingParams(max_tokens=16)
        player = Player(
            lambda: ChattyEnv(turns=4),
            generator=generator,
            chat=chat,
            sampling=sampling,
            compact_history_chars=compact_history_chars,
        )
        rollout = asyncio.run(player.play(TaskInstance("count"), seed=0))
        return rollout, [chat.tokenizer.decode(ids) for ids in generator.prompts]

    whole, prompts = run(None)
    assert whole.truncated and len(whole.turns) == 2
    rollout, compacted = run(6)
    assert not rollout.truncated and rollout.quality == 1.0 and len(rollout.turns) == 4
    assert compacted[:2] == prompts  # nothing is cut that fits
    assert "<1x\n[… 197 characters left out …]\nxx>" in compacted[2] and f"<2{'x' * 200}>" in compacted[2]
    assert "<2x\n[… 197" in compacted[3] and f"<3{'x' * 200}>" in compacted[3]
    # Tokens are trained on after the prompt that they were generated from.
    decode = ChatTokenizer(model).tokenizer.decode
    texts = [decode(segment.token_ids[segment.loss_mask], skip_special_tokens=True) for segment in rollout.segments]
    assert "".join(texts) == "1234" and len(rollout.segments) == 3
    assert all(turn.feedback == f"<{t}{'x' * 200}>" for t, turn in enumerate(rollout.turns, 1))


def groups(
    model: str,
    requests: Sequence[RolloutRequest],
    script: Callable[[str, int], str],
    make_env: Callable[[], SelfImprovementEnv] = CountEnv,
    generator: Any = None,
    env_timeout_s: float | None = None,
    generation_timeout_s: float | None = None,
    **kwargs: Any,
) -> list[RolloutGroup]:
    player = Player(
        make_env,
        3,
        generator=generator or ScriptedGenerator(model, script, **kwargs),
        chat=ChatTokenizer(model),
        sampling=SamplingParams(max_tokens=16),
        env_timeout_s=env_timeout_s,
        generation_timeout_s=generation_timeout_s,
    )

    async def run() -> list[RolloutGroup]:
        return await asyncio.gather(*(player.roll_out(request, 4, policy_version=5) for request in requests))

    return asyncio.run(run())


def test_roll_out_gives_full_groups_in_order_with_seeds_of_their_own(model: str) -> None:
    seeds: list[int] = []

    def script(prompt: str, seed: int) -> str:
        seeds.append(seed)
        return "1"

    requests = [RolloutRequest(f"{i}", TaskInstance("count"), seed=1 << 20 * i) for i in range(2)]
    result = groups(model, requests, script)
    assert [g.request for g in result] == requests
    assert all(len(g.rollouts) == 4 and g.policy_version == 5 for g in result)
    assert len(set(seeds)) == len(seeds) == 2 * 4 * 3


def test_a_prompt_too_long_makes_an_empty_group(model: str) -> None:
    [group] = groups(model, [RolloutRequest("0", TaskInstance("count"))], counter(), max_model_len=20)
    assert group.skipped


class FlakyEnv(CountEnv):
    failures = 0

    def respond(self, task: Task, response: str) -> Outcome:
        if FlakyEnv.failures > 0:
            FlakyEnv.failures -= 1
            raise ConnectionError("the grader went away")
        return super().respond(task, response)


def test_an_episode_that_fails_once_is_run_again_as_if_it_had_not(model: str) -> None:
    request = RolloutRequest("0", TaskInstance("count"))
    FlakyEnv.failures = 0
    [smooth] = groups(model, [request], answer_by_seed, FlakyEnv)
    FlakyEnv.failures = 1
    [group] = groups(model, [request], answer_by_seed, FlakyEnv)
    assert sorted(rollout.attempts for rollout in group.rollouts) == [1, 1, 1, 2]
    assert [rollout.turns for rollout in group.rollouts] == [rollout.turns for rollout in smooth.rollouts]


def answer_by_seed(prompt: str, seed: int) -> str:
    return str(seed % 7)


@pytest.mark.parametrize("quality", [None, np.nan, 1.5])
def test_a_reward_that_raises_or_is_nan_fails_the_group_with_one_clear_message(
    model: str, quality: float | None
) -> None:
    class Bad(CountEnv):
        def respond(self, task: Task, response: str) -> Outcome:
            if quality is None:
                raise ZeroDivisionError("in my reward")
            return Outcome(quality)

    cause = "in my reward" if quality is None else "must be in"
    with pytest.raises(EpisodeError, match=f"task 'count' failed twice: .*{cause}"):
        groups(model, [RolloutRequest("0", TaskInstance("count"))], lambda p, s: "1", Bad)


class BrokenGraderEnv(CountEnv):
    """Cannot judge some responses, or fails on them. One turn."""

    broken: ClassVar[dict[str, Exception]] = {}

    def __init__(self) -> None:
        super().__init__(turns=1)

    def respond(self, task: Task, response: str) -> Outcome:
        if response in self.broken:
            raise self.broken[response]
        return super().respond(task, response)


def test_an_episode_that_cannot_be_judged_is_left_out_of_its_group(
    model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    request = RolloutRequest("0", TaskInstance("count"))
    [whole] = groups(model, [request], answer_by_seed, BrokenGraderEnv)
    answers = [rollout.turns[0].response for rollout in whole.rollouts]
    assert len(set(answers)) == 4
    lost = InfrastructureError("the grader is gone")
    monkeypatch.setattr(BrokenGraderEnv, "broken", {answers[1]: lost})
    [group] = groups(model, [request], answer_by_seed, BrokenGraderEnv)
    assert [rollout.turns[0].response for rollout in group.rollouts] == [answers[0], *answers[2:]]
    assert "left out of its group: an episode of task 'count' failed twice: InfrastructureError" in caplog.text
    assert group.trainable and group.num_dropped == 1
    # One rollout alone has nothing to be compared with.
    for judged in (1, 0):
        monkeypatch.setattr(BrokenGraderEnv, "broken", dict.fromkeys(answers[judged:], lost))
        [group] = groups(model, [request], answer_by_seed, BrokenGraderEnv)
        assert not group.trainable and not group.skipped
        assert (len(group.rollouts), group.num_dropped) == (judged, 4 - judged)
    # Another error is no matter of luck.
    monkeypatch.setattr(BrokenGraderEnv, "broken", {answers[0]: lost, answers[1]: KeyError("a bug")})
    with pytest.raises(EpisodeError, match="a bug"):
        groups(model, [request], answer_by_seed, BrokenGraderEnv)


def test_an_env_that_raises_stop_iteration_fails_as_any_other(model: str) -> None:
    class Exhausted(CountEnv):
        def respond(self, task: Task, response: str) -> Outcome:
            return next(iter(()))

    with pytest.raises(EpisodeError, match="task 'count' failed twice"):
        groups(model, [RolloutRequest("0", TaskInstance("count"))], lambda p, s: "1", Exhausted)


def test_only_an_instant_environment_is_called_on_the_event_loops_thread(model: str) -> None:
    callers: set[threading.Thread] = set()

    class Env(CountEnv):
        def respond(self, task: Task, response: str) -> Outcome:
            callers.add(threading.current_thread())
            return super().respond(task, response)

    request = RolloutRequest("0", TaskInstance("count"))
    threaded = groups(model, [request], answer_by_seed, Env)
    assert threading.current_thread() not in callers
    callers.clear()
    Env.instant = True
    instant = groups(model, [request], answer_by_seed, Env)
    assert callers == {threading.current_thread()}
    assert [r.turns for r in instant[0].rollouts] == [r.turns for r in threaded[0].rollouts]


class HangingEnv(CountEnv):
    """Hangs so often, till the end of the test."""

    hangs = 0
    hung = False
    released = threading.Event()

    def begin(self, task: Task) -> None:
        assert not self.hung, "an environment that hung was used again"
        super().begin(task)

    def respond(self, task: Task, response: str) -> Outcome:
        if HangingEnv.hangs > 0:
            HangingEnv.hangs -= 1
            self.hung = True
            HangingEnv.released.wait()
            raise RuntimeError("too late: nobody hears this")
        return super().respond(task, response)


def test_an_env_that_hangs_is_left_behind_and_its_episode_run_again(model: str) -> None:
    HangingEnv.hangs = 2
    request = RolloutRequest("0", TaskInstance("count"))
    [group] = groups(model, [request], answer_by_seed, HangingEnv, env_timeout_s=1.5)
    assert sum(rollout.attempts - 1 for rollout in group.rollouts) == 2 and len(group.rollouts) == 4
    HangingEnv.released.set()


def test_an_env_that_always_hangs_fails_with_the_setting_to_change(model: str) -> None:
    HangingEnv.hangs = 100
    HangingEnv.released.clear()
    with pytest.raises(EpisodeError, match=r"failed twice: TimeoutError: .*env_timeout_s \(0\.05 s\)"):
        groups(model, [RolloutRequest("0", TaskInstance("count"))], answer_by_seed, HangingEnv, env_timeout_s=0.05)
    HangingEnv.hangs = 0
    HangingEnv.released.set()


class BrokenGenerator(ScriptedGenerator):
    """Its engine hangs or dies at the fifth response."""

    def __init__(self, model: str, dies: bool) -> None:
        super().__init__(model, answer_by_seed)
        self.dies = dies
        self.asked = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int) -> Generation:
        self.asked += 1
        if self.asked > 4:
            if self.dies:
                raise EngineError("it died")
            await asyncio.sleep(1e9)
        return await super().generate(prompt_ids, sampling, seed)


@pytest.mark.parametrize(("dies", "message"), [(True, "it died"), (False, r"generation_timeout_s \(0\.3 s\)")])
def test_an_engine_that_dies_or_hangs_is_no_episodes_fault(model: str, dies: bool, message: str) -> None:
    generator = BrokenGenerator(model, dies)
    with pytest.raises(EngineError, match=message):
        groups(
            model,
            [RolloutRequest("0", TaskInstance("count"))],
            answer_by_seed,
            generator=generator,
            generation_timeout_s=0.3,
        )
    # Of four episodes, three at a time and three turns long, nothing was tried again.
    assert len(generator.prompts) == 4 and generator.asked <= 4 + 4
