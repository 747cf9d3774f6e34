import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from envs.base import TaskInstance, Turn
from rllib_exit.curriculum.exit import STRATEGIES, CurriculumConfig, ExIt
from rllib_exit.rollouts import Rollout, RolloutGroup

TASKS = [f"task{i}" for i in range(10)]
EXIT = CurriculumConfig(buffer_size=20, min_buffer_size=4)


def make(config=EXIT, seed=0):
    return ExIt(config, TASKS, np.random.default_rng(seed))


def rollout(request, g, quality, num_turns=3, **kwargs):
    """An episode that ends with ``num_turns`` turns."""
    start = request.instance
    depth = start.depth + 1 if start.iterate else 0
    texts = [f"{request.group_id}.{g}.{t}" for t in range(start.starting_turn, max(num_turns, start.starting_turn + 1))]
    new = [Turn(text, depth=depth if i == 0 else 0) for i, text in enumerate(texts)]
    return Rollout((), start.history + tuple(new), quality, quality, **kwargs)


def group(request, qualities=(0.0, 1.0), **kwargs):
    return RolloutGroup(request, tuple(rollout(request, g, q, **kwargs) for g, q in enumerate(qualities)))


def response(instance):
    assert instance.iterate is not None
    return instance.iterate.response


def run(exit_, rng, iterations, prompts=6):
    """Plays iterations with random qualities; their requests."""
    history = []
    for _ in range(iterations):
        requests = exit_.select(prompts)
        exit_.update([group(r, rng.random(4), num_turns=int(rng.integers(1, 4))) for r in requests])
        history.append(requests)
    return history


def test_base_tasks_are_drawn_without_replacement_across_batches():
    exit_ = make(STRATEGIES["grpo"])
    drawn = [r.instance.task_id for _ in range(10) for r in exit_.select(7)]
    epochs = [drawn[i : i + 10] for i in range(0, 70, 10)]
    assert all(sorted(epoch) == TASKS for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_requests_have_ids_in_order_and_31_bit_seeds():
    exit_ = make()
    requests = exit_.select(3) + exit_.select(2)
    assert [r.group_id for r in requests] == [f"{i:08d}" for i in range(5)]
    assert len({r.seed for r in requests}) == 5 and all(0 <= r.seed < 2**31 for r in requests)


def test_grpo_keeps_no_buffer():
    exit_ = make(STRATEGIES["grpo"])
    history = run(exit_, np.random.default_rng(0), 5)
    assert not len(exit_.buffer)
    assert all(r.source is None and r.instance.kind == "base" for requests in history for r in requests)


def test_selects_only_above_the_minimum_size():
    exit_ = make(EXIT.replace(self_iteration_prob=1.0, divergence_prob=0.0))
    request = exit_.select(1)[0]
    exit_.update([group(request, num_turns=3)])
    assert len(exit_.buffer) == 3 and all(r.source is None for r in exit_.select(5))
    exit_.update([group(exit_.select(1)[0], num_turns=1)])
    requests = exit_.select(5)
    assert all(r.source is not None and r.source in exit_.buffer and r.instance == r.source for r in requests)


def test_expansion_inserts_every_prefix_of_one_rollout_with_the_parents_score():
    exit_ = make()
    request = exit_.select(1)[0]
    exit_.update([group(request, (0.0, 1.0, 1.0, 0.0), num_turns=3)])
    instances = exit_.buffer.instances
    assert exit_.buffer.scores.tolist() == [0.25] * 3
    turns = (*instances[2].history, instances[2].iterate)
    assert [(i.task_id, i.history, i.iterate, i.kind) for i in instances] == [
        (request.instance.task_id, turns[:t], turns[t], "improve") for t in range(3)
    ]
    assert len({response(i).split(".")[1] for i in instances}) == 1


def test_expansions_are_uniform_over_valid_untruncated_rollouts():
    chosen = Counter()
    exit_ = make(EXIT.replace(expansions_per_group=2, buffer_size=10_000))
    for _ in range(300):
        request = exit_.select(1)[0]
        rollouts = [rollout(request, g, g / 4, num_turns=1) for g in range(5)]
        rollouts[0] = replace(rollouts[0], valid=False)
        rollouts[1] = replace(rollouts[1], truncated=True)
        before = len(exit_.buffer)
        exit_.update([RolloutGroup(request, tuple(rollouts))])
        new = [response(i) for i in exit_.buffer.instances[before:]]
        assert len(set(new)) == 2
        chosen.update(text.split(".")[1] for text in new)
    assert set(chosen) == {"2", "3", "4"} and all(150 < n < 250 for n in chosen.values())


def test_group_without_an_eligible_rollout_only_updates_its_source():
    exit_ = make(EXIT.replace(self_iteration_prob=1.0, min_buffer_size=1))
    exit_.update([group(exit_.select(1)[0], num_turns=1)])
    request = exit_.select(1)[0]
    exit_.update([group(request, (0.5, 0.5), valid=False)])
    assert exit_.buffer.instances == (request.source,) and exit_.buffer.scores.tolist() == [0.0]


def test_source_takes_the_measured_score_and_children_inherit_it():
    exit_ = make(EXIT.replace(self_iteration_prob=1.0, min_buffer_size=1))
    exit_.update([group(exit_.select(1)[0], (0.0, 1.0), num_turns=1)])
    request = exit_.select(1)[0]
    exit_.update([group(request, (0.0, 0.5), num_turns=1)])
    assert exit_.buffer.scores.tolist() == [0.0625] * 2
    child = exit_.buffer.instances[1]
    assert (request.instance.depth, child.depth) == (0, 1)


def test_skipped_group_loses_its_source():
    exit_ = make(EXIT.replace(self_iteration_prob=1.0, min_buffer_size=1))
    exit_.update([group(exit_.select(1)[0], num_turns=1)])
    request = exit_.select(1)[0]
    exit_.update([RolloutGroup(request, ())])
    assert not len(exit_.buffer)
    # The first is gone already, the other is a base task.
    metrics = exit_.update([RolloutGroup(request, ()), RolloutGroup(exit_.select(1)[0], ())])
    assert metrics["skipped_fraction"] == 1 and metrics["group_variance_mean"] == 0


def test_strategies_use_their_kinds():
    kinds = {}
    for name, preset in STRATEGIES.items():
        exit_ = make(preset.replace(buffer_size=50, min_buffer_size=4))
        requests = [r for rs in run(exit_, np.random.default_rng(0), 60) for r in rs]
        kinds[name] = {r.instance.kind for r in requests}
        for r in requests:
            if r.source is None:
                assert r.instance == TaskInstance(r.instance.task_id)
            elif name == "curriculum":
                assert r.instance == r.source and r.instance.iterate is None
            else:
                assert replace(r.instance, kind="improve") == r.source
        if name != "grpo":
            selected = np.mean([r.source is not None for r in requests])
            assert 0.4 < selected < 0.6
    assert kinds == {
        "grpo": {"base"},
        "curriculum": {"base"},
        "improve": {"base", "improve"},
        "diverge": {"base", "improve", "diverge"},
        "exit": {"base", "improve", "diverge"},
    }
    assert [name for name, preset in STRATEGIES.items() if preset.diversity_bonus] == ["exit"]


def test_order_of_arrival_does_not_matter():
    a, b = make(), make()
    for _ in range(5):
        requests = a.select(6)
        assert requests == b.select(6)
        groups = [group(r, (0.0, i / 6, 1.0)) for i, r in enumerate(requests)]
        a.update(groups)
        b.update(groups[::-1])
        assert a.buffer.instances == b.buffer.instances


@pytest.mark.parametrize("iterations", [0, 1, 7])
def test_resumed_run_is_exact(iterations):
    a = make()
    run(a, np.random.default_rng(5), iterations)
    b = make(seed=99)
    b.set_state(pickle.loads(pickle.dumps(a.get_state())))
    assert run(a, np.random.default_rng(6), 8) == run(b, np.random.default_rng(6), 8)
    assert a.buffer.instances == b.buffer.instances
    np.testing.assert_array_equal(a.buffer.scores, b.buffer.scores)
    assert a.update([]) == b.update([])
    assert pickle.dumps(a.get_state()["rng"]) == pickle.dumps(b.get_state()["rng"])


def test_several_selections_before_their_updates():
    exit_ = make(EXIT.replace(buffer_size=5, min_buffer_size=2))
    pending = []
    for i in range(30):
        pending.append(exit_.select(4))
        if i % 3 == 2:
            for requests in pending[::-1]:
                exit_.update([group(r) for r in requests])
            pending = []
    assert len(exit_.buffer) == 5


def test_metrics():
    exit_ = make(EXIT.replace(self_iteration_prob=1.0, divergence_prob=0.0, min_buffer_size=3))
    assert exit_.update([])["buffer_size"] == 0 == exit_.update([])["depth_mean"]
    requests = exit_.select(4)
    metrics = exit_.update(
        [
            group(requests[0], (0, 1)),
            group(requests[1], (1, 1)),
            group(requests[2], (0, 0.5)),
            RolloutGroup(requests[3], ()),
        ]
    )
    assert metrics["distinct_tasks_total"] == metrics["distinct_instances_total"] == 4
    assert metrics["selected_fraction"] == metrics["starting_turn_mean"] == 0
    assert metrics["group_variance_mean"] == pytest.approx((0.25 + 0 + 0.0625) / 3)
    assert metrics["zero_variance_fraction"] == pytest.approx(1 / 3) and metrics["skipped_fraction"] == 0.25
    assert (metrics["buffer_size"], metrics["buffer_score_min"], metrics["buffer_score_max"]) == (9, 0, 0.25)
    assert metrics["buffer_score_mean"] == pytest.approx((0.25 + 0 + 0.0625) / 3)

    requests = exit_.select(8)
    exit_.select(8)  # what was selected later was not trained on yet
    metrics = exit_.update([group(request) for request in requests])
    assert metrics["selected_fraction"] == metrics["improve_fraction"] == 1 and metrics["diverge_fraction"] == 0
    assert metrics["starting_turn_mean"] == np.mean([r.instance.starting_turn for r in requests])
    assert metrics["distinct_tasks_total"] == 4
    assert metrics["distinct_instances_total"] == 4 + len({r.instance for r in requests})
    assert all(isinstance(value, float) for value in metrics.values())


def test_distinct_instances_ignore_kind_and_depth():
    exit_ = make(EXIT.replace(self_iteration_prob=1.0, divergence_prob=0.5, min_buffer_size=1, buffer_size=1))
    exit_.update([group(exit_.select(1)[0], num_turns=1)])
    requests = exit_.select(20)
    assert {r.instance.kind for r in requests} == {"improve", "diverge"}
    assert exit_.update([group(request) for request in requests])["distinct_instances_total"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"self_iteration_prob": 1.5}, "self_iteration_prob is 1.5"),
        ({"divergence_prob": float("nan")}, "divergence_prob is nan"),
        ({"min_buffer_size": 0}, "min_buffer_size is 0"),
        ({"buffer_size": 3}, "buffer_size is 3: nothing would ever be selected; use min_buffer_size"),
        ({"expansions_per_group": 0}, "expansions_per_group is 0"),
        ({"inverse_temperature": float("nan")}, "inverse_temperature is nan"),
        ({"learnability": "luck"}, "learnability is 'luck': use one of variance"),
        ({"staleness_coeff": 1.5}, "staleness_coeff is 1.5"),
        ({"exploration_coeff": -1.0}, "exploration_coeff is -1.0"),
        (
            {"learnability_of": "return", "learnability": "expected_improvement"},
            "learnability_of is 'return': .*use 'quality'",
        ),
    ],
)
def test_validate_names_field_and_value(change, message):
    with pytest.raises(ValueError, match=message):
        EXIT.replace(**change)


def test_presets_are_valid():
    for name, preset in STRATEGIES.items():
        assert preset.strategy == name and preset.replace() == preset


def test_rejects_other_tasks():
    with pytest.raises(ValueError, match=r"^task_ids is empty"):
        ExIt(EXIT, [], np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^the saved curriculum has other base tasks, .* as before$"):
        ExIt(EXIT, TASKS[:-1], np.random.default_rng(0)).set_state(make().get_state())


def test_imports_neither_ray_nor_torch_nor_vllm():
    code = (
        "import sys, rllib_exit.curriculum.exit, rllib_exit.objective.advantages, rllib_exit.objective.diversity\n"
        "assert not {'ray', 'torch', 'vllm'} & set(sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [("variance", 3 / 16), ("regret", 0.75), ("expected_improvement", 3 / 16), ("maximum", 1), ("top_quantile", 1)],
)
def test_instances_are_scored_by_the_chosen_learnability(name, expected):
    exit_ = make(EXIT.replace(learnability=name))
    exit_.update([group(exit_.select(1)[0], (0.0, 0.0, 0.0, 1.0), num_turns=1)])
    assert exit_.buffer.scores.tolist() == [expected]


def test_the_buffer_gets_all_that_draws_depend_on():
    config = EXIT.replace(inverse_temperature=2.0, staleness_coeff=0.25, exploration_coeff=0.5)
    buffer = make(config).buffer
    assert (buffer.capacity, buffer.inverse_temperature) == (20, 2.0)
    assert (buffer.staleness_coeff, buffer.exploration_coeff) == (0.25, 0.5)


@pytest.mark.parametrize("name", ["maximum", "expected_improvement"])
def test_what_is_reported_as_variance_is_the_variance_whatever_instances_are_kept_by(name):
    exit_ = make(EXIT.replace(learnability=name, self_iteration_prob=1.0, min_buffer_size=1))
    base = exit_.select(1)[0]
    metrics = exit_.update([group(base, (1, 1), num_turns=1)])
    assert metrics["zero_variance_fraction"] == 1 and metrics["group_variance_mean"] == 0
    metrics = exit_.update([group(exit_.select(1)[0], (0, 1), num_turns=1)])
    assert metrics["zero_variance_fraction"] == 0 and metrics["group_variance_mean"] == 0.25


@pytest.mark.parametrize(("of", "expected"), [("quality", 0.0625), ("return", 0.25)])
def test_instances_are_scored_by_qualities_or_by_returns(of, expected):
    exit_ = make(EXIT.replace(learnability_of=of))
    request = exit_.select(1)[0]
    rollouts = tuple(Rollout((), (Turn(str(q)),), return_, q) for q, return_ in ((0.5, -1.0), (1.0, 1.0)))
    exit_.update([RolloutGroup(request, rollouts)])
    assert exit_.buffer.scores.tolist() == [expected]


def test_without_self_iteration_a_partial_history_stands_in_the_buffer_once():
    exit_ = make(STRATEGIES["curriculum"].replace(self_iteration_prob=1.0, min_buffer_size=1, buffer_size=8))
    for _ in range(20):
        exit_.update([group(request, num_turns=1) for request in exit_.select(4)])
    # A task of one turn has one partial history, which is empty, however often it is replayed.
    assert set(exit_.buffer.instances) <= {TaskInstance(task) for task in TASKS}


def test_instances_are_told_apart_by_their_solutions():
    exit_ = make()
    request = exit_.select(1)[0]
    for text in ("4, I think", "4, of course"):
        turns = (Turn(text, solution="4"),)
        exit_.update([RolloutGroup(request, (Rollout((), turns, 1.0, 1.0), Rollout((), turns, 0.0, 0.0)))])
    [held] = exit_.buffer.instances
    assert response(held) == "4, I think"


def test_a_measured_score_stays_until_it_is_measured_again():
    exit_ = make(EXIT.replace(self_iteration_prob=1.0, min_buffer_size=1))
    first, second = Turn("y0"), Turn("y1")
    parent, child = TaskInstance("task0", (), first, "improve"), TaskInstance("task0", (first,), second, "improve")
    exit_.buffer.insert(parent, child, score=0.25)
    exit_.buffer.update(parent, 0.0)
    turns = (first, Turn("y1 again"))
    rollouts = tuple(Rollout((), turns, q, q) for q in (0.0, 1.0))
    exit_.update([RolloutGroup(replace(exit_.select(1)[0], instance=child, source=child), rollouts)])
    scores = dict(zip(exit_.buffer.instances, exit_.buffer.scores.tolist(), strict=True))
    assert scores[parent] == 0.0 and scores[child] == 0.25


def test_a_group_that_could_not_be_judged_says_nothing_of_its_instance():
    exit_ = make(EXIT.replace(self_iteration_prob=1.0, min_buffer_size=1))
    exit_.update([group(exit_.select(1)[0], num_turns=1)])
    request = exit_.select(1)[0]
    metrics = exit_.update([RolloutGroup(request, (rollout(request, 0, 1.0),), num_dropped=3)])
    assert exit_.buffer.instances == (request.source,) and exit_.buffer.scores.tolist() == [0.25]
    assert metrics["unjudged_fraction"] == 1 and metrics["skipped_fraction"] == 0
    assert exit_.update([group(exit_.select(1)[0])])["unjudged_fraction"] == 0


def test_metrics_count_diverge_steps():
    exit_ = make(EXIT.replace(self_iteration_prob=1.0, min_buffer_size=1, divergence_prob=1.0))
    exit_.update([group(exit_.select(1)[0], num_turns=1)])
    metrics = exit_.update([group(exit_.select(1)[0], num_turns=1)])
    assert metrics["diverge_fraction"] == 1 and metrics["improve_fraction"] == 0


def test_base_tasks_come_in_the_order_of_a_permutation():
    exit_ = make(STRATEGIES["grpo"], seed=3)
    rng = np.random.default_rng(3)
    rng.random()  # whether to select
    expected = rng.permutation(len(TASKS))
    assert exit_.select(1)[0].instance.task_id == TASKS[expected[0]]
