"""An MCP server run as a process, as the SDK's sessions see it: messages in, messages out, a line each.

Not the SDK's own transport for this: that one hides the process, and it is to be told how it ended and what
it last said.

Layer: tools; no Ray. Imports the protocol's SDK.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import cast

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from palaver.tools.mcp_server import McpServer

_LEAVES_WITHIN_S = 0.5
"""How long a server has to end by itself once its input was closed, as the protocol asks of it."""

_RESTS_S = 0.2
"""How long what a server wrote just before it ended may take to arrive."""

_MAX_MESSAGE_BYTES = 64_000_000
_TAIL_LINES = 12
_LINE_CHARS = 300
_LINE_BYTES = 4 * _LINE_CHARS
_INHERITED = ("LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ")
"""Beside those of the SDK (HOME, LOGNAME, PATH, SHELL, TERM, USER). Not the rest: keys are there."""

_Messages = MemoryObjectReceiveStream[SessionMessage | Exception]


class NotThere(Exception):
    """A program or a folder that is needed to start a server."""


class StdioServer(asyncio.SubprocessProtocol):
    """A server's process, for as long as it is entered.

    What it has started is for whoever looks after this process's descendants. Entering raises NotThere, or
    OSError, when the process cannot be started.
    """

    def __init__(self, server: McpServer, cwd: str | None) -> None:
        self._server = server
        self._cwd = cwd
        self._transport: asyncio.SubprocessTransport | None = None
        self._unread = {1: bytearray(), 2: bytearray()}
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._exited = asyncio.Event()
        self._incoming: MemoryObjectSendStream[SessionMessage | Exception]
        self._incoming, self._messages = anyio.create_memory_object_stream[SessionMessage | Exception](
            math.inf
        )

    async def __aenter__(self) -> tuple[_Messages, _Input]:
        env = {key: value for key in _INHERITED if (value := os.environ.get(key)) is not None}
        env |= get_default_environment() | {key: value.reveal() for key, value in self._server.env}
        self._check(env.get("PATH"))
        transport, _ = await asyncio.get_running_loop().subprocess_exec(
            lambda: self, *self._server.command, cwd=self._cwd, env=env, start_new_session=True
        )
        self._transport = transport
        return self._messages, _Input(cast("asyncio.WriteTransport", transport.get_pipe_transport(0)))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._incoming.close()
        self._messages.close()
        if self._transport is not None:
            # Kills it, should it still be there.
            self._transport.close()

    async def leave(self) -> None:
        """Close its input, and give it half a second to end."""
        if self._transport is not None:
            cast("asyncio.WriteTransport", self._transport.get_pipe_transport(0)).close()
            await self.exited(_LEAVES_WITHIN_S)

    async def exited(self, within_s: float) -> bool:
        """Whether the process ends in time."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._exited.wait(), within_s)
        return self._exited.is_set()

    @property
    def pid(self) -> int | None:
        """The process's id; None before it was started."""
        return None if self._transport is None else self._transport.get_pid()

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return None if self._transport is None else self._transport.get_returncode()

    def last_words(self) -> str:
        """The last lines it wrote that were no messages, secrets covered."""
        lines = [*self._tail, self._unread[2].decode(errors="replace")[:_LINE_CHARS]]
        return self._server.cover("\n".join(line for line in lines if line.strip()))

    def _check(self, path: str | None) -> None:
        """Not left to the event loop: uvloop's error does not tell what it is that is not there."""
        program = self._server.command[0]
        if self._cwd is not None and not os.path.isdir(self._cwd):
            raise NotThere(f"there is no folder {self._cwd!r} to run in")
        if shutil.which(program, path=path) is None:
            raise NotThere(f"there is no program {program!r} on PATH; install it, or give its full path")

    # Called by the event loop

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Take what the server wrote to its output (1) or to its errors (2)."""
        unread = self._unread[fd]
        unread += data
        if b"\n" not in data:
            lines = []
        else:
            *lines, rest = unread.split(b"\n")
            self._unread[fd] = unread = rest
        if len(unread) > (_MAX_MESSAGE_BYTES if fd == 1 else _LINE_BYTES):
            unread.clear()
            if fd == 1:
                self._tail.append(f"[its message was longer than the limit of {_MAX_MESSAGE_BYTES} bytes]")
                self._over()
        for line in lines:
            self._take(fd, line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Its output was closed: nobody is there to talk to."""
        if fd == 1:
            self._over()

    def process_exited(self) -> None:
        """Its process has ended; what it started may still hold its output open."""
        self._exited.set()
        asyncio.get_running_loop().call_later(_RESTS_S, self._over)

    def _take(self, fd: int, line: bytearray) -> None:
        if fd == 1:
            try:
                message = jsonrpc_message_adapter.validate_json(bytes(line), by_name=False)
            except ValueError:
                pass  # a banner, or a stray print
            else:
                with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                    self._incoming.send_nowait(SessionMessage(message))
                return
        self._tail.append(line.decode(errors="replace").rstrip()[:_LINE_CHARS])

    def _over(self) -> None:
        self._incoming.close()


class _Input:
    """The server's standard input, as a stream of messages."""

    def __init__(self, pipe: asyncio.WriteTransport) -> None:
        self._pipe = pipe

    async def send(self, item: SessionMessage, /) -> None:
        """Write a message. Never waits: one that is not read must not keep others from ending."""
        if self._pipe.is_closing():
            raise anyio.ClosedResourceError
        self._pipe.write(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
        await asyncio.sleep(0)

    async def aclose(self) -> None:
        """Nothing: the process outlives its session's streams by a moment."""

    async def __aenter__(self) -> _Input:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
