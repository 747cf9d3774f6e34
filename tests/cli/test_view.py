from __future__ import annotations

import socket
from pathlib import Path

import pytest

from rllib_exit.view import server
from tests.cli.helpers import message, run
from tests.view.logs import numbered, write_run


def test_the_address_is_printed_and_ctrl_c_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server.ThreadingHTTPServer, "serve_forever", interrupted)
    write_run(tmp_path / "rollouts", {"t": "p"}, numbered(), iterations=1)
    result = run("view", tmp_path, "--port", "0")
    assert result.exit_code == 0, result.output
    address, _, ended = result.output.partition("\n")
    assert address.startswith("open http://127.0.0.1:") and len(address.partition("/#")[2]) >= 20
    assert ended == "ended\n"


def test_a_directory_without_a_log_is_a_message(tmp_path: Path) -> None:
    assert "--log-rollouts" in message(run("view", tmp_path))


def test_a_damaged_log_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "iteration-000001.parquet").write_bytes(b"PAR1")
    assert "iteration-000001.parquet" in message(run("view", tmp_path))


def test_a_port_that_is_taken_is_a_message(tmp_path: Path) -> None:
    write_run(tmp_path / "rollouts", {"t": "p"}, numbered(), iterations=1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"port {port} cannot be had" in message(run("view", tmp_path, "--port", str(port)))
