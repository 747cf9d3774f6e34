from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from rllib_exit.scale import SCALE_VARIABLE
from rllib_exit.versions import versions
from tests.cli.helpers import message, run


def test_the_examples_are_listed_with_what_they_are() -> None:
    lines = dict(line.split(maxsplit=1) for line in run("examples").output.splitlines())
    assert lines["own_env"].strip() == "An environment of your own" and "math_exit" in lines
    assert not {"math_common", "exit_loop", "data"} & lines.keys()


def test_a_copy_has_what_the_example_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("examples", "copy", "gsm8k", tmp_path / "new")
    assert {file.name for file in (tmp_path / "new").rglob("*.*")} == {"gsm8k.py", "dataset_common.py", "gsm8k.jsonl"}
    assert f"rllib train file {tmp_path / 'new' / 'gsm8k.py'}" in result.output
    monkeypatch.setenv(SCALE_VARIABLE, "cpu")
    monkeypatch.syspath_prepend(str(tmp_path / "new"))
    monkeypatch.delitem(sys.modules, "dataset_common", raising=False)
    runpy.run_path(str(tmp_path / "new" / "gsm8k.py"))["config"].validate()
    assert "exists: remove it" in message(run("examples", "copy", "gsm8k", tmp_path / "new"))
    assert "no example 'gsm8'" in message(run("examples", "copy", "gsm8"))
    run("examples", "copy", "math_exit_sweep", tmp_path / "sweep")
    names = {file.name for file in (tmp_path / "sweep").iterdir()}
    assert names == {"math_exit_sweep.py", "math_sweep.py", "math_common.py"}


def test_the_version_is_shown() -> None:
    assert run("--version").output.split() == ["rllib-exit", versions()["rllib-exit"]]
