from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from envs.base import Task, TaskInstance, Turn, prefix_digests
from rllib_exit.curriculum.exit import STRATEGIES, ExIt
from rllib_exit.rollout_log import SCHEMA, LoggedRollouts, RolloutLog
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, ScoredGroup, Segment
from tests.fakes import CounterEnv

SEGMENT = Segment(np.arange(5, dtype=np.int32), np.array([0, 0, 1, 1, 1], bool), np.zeros(5, np.float32))


def make_group(group_id: str, instance: TaskInstance, *responses: tuple[str, ...], **fields: Any) -> RolloutGroup:
    """A group whose rollouts answer with these responses; qualities rise from 0."""
    first = instance.depth + 1 if instance.iterate else 0
    rollouts = [
        Rollout(
            (SEGMENT,),
            (*instance.history, *(Turn(text, "seen", g / 8, first if t == 0 else 0) for t, text in enumerate(texts))),
            return_=float(g),
            quality=g / 8,
            **fields,
        )
        for g, texts in enumerate(responses)
    ]
    return RolloutGroup(RolloutRequest(group_id, instance), tuple(rollouts), policy_version=4)


def write(directory: Path, iteration: int, *groups: RolloutGroup) -> None:
    RolloutLog(directory).write(
        iteration, [ScoredGroup(group, np.arange(len(group.rollouts)) - 0.5) for group in groups]
    )


def test_a_rollout_reads_back_as_it_was_written(tmp_path: Path):
    history, iterate = (Turn("a", "ok", 0.25),), Turn("b", None, None, depth=2)
    instance = TaskInstance("t1", history, iterate, "improve")
    write(tmp_path / "rollouts", 3, make_group("g7", instance, ("c", "d"), ("e",), metrics={"calls": 2}, valid=False))
    rows = LoggedRollouts(tmp_path).read()
    assert [(row["group_id"], row["g"]) for row in rows] == [("g7", 0), ("g7", 1)]
    turns = [
        {"response": "a", "feedback": "ok", "quality": 0.25, "depth": 0},
        {"response": "e", "feedback": "seen", "quality": 0.125, "depth": 3},
    ]
    ids = {
        "turn_ids": prefix_digests("t1", [Turn("a"), Turn("e")])[1:],
        "instance_id": prefix_digests("t1", [Turn("a"), iterate])[-1],
    }
    assert rows[1] == ids | {
        "iteration": 3, "policy_version": 4, "group_id": "g7", "g": 1, "task_id": "t1", "kind": "improve",
        "prompt": None, "gold": None, "learnability": 1 / 256, "group_size": 2, "group_dropped": 0,
        "group_return_mean": 0.5, "group_return_std": 0.5, "group_quality_mean": 1 / 16,
        "starting_turn": 1, "depth": 2, "turns": turns, "return": 1.0, "quality": 0.125, "advantage": 0.5,
        "plain_advantage": 0.5, "diversity": None,
        "iterate": {"response": "b", "feedback": None, "quality": None, "depth": 2}, "valid": False,
        "truncated": False, "response_tokens": 3, "metrics": [("calls", 2.0)],
    }  # fmt: skip


def test_the_rows_have_prompt_gold_answer_and_both_advantages(tmp_path: Path):
    env = CounterEnv()
    task = env.tasks["count/2"]
    env.tasks["count/2"] = Task(task.id, "Count to \ud800.", {"answer": 2})
    group = make_group("g", TaskInstance("count/2"), ("1",), ("2",))
    RolloutLog(tmp_path, env=env).write(1, [ScoredGroup(group, np.array([-1.0, 1.0]), diversity_G=np.array([1, 0.25]))])
    rows = LoggedRollouts(tmp_path).read()
    assert [(row["prompt"], row["gold"]) for row in rows] == [("Count to \ufffd.", "2")] * 2
    assert [(row["plain_advantage"], row["diversity"], row["advantage"]) for row in rows] == [
        (-1, 1, -1),
        (1, 0.25, 0.25),
    ]
    assert LoggedRollouts(tmp_path).prompts() == {"count/2": "Count to \ufffd."}


def test_learnability_is_what_the_curriculum_measures_and_its_buffer_is_written(tmp_path: Path):
    config = STRATEGIES["exit"].replace(learnability="maximum", min_buffer_size=1)
    curriculum = ExIt(config, ["t"], np.random.default_rng(0))
    groups = [make_group("g", TaskInstance("t"), ("a", "b"), ("c", "d"))]
    curriculum.update(groups)
    RolloutLog(tmp_path).write(1, [ScoredGroup(group, np.zeros(2)) for group in groups], curriculum)
    assert [row["learnability"] for row in LoggedRollouts(tmp_path).read()] == [1 / 8] * 2
    buffer = pq.read_table(tmp_path / "buffer-000001.parquet").to_pylist()
    assert [row["instance_id"] for row in buffer] == [instance.digest for instance in curriculum.buffer.instances]
    assert [(row["starting_turn"], row["score"], row["measured"]) for row in buffer] == [
        (0, 1 / 8, False),
        (1, 1 / 8, False),
    ]


def test_tokens_are_written_by_segment_with_the_log_probabilities_of_engine_and_learner(tmp_path: Path):
    group = make_group("g", TaskInstance("t"), ("a",), ("b",))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    learner = {("g", 1, 0): np.array([np.nan, np.nan, -1, -2, np.nan], np.float32)}
    log = RolloutLog(tmp_path / "log", tokenizer=tmp_path / "model")
    log.write(1, [ScoredGroup(group, np.zeros(2))], logprobs=learner)
    log.write(2, [])
    assert (tmp_path / "log" / "tokenizer.json").read_text() == "{}"
    first, second = pq.read_table(tmp_path / "log" / "tokens-000001.parquet").to_pylist()
    assert (second["group_id"], second["g"], second["segment"]) == ("g", 1, 0)
    assert second["token_ids"] == [0, 1, 2, 3, 4] and second["loss_mask"] == [False, False, True, True, True]
    assert second["logprobs"] == [None, None, 0, 0, 0] and second["learner_logprobs"] == [None, None, -1, -2, None]
    assert first["learner_logprobs"] == [None] * 5
    assert pq.read_table(tmp_path / "log" / "tokens-000002.parquet").num_rows == 0
    assert list(LoggedRollouts(tmp_path).files) == [1, 2]  # the other files are not taken for iterations


def test_the_files_have_one_schema_and_are_compressed(tmp_path: Path):
    write(tmp_path, 1, make_group("g0", TaskInstance("t"), ("a",)))
    write(tmp_path, 2)  # every prompt was skipped
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["iteration-000001.parquet", "iteration-000002.parquet"]
    assert all(pq.read_schema(file).equals(SCHEMA) for file in files)
    assert pq.ParquetFile(files[0]).metadata.row_group(0).column(0).compression == "ZSTD"
    assert len(LoggedRollouts(tmp_path).read()) == 1


def test_lone_surrogates_are_replaced_but_not_in_the_ids(tmp_path: Path):
    write(tmp_path, 1, make_group("g", TaskInstance("t\ud800"), ("a\udfff",), metrics={"\ud800": 1.0}))
    [row] = LoggedRollouts(tmp_path).read()
    assert (row["task_id"], row["turns"][0]["response"], row["metrics"]) == ("t\ufffd", "a\ufffd", [("\ufffd", 1.0)])
    assert row["turn_ids"] == prefix_digests("t\ud800", [Turn("a\udfff")])[1:]


def test_an_error_leaves_the_file_that_was_there(tmp_path: Path):
    write(tmp_path, 1, make_group("g0", TaskInstance("t"), ("a",)))
    with pytest.raises(ValueError, match="shorter"):
        RolloutLog(tmp_path).write(1, [ScoredGroup(make_group("g1", TaskInstance("t"), ("b",), ("c",)), np.zeros(1))])
    assert [row["group_id"] for row in LoggedRollouts(tmp_path).read()] == ["g0"]


def test_a_repeated_iteration_is_replaced(tmp_path: Path):
    write(tmp_path, 1, make_group("g0", TaskInstance("t"), ("a",)))
    write(tmp_path, 1, make_group("g1", TaskInstance("t"), ("b",)))
    assert [row["group_id"] for row in LoggedRollouts(tmp_path).read()] == ["g1"]


def test_a_log_can_lie_in_another_file_system(tmp_path: Path):
    log = RolloutLog("bucket/rollouts", SubTreeFileSystem(str(tmp_path), LocalFileSystem()))
    log.write(1, [ScoredGroup(make_group("g0", TaskInstance("t"), ("a",)), np.zeros(1))])
    assert list(LoggedRollouts(tmp_path / "bucket").files) == [1]


def test_a_resumed_runs_log_goes_on_from_the_one_before(tmp_path: Path):
    for time, (trial, iterations) in enumerate({"b_first": (1, 2, 3), "a_resumed": (3, 4)}.items()):
        for i in iterations:
            write(tmp_path / trial / "rollouts", i, make_group(f"{trial}-{i}", TaskInstance("t"), ("a",)))
            os.utime(tmp_path / trial / "rollouts" / f"iteration-{i:06d}.parquet", (time, time))
    log = LoggedRollouts(tmp_path)
    assert [row["group_id"] for row in log.read()] == ["b_first-1", "b_first-2", "a_resumed-3", "a_resumed-4"]
    assert list(log.files) == [1, 2, 3, 4]
    assert [row["group_id"] for row in log.read(iteration=2)] == ["b_first-2"]
    with pytest.raises(ValueError, match="no iteration 9: it has 1 to 4"):
        log.read(iteration=9)


def test_a_directory_without_a_log_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="--log-rollouts"):
        LoggedRollouts(tmp_path)


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [f"{row['group_id']}/{row['g']}" for row in rows]


def test_lineage_runs_from_the_base_rollout_to_the_children(tmp_path: Path):
    a0, b0 = Turn("a", depth=0), Turn("b", depth=1)
    write(
        tmp_path,
        1,
        make_group("g1", TaskInstance("t"), ("x",), ("a",), ("a",)),
        make_group("g2", TaskInstance("u"), ("a",)),
    )
    write(tmp_path, 2, make_group("g3", TaskInstance("t", (), a0, "improve"), ("b",), ("a",)))
    write(tmp_path, 3, make_group("g4", TaskInstance("t", (), b0, "diverge"), ("c",), ("d",)))
    write(tmp_path, 4, make_group("g5", TaskInstance("t", (), Turn("a", depth=1), "improve"), ("e",)))
    log = LoggedRollouts(tmp_path)
    ancestors, children = log.lineage(log.rollout("g4", 1))
    assert names(ancestors) == ["g3/0", "g1/1"] and not children  # of equal ones the first, of its own task
    assert names(log.lineage(log.rollout("g1", 1))[1]) == ["g3/0", "g3/1"]
    assert log.lineage(log.rollout("g1", 2)) == ([], [])
    # The same text, but written by a step of self-improvement.
    assert names(log.lineage(log.rollout("g5", 0))[0]) == ["g3/1", "g1/1"]
    with pytest.raises(ValueError, match="no rollout g9/0"):
        log.rollout("g9", 0)


def test_a_rollout_that_cannot_enter_the_task_buffer_has_no_children(tmp_path: Path):
    write(tmp_path, 1, make_group("g0", TaskInstance("t"), ("a",), truncated=True))
    write(tmp_path, 2, make_group("g1", TaskInstance("t"), ("a",)))
    write(tmp_path, 3, make_group("g2", TaskInstance("t", (), Turn("a"), "improve"), ("b",)))
    log = LoggedRollouts(tmp_path)
    assert names(log.lineage(log.rollout("g2", 0))[0]) == ["g1/0"]


@pytest.mark.parametrize("strategy", ["curriculum", "improve", "exit"])
def test_every_selected_instance_of_a_run_has_a_parent_that_wrote_what_it_starts_from(tmp_path: Path, strategy: str):
    rng = np.random.default_rng(0)
    config = STRATEGIES[strategy].replace(min_buffer_size=2, buffer_size=16)
    curriculum = ExIt(config, ["t0", "t1"], rng)

    def episode(instance: TaskInstance) -> Rollout:
        texts = [str(rng.integers(12)) for _ in range(3 - instance.starting_turn)]
        depths = [instance.depth + 1 if instance.iterate else 0, 0, 0]
        turns = (*instance.history, *(Turn(text, depth=depth) for text, depth in zip(texts, depths, strict=False)))
        quality = float(rng.integers(5)) / 4
        return Rollout((SEGMENT,), turns, quality, quality, valid=bool(rng.random() < 0.9))

    for iteration in range(1, 13):
        requests = curriculum.select(4)
        groups = [RolloutGroup(r, tuple(episode(r.instance) for _ in range(4))) for r in requests]
        curriculum.update(groups)
        write(tmp_path, iteration, *groups)

    log = LoggedRollouts(tmp_path)
    rows = log.read()
    full = dict(zip(names(rows), rows, strict=True))
    descended = [row for row in rows if row["g"] == 0 and (row["kind"] != "base" or row["starting_turn"])]
    assert len(descended) > 10
    for row in descended[:: len(descended) // 8]:
        line = [full[name] for name in names([row, *log.lineage(row)[0]])]
        for child, parent in pairwise(line):
            start = [turn["response"] for turn in child["turns"][: child["starting_turn"]]]
            start += [child["iterate"]["response"]] if child["iterate"] else []
            assert [turn["response"] for turn in parent["turns"]][: len(start)] == start
            assert parent["starting_turn"] < len(start) and parent["iteration"] < child["iteration"]
            if child["iterate"]:
                assert parent["turns"][len(start) - 1]["depth"] == child["depth"]
        assert line[-1]["kind"] == "base" and line[-1]["starting_turn"] == 0 and len(line) > 1


def test_a_task_is_read_without_the_others(tmp_path: Path):
    groups = [make_group(f"g{i}", TaskInstance(f"t{i % 2}"), ("a",)) for i in range(4)]
    write(tmp_path, 1, *groups)
    rows = LoggedRollouts(tmp_path).read(ds.field("task_id") == "t1", columns=["group_id"])
    assert rows == [{"group_id": "g1"}, {"group_id": "g3"}]
