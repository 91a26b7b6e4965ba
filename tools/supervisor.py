"""Runs one tool call so that it can always be stopped.

The tool runs in a thread of its own; the main thread does nothing but wait for its end, its timeout,
or SIGINT, which is what a cancel from Ray comes as. So a tool that blocks, in Python or in C, never
keeps the stop from being seen. What can be unwound is unwound (CancelledError in async tools, an
exception at the next bytecode in plain ones), then every process the call started is ended. A thread
that still runs after that cannot be stopped by anything, so the whole process ends with it.

Layer: tools; no Ray.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Literal

from palaver.tools.call import ToolCallInfo, set_current_call
from palaver.tools.descendants import Descendants, adopt_orphans, process_clock
from palaver.tools.errors import ToolCancelled, ToolCrashed
from palaver.tools.outcome import Outcome, to_content
from palaver.tools.tool import Tool
from palaver.tools.toolset import timed_out

UNWIND_S = 1.0
"""How long a stopped tool may take for its own clean-up before its process is ended."""

_TERMINATE_AFTER_S = 0.2
"""How long an async tool has to end its processes itself before they are asked to end."""

_KILL_AFTER_S = 0.5
"""How long processes that were asked to end may take."""

_TICK_S = 0.1
_STARVED_S = 0.5
"""The main thread looks around every tick. One that could not for this long had a tool that never let
go of the interpreter; the caller may have asked for this process to be killed, so it takes no other
call."""


class _Stopped(BaseException):
    """Raised inside a plain tool when its call is stopped. No `except Exception` catches it."""


class Supervisor:
    """Runs one call of `tool`. Only on the main thread, since only there signals are seen."""

    def __init__(self, tool: Tool[..., Any], tool_input: Mapping[str, Any], info: ToolCallInfo) -> None:
        self._tool = tool
        self._input = tool_input
        self._info = info
        self._cancelled = False
        self._outcome: Outcome | None = None
        # Both threads use what follows, under the lock: a stop reaches the tool's own code or nothing.
        self._lock = threading.Lock()
        self._stopping = False
        self._unwind: Callable[[], object] | None = None

    def run(self) -> Outcome:
        """Run the call to its end, its timeout or its cancellation.

        Never raises for what the tool does. Does not return at all when a stopped tool cannot be
        unwound: the process then ends.
        """
        adopt_orphans()
        started_at, descendants = datetime.now(UTC), Descendants(since=process_clock())
        receiver, self._sender = socket.socketpair()
        with receiver, self._sender, self._signals_noted(), self._watchdog():
            receiver.setblocking(False)
            thread = threading.Thread(
                target=self._body, args=(started_at,), name=f"tool-{self._tool.name}", daemon=True
            )
            thread.start()
            stopped_by = self._wait(thread, receiver)
            if stopped_by is not None:
                self._stop(thread, descendants)
        name = self._tool.name
        if stopped_by == "timeout":
            assert self._tool.timeout_s is not None
            return Outcome(error=timed_out(name, self._tool.timeout_s), started_at=started_at)
        if stopped_by == "cancel":
            return Outcome(error=ToolCancelled(name, f"tool {name!r} was cancelled"), started_at=started_at)
        return self._outcome or Outcome(
            error=ToolCrashed(name, f"the thread of tool {name!r} ended without a result"),
            started_at=started_at,
        )

    @contextmanager
    def _signals_noted(self) -> Generator[None]:
        """SIGINT is only noted: it sets a flag, and wakes the wait through the socket."""
        self._sender.setblocking(False)
        handler_before = signal.signal(signal.SIGINT, self._on_sigint)
        wakeup_before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup_before)
            signal.signal(signal.SIGINT, handler_before or signal.default_int_handler)

    def _on_sigint(self, _signal: int, _frame: FrameType | None) -> None:
        self._cancelled = True

    @contextmanager
    def _watchdog(self) -> Generator[None]:
        """A timeout must also end a tool that holds the interpreter lock, which stops this thread too.

        faulthandler's timer is a thread in C that needs no lock.
        """
        if self._tool.timeout_s is None:
            yield
            return
        limit_s = min(self._tool.timeout_s + 2 * UNWIND_S, threading.TIMEOUT_MAX)
        with open(os.devnull, "w") as devnull:
            faulthandler.dump_traceback_later(limit_s, exit=True, file=devnull)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()

    def _wait(self, thread: threading.Thread, receiver: socket.socket) -> Literal["timeout", "cancel"] | None:
        """Wait for the end. None when the tool ended by itself, else what stops it."""
        deadline = None if self._tool.timeout_s is None else time.monotonic() + self._tool.timeout_s
        while self._outcome is None and thread.is_alive():
            before = time.monotonic()
            if deadline is not None and before >= deadline:
                return "timeout"
            pause_s = _TICK_S if deadline is None else min(_TICK_S, deadline - before)
            if select.select([receiver], [], [], pause_s)[0]:
                # Read, or any signal that comes would leave nothing to wait for.
                receiver.recv(4096)
            if self._cancelled:
                if time.monotonic() - before > _STARVED_S:
                    self._die(Descendants(since=0.0))
                return "cancel"
        thread.join()
        return None

    def _stop(self, thread: threading.Thread, descendants: Descendants) -> None:
        """Unwind the tool and end its processes; end this process when the tool cannot be unwound."""
        with self._lock:
            self._stopping = True
            if self._unwind is not None:
                self._unwind()
        if self._tool.is_async:
            thread.join(_TERMINATE_AFTER_S)
        descendants.terminate()
        thread.join(_KILL_AFTER_S)
        descendants.kill()
        thread.join(UNWIND_S - _KILL_AFTER_S)
        if thread.is_alive():
            self._die(descendants)
        # What the tool's own clean-up may have started.
        descendants.kill()

    def _die(self, descendants: Descendants) -> None:
        descendants.kill()
        os._exit(0)

    def _body(self, started_at: datetime) -> None:
        """The tool's thread. Its outcome counts for nothing once the call was stopped."""
        try:
            arguments = self._tool.signature.bind(self._input, self._info)
            set_current_call(self._info)
            value = self._run_async(arguments) if self._tool.is_async else self._run_plain(arguments)
            content = to_content(self._tool.name, value, self._tool.max_output_bytes)
            self._outcome = Outcome(content=content, started_at=started_at)
        except BaseException as error:
            # SystemExit included: a tool that calls sys.exit() ends itself, not the worker.
            self._outcome = Outcome.of_error(self._tool.name, error, started_at)
        with suppress(OSError):  # when the call was stopped, nobody listens
            self._sender.send(b"\0")

    def _run_plain(self, arguments: dict[str, Any]) -> object:
        thread_id = ctypes.c_ulong(threading.get_ident())
        raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
        try:
            self._let_unwind(lambda: raise_in(thread_id, ctypes.py_object(_Stopped)))
            return self._tool.function(**arguments)
        finally:
            self._let_unwind(None)
            # One on its way that has not arrived would arrive outside the tool.
            raise_in(thread_id, None)

    def _run_async(self, arguments: dict[str, Any]) -> object:
        async def main() -> object:
            task = asyncio.current_task()
            assert task is not None
            loop = asyncio.get_running_loop()
            self._let_unwind(lambda: loop.call_soon_threadsafe(task.cancel))
            try:
                return await self._tool.function(**arguments)
            finally:
                self._let_unwind(None)

        with asyncio.Runner() as runner:
            return runner.run(main())

    def _let_unwind(self, unwind: Callable[[], object] | None) -> None:
        """From here on a stop calls `unwind`. Raises _Stopped when the stop was earlier than that."""
        with self._lock:
            if self._stopping and unwind is not None:
                raise _Stopped
            self._unwind = unwind
