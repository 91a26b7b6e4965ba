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
import copy
import ctypes
import faulthandler
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Literal

from palaver.tools import guarded
from palaver.tools.call import ToolCallInfo, set_current_call
from palaver.tools.descendants import Descendants, adopt_orphans, any_left, process_clock
from palaver.tools.errors import ToolCancelled, ToolCrashed, ToolError
from palaver.tools.limits import ToolLimits
from palaver.tools.outcome import Outcome
from palaver.tools.places import PLACE_LOOK_S, take_place
from palaver.tools.stopped import Stopped
from palaver.tools.tool import Tool
from palaver.tools.toolset import asks_approval, timed_out

UNWIND_S = 1.0
"""How long a stopped tool may take for its own clean-up before its process is ended."""

_TERMINATE_AFTER_S = 0.2
"""How long an async tool has to end its processes itself before they are asked to end."""

_KILL_AFTER_S = 0.3
"""How long processes that were asked to end may take."""

_BLOCKED_S = 0.2
"""A plain tool that has not executed one instruction for this long, although an exception waits for it,
is in C code, and none of its own clean-up has begun."""

_LOOK_S = 0.01
_TICK_S = 0.1
_STARVED_S = 0.5
"""The main thread looks around every tick. One that could not for this long had a tool that never let
go of the interpreter; the caller may have asked for this process to be killed, so it takes no other
call."""


class _Stopped(BaseException):
    """Raised inside a plain tool when its call is stopped. No `except Exception` catches it."""


class Supervisor:
    """Runs one call of `tool`. Only on the main thread, since only there signals are seen."""

    def __init__(
        self,
        tool: Tool[..., Any],
        tool_input: Mapping[str, Any],
        info: ToolCallInfo,
        limits: ToolLimits | None = None,
        *,
        approved: bool = True,
    ) -> None:
        self._tool = tool
        self._input = tool_input
        self._info = info
        self._limits = tool.limits if limits is None else limits
        self._approved = approved
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
        with ExitStack() as stack:
            for each in (receiver, self._sender, self._signals_noted()):
                stack.enter_context(each)
            receiver.setblocking(False)
            # Who is only asked about takes no place from those that run.
            only_asks = self._tool.needs_approval is True and not self._approved
            limited = self._limits.max_per_node is not None and not only_asks
            if limited and not self._placed(stack, receiver):
                return self._ended_by("cancel", Stopped(), started_at)
            stack.enter_context(self._watchdog())
            thread = threading.Thread(
                target=self._body, args=(started_at,), name=f"tool-{self._tool.name}", daemon=True
            )
            thread.start()
            stopped_by = self._wait(thread, receiver)
            if stopped_by is not None:
                stopping = time.monotonic()
                self._stop(thread, descendants)
                stopped = Stopped(took_s=time.monotonic() - stopping, processes=descendants.ended)
                return self._ended_by(stopped_by, stopped, started_at)
            if any_left():
                self._end(descendants)
        return self._outcome or Outcome(
            error=ToolCrashed(
                self._tool.name, f"the thread of tool {self._tool.name!r} ended without a result"
            ),
            started_at=started_at,
        )

    def _ended_by(self, stopped_by: Literal["timeout", "cancel"], stopped: Stopped, at: datetime) -> Outcome:
        name = self._tool.name
        if stopped_by == "cancel":
            error: ToolError = ToolCancelled(name, f"tool {name!r} was cancelled")
        else:
            assert self._limits.seconds is not None
            error = timed_out(name, self._limits.seconds)
        return Outcome(error=error, stopped=stopped, started_at=at)

    def _placed(self, stack: ExitStack, receiver: socket.socket) -> bool:
        """Wait for one of the places this tool has on the node; False when cancelled first."""
        assert self._limits.max_per_node is not None
        while (place := take_place(self._tool.name, self._limits.max_per_node)) is None:
            if select.select([receiver], [], [], PLACE_LOOK_S)[0]:
                receiver.recv(4096)
            if self._cancelled:
                return False
        stack.enter_context(place)
        return True

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
        if self._limits.seconds is None:
            yield
            return
        limit_s = min(self._limits.seconds + 2 * UNWIND_S, threading.TIMEOUT_MAX)
        with open(os.devnull, "w") as devnull:
            faulthandler.dump_traceback_later(limit_s, exit=True, file=devnull)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()

    def _wait(self, thread: threading.Thread, receiver: socket.socket) -> Literal["timeout", "cancel"] | None:
        """Wait for the end. None when the tool ended by itself, else what stops it."""
        deadline = None if self._limits.seconds is None else time.monotonic() + self._limits.seconds
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
        last_s = time.monotonic() + UNWIND_S
        where = _where(thread)
        with self._lock:
            self._stopping = True
            told = self._unwind is not None
            if self._unwind is not None:
                self._unwind()
        if self._tool.is_async:
            thread.join(_TERMINATE_AFTER_S)
        self._end(descendants, thread)
        # An event loop rests in C code between any two steps: only a plain tool can be seen to be blocked.
        may_be_blocked = told and not self._tool.is_async
        if may_be_blocked:
            thread.join(_BLOCKED_S)
        if not may_be_blocked or _where(thread) != where:
            thread.join(max(0.0, last_s - time.monotonic()))
        if thread.is_alive():
            self._die(descendants)
        # What the tool's own clean-up may have started.
        if any_left():
            descendants.kill()

    def _end(self, descendants: Descendants, thread: threading.Thread | None = None) -> None:
        """End the processes of the call: SIGTERM, and SIGKILL for those that are still there after it."""
        if not any_left():
            return
        deadline = time.monotonic() + _KILL_AFTER_S
        if descendants.terminate():
            while time.monotonic() < deadline and (descendants.find() or (thread and thread.is_alive())):
                time.sleep(_LOOK_S)
        descendants.kill()

    def _die(self, descendants: Descendants) -> None:
        if not guarded.available:
            descendants.kill()
        # The guardian ends the rest, and can tell of it.
        os._exit(0)

    def _body(self, started_at: datetime) -> None:
        """The tool's thread. Its outcome counts for nothing once the call was stopped."""
        try:
            arguments = self._tool.signature.bind(self._input, self._info)
            if not self._approved and asks_approval(self._tool, self._input):
                self._outcome = Outcome(asks_approval=True, started_at=started_at)
            else:
                set_current_call(self._info)
                before = copy.deepcopy(self._info.state)
                value = self._run_async(arguments) if self._tool.is_async else self._run_plain(arguments)
                self._outcome = Outcome.of_value(self._info, value, before, self._limits, started_at)
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


def _where(thread: threading.Thread) -> tuple[FrameType | None, int]:
    """Which instruction a thread is at."""
    frame = sys._current_frames().get(thread.ident or 0)  # pyright: ignore[reportPrivateUsage]
    return frame, frame.f_lasti if frame is not None else 0
