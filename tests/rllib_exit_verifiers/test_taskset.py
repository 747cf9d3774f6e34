"""Needs the package verifiers, which `make bridges` installs in an environment of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

vf = pytest.importorskip("verifiers.v1", reason="make bridges runs it")

COUNTDOWN = {"env": "envs.countdown.env:CountdownEnv", "env_config": {"limit": 4}}
COUNTER = {"env": "tests.fakes:CounterEnv", "env_config": {"turns": 2, "tasks": 3}}


class Model:
    """A server with OpenAI's chat completions, whose model is a function of the chat."""

    def __init__(self, answer: Callable[[list[dict[str, str]]], str]) -> None:
        chats: list[list[dict[str, str]]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                chat = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
                chats.append(chat)
                message = {"role": "assistant", "content": answer(chat)}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
                kind = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
                body = json.dumps({**kind, "choices": [choice], "usage": usage}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...

        self.chats = chats
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def model() -> Iterator[Callable[..., Model]]:
    made: list[Model] = []

    def make(answer: Callable[[list[dict[str, str]]], str]) -> Model:
        made.append(Model(answer))
        return made[-1]

    yield make
    for each in made:
        each.server.shutdown()
        each.server.server_close()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_KEY", "none")


def environment(taskset: dict[str, Any], **config: Any) -> Any:
    config = {"taskset": {"id": "rllib-exit-verifiers", **taskset}, **config}
    return vf.load_environment(vf.resolve_env_config(config))


def episodes(env: Any, model: Model, count: int = 1, afterwards: Callable[[], None] = lambda: None) -> list[Any]:
    """One episode of each of the first tasks."""

    async def run() -> list[Any]:
        client = vf.EvalClientConfig(base_url=model.url, api_key_var="OWN_KEY")
        context = vf.ModelContext(model="m", client=client)
        async with env.serving():
            played = [await env.run_slot(env.slots(task)[0], context) for task in env.taskset.take(count)]
        afterwards()
        return played

    return asyncio.run(run())


def solution(chat: list[dict[str, str]]) -> str:
    from envs.countdown.env import CountdownEnv

    env = CountdownEnv(COUNTDOWN["env_config"])
    return next(env.gold(task) for task in env.tasks.values() if env.prompt(task)[0]["content"] == chat[0]["content"])


def test_right_answers_have_the_reward_1_and_wrong_ones_0(model: Callable[..., Model]) -> None:
    for answer, quality in ((solution, 1.0), (lambda chat: "1", 0.0)):
        for episode in episodes(environment(COUNTDOWN), model(answer), count=2):
            assert episode.ok, episode.errors
            (trace,) = episode.traces
            assert trace.reward == quality and trace.metrics["right"] == quality
            assert trace.num_turns == 1


def test_the_environment_answers_until_the_episode_ends(model: Callable[..., Model]) -> None:
    counting = model(lambda chat: " 2" if len(chat) == 2 else "1")
    (*_, episode) = episodes(environment(COUNTER), counting, count=3)  # count to 3
    (trace,) = episode.traces
    assert trace.reward == 1.0 and trace.metrics["count"] == 3.0
    assert [(message["role"], message["content"]) for message in counting.chats[-1]] == [
        ("system", "You count."),
        ("user", "Count to 3."),
        ("assistant", " 2"),
        ("user", "The counter is at 2."),
    ]
    assert trace.num_turns == 2


def test_tasks_have_the_ids_of_the_environment() -> None:
    assert [task.key for task in environment(COUNTER).taskset] == ["count/1", "count/2", "count/3"]


def test_an_environment_that_hangs_ends_the_episode_with_an_error(
    model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.fakes import CounterEnv

    release = threading.Event()
    monkeypatch.setattr(CounterEnv, "respond", lambda *_: release.wait())
    env = environment(COUNTER, respond_timeout_s=0.3)
    (episode,) = episodes(env, model(lambda chat: "1"), afterwards=release.set)
    assert not episode.ok and "TimeoutError" in str(episode.errors)


@pytest.mark.parametrize(
    ("env", "message"), [("", "give it as module:class"), ("math:sin", "must be a class derived from")]
)
def test_what_is_no_environment_is_named(env: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(environment({"env": env}).taskset)


def test_the_command_of_verifiers_evaluates_it(model: Callable[..., Model], tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).parent / "vf-eval"),
        "rllib-exit-verifiers",
        "-m",
        "m",
        "-r",
        "1",
        "--push",
        "False",
    ]
    command += ["--client.base-url", model(solution).url, "--client.api-key-var", "OWN_KEY"]
    command += [
        "--select.limit",
        "2",
        "--env.taskset.env",
        COUNTDOWN["env"],
        "--env.taskset.env-config",
        json.dumps(COUNTDOWN["env_config"]),
    ]
    # The environment of `make bridges` lies beside the one that the packages are installed in.
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, env=environ)
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = tmp_path.rglob("*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["traces"][0]["rewards"]["quality"]["score"] for row in rows] == [1.0, 1.0]
