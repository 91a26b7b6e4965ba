"""Listeners: told of every request, response, tool call, approval and tool result of a conversation.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable
from typing import Protocol

from palaver.actors.approvals import ApprovalRequest, Decision
from palaver.actors.context import Compaction
from palaver.actors.feed import Compacted, Feed, Responded, Retrying, ToolEnded, ToolStarted
from palaver.providers.errors import PalaverError
from palaver.providers.messages import Message, ToolResult, ToolUse, Value
from palaver.providers.provider import Response
from palaver.providers.retry import Retry

_log = logging.getLogger("palaver.listener")

LISTENER_TIMEOUT_S = 5.0
"""An async listener that takes longer is given up on, so that it cannot hold up the conversation."""


_ADDED_LATER = frozenset({"on_approval_needed", "on_approval_decided", "on_compaction", "on_retry"})
"""Methods that a listener which does not subclass NoopListener may have been written without."""


class ConvoInfo(Value):
    """Which conversation an event is of."""

    id: str
    parent_id: str | None
    depth: int
    label: str


class Listener(Protocol):
    """Told of what happens, in the conversation's own process and in order.

    Methods may be plain or `async`; the conversation goes on when they return. One that raises, or is
    async and takes more than LISTENER_TIMEOUT_S, is logged and harms nothing. Sub-conversations get a
    pickled copy. Subclass `NoopListener` to write only some of the methods.
    """

    def on_request(self, convo: ConvoInfo, request_id: str, message: Message) -> Awaitable[None] | None:
        """`message` is about to be sent."""
        ...

    def on_response(
        self, convo: ConvoInfo, request_id: str, response: Response | None, error: PalaverError | None
    ) -> Awaitable[None] | None:
        """The answer came; None when the request failed (`error` tells why) or was cancelled (no error)."""
        ...

    def on_retry(self, convo: ConvoInfo, request_id: str, retry: Retry) -> Awaitable[None] | None:
        """A request failed and is about to be sent again, after `retry.wait_s` seconds."""
        ...

    def on_compaction(self, convo: ConvoInfo, compaction: Compaction) -> Awaitable[None] | None:
        """All messages were replaced by a summary, which the next request begins with."""
        ...

    def on_tool_call(self, convo: ConvoInfo, call: ToolUse) -> Awaitable[None] | None:
        """A tool is about to be called."""
        ...

    def on_approval_needed(self, convo: ConvoInfo, request: ApprovalRequest) -> Awaitable[None] | None:
        """A tool call is about to wait for somebody's yes."""
        ...

    def on_approval_decided(
        self, convo: ConvoInfo, request: ApprovalRequest, decision: Decision
    ) -> Awaitable[None] | None:
        """Somebody decided. Of a call that was cancelled while it waited comes nothing but its result."""
        ...

    def on_tool_result(
        self, convo: ConvoInfo, call: ToolUse, result: ToolResult, error: PalaverError | None
    ) -> Awaitable[None] | None:
        """A tool call ended; `error` tells why it failed."""
        ...


class NoopListener:
    """A listener that ignores everything."""

    def on_request(self, convo: ConvoInfo, request_id: str, message: Message) -> Awaitable[None] | None:
        """Ignore a request."""

    def on_response(
        self, convo: ConvoInfo, request_id: str, response: Response | None, error: PalaverError | None
    ) -> Awaitable[None] | None:
        """Ignore a response."""

    def on_retry(self, convo: ConvoInfo, request_id: str, retry: Retry) -> Awaitable[None] | None:
        """Ignore a retry."""

    def on_compaction(self, convo: ConvoInfo, compaction: Compaction) -> Awaitable[None] | None:
        """Ignore a compaction."""

    def on_tool_call(self, convo: ConvoInfo, call: ToolUse) -> Awaitable[None] | None:
        """Ignore a tool call."""

    def on_approval_needed(self, convo: ConvoInfo, request: ApprovalRequest) -> Awaitable[None] | None:
        """Ignore a call that waits for a yes."""

    def on_approval_decided(
        self, convo: ConvoInfo, request: ApprovalRequest, decision: Decision
    ) -> Awaitable[None] | None:
        """Ignore a decision."""

    def on_tool_result(
        self, convo: ConvoInfo, call: ToolUse, result: ToolResult, error: PalaverError | None
    ) -> Awaitable[None] | None:
        """Ignore a tool result."""


class GuardedListener:
    """Calls a listener so that its failure is logged and harms nothing."""

    def __init__(self, listener: Listener, convo: ConvoInfo) -> None:
        self.listener = listener
        self.feed: Feed | None = None
        """Told, too, while somebody follows a run."""
        self._convo = convo
        self._in_order = asyncio.Lock()

    async def on_request(self, request_id: str, message: Message) -> None:
        """Tell of a request."""
        await self._tell("on_request", request_id, message)

    async def on_response(
        self, request_id: str, response: Response | None, error: PalaverError | None = None
    ) -> None:
        """Tell of a response."""
        if self.feed is not None and response is not None:
            self.feed.put(Responded(response=response))
        await self._tell("on_response", request_id, response, error)

    async def on_retry(self, request_id: str, retry: Retry) -> None:
        """Tell of a retry."""
        if self.feed is not None:
            reason, wait_s = str(retry.error), retry.wait_s
            self.feed.put(Retrying(reason=reason, attempt=retry.attempt, wait_s=wait_s))
        await self._tell("on_retry", request_id, retry)

    async def on_compaction(self, compaction: Compaction) -> None:
        """Tell of a compaction."""
        if self.feed is not None:
            self.feed.put(Compacted(compaction=compaction))
        await self._tell("on_compaction", compaction)

    async def on_tool_call(self, call: ToolUse) -> None:
        """Tell of a tool call."""
        if self.feed is not None:
            self.feed.put(ToolStarted(call=call))
        await self._tell("on_tool_call", call)

    async def on_approval_needed(self, request: ApprovalRequest) -> None:
        """Tell of a call that waits for a yes."""
        await self._tell("on_approval_needed", request)

    async def on_approval_decided(self, request: ApprovalRequest, decision: Decision) -> None:
        """Tell of a decision."""
        await self._tell("on_approval_decided", request, decision)

    async def on_tool_result(self, call: ToolUse, result: ToolResult, error: PalaverError | None) -> None:
        """Tell of a tool result."""
        if self.feed is not None:
            self.feed.put(ToolEnded(call=call, result=result))
        await self._tell("on_tool_result", call, result, error)

    async def _tell(self, method: str, *args: object) -> None:
        if type(self.listener) is NoopListener:
            return
        if method in _ADDED_LATER and not hasattr(self.listener, method):
            return
        async with self._in_order:
            try:
                told = getattr(self.listener, method)(self._convo, *args)
                if inspect.isawaitable(told):
                    await asyncio.wait_for(told, LISTENER_TIMEOUT_S)
            except (Exception, SystemExit):
                _log.exception("listener %s.%s failed", type(self.listener).__name__, method)
