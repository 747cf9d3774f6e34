from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

from envs.base import Turn
from rllib_exit.rollouts import RolloutRequest
from rllib_exit.view.queries import RunView
from rllib_exit.view.server import TOKEN_HEADER, make_server
from tests.view.logs import numbered, write_run

HOSTILE = {
    "markup": "</pre><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "rich": "[red]not red[/red] [link=http://example.com]x[/link]",
    "ansi": "\x1b]0;owned\x07\x1b[2J\x9b31m\r",
    "surrogate": "\ud800 and \udfff",
    "bidi": "\u202eabc\u2066\u200b\ufeff",
    "json": '"},{"__proto__":{"owned":1}}\\\u2028',
    "template": "${document.title='owned'} {{7*7}}",
}


def hostile(request: RolloutRequest, g: int) -> str:
    return " ".join(HOSTILE.values()) + f" {request.group_id} {g}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ThreadingHTTPServer, str]]:
    directory = tmp_path_factory.mktemp("run")
    write_run(directory / "rollouts", {text: text for text in HOSTILE.values()}, hostile)
    server, address = make_server(RunView(directory))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server, address.partition("#")[2]
    server.shutdown()
    server.server_close()


def get(served: tuple[ThreadingHTTPServer, str], path: str, headers: dict[str, str] | None = None) -> Any:
    """Status, headers and body."""
    server, token = served
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request("GET", path, headers={TOKEN_HEADER: token, **(headers or {})})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), body


def answer(served: tuple[ThreadingHTTPServer, str], name: str, **query: Any) -> Any:
    status, headers, body = get(served, f"/api/{name}?{urlencode(query)}")
    assert status == 200 and headers["Content-Type"] == "application/json", body

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(body, parse_constant=refuse)


def test_every_endpoint_answers_whatever_the_log_holds(served: tuple[ThreadingHTTPServer, str]) -> None:
    assert answer(served, "summary")["rollouts"] == 96
    listed = answer(served, "rollouts", limit=500)["rows"]
    assert len(listed) == 96
    task_ids = {row["task_id"] for row in listed}
    assert HOSTILE["markup"] in task_ids and not any("\ud800" <= c <= "\udfff" for text in task_ids for c in text)
    for row in {row["group_id"]: row for row in listed}.values():
        group = answer(served, "group", iteration=row["iteration"], group=row["group_id"])["rollouts"]
        text = group[0]["turns"][-1]["response"]
        segments = answer(served, "tokens", iteration=row["iteration"], group=row["group_id"])["segments"]
        assert "".join(piece[0] for piece in segments[0]["pieces"][1:]) == text.replace("\ufffd", "?")
        assert HOSTILE["markup"] in text and HOSTILE["ansi"] in text and "\ufffd and \ufffd" in text
        assert [*group[0]["metrics"]] == [text]
    for task_id in task_ids:
        assert answer(served, "lineage", task=task_id)["gold"].startswith("gold of")
        assert answer(served, "rollouts", task=task_id)["total"] > 0
    for text in HOSTILE.values():
        if text != HOSTILE["surrogate"]:  # which no address can hold
            assert answer(served, "rollouts", text=text)["total"] == 96
    assert {row["task_id"] for row in answer(served, "buffer")["instances"]} <= task_ids


def test_the_page_is_ours_alone_and_its_policy_lets_nothing_else_run(served: tuple[ThreadingHTTPServer, str]) -> None:
    for path, kind in {"/": "text/html", "/view.css": "text/css", "/view.js": "text/javascript"}.items():
        status, headers, body = get(served, path, {TOKEN_HEADER: ""})
        assert status == 200 and headers["Content-Type"].startswith(kind)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers
        # Nothing from elsewhere; and text only ever becomes text.
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(", text)
        assert not re.search(r"<script>|<style|\son\w+=|\sstyle=", text)


@pytest.mark.parametrize("token", ["", "wrong", "é"])
def test_without_the_token_there_is_no_answer(served: tuple[ThreadingHTTPServer, str], token: str) -> None:
    status, headers, body = get(served, "/api/summary", {TOKEN_HEADER: token.encode().decode("latin-1")})
    assert status == 403 and "token" in json.loads(body)["error"] and headers["Content-Security-Policy"]


@pytest.mark.parametrize("host", ["example.com", "example.com:80", "127.0.0.1.example.com", "", "[::1]:1", "a]b["])
def test_a_name_of_another_site_that_leads_here_is_refused(served: tuple[ThreadingHTTPServer, str], host: str) -> None:
    for path in ("/", "/api/summary"):
        assert get(served, path, {"Host": host})[0] == 403


def test_the_host_may_be_called_localhost_with_a_forwarded_port(served: tuple[ThreadingHTTPServer, str]) -> None:
    assert get(served, "/api/summary", {"Host": "localhost:1234"})[0] == 200


def test_the_server_listens_on_this_machine_alone(served: tuple[ThreadingHTTPServer, str]) -> None:
    assert served[0].server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("rollouts?sort=turns", 400, "sort is 'turns'"),
        ("rollouts?kind=odd&limit=x", 400, "kind: Input should be"),
        ("rollouts?" + "&".join(f"a{i}=1" for i in range(40)), 400, "fields"),
        ("group?iteration=1", 400, "group is missing"),
        ("group?iteration=x&group=1", 400, "invalid literal"),
        ("group?iteration=1&group=odd", 400, "no group odd"),
        ("tokens?iteration=99&group=odd", 400, "no iteration 99"),
        ("lineage?task=odd", 400, "no task odd"),
        ("buffer?iteration=99", 400, "no task buffer"),
        ("../../etc/passwd", 404, "no such address"),
        ("", 404, "no such address"),
    ],
)
def test_what_cannot_be_answered_is_a_message(
    served: tuple[ThreadingHTTPServer, str], path: str, status: int, said: str
) -> None:
    found, _, body = get(served, f"/api/{path}")
    assert (found, said in json.loads(body)["error"]) == (status, True), body


def test_numbers_that_json_has_not_are_text(tmp_path: Path) -> None:
    from rllib_exit.view.server import _finite

    values = {"a": [np.inf, -np.inf, np.nan, 1.5], "b": (True, None, "x"), 3: Turn("x").depth}
    expected = {"a": ["inf", "-inf", "nan", 1.5], "b": [True, None, "x"], "3": 0}
    assert _finite(values) == expected


def test_other_methods_are_not_served(served: tuple[ThreadingHTTPServer, str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served[0].server_address[1], timeout=30)
    connection.request("POST", "/api/summary", body="x", headers={TOKEN_HEADER: served[1]})
    assert connection.getresponse().status == 501
    connection.close()


def test_two_runs_have_two_tokens(tmp_path: Path) -> None:
    write_run(tmp_path / "rollouts", {"t": "p"}, numbered(), iterations=1)
    servers = [make_server(RunView(tmp_path)) for _ in range(2)]
    tokens = {address.partition("#")[2] for _, address in servers}
    assert len(tokens) == 2 and min(map(len, tokens)) >= 20
    for server, _ in servers:
        server.server_close()
