import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.base import Kind, TaskInstance, Turn
from rllib_exit.curriculum.learnability import puct
from rllib_exit.curriculum.task_buffer import TaskBuffer, identity


def instance(i, kind: Kind = "improve", depth=0):
    return TaskInstance(f"task{i % 3}", (Turn(f"turn {i}"),), Turn(f"iterate {i}", depth=depth), kind)


class ReferenceBuffer:
    """The capacity rule, slowly: a list of rows with identity, score, age, and whether the score was measured."""

    def __init__(self, capacity):
        self.capacity, self.rows, self.age = capacity, [], 0

    def find(self, x):
        return next((row for row in self.rows if row["identity"] == identity(x)), None)

    def insert(self, *instances, score):
        episode = []
        for x in instances:
            row = self.find(x)
            if row is not None:
                if not row["measured"]:
                    row["score"] = score
                continue
            if len(self.rows) == self.capacity:
                lowest = min(self.rows, key=lambda row: (row["score"], row["age"]))
                if score < lowest["score"] or lowest in episode:
                    continue
                self.rows.remove(lowest)
            episode.append({"identity": identity(x), "score": score, "age": self.age, "measured": False})
            self.rows.append(episode[-1])
            self.age += 1

    def update(self, x, score):
        row = self.find(x)
        if row:
            row["score"], row["measured"] = score, True
        return row is not None

    def remove(self, x):
        row = self.find(x)
        if row:
            self.rows.remove(row)
        return row is not None


# What is restored must go on as what was not, so only some runs do it.
names = st.sampled_from(["insert", "insert", "insert", "update", "remove"])
operations = (names, names | st.just("restore"))
arguments = (
    st.lists(st.integers(0, 20), min_size=1, max_size=4, unique=True),
    st.sampled_from([0.0, 0.1, 0.2, 0.25]) | st.floats(0, 0.25),
)


@given(
    st.sampled_from(operations).flatmap(lambda names: st.lists(st.tuples(names, *arguments), min_size=10, max_size=60)),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.5, 1.0, 3.0, 1000.0, np.inf]),
)
def test_agrees_with_the_slow_reference(operations, capacity, alpha):
    buffer, reference = TaskBuffer(capacity, alpha), ReferenceBuffer(capacity)
    for operation, numbers, score in operations:
        x = instance(numbers[0])
        if operation == "restore":
            state = pickle.loads(pickle.dumps(buffer.get_state()))
            buffer = TaskBuffer(capacity, alpha)
            buffer.set_state(state)
        elif operation == "insert":
            for held in (buffer, reference):
                held.insert(*map(instance, numbers), score=score)
        elif operation == "update":
            assert buffer.update(x, score) == reference.update(x, score)
        else:
            assert buffer.remove(x) == reference.remove(x)
        held = dict(zip(map(identity, buffer.instances), buffer.scores.tolist(), strict=True))
        assert held == {row["identity"]: row["score"] for row in reference.rows}
        assert len(buffer) == len(reference.rows) <= capacity
        assert all((instance(i) in buffer) == (reference.find(instance(i)) is not None) for i in range(21))
        if held and max(held.values()) > 0 and alpha > 0:  # an instance of score 0 is never drawn
            rng = np.random.default_rng(numbers[0])
            assert all(held[identity(buffer.sample(rng))] > 0 for _ in range(5))


@pytest.mark.parametrize(
    ("scores", "alpha"),
    [
        ([0.1, 0.2, 0.0, 0.25, 0.05], 1.0),
        ([0.1, 0.2, 0.0, 0.25, 0.05], 2.0),
        ([0.1, 0.2, 0.0, 0.25, 0.05], 0.0),
        ([0.0, 0.0, 0.0], 1.0),
        ([0.2], 1.0),
        ([0.2, 0.1999, 0.1998, 0.1], 1000.0),
        ([1e-3, 0.999e-3, 1e-9], 600.0),
        ([0.1, 0.25, 0.25, 0.2499], np.inf),
    ],
)
def test_draws_in_proportion_to_the_powers_of_the_scores(scores, alpha):
    buffer = TaskBuffer(8, alpha)
    for i, score in enumerate(scores):
        buffer.insert(instance(i), score=score)
    rng, num = np.random.default_rng(0), 20_000
    draws = [buffer.instances.index(buffer.sample(rng)) for _ in range(num)]
    counts = np.bincount(draws, minlength=len(scores))
    weights = np.power(np.divide(scores, max(scores)), alpha) if any(scores) else np.ones(len(scores))
    expected = num * weights / weights.sum()
    positive = expected > 0
    assert (counts[~positive] == 0).all()
    chi2 = ((counts - expected)[positive] ** 2 / expected[positive]).sum()
    assert chi2 < 30  # 99.99 % of the chi-square distribution with up to 5 degrees of freedom is below 26


def drawn_slots(buffer, num, seed=0):
    rng = np.random.default_rng(seed)
    return [buffer.instances.index(buffer.sample(rng)) for _ in range(num)]


def test_without_staleness_an_instance_of_score_zero_is_never_drawn_again_and_with_it_soon():
    counts = {}
    for coeff in (0.0, 0.3):
        buffer = TaskBuffer(4, staleness_coeff=coeff)
        for i, score in enumerate([0.0, 0.25, 0.25, 0.0]):
            buffer.insert(instance(i), score=score)
        counts[coeff] = np.bincount(drawn_slots(buffer, 1000), minlength=4)
    assert counts[0.0][[0, 3]].sum() == 0
    assert counts[0.3][[0, 3]].min() > 80


def test_staleness_counts_the_draws_since_an_instance_was_drawn_or_inserted():
    buffer = TaskBuffer(4, staleness_coeff=1.0)
    for i in range(3):
        buffer.insert(instance(i), score=0.1)
    drawn_slots(buffer, 5)
    buffer.insert(instance(3), score=0.1)
    rng, num = np.random.default_rng(1), 4000
    state = buffer.get_state()
    staleness = state["num_draws"] - state["drawn_at"]
    assert staleness[3] == 0 and sorted(staleness.tolist())[1] == 0  # the new one, and the one drawn last
    counts = np.zeros(4)
    for _ in range(num):
        buffer.set_state(state)
        counts[buffer.instances.index(buffer.sample(rng))] += 1
    np.testing.assert_allclose(counts / num, staleness / staleness.sum(), atol=0.03)


def test_drawn_by_staleness_alone_no_instance_waits_for_long():
    buffer = TaskBuffer(8, staleness_coeff=1.0)
    for i in range(8):
        buffer.insert(instance(i), score=0.0 if i else 0.25)
    slots = drawn_slots(buffer, 400)
    assert max(np.diff(np.flatnonzero(np.array(slots) == 3))) < 40


def test_while_one_instance_alone_is_stale_it_is_drawn():
    buffer = TaskBuffer(3, staleness_coeff=1.0)
    buffer.insert(instance(0), score=1.0)
    buffer.sample(np.random.default_rng(0))
    buffer.insert(instance(1), instance(2), score=1.0)
    state = buffer.get_state()
    assert (state["num_draws"] - state["drawn_at"]).tolist() == [0, 0, 0]
    for stale in range(3):
        state["drawn_at"] = np.array([1 - (slot == stale) for slot in range(3)])
        for seed in range(5):
            buffer.set_state(state)
            assert buffer.sample(np.random.default_rng(seed)) == instance(stale)


def test_what_a_new_buffer_is_and_lacks():
    buffer = TaskBuffer(3)
    assert (buffer.inverse_temperature, buffer.staleness_coeff, buffer.exploration_coeff) == (1.0, 0.0, 0.0)
    with pytest.raises(IndexError, match=r"^the task buffer is empty$"):
        buffer.sample(np.random.default_rng(0))


def test_staleness_moves_with_the_instance_and_is_restored():
    buffer = TaskBuffer(8, staleness_coeff=0.5)
    for i in range(8):
        buffer.insert(instance(i), score=0.1)
    drawn_slots(buffer, 20)
    last = buffer.get_state()["drawn_at"][7]
    buffer.remove(instance(2))  # the last one moves to its slot
    assert buffer.instances[2] == instance(7) and buffer.get_state()["drawn_at"][2] == last
    restored = TaskBuffer(8, staleness_coeff=0.5)
    restored.set_state(pickle.loads(pickle.dumps(buffer.get_state())))
    assert drawn_slots(restored, 100) == drawn_slots(buffer, 100)


def test_exploration_draws_by_puct_in_place_of_the_scores():
    buffer = TaskBuffer(4, inverse_temperature=2.0, exploration_coeff=3.0)
    for i, score in enumerate([0.1, 0.25, 0.2]):
        buffer.insert(instance(i), score=score)
    assert len(set(drawn_slots(buffer, 6))) > 1
    state = buffer.get_state()
    assert state["draws"].sum() == state["num_draws"] == 6
    weights = puct(buffer.scores, state["draws"], 6, 3.0) ** 2
    counts, num, rng = np.zeros(3), 4000, np.random.default_rng(1)
    for _ in range(num):
        buffer.set_state(state)
        counts[buffer.instances.index(buffer.sample(rng))] += 1
    np.testing.assert_allclose(counts / num, weights / weights.sum(), atol=0.03)
    assert buffer.scores.tolist() == [0.1, 0.25, 0.2]  # by which instances are kept


def test_the_best_by_puct_is_another_one_after_every_draw():
    """Without the bonus, α = ∞ draws the instance of the highest score for ever."""
    scores, n = [0.1, 0.25, 0.2, 0.05], [0, 0, 0, 0]
    buffers = [TaskBuffer(4, np.inf, exploration_coeff=c) for c in (0.0, 5.0)]
    for buffer in buffers:
        for i, score in enumerate(scores):
            buffer.insert(instance(i), score=score)
    expected = []
    for total in range(40):
        expected.append(int(puct(scores, n, total, 5.0).argmax()))
        n[expected[-1]] += 1
    greedy, exploring = (drawn_slots(buffer, 40) for buffer in buffers)
    assert set(greedy) == {1} and exploring == expected and min(n) > 0


def test_draws_are_counted_for_each_instance_and_restored():
    buffer = TaskBuffer(8, exploration_coeff=1.0)
    for i in range(8):
        buffer.insert(instance(i), score=0.1 + i / 100)
    drawn_slots(buffer, 50)
    last = buffer.get_state()["draws"][7]
    assert last > 0
    buffer.remove(instance(2))  # the last one moves to its slot
    assert buffer.get_state()["draws"][2] == last
    buffer.insert(instance(2), score=0.1)  # nothing is known of it any more
    assert buffer.get_state()["draws"][7] == 0
    restored = TaskBuffer(8, exploration_coeff=1.0)
    restored.set_state(pickle.loads(pickle.dumps(buffer.get_state())))
    assert drawn_slots(restored, 100) == drawn_slots(buffer, 100)


def test_full_buffer_replaces_the_oldest_of_the_lowest():
    buffer = TaskBuffer(3)
    for i, score in enumerate([0.1, 0.1, 0.2]):
        buffer.insert(instance(i), score=score)
    buffer.insert(instance(3), score=0.05)
    assert instance(3) not in buffer
    buffer.insert(instance(4), score=0.1)  # equal to the lowest: taken
    assert instance(4) in buffer and instance(0) not in buffer and instance(1) in buffer
    buffer.insert(instance(5), score=0.1)
    assert instance(1) not in buffer and instance(4) in buffer


def test_instances_of_one_episode_do_not_displace_each_other():
    buffer = TaskBuffer(4)
    for i, score in enumerate([0.25, 0.25, 0.1, 0.05]):
        buffer.insert(instance(i), score=score)
    buffer.insert(*map(instance, range(4, 9)), score=0.1)
    # Two others had no higher score; the later instances of the episode find only its own.
    assert {i for i in range(9) if instance(i) in buffer} == {0, 1, 4, 5}


def test_an_inherited_score_replaces_no_measured_one():
    buffer = TaskBuffer(4)
    buffer.insert(instance(0), score=0.1)
    buffer.insert(instance(0), score=0.2)
    assert buffer.scores.tolist() == [0.2]
    assert buffer.update(instance(0), 0.05)
    buffer.insert(instance(0), instance(1), score=0.25)
    assert buffer.scores.tolist() == [0.05, 0.25]
    assert not buffer.update(instance(2), 0.1)


def test_age_moves_with_the_instance_that_fills_a_gap():
    buffer = TaskBuffer(3)
    for i in range(3):
        buffer.insert(instance(i), score=0.1)
    buffer.remove(instance(0))  # the youngest, 2, moves to its slot, and stays the youngest
    buffer.insert(instance(3), score=0.2)
    buffer.insert(instance(4), score=0.1)
    assert instance(1) not in buffer and instance(2) in buffer


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1, 0)])
@pytest.mark.parametrize("scores", [[0.0, 0.1], [0.1, 0.0], [0.0, 0.0, 0.1, 0.0, 0.0], [0.02, 0.06, 0.14]])
def test_the_ends_of_the_unit_interval_draw_no_instance_of_score_zero(scores, uniform):
    class Ends:
        def random(self):
            return uniform

    buffer = TaskBuffer(7)
    for i, score in enumerate(scores):
        buffer.insert(instance(i), score=score)
    drawn = buffer.sample(Ends())  # type: ignore[arg-type]
    assert buffer.scores[buffer.instances.index(drawn)] > 0


def test_identity_is_task_history_and_iterate():
    buffer = TaskBuffer(4)
    buffer.insert(instance(0, kind="diverge", depth=1), score=0.1)
    assert buffer.instances[0].kind == "improve"
    assert instance(0, depth=7) in buffer
    buffer.insert(instance(0, depth=7), score=0.2)
    assert len(buffer) == 1 and buffer.scores.tolist() == [0.2]
    assert TaskInstance("task0", (Turn("turn 0"),)) not in buffer


def test_restored_buffer_draws_the_same():
    rng = np.random.default_rng(1)
    buffer = TaskBuffer(50)
    for i in range(200):
        buffer.insert(instance(i), score=float(rng.random()) / 4)
        if i % 7 == 0:
            buffer.remove(buffer.sample(rng))
    restored = TaskBuffer(50)
    restored.set_state(pickle.loads(pickle.dumps(buffer.get_state())))
    a, b = np.random.default_rng(2), np.random.default_rng(2)
    for i in range(200, 400):
        score = float(rng.random()) / 4
        buffer.insert(instance(i), score=score)
        restored.insert(instance(i), score=score)
        assert buffer.sample(a) == restored.sample(b)
    assert buffer.instances == restored.instances


def test_state_is_a_copy():
    buffer = TaskBuffer(4)
    buffer.insert(instance(0), score=0.1)
    state = buffer.get_state()
    buffer.insert(instance(1), score=0.2)
    buffer.update(instance(0), 0.25)
    assert len(state["instances"]) == 1 and state["scores"].tolist() == [0.1]


def test_rejects_bad_arguments():
    with pytest.raises(ValueError, match="capacity is 0"):
        TaskBuffer(0)
    with pytest.raises(ValueError, match="inverse_temperature is -1"):
        TaskBuffer(1, -1)
    with pytest.raises(ValueError, match="staleness_coeff is 2"):
        TaskBuffer(1, 1, 2)
    with pytest.raises(ValueError, match="exploration_coeff is inf"):
        TaskBuffer(1, exploration_coeff=np.inf)
    buffer = TaskBuffer(2)
    with pytest.raises(IndexError):
        buffer.sample(np.random.default_rng(0))
    for score in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="score is"):
            buffer.insert(instance(0), score=score)
    assert not len(buffer)
    for i in range(2):
        buffer.insert(instance(i), score=0.1)
    with pytest.raises(ValueError, match="capacity 1 must be at least 2"):
        TaskBuffer(1).set_state(buffer.get_state())
