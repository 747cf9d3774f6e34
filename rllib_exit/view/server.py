"""Serves the viewer's page and its answers on this machine alone."""

from __future__ import annotations

import hmac
import json
import math
import secrets
import sys
from collections.abc import Callable, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl

from pydantic import ValidationError

from rllib_exit.view.queries import Query, RunView

_HOST = "127.0.0.1"
_PAGE = {
    "/": ("view.html", "text/html; charset=utf-8"),
    "/view.css": ("view.css", "text/css; charset=utf-8"),
    "/view.js": ("view.js", "text/javascript; charset=utf-8"),
}
# Nothing is loaded but the three files above, and nothing that they show can load or run anything.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
TOKEN_HEADER = "X-View-Token"


def make_server(view: RunView, port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """A server of a run's log, to be started with ``serve_forever``.

    Other sites that the browser shows cannot read it: an answer needs a token, in a header that a page of another
    origin may not send, and a host name that cannot be made to point here. Nor can other users of the machine: the
    token is new with every server, and stands only in the address, behind ``#``, which no browser sends.

    Args:
        view: The log.
        port: 0 takes a free one.

    Returns:
        The server, and the address to open.

    Raises:
        OSError: If the port is taken.
    """
    token = secrets.token_urlsafe(16)
    server = _Server((_HOST, port), partial(_Handler, _endpoints(view), token))
    return server, f"http://{_HOST}:{server.server_address[1]}/#{token}"


Endpoint = Callable[[Mapping[str, str]], Any]


def _endpoints(view: RunView) -> dict[str, Endpoint]:
    def of_group(answer: Callable[[int, str], Any]) -> Endpoint:
        return lambda query: answer(int(_needed(query, "iteration")), _needed(query, "group"))

    return {
        "/api/summary": lambda query: view.refresh().summary(),
        "/api/rollouts": lambda query: view.rollouts(Query.model_validate(query)),
        "/api/group": of_group(view.group),
        "/api/tokens": of_group(view.tokens),
        "/api/lineage": lambda query: view.lineage(_needed(query, "task")),
        "/api/buffer": lambda query: view.buffer(int(query["iteration"]) if "iteration" in query else None),
    }


def _needed(query: Mapping[str, str], name: str) -> str:
    if name not in query:
        raise ValueError(f"{name} is missing")
    return query[name]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the browser no longer waits for the answer
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "rllib-view", ""

    def __init__(self, endpoints: Mapping[str, Endpoint], token: str, *args: Any) -> None:
        self._endpoints, self._token = endpoints, token
        super().__init__(*args)

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        # A name of another site that resolves to this machine would make its pages those of our origin.
        if self.headers.get("Host", "").partition(":")[0] not in (_HOST, "localhost"):
            return self._answer(403, {"error": "use the address that rllib view printed"})
        if path in _PAGE:
            name, kind = _PAGE[path]
            return self._send(200, kind, files("rllib_exit.view").joinpath(name).read_bytes())
        if not hmac.compare_digest(self.headers.get(TOKEN_HEADER, "").encode(), self._token.encode()):
            return self._answer(403, {"error": "the token is missing or old: open the address that rllib view printed"})
        if path not in self._endpoints:
            return self._answer(404, {"error": "there is no such address"})
        try:
            status, answer = 200, self._endpoints[path](dict(parse_qsl(query, max_num_fields=32)))
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, of['loc']))}: {of['msg']}" for of in error.errors(include_url=False)]
            status, answer = 400, {"error": "; ".join(wrong)}
        except (ValueError, OSError) as error:
            status, answer = 400, {"error": str(error)}
        return self._answer(status, answer)

    def _answer(self, status: int, value: Any) -> None:
        self._send(status, "application/json", json.dumps(_finite(value)).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _finite(value: Any) -> Any:
    """The value with numbers as text where JSON has none for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
