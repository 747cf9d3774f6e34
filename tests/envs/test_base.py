import math
import pickle
import warnings
from typing import cast

import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from envs.base import Kind, Outcome, SelfImprovementEnv, Task, TaskInstance, Turn, UnicodeText, prefix_digests
from envs.competition_math.env import CompetitionMathEnv
from envs.countdown.env import CountdownEnv
from envs.mle_bench.env import MLEBenchEnv
from envs.prompts import DIVERGE, IMPROVE
from tests.fakes import CounterEnv

responses = st.one_of(st.integers(-5, 5).map(str), st.text(max_size=5))


def start(env: CounterEnv, *history: str, iterate: Turn | None = None, kind: str = "base") -> str:
    instance = TaskInstance("count/3", tuple(map(Turn, history)), iterate, cast(Kind, kind))
    return env.reset(options={"instance": instance})[0]


def test_gymnasium_accepts_it():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*render modes.*")
        check_env(CounterEnv())


def test_the_domains_say_how_many_turns_they_have_at_most():
    assert [env.max_turns for env in (CompetitionMathEnv, CountdownEnv, MLEBenchEnv)] == [1, 1, 1]
    assert CounterEnv({"turns": 5}).max_turns == 5 and SelfImprovementEnv.max_turns is None


def test_the_gold_answer_is_what_the_domain_says():
    arithmetic, countdown = CompetitionMathEnv({"levels": ["add1"]}), CountdownEnv({"hidden_target": True})
    task = next(iter(arithmetic.tasks.values()))
    assert arithmetic.gold(task) == task.data["answer"]
    task = next(iter(countdown.tasks.values()))
    assert countdown.gold(task) == task.data["solution"]
    assert CounterEnv().gold(CounterEnv().tasks["count/1"]) is None
    assert CounterEnv().gold(Task("t", "p", {"answer": 7})) == "7"


def test_an_episode():
    env = CounterEnv()
    assert start(env) == "Count to 3."
    observation, reward, terminated, truncated, info = env.step("1")
    assert (observation, reward, terminated, truncated) == ("The counter is at 1.", 0.0, False, False)
    assert info["outcome"].metrics == {"count": 1.0}
    env.step("1")
    _, reward, terminated, _, _ = env.step("1")
    assert terminated and reward == 1.0
    assert [turn.response for turn in env.turns] == ["1", "1", "1"]
    assert [turn.quality for turn in env.turns] == [1 / 3, 1 / 2, 1.0]


@given(st.lists(responses, min_size=1, max_size=5))
def test_a_replayed_history_gives_the_state_that_playing_gave(history: list[str]):
    played, replayed = CounterEnv({"turns": 6}), CounterEnv({"turns": 6})
    start(played)
    for response in history:
        played.step(response)
    observation = start(replayed, *history)
    assert replayed.count == played.count
    assert replayed.messages() == played.messages()
    assert observation == played.messages()[-1]["content"]
    for ours, theirs in zip(replayed.turns, played.turns, strict=True):
        assert (ours.response, ours.feedback, ours.quality) == (theirs.response, theirs.feedback, theirs.quality)
    assert replayed.step("1") == played.step("1")


def test_replay_forgets_the_last_episode():
    env = CounterEnv()
    start(env)
    env.step("7")
    start(env, "1")
    assert env.count == 1 and len(env.turns) == 1


def test_replay_recomputes_feedback_and_keeps_depth():
    env = CounterEnv()
    stale = Turn("2", feedback="stale", quality=0.9, depth=4)
    env.reset(options={"instance": TaskInstance("count/3", (stale,))})
    (turn,) = env.turns
    assert (turn.feedback, turn.quality, turn.depth) == ("The counter is at 2.", 0.5, 4)


@pytest.mark.parametrize(("kind", "request_text"), [("improve", IMPROVE), ("diverge", DIVERGE)])
def test_the_chat_of_a_self_iteration_step(kind: str, request_text: str):
    env = CounterEnv()
    observation = start(env, "1", iterate=Turn("5", "The counter is at 6.", 0.25), kind=kind)
    chat = env.messages()
    assert [message["role"] for message in chat] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert chat[4]["content"] == "5"
    assert "The counter is at 6." in chat[5]["content"] and chat[5]["content"].endswith(request_text)
    assert observation == chat[5]["content"]
    # The iterate is not executed: the new response is the only answer to turn 1.
    env.step("1")
    assert env.count == 2
    # From here on the chat knows neither the old iterate nor the request.
    assert [message["content"] for message in env.messages()[2:]] == [
        "1",
        "The counter is at 1.",
        "1",
        "The counter is at 2.",
    ]


def test_a_caller_may_iterate_at_any_turn():
    env = CounterEnv()
    start(env, "1")
    env.step("1")
    assert env.messages(Turn("9"), "diverge")[-1]["content"] == DIVERGE
    assert env.messages(Turn("9"))[-1]["content"] == IMPROVE


@pytest.mark.parametrize("kind", ["improve", "diverge"])
def test_depth_grows_by_one_for_the_iterated_turn_only(kind: str):
    env = CounterEnv()
    start(env, "1", iterate=Turn("5", depth=2), kind=kind)
    env.step("1")
    env.step("1")
    assert [turn.depth for turn in env.turns] == [0, 3, 0]


def test_depth_over_repeated_steps():
    env = CounterEnv({"turns": 1})
    iterate = None
    for step in range(4):
        start(env, iterate=iterate, kind="improve" if iterate else "base")
        env.step("1")
        (iterate,) = env.turns
        assert iterate.depth == step


class Gain(CounterEnv):
    """Rewards the gain in quality."""

    def reward(self, quality: float, previous: float | None) -> float:
        return quality if previous is None else quality - previous


@pytest.mark.parametrize(("kind", "expected"), [("improve", 0.75), ("diverge", 1.0)])
def test_only_an_improve_step_is_rewarded_relative_to_its_iterate(kind: str, expected: float):
    env = Gain({"turns": 1})
    start(env, iterate=Turn("0", quality=0.25), kind=kind)
    assert env.step("3")[1] == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_an_error(bad: float):
    class Bad(CounterEnv):
        def reward(self, quality: float, previous: float | None) -> float:
            return bad

    env = Bad({"turns": 1})
    start(env)
    with pytest.raises(ValueError, match=r"count/3.*Bad\.reward.*finite"):
        env.step("1")


@pytest.mark.parametrize("bad", [math.nan, -0.01, 1.01, math.inf])
def test_a_quality_outside_the_unit_interval_is_an_error(bad: float):
    class Bad(CounterEnv):
        def respond(self, task: Task, response: str) -> Outcome:
            return Outcome(quality=bad, done=False)

    env = Bad()
    start(env)
    with pytest.raises(ValueError, match=r"count/3.*\[0, 1\]"):
        env.step("1")
    with pytest.raises(ValueError, match=r"count/3.*\[0, 1\]"):
        start(env, "1")


@given(st.lists(responses, min_size=3, max_size=3))
def test_the_reward_is_finite_whatever_the_policy_says(texts: list[str]):
    env = CounterEnv()
    start(env)
    rewards = [env.step(text)[1] for text in texts]
    assert all(math.isfinite(reward) for reward in rewards)
    assert sum(rewards) == env.turns[-1].quality


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match=r"'count/99'.*4 tasks"):
        CounterEnv().reset(options={"instance": TaskInstance("count/99")})


def test_a_history_past_the_end_is_an_error():
    with pytest.raises(ValueError, match="turn 2 of the history ends the episode"):
        start(CounterEnv({"turns": 3}), "1", "1", "1")


def test_without_an_instance_tasks_are_drawn_from_the_seed():
    def draws(seed: int) -> list[str]:
        env = CounterEnv({"tasks": 100})
        env.reset(seed=seed)
        return [env.task.id, *(env.reset() and env.task.id for _ in range(5))]

    assert draws(1) == draws(1) != draws(2)
    assert len(set(draws(1))) > 1


def test_an_env_before_reset_says_so():
    with pytest.raises(RuntimeError, match="reset"):
        CounterEnv().step("1")


@pytest.mark.parametrize(("ids", "message"), [([], "no tasks"), (["a", "a"], "unique")])
def test_task_sets_that_cannot_be_used(ids: list[str], message: str):
    class Bare(CounterEnv):
        def __init__(self) -> None:
            super(CounterEnv, self).__init__([Task(i, "") for i in ids])

    with pytest.raises(ValueError, match=message):
        Bare()


def test_a_domain_need_not_have_demonstrations():
    env = CounterEnv()
    with pytest.raises(NotImplementedError, match="CounterEnv has no demonstrations: implement demonstration"):
        env.demonstration(env.tasks["count/1"])


@pytest.mark.parametrize(
    ("iterate", "kind"), [(None, "improve"), (None, "diverge"), (Turn("1"), "base"), (None, "better")]
)
def test_instances_that_make_no_sense(iterate: Turn | None, kind: str):
    with pytest.raises(ValueError, match="kind"):
        TaskInstance("count/1", (), iterate, cast(Kind, kind))


def test_instances_are_values():
    def instance(depth: int) -> TaskInstance:
        return TaskInstance("count/1", (Turn("a", "fine", 0.5),), Turn("b", depth=depth), "improve")

    assert instance(1) == instance(2) and hash(instance(1)) == hash(instance(2))
    assert instance(2).depth == 2 and instance(2).starting_turn == 1
    assert pickle.loads(pickle.dumps(instance(2))).depth == 2


@given(st.text())
def test_any_text_is_an_observation_and_an_action(text: str):
    assert UnicodeText().contains(text)


def test_what_is_no_text_is_neither():
    assert not UnicodeText().contains(3)


TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too


@given(TEXT, st.lists(TEXT, max_size=3), TEXT, st.lists(TEXT, max_size=3))
def test_digests_are_equal_where_the_contents_are(task: str, texts: list[str], other_task: str, others: list[str]):
    digests, other_digests = prefix_digests(task, map(Turn, texts)), prefix_digests(other_task, map(Turn, others))
    for i, digest in enumerate(digests):
        for j, other in enumerate(other_digests):
            assert (digest == other) == ((task, texts[:i]) == (other_task, others[:j]))


def test_an_instances_digest_is_that_of_the_turn_which_it_starts_from():
    turns = Turn("a", "seen", 0.5), Turn("b", depth=2)
    task, first, second = prefix_digests("t", turns)
    assert TaskInstance("t").digest == task
    assert TaskInstance("t", turns[:1]).digest == TaskInstance("t", (), turns[0], "diverge").digest == first
    assert TaskInstance("t", turns[:1], turns[1], "improve").digest == second
    assert first == "50772a7513dc0e60"  # in every process
