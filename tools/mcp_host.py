"""The body of an MCP server's host: holds one conversation's session with one server, and makes its calls.

It wears a mark all its life (see `guarded`): when its process is killed, whoever does it, the node's guardian
ends all that the server has started. One host is one start of a server; a server that died is started again
in another. `palaver.tools.mcp_servers` makes a Ray actor of it.

Layer: tools; no Ray. Imports the protocol's SDK once it is to start a server.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from palaver.tools.errors import ToolInputInvalid, ToolRaised
from palaver.tools.guarded import guarded
from palaver.tools.limits import ToolLimits
from palaver.tools.mcp_server import McpServer
from palaver.tools.outcome import Outcome, to_content
from palaver.tools.stopped import Stopped
from palaver.tools.toolset import asks_approval, timed_out


class Order(NamedTuple):
    """One call for a host."""

    tool_name: str
    wire_name: str
    input: dict[str, Any]
    limits: ToolLimits
    approval: bool | bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended: with an outcome, or without, because the server was `lost`.

    `over` and `untouched` are as in `ServerLost`.
    """

    outcome: Outcome | None = None
    lost: str = ""
    over: bool = False
    untouched: bool = False


class _Asks(NamedTuple):
    """What `asks_approval` looks at."""

    needs_approval: bool | Callable[[dict[str, Any]], bool]


def _asks(approval: bool | bytes, tool_input: Mapping[str, Any]) -> bool:
    if isinstance(approval, bool):
        return approval
    try:
        needed = cast("Callable[[dict[str, Any]], bool]", pickle.loads(approval))
    except Exception:  # what cannot be asked is not let through
        return True
    return asks_approval(_Asks(needed), tool_input)


class McpHost:
    """One start of a server, for the conversation that is last in `lineage`."""

    def __init__(self, server: McpServer, title: str, lineage: Sequence[str], workspace: str | None) -> None:
        self._server = server
        self._folder = server.folder(workspace)
        self._guard: AbstractContextManager[None] | None = guarded(title, lineage)
        self._session: Any = None
        self._starting: asyncio.Task[str | None] | None = None
        self._ending = False

    async def start(self) -> str | None:
        """Start the server; None, or why it does not start."""
        if self._ending:
            return "was ended before it had started"
        self._starting = asyncio.create_task(self._start())
        await asyncio.wait({self._starting})
        return "was ended before it had started" if self._starting.cancelled() else self._starting.result()

    async def _start(self) -> str | None:
        assert self._guard is not None
        # Before anything is started, so that it inherits the mark.
        await asyncio.to_thread(self._guard.__enter__)
        try:
            from palaver.tools.mcp_session import McpSession, ServerFailed
        except ImportError as error:
            return f"needs the protocol's SDK ({error}) on the node it runs on: pip install 'palaver[mcp]'"
        self._session = McpSession(self._server, self._folder)
        try:
            await self._session.start()
            # What the SDK checks results and makes headers by.
            await self._session.list_tools()
        except ServerFailed as failed:
            return str(failed)
        return None

    async def call(self, order: Order) -> Answer:
        """Make one call. Cancelled or too late, the server is told so; other calls go on."""
        started_at = datetime.now(UTC)
        if order.approval and await asyncio.to_thread(_asks, order.approval, order.input):
            return Answer(Outcome(asks_approval=True, started_at=started_at))
        try:
            async with asyncio.timeout(order.limits.seconds):
                return await self._call(order, started_at)
        except TimeoutError:
            assert order.limits.seconds is not None
            error = timed_out(order.tool_name, order.limits.seconds)
            return Answer(Outcome(error=error, stopped=Stopped(), started_at=started_at))

    async def _call(self, order: Order, started_at: datetime) -> Answer:
        from mcp_types import INVALID_PARAMS

        from palaver.tools.mcp_content import content_of, error_of
        from palaver.tools.mcp_session import MCPError, ServerLost

        name = order.tool_name
        try:
            result = await self._session.call(order.wire_name, order.input)
            if result.is_error:
                raise ToolRaised(name, f"tool {name!r} answered with an error: {error_of(result)}")
            content = to_content(name, content_of(result), order.limits.output_bytes)
            return Answer(Outcome(content=content, started_at=started_at))
        except ServerLost as lost:
            return Answer(lost=lost.how, over=lost.over, untouched=lost.untouched)
        except MCPError as refused:
            kind = ToolInputInvalid if refused.code == INVALID_PARAMS else ToolRaised
            text = (
                f"the MCP server {self._server.label!r} refused the call of tool {name!r}: {refused.message}"
            )
            error: Exception = kind(name, self._server.cover(text))
        except Exception as other:
            error = other
        return Answer(Outcome.of_error(name, error, started_at))

    async def end(self) -> Stopped:
        """End the server. Returns once nothing of it is left; then this process is no longer watched."""
        self._ending = True
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait({self._starting})
        stopped = Stopped() if self._session is None else await self._session.end()
        if self._starting is not None and self._guard is not None:
            guard, self._guard = self._guard, None
            await asyncio.to_thread(guard.__exit__, None, None, None)
        return stopped
