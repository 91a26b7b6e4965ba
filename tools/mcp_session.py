"""An open session with an MCP server: its tools, calls of them, and its end, after which nothing is left.

In a process of its own: what is below this process when the session ends is ended. Imports the protocol's
SDK, so nothing imports this but a process that talks to a server.

Layer: tools; no Ray.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any, cast

import httpx2
import mcp_types as types
import psutil
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from palaver.tools.descendants import Descendants, adopt_orphans, any_left, collect_orphans, process_clock
from palaver.tools.mcp_server import McpServer
from palaver.tools.mcp_stdio import NotThere, StdioServer
from palaver.tools.stopped import EndedProcess, Stopped

_TERMINATED_WITHIN_S = 0.3
"""How long a server's processes that were asked to end may take."""

_LEFT_WITHIN_S = 1.0
"""How long closing a session may take, which over HTTP is a request of its own."""

_NOTICED_WITHIN_S = 1.0
"""How long after its output was closed a server's end may take to be seen."""

_NOTIFIED_WITHIN_S = 0.5
"""How long telling a server of a cancelled call may take."""

_CONNECTED_WITHIN_S = 30.0
_MAX_PAGES = 100
_SESSION_REFUSED = frozenset({400, 401, 403, 404, 410})
"""Statuses to a call over HTTP after which another session may help. By the protocol an id that is not known
any more gets 404; servers in TypeScript say 400 (server-everything 2026.8, November 2026)."""

_ANSWERS = frozenset({types.INVALID_PARAMS, types.METHOD_NOT_FOUND})
"""Errors that are about the call, whatever status they come with."""

_LOUD = ("mcp", "client", "httpx2", "httpcore2", "asyncio")
"""Loggers whose lines may hold what a server or its URL says."""


class ServerFailed(Exception):
    """A session could not be opened. The text says why, secrets covered."""


class ServerLost(Exception):
    """A call has no answer, because its server ended or the connection to it broke.

    `over`: the session is, so the next call needs another. `untouched`: the call never reached the server.
    """

    def __init__(self, how: str, over: bool, untouched: bool = False) -> None:
        super().__init__(how, over, untouched)
        self.how = how
        self.over = over
        self.untouched = untouched


class McpSession:
    """A session with `server`, whose command starts in folder `cwd`.

    A task of its own keeps it open, because the SDK's scopes are to be left by the task that entered them.
    """

    def __init__(self, server: McpServer, cwd: str | None) -> None:
        self._server = server
        self._stdio = StdioServer(server, cwd) if server.command else None
        self._status: int | None = None
        self._client: Client | None = None
        self._leave = asyncio.Event()
        self._ready = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._descendants: Descendants | None = None
        for name in _LOUD:
            logging.getLogger(name).setLevel(logging.CRITICAL)

    async def start(self) -> None:
        """Start or reach the server. Raises ServerFailed. What was started is ended by `end` alone."""
        if self._server.command:
            adopt_orphans()
            self._descendants = Descendants(since=process_clock())
        self._keeper = asyncio.create_task(self._keep())
        ready = asyncio.create_task(self._ready.wait())
        limit_s = self._server.start_timeout_s
        await asyncio.wait({self._keeper, ready}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._client is not None:
            return
        if not self._keeper.done():
            self._keeper.cancel()
            raise ServerFailed(
                self._said(
                    f"did not answer within {limit_s:g} s; give it longer with start_timeout_s when it has "
                    "to install something first"
                )
            )
        error = None if self._keeper.cancelled() else self._keeper.exception()
        raise ServerFailed(await self._why(error)) from None

    async def list_tools(self) -> list[types.Tool]:
        """All its tools, page by page. Raises ServerFailed."""
        assert self._client is not None
        tools: list[types.Tool] = []
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            try:
                page = await self._client.list_tools(cursor=cursor)
            except Exception as error:
                raise ServerFailed(await self._why(error)) from None
            tools += page.tools
            cursor = page.next_cursor
            if cursor is None:
                return tools
        raise ServerFailed(f"lists its tools on more than {_MAX_PAGES} pages")

    async def call(self, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """Call a tool. When cancelled, the server is told. Raises ServerLost, and what the SDK raises."""
        assert self._client is not None
        assert self._keeper is not None
        if self._keeper.done() or self._has_ended():
            raise ServerLost(self._how(), over=True, untouched=True)
        if self._stdio is not None:
            collect_orphans(but=self._stdio.pid)
        self._status = None
        call = asyncio.create_task(self._client.call_tool(name, arguments))
        try:
            await asyncio.wait({call})
        except asyncio.CancelledError:
            # It tells the server (notifications/cancelled) before it ends.
            call.cancel()
            await asyncio.wait({call}, timeout=_NOTIFIED_WITHIN_S)
            raise
        try:
            return call.result()
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, MCPError) and self._status is not None and error.code not in _ANSWERS:
                # With these the server has not taken the call; with others (5xx) it may have.
                refused = self._status in _SESSION_REFUSED
                raise ServerLost(self._answered(), over=refused, untouched=refused) from None
            if isinstance(error, MCPError) and error.code != types.CONNECTION_CLOSED:
                raise
            over = await self._is_over()
            if over or isinstance(error, MCPError):
                raise ServerLost(self._how(), over) from None
            raise

    async def end(self) -> Stopped:
        """Close the session, and end every process that the server has started and left."""
        began = time.monotonic()
        noted = self._found()
        if self._stdio is not None:
            await self._stdio.leave()
        if self._descendants is not None:
            await asyncio.to_thread(_end_all, self._descendants)
        if self._keeper is not None:
            self._leave.set()
            await asyncio.wait({self._keeper}, timeout=_LEFT_WITHIN_S)
            if not self._keeper.done():
                self._keeper.cancel()
                await asyncio.wait({self._keeper}, timeout=_LEFT_WITHIN_S)
        killed = {each.pid: each for each in (self._descendants.ended if self._descendants else ())}
        processes = {each.pid: each for each in noted} | killed
        return Stopped(took_s=time.monotonic() - began, processes=tuple(processes.values()))

    async def _keep(self) -> None:
        async with self._opened() as client:
            self._client = client
            # Those before were the SDK finding out which version is spoken.
            self._status = None
            self._ready.set()
            await self._leave.wait()

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[Client]:
        if self._stdio is not None:
            async with Client(cast("Any", self._stdio), cache=None) as client:
                yield client
            return
        assert self._server.url is not None
        # A call may take as long as it takes: what bounds it is the tool's own limit.
        timeout = httpx2.Timeout(_CONNECTED_WITHIN_S, read=None)
        headers = {key: value.reveal() for key, value in self._server.headers}
        hooks = {"response": [self._see]}
        async with httpx2.AsyncClient(headers=headers, timeout=timeout, event_hooks=hooks) as http:
            transport = streamable_http_client(self._server.url.reveal(), http_client=http)
            async with Client(transport, cache=None) as client:
                yield client

    async def _see(self, response: httpx2.Response) -> None:
        if response.status_code >= 400:
            self._status = response.status_code

    async def _is_over(self) -> bool:
        """Whether the session is, after an answer that did not come."""
        assert self._keeper is not None
        if self._stdio is not None:
            await self._stdio.exited(_NOTICED_WITHIN_S)
            return True
        await asyncio.wait({self._keeper}, timeout=_NOTICED_WITHIN_S / 5)
        return self._keeper.done()

    def _has_ended(self) -> bool:
        return self._stdio is not None and self._stdio.exit_code is not None

    def _how(self) -> str:
        """How the server, or the connection to it, ended."""
        if self._stdio is None:
            return "the connection to it was lost"
        code = self._stdio.exit_code
        return self._said("it closed its output" if code is None else f"it ended with exit code {code}")

    async def _why(self, error: BaseException | None) -> str:
        """Why the session could not be opened, or the tools not be listed."""
        leaves = _leaves(error)
        first = leaves[0] if leaves else None
        if self._stdio is None:
            return self._why_not_reached(first)
        match first:
            case NotThere():
                return f"cannot be started: {first}"
            case OSError() if self._stdio.pid is None:
                return f"cannot be started: {first.strerror}"
            case MCPError() if first.code != types.CONNECTION_CLOSED:
                return self._said(f"refused: {first.message} ({first.code})")
            case MCPError() | None:
                await self._stdio.exited(_NOTICED_WITHIN_S)
                return self._said(f"{self._how_at_start()} before it had answered")
            case _:
                return self._said(f"cannot be talked to: {type(first).__name__}: {first}")

    def _how_at_start(self) -> str:
        assert self._stdio is not None
        code = self._stdio.exit_code
        return "closed its output" if code is None else f"ended with exit code {code}"

    def _why_not_reached(self, error: BaseException | None) -> str:
        if self._status is not None:
            return self._answered()
        match error:
            case httpx2.TransportError():
                return self._server.cover(
                    f"cannot be reached: {type(error).__name__}: {error}; check the url"
                )
            case MCPError():
                return self._server.cover(f"refused: {error.message} ({error.code})")
            case None:
                return "closed the connection before it had answered"
            case _:
                return self._server.cover(f"cannot be talked to: {type(error).__name__}: {error}")

    def _answered(self) -> str:
        """The last HTTP status that was an error, and what to do about it."""
        assert self._status is not None
        phrase = f" {HTTPStatus(self._status).phrase}" if self._status in _STATUSES else ""
        return f"answered with HTTP status {self._status}{phrase}{_HINTS.get(self._status, '')}"

    def _said(self, what: str) -> str:
        words = self._stdio.last_words() if self._stdio is not None else ""
        return f"{self._server.cover(what)}. It last said:\n{words}" if words else self._server.cover(what)

    def _found(self) -> list[EndedProcess]:
        """What runs for the server now."""
        node, found = socket.gethostname(), list[EndedProcess]()
        for each in self._descendants.find() if self._descendants is not None else ():
            with suppress(psutil.NoSuchProcess):
                found.append(EndedProcess(pid=each.pid, name=each.name(), node=node, killed=False))
        return found


_STATUSES = frozenset(int(each) for each in HTTPStatus)
_HINTS = {
    401: "; check the key or token in headers",
    403: "; check the key or token in headers",
    404: "; check the path of the url, which for many servers ends in /mcp",
}


def _leaves(error: BaseException | None) -> list[BaseException]:
    """The errors in groups of errors, those of the server before those that follow from them."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return [leaf for each in group.exceptions for leaf in _leaves(each)]
    return [] if error is None else [error]


def _end_all(descendants: Descendants) -> None:
    """End the processes: SIGTERM, and SIGKILL for those that are still there after it."""
    if not any_left():
        return
    deadline = time.monotonic() + _TERMINATED_WITHIN_S
    if descendants.terminate():
        while time.monotonic() < deadline and descendants.find():
            time.sleep(0.01)
    descendants.kill()
