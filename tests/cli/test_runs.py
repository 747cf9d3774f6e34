from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.helpers import message, run, write_files


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_checkpoint_is_needed(command: str, tmp_path: Path, tiny_model: str):
    rest = [tmp_path / "model"] if command == "export" else []
    (tmp_path / "empty").mkdir()
    assert "no whole checkpoint" in message(run(command, tmp_path / "empty", *rest))
    assert "a model alone" in message(run(command, "org/name", *rest))
    assert "a model alone" in message(run(command, tiny_model, *rest))


def test_another_programs_checkpoint_is_refused(tmp_path: Path):
    write_files(tmp_path / "other", {"file": b"x"})
    assert "no checkpoint of a training run" in message(run("evaluate", tmp_path / "other"))
