"""The tools of an MCP server as an environment."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from pydantic import Field, PositiveFloat

from envs.base import InfrastructureError, Task
from envs.extras import extra
from envs.tool_use.calls import Call
from envs.tool_use.own import RowToolEnv, RowToolOptions
from envs.tool_use.toolkit import Toolkit
from envs.tool_use.worker import MAX_RESULT_CHARS, Result, as_json, as_made, results

START_TIMEOUT_S = 60.0


class MCPOptions(RowToolOptions):
    """The options of :class:`MCPEnv`."""

    server: tuple[str, ...] = Field(min_length=1, description="The command that starts the server, and its arguments.")
    server_env: dict[str, str] = Field(
        {}, description="Environment variables of the server, besides `HOME`, `PATH` and the like."
    )
    reset_tool: str | None = Field(
        None,
        description="A tool that begins an episode; the policy is not offered it. It gets those columns of the row "
        "that its schema names. Without it the server is started again for each episode.",
    )
    state_tool: str | None = Field(
        None,
        description="A tool without arguments whose result is the check's first argument; the policy is not offered "
        "it. Without it that argument is the calls.",
    )
    call_timeout_s: PositiveFloat = Field(
        30.0, description="The seconds that a call may take. After that the server is started again."
    )


class MCPEnv(RowToolEnv):
    """Tools of an MCP server over stdio, see :class:`RowToolEnv`.

    Every environment has a server of its own, with the rights of whoever trains. What it returns is text that nobody
    vouches for: it is cut, and becomes no control token. The tools must give the same results for the same calls: a
    partial history is restored by making its calls again, and so is an episode whose server had to be started again,
    because a call took too long or ended it.

    Args:
        config: The options, see :class:`MCPOptions`; also as RLlib's ``env_config``.

    Raises:
        ModuleNotFoundError: If the package ``mcp`` is not installed.
        ValueError: If an option is unknown or has an impossible value, the server does not start, or the check does
            not work.
        FileNotFoundError: If there is no file with such rows.
    """

    options: MCPOptions

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        options = MCPOptions.parse(config)
        self._server = _Server(options)
        described = {tool.name: tool for tool in self._server.tools}
        for option in ("reset_tool", "state_tool"):
            if (name := getattr(options, option)) is not None and name not in described:
                raise ValueError(f"{option} is {name!r}: the server has {', '.join(described)}")
        columns = described[options.reset_tool].input_schema.get("properties", {}) if options.reset_tool else {}
        self._reset_columns = tuple(columns)
        functions = [
            {"name": name, "description": tool.description or "", "parameters": tool.input_schema}
            for name, tool in described.items()
            if name not in (options.reset_tool, options.state_tool)
        ]
        super().__init__(options, Toolkit(None, options.check), functions)
        # A mistake in the reset or the check shows before any model is loaded.
        task = next(iter(self.tasks.values()))
        self.begin(task)
        self.grade(task, "")

    def begin(self, task: Task) -> None:
        super().begin(task)
        self._restore(task, [])

    def run(self, task: Task, calls: Sequence[Call]) -> list[Result]:
        answers: list[tuple[bool, str]] = []
        for call in calls:
            answer = self._server.call(call.name, call.args)
            if answer is None:
                made = [made.call for made in self._made[0]]
                self._server.start()
                self._restore(task, [*made, *calls[: len(answers)]])
                break
            answers.append(answer)
            if not answer[0]:
                break
        return results(answers, calls, self.options.call_timeout_s)

    def grade(self, task: Task, response: str) -> tuple[float, dict[str, float]]:
        made = [as_made(made.call, made.ok, made.text) for made in self._made[0]]
        subject: Any = made if self.options.state_tool is None else self._own(self.options.state_tool, {})
        timeout_s = self.options.call_timeout_s
        return self._toolkit.check(subject, task.data["row"], made, response, timeout_s), {}

    def _restore(self, task: Task, calls: Sequence[Call]) -> None:
        """Begins the episode on the server, and makes calls again."""
        if self.options.reset_tool is None:
            self._server.make_fresh()
        else:
            row = task.data["row"]
            self._own(self.options.reset_tool, {name: row[name] for name in self._reset_columns if name in row})
        for call in calls:
            if self._server.call(call.name, call.args) is None:
                raise InfrastructureError(f"the MCP server did not make the call {call.name!r} a second time")

    def _own(self, name: str, args: Mapping[str, Any]) -> Any:
        """The result of a tool that the policy is not offered."""
        answer = self._server.call(name, args, whole=True)
        if answer is None or not answer[0]:
            raise InfrastructureError(f"the MCP server's tool {name!r} failed: {answer and answer[1]}")
        return answer[1]


class _Server:
    """An MCP server in a process, with a client in a thread."""

    def __init__(self, options: MCPOptions) -> None:
        with extra("mcp", "the tools of an MCP server need mcp"):
            import mcp
        self._mcp = mcp
        self._options = options
        self._running = ExitStack()
        weakref.finalize(self, self._running.close)
        self.start()
        self.tools = self._all_tools()

    def start(self) -> None:
        """Ends the process, if there is one, and starts another.

        Raises:
            ValueError: If it does not start.
        """
        from anyio.from_thread import start_blocking_portal

        self._running.close()
        command, *args = self._options.server
        parameters = self._mcp.StdioServerParameters(command=command, args=args, env=self._options.server_env)
        client = self._mcp.Client(parameters, read_timeout_seconds=START_TIMEOUT_S)
        try:
            self._portal = self._running.enter_context(start_blocking_portal())
            self._client = self._running.enter_context(self._portal.wrap_async_context_manager(client))
        except Exception as error:  # a group of what its tasks raised
            self._running.close()
            raise ValueError(f"server is {self._options.server}: it does not start: {_innermost(error)}") from error
        self._fresh = True

    def make_fresh(self) -> None:
        """Starts the server again unless nothing was called yet."""
        if not self._fresh:
            self.start()

    def call(self, name: str, args: Mapping[str, Any], whole: bool = False) -> Any:
        """Whether a call succeeded, and its result; None if it took too long or ended the server.

        Args:
            name: The tool.
            args: Its arguments.
            whole: Whether the result comes as the value that it is, not as JSON text that is cut.
        """
        from mcp_types import CONNECTION_CLOSED, REQUEST_TIMEOUT

        self._fresh = False
        timeout_s = self._options.call_timeout_s
        try:
            result = self._portal.call(
                partial(self._client.call_tool, name, dict(args), read_timeout_seconds=timeout_s)
            )
        except self._mcp.MCPError as error:
            if error.code in (CONNECTION_CLOSED, REQUEST_TIMEOUT):
                return None
            return False, as_json({"error": str(error)[:MAX_RESULT_CHARS]})
        except (ValueError, RuntimeError) as error:  # what the server sent is no result
            return False, as_json({"error": f"{type(error).__name__}: {error}"[:MAX_RESULT_CHARS]})
        value = _value(result)
        if result.is_error:
            return False, as_json({"error": f"{value}"[:MAX_RESULT_CHARS]})
        return True, value if whole else as_json(value, MAX_RESULT_CHARS)

    def _all_tools(self) -> list[Any]:
        page = self._portal.call(self._client.list_tools)
        tools = list(page.tools)
        while page.next_cursor:
            page = self._portal.call(partial(self._client.list_tools, cursor=page.next_cursor))
            tools += page.tools
        return tools


def _value(result: Any) -> Any:
    """What a tool returned: a JSON value, or the text of its parts."""
    if result.structured_content is not None:
        value = result.structured_content
        return value["result"] if isinstance(value, dict) and value.keys() == {"result"} else value
    texts = [part.text if part.type == "text" else f"[{part.type}]" for part in result.content]
    return texts[0] if len(texts) == 1 else texts


def _innermost(error: BaseException) -> BaseException:
    return _innermost(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
