from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.base import Task, TaskInstance, Turn
from rllib_exit.cli.console import visible
from rllib_exit.rollout_log import RolloutLog
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, ScoredGroup
from tests.cli.helpers import DigitEnv, message, run

RLLIB = "from rllib_exit.cli.main import main; main()"
ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r[red]not red[/red]\u202e"


def make_group(group_id: str, instance: TaskInstance, *texts: str, **fields: Any) -> RolloutGroup:
    depth = instance.depth + 1 if instance.iterate else 0
    rollouts = [
        Rollout((), (*instance.history, Turn(text, f"feedback {i}", i / 4, depth)), i / 4, i / 4, **fields)
        for i, text in enumerate(texts)
    ]
    return RolloutGroup(RolloutRequest(group_id, instance), tuple(rollouts), policy_version=7)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    writer = RolloutLog(tmp_path / "trial" / "rollouts")

    def write(iteration: int, *groups: RolloutGroup) -> None:
        writer.write(iteration, [ScoredGroup(group, np.zeros(len(group.rollouts))) for group in groups])

    first = Turn("first\nanswer", "feedback 1", 0.25)
    write(
        1, make_group("g0", TaskInstance("t0"), "poor", "first\nanswer"), make_group("g1", TaskInstance("t1"), ESCAPE)
    )
    write(2, make_group("g2", TaskInstance("t0", (), first, "improve"), "second", "third"))
    write(
        3,
        make_group("g3", TaskInstance("t0", (), Turn("third", depth=1), "diverge"), "fourth", truncated=True),
        make_group("g4", TaskInstance("t0", (first,)), "next turn"),
    )
    return tmp_path


def listed(*args: str | Path) -> list[str]:
    result = run("rollouts", *args)
    assert result.exit_code == 0, result.output
    return [line.split()[0] for line in result.output.splitlines() if "/" in line.split()[0]]


def test_the_newest_iteration_is_listed(log: Path):
    assert listed(log) == ["g3/0", "g4/0"]
    output = run("rollouts", log).output
    assert "2 rollouts of task t0, iteration 3, mean return 0.000" in output
    assert "iterations 1 to 3" in output and "truncated fourth" in output


def test_rollouts_are_found_by_iteration_task_kind_and_quality(log: Path):
    assert listed(log, "--iteration", "1") == ["g0/0", "g0/1", "g1/0"]
    assert listed(log, "--iteration", "1", "--best", "--limit", "1") == ["g0/1"]
    assert "and 2 more" in run("rollouts", log, "--iteration", "1", "--limit", "1").output
    assert listed(log, "--task", "t0") == ["g0/0", "g0/1", "g2/0", "g2/1", "g3/0", "g4/0"]
    assert listed(log, "--task", "t0", "--kind", "improve", "--worst") == ["g2/0", "g2/1"]
    assert listed(log, "--task", "t9") == []
    assert run("rollouts", log, "--task", "t9").output == "no rollouts\n"


def test_a_rollout_is_shown_in_full_with_its_lineage(log: Path):
    lines = run("rollouts", log, "--show", "g2/1").output.splitlines()
    text = "\n".join(lines)
    assert "rollout g2/1 of iteration 2, policy version 7" in text
    assert text.index("turn 0, iterate, depth 0, quality 0.25\n    first\n    answer\n  feedback\n    feedback 1") > 0
    assert text.index("turn 0, improve, depth 1, quality 0.25\n    third") > 0
    lineage = lines[lines.index("lineage") + 1 :]
    assert [line.split("g", 1)[1].split("  ")[0] for line in lineage] == ["0/1", "2/1", "3/0-0"]
    assert "first answer" in lineage[0] and "third" in lineage[1] and "diverge turn 0 depth 1" in lineage[2]


def test_prompt_and_gold_answer_are_shown_without_obeying_them(tmp_path: Path):
    env = DigitEnv({})
    env.tasks["t1"] = Task("t1", ESCAPE, {"answer": ESCAPE})
    group = make_group("g0", TaskInstance("t1"), "one")
    RolloutLog(tmp_path, env=env).write(1, [ScoredGroup(group, np.zeros(1))])
    output = run("rollouts", tmp_path, "--show", "g0/0").output
    assert output.count("\\x1b]0;owned") == 2 and output.index("\nprompt\n") < output.index("\ngold\n")
    assert all(c.isprintable() or c == "\n" for c in output)


def test_a_rollout_from_a_history_shows_it_and_who_wrote_it(log: Path):
    output = run("rollouts", log, "--show", "g4/0").output
    assert "turn 0, history, depth 0" in output and "turn 1, response, depth 0" in output
    assert "g0/1  iteration 1  base turn 0" in output


def test_a_parent_from_before_the_log_is_said_to_be(log: Path):
    (log / "trial" / "rollouts" / "iteration-000001.parquet").unlink()
    assert "written before the log begins" in run("rollouts", log, "--show", "g3/0").output


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--kind", "odd"], "--kind is 'odd'"),
        (["--best", "--worst"], "--best and --worst"),
        (["--show", "g1"], "GROUP/G"),
        (["--show", "g1/x"], "GROUP/G"),
        (["--show", "g9/0"], "no rollout g9/0"),
        (["--iteration", "9"], "it has 1 to 3"),
    ],
)
def test_what_cannot_be_shown_is_a_message(log: Path, args: list[str], part: str):
    assert part in message(run("rollouts", log, *args))


def test_a_directory_without_a_log_is_a_message(tmp_path: Path):
    assert "--log-rollouts" in message(run("rollouts", tmp_path))


def test_a_damaged_file_is_a_message(log: Path):
    (log / "trial" / "rollouts" / "iteration-000003.parquet").write_bytes(b"PAR1")
    assert "iteration-000003.parquet" in message(run("rollouts", log))


def test_escape_sequences_and_markup_are_shown_and_not_obeyed(log: Path):
    for args in (["--iteration", "1"], ["--show", "g1/0"]):
        output = run("rollouts", log, *args).output
        assert "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m" in output and "[red]not red[/red]\\u202e" in output
        assert all(c.isprintable() or c == "\n" for c in output)


def test_visible_escapes_what_does_not_print():
    assert visible("a\tä\n漢 🙂") == "a\tä\n漢 🙂"
    assert visible("\x00\x85\u2028\u200b\ud800\U000e0041") == "\\x00\\x85\\u2028\\u200b\\ud800\\U000e0041"


def test_a_terminal_gets_a_pager_with_colours_of_ours_alone(log: Path, tmp_path: Path):
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\necho paged $LESS; cat\n")
    pager.chmod(0o755)
    environment = {**os.environ, "PAGER": str(pager), "TERM": "xterm-256color", "COLUMNS": "200"}
    parent, child = pty.openpty()
    command = [sys.executable, "-c", RLLIB, "rollouts", str(log), "--show", "g1/0"]
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment)
    os.close(child)
    output = b""
    while select.select([parent], [], [], 60)[0]:
        try:
            output += os.read(parent, 1 << 16)
        except OSError:  # the other end was closed
            break
    os.close(parent)
    assert process.wait() == 0
    text = output.decode()
    assert text.startswith("paged -RFX") and "\x1b[1mlineage" in text and "\\x1b]0;owned\\x07" in text
    assert "\x1b]" not in text and "\x1b[2J" not in text and "\x07" not in text
