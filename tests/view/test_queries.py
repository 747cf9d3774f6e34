from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from rllib_exit.curriculum.exit import ExIt
from rllib_exit.rollout_log import SCHEMA
from rllib_exit.view.queries import Query, RunView
from tests.view.logs import numbered, write_run

TASKS = {"t0": "First prompt", "t1": "Second prompt"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunView, ExIt]:
    directory = tmp_path_factory.mktemp("run")
    curriculum = write_run(directory / "trial" / "rollouts", TASKS, numbered())
    return RunView(directory), curriculum


@pytest.fixture
def view(run: tuple[RunView, ExIt]) -> RunView:
    return run[0]


def rows_of(view: RunView) -> list[dict[str, Any]]:
    return view.log.read()


def names(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(row["group_id"], row["g"]) for row in rows]


def found(view: RunView, **query: Any) -> list[dict[str, Any]]:
    answer = view.rollouts(Query.model_validate({"limit": 500, **query}))
    assert answer["total"] == len(answer["rows"])
    return answer["rows"]


def test_the_summary_says_what_there_is(view: RunView) -> None:
    summary = view.summary()
    assert (summary["first"], summary["last"], summary["rollouts"], summary["tasks"]) == (1, 6, 6 * 4 * 4, 2)
    assert summary["tokens"] and summary["buffer"]


@pytest.mark.parametrize(
    ("query", "condition"),
    [
        ({}, lambda row: True),
        ({"first": 3, "last": 4}, lambda row: 3 <= row["iteration"] <= 4),
        ({"task": "1"}, lambda row: row["task_id"] == "t1"),
        ({"kind": "improve"}, lambda row: row["kind"] == "improve"),
        ({"ending": "valid"}, lambda row: row["valid"] and not row["truncated"]),
        ({"ending": "invalid"}, lambda row: not row["valid"]),
        ({"ending": "truncated"}, lambda row: row["truncated"]),
        ({"min_return": 0.5, "max_return": 0.75}, lambda row: 0.5 <= row["return"] <= 0.75),
        ({"min_quality": 1}, lambda row: row["quality"] >= 1),
        ({"text": "ANSWER 7 OF"}, lambda row: "answer 7 of" in str([row["iterate"], row["turns"]])),
        ({"text": "Second"}, lambda row: row["task_id"] == "t1"),
        (
            {"text": "feedback to answer 1", "kind": "base"},
            lambda row: "to answer 1" in str(row["turns"]) and row["kind"] == "base",
        ),
        ({"text": "answer", "task": "nothing"}, lambda row: False),
        ({"text": "(?i).*["}, lambda row: False),
    ],
)  # fmt: skip
def test_rollouts_are_filtered(view: RunView, query: dict[str, Any], condition: Any) -> None:
    expected = [row for row in rows_of(view) if condition(row)]
    assert sorted(names(found(view, **query))) == sorted(names(expected))


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("sort", ["quality", "advantage", "iteration", "task_id", "valid"])
def test_rollouts_are_sorted_and_come_by_the_page(view: RunView, sort: str, descending: bool) -> None:
    every = found(view, sort=sort, descending=descending)
    assert [row[sort] for row in every] == sorted((row[sort] for row in every), reverse=descending)
    page = view.rollouts(Query(sort=sort, descending=descending, offset=10, limit=7))
    assert page["total"] == 96 and names(page["rows"]) == names(every[10:17])


def test_a_row_of_the_list_has_the_beginning_of_what_was_written(view: RunView) -> None:
    by_name = {(row["group_id"], row["g"]): row for row in rows_of(view)}
    for row in found(view):
        whole = by_name[row["group_id"], row["g"]]
        assert row["snippet"] == whole["turns"][whole["starting_turn"]]["response"] and "turns" not in row


@pytest.mark.parametrize("query", [{"sort": "turns"}, {"sort": "nothing"}])
def test_a_column_that_cannot_be_sorted_by_is_named(view: RunView, query: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"sort is '{query['sort']}'"):
        view.rollouts(Query(**query))


@pytest.mark.parametrize(
    "query", [{"kind": "odd"}, {"limit": 501}, {"offset": -1}, {"first": "x"}, {"min_return": "1;"}, {"odd": "1"}]
)
def test_a_query_that_makes_no_sense_is_refused(query: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(query))):
        Query.model_validate(query)


def test_a_group_has_all_of_its_rollouts(view: RunView) -> None:
    row = rows_of(view)[-1]
    rollouts = view.group(row["iteration"], row["group_id"])["rollouts"]
    assert [of["g"] for of in rollouts] == [0, 1, 2, 3] and rollouts[3]["turns"] == row["turns"]
    assert rollouts[0]["gold"] == f"gold of {rollouts[0]['prompt']}"
    assert rollouts[0]["metrics"] == {rollouts[0]["turns"][-1]["response"]: 1.0}
    with pytest.raises(ValueError, match="no group nothing"):
        view.group(1, "nothing")
    with pytest.raises(ValueError, match="no iteration 9"):
        view.group(9, row["group_id"])


def test_tokens_make_up_the_text_and_have_both_log_probabilities(view: RunView) -> None:
    row = rows_of(view)[0]
    segments = view.tokens(row["iteration"], row["group_id"])["segments"]
    assert [of["g"] for of in segments] == [0, 1, 2, 3]
    for g, of in enumerate(segments):
        context, *trained = of["pieces"]
        assert context == [TASKS[row["task_id"]]]
        response = view.group(row["iteration"], row["group_id"])["rollouts"][g]["turns"][0]["response"]
        assert "".join(piece[0] for piece in trained) == response
        for _, _, engine, learner in trained:
            assert (learner is None) if g == 3 else learner - engine == pytest.approx(0.01 * (g - 1), abs=1e-6)


def test_a_character_of_several_tokens_is_whole(tmp_path: Path) -> None:
    write_run(tmp_path / "rollouts", {"t": "p"}, lambda request, g: "né €", iterations=1)
    view = RunView(tmp_path)
    [first, *_] = view.tokens(1, "00000000")["segments"]
    assert [piece[0] for piece in first["pieces"][1:]] == ["n", "", "é", " ", "", "", "€"]


def test_the_lineage_of_a_task_is_a_tree_of_its_groups(view: RunView) -> None:
    answer = view.lineage("t0")
    assert (answer["prompt"], answer["gold"], answer["left_out"]) == ("First prompt", "gold of First prompt", 0)
    groups = {group["group_id"]: group for group in answer["groups"]}
    expected = {row["group_id"]: row for row in rows_of(view) if row["task_id"] == "t0"}
    assert groups.keys() == expected.keys()
    descended = [group for group in groups.values() if group["parent"]]
    assert descended and all(group["kind"] != "base" for group in descended)
    for group in descended:
        parent = view.log.rollout(group["parent"]["group_id"], group["parent"]["g"])
        assert parent["turns"][-1]["response"] == group["iterate"] and parent["iteration"] < group["iteration"]
    assert all(
        group["parent"] is None and group["iterate"] is None for group in groups.values() if group["kind"] == "base"
    )
    with pytest.raises(ValueError, match="no task nothing"):
        view.lineage("nothing")


def test_the_buffer_is_there_after_every_iteration(run: tuple[RunView, ExIt]) -> None:
    view, curriculum = run
    answer = view.buffer()
    assert [row["iteration"] for row in answer["iterations"]] == [1, 2, 3, 4, 5, 6] and answer["iteration"] == 6
    last = answer["iterations"][-1]
    assert last["size"] == sum(last["depths"]) == len(curriculum.buffer)
    np.testing.assert_allclose(
        [last["score_min"], last["score_mean"], last["score_max"]],
        [getattr(curriculum.buffer.scores, name)() for name in ("min", "mean", "max")],
    )
    scores = [row["score"] for row in answer["instances"]]
    assert scores == sorted(curriculum.buffer.scores, reverse=True)
    assert {row["instance_id"] for row in answer["instances"]} == {of.digest for of in curriculum.buffer.instances}
    assert (
        view.buffer(1)["iteration"] == 1 and len(view.buffer(1)["instances"]) == view.buffer()["iterations"][0]["size"]
    )
    with pytest.raises(ValueError, match="no task buffer: the log has 1 to 6"):
        view.buffer(7)


def test_what_training_writes_later_is_seen(tmp_path: Path) -> None:
    write_run(tmp_path / "rollouts", TASKS, numbered(), iterations=2)
    view = RunView(tmp_path)
    stamp = view.summary()["stamp"]
    assert view.refresh().summary()["stamp"] == stamp and len(found(view)) == 32
    write_run(tmp_path / "rollouts", TASKS, numbered(), iterations=1, first=3)
    assert view.refresh().summary()["stamp"] != stamp and len(found(view)) == 48
    assert len(found(view, text="answer 15 of")) == 2  # of the first, and of the new file
    (tmp_path / "rollouts" / "iteration-000002.parquet").unlink()
    assert {row["iteration"] for row in found(view.refresh())} == {1, 3}


def test_a_log_of_an_earlier_version_is_shown_without_what_it_lacks(tmp_path: Path) -> None:
    write_run(tmp_path / "rollouts", TASKS, numbered(), iterations=1)
    for file in (tmp_path / "rollouts").glob("[tb]*"):
        file.unlink()
    file = tmp_path / "rollouts" / "iteration-000001.parquet"
    new = [
        "prompt",
        "gold",
        "plain_advantage",
        "diversity",
        "learnability",
        *(n for n in SCHEMA.names if "group_" in n[:6]),
    ]
    pq.write_table(pq.read_table(file).drop_columns([name for name in new if name != "group_id"]), file)
    view = RunView(tmp_path)
    assert len(found(view, text="answer")) == 16 and found(view)[0]["learnability"] is None
    assert view.tokens(1, "00000000") == {"segments": None}
    assert view.buffer() == {"iterations": [], "instances": []}
    assert view.lineage(found(view)[0]["task_id"])["prompt"] is None
    assert not view.summary()["tokens"] and not view.summary()["buffer"]


def write_large(directory: Path, *, iterations: int, rows: int) -> None:
    """A log of many rollouts with responses of 1,500 characters."""
    rng = np.random.default_rng(0)
    words = np.array(["seven", "add", "carry", "minus", "check", "so", "again", "because", "therefore"])
    for iteration in range(1, iterations + 1):
        table = []
        for row in range(rows):
            response = " ".join(rng.choice(words, 250))
            turn = {"response": response, "feedback": "seen", "quality": 0.5, "depth": 0}
            table.append(
                {"iteration": iteration, "policy_version": 0, "group_id": f"{(iteration * rows + row) // 8:08d}",
                 "g": row % 8, "task_id": f"task {row // 8}", "prompt": f"What is {row // 8}?", "gold": "7",
                 "kind": "base", "starting_turn": 0, "depth": 0, "instance_id": "x", "turns": [turn], "turn_ids": ["y"],
                 "return": rng.random(), "quality": rng.random(), "advantage": rng.normal(), "valid": True,
                 "truncated": False, "response_tokens": 375, "metrics": []}
            )  # fmt: skip
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / f"iteration-{iteration:06d}.parquet"
        pq.write_table(pa.Table.from_pylist(table, SCHEMA), file, compression="zstd", row_group_size=64)


def test_a_log_of_many_files_is_read_whole(tmp_path: Path) -> None:
    """How long 100,000 rollouts take is what ``benchmarks/view.py`` measures."""
    write_large(tmp_path, iterations=10, rows=64)
    view = RunView(tmp_path)
    assert view.refresh().summary()["rollouts"] == 640
    best = view.rollouts(Query(sort="return"))
    returns = [row["return"] for row in rows_of(view)]
    assert best["total"] == 640 and best["rows"][0]["return"] == max(returns)
    of_task = view.rollouts(Query(task="task 7", min_quality=0.5, sort="return"))
    assert 0 < of_task["total"] < 80 and {row["task_id"] for row in of_task["rows"]} == {"task 7"}
    hits = view.rollouts(Query(text="therefore therefore therefore"))
    written = [row for row in rows_of(view) if "therefore therefore therefore" in row["turns"][0]["response"]]
    assert hits["total"] == len(written) and 0 < len(written) < 640
