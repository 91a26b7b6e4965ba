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
import inspect
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from palaver.tools.call import ToolCallInfo, set_current_call
from palaver.tools.descendants import Descendants, adopt_orphans, process_clock
from palaver.tools.errors import ToolCancelled
from palaver.tools.outcome import Outcome, to_content
from palaver.tools.tool import Tool
from palaver.tools.toolset import failure, timed_out

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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[object] | None = None
        self._wake_receiver, self._wake_sender = socket.socketpair()
        for end in (self._wake_receiver, self._wake_sender):
            end.setblocking(False)

    def run(self) -> Outcome:
        """Run the call to its end, its timeout or its cancellation.

        Never raises for what the tool does. Does not return at all when a stopped tool cannot be
        unwound: the process then ends.
        """
        adopt_orphans()
        started_at, started = datetime.now(UTC), process_clock()
        self._is_async = inspect.iscoroutinefunction(self._tool.function)
        thread = threading.Thread(
            target=self._body, args=(started_at,), name=f"tool-{self._tool.name}", daemon=True
        )
        handler_before = signal.signal(signal.SIGINT, self._on_sigint)
        wakeup_before = signal.set_wakeup_fd(self._wake_sender.fileno(), warn_on_full_buffer=False)
        self._arm_watchdog()
        try:
            thread.start()
            stopped_by = self._wait(thread)
            if stopped_by is not None:
                self._stop(thread, Descendants(since=started))
                error = (
                    timed_out(self._tool)
                    if stopped_by == "timeout"
                    else ToolCancelled(self._tool.name, f"tool {self._tool.name!r} was cancelled")
                )
                return Outcome(error=error, started_at=started_at)
        finally:
            faulthandler.cancel_dump_traceback_later()
            signal.set_wakeup_fd(wakeup_before)
            signal.signal(signal.SIGINT, handler_before)
            self._wake_receiver.close()
            self._wake_sender.close()
        assert self._outcome is not None
        return self._outcome

    def _wait(self, thread: threading.Thread) -> str | None:
        """Wait for the end. None when the tool ended by itself, else what stops it."""
        deadline = None if self._tool.timeout_s is None else time.monotonic() + self._tool.timeout_s
        while self._outcome is None:
            before = time.monotonic()
            if deadline is not None and before >= deadline:
                return "timeout"
            pause = _TICK_S if deadline is None else min(_TICK_S, deadline - before)
            select.select([self._wake_receiver], [], [], pause)
            if self._cancelled:
                if time.monotonic() - before > _STARVED_S:
                    self._die(Descendants(since=0.0))
                return "cancel"
        thread.join()
        return None

    def _stop(self, thread: threading.Thread, descendants: Descendants) -> None:
        """Unwind the tool and end its processes; end this process when the tool cannot be unwound."""
        self._unwind(thread)
        if self._is_async:
            thread.join(_TERMINATE_AFTER_S)
        descendants.terminate()
        thread.join(_KILL_AFTER_S)
        descendants.kill()
        thread.join(UNWIND_S - _KILL_AFTER_S)
        if thread.is_alive():
            self._die(descendants)
        # What the tool's own clean-up may have started.
        descendants.kill()

    def _unwind(self, thread: threading.Thread) -> None:
        if self._is_async:
            if self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)
        elif thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(_Stopped)
            )

    def _die(self, descendants: Descendants) -> None:
        descendants.kill()
        os._exit(0)

    def _arm_watchdog(self) -> None:
        """A timeout must also end a tool that holds the interpreter lock, which stops this thread too.

        faulthandler's timer is a thread in C that needs no lock.
        """
        if self._tool.timeout_s is not None:
            faulthandler.dump_traceback_later(
                self._tool.timeout_s + 2 * UNWIND_S, exit=True, file=_devnull()
            )

    def _on_sigint(self, _signal: int, _frame: FrameType | None) -> None:
        # Only noted here: select returns because the signal wrote to the wake-up socket.
        self._cancelled = True

    def _body(self, started_at: datetime) -> None:
        """The tool's thread."""
        try:
            try:
                arguments = self._tool.signature.bind(self._input, self._info)
                set_current_call(self._info)
                if self._is_async:
                    value = self._run_async(arguments)
                else:
                    value = self._tool.function(**arguments)
                content = to_content(self._tool.name, value, self._tool.max_output_bytes)
                outcome = Outcome(content=content, started_at=started_at)
            except BaseException as error:
                # SystemExit included: a tool that calls sys.exit() ends itself, not the worker.
                outcome = failure(self._tool, error, started_at)
            self._outcome = outcome
            self._wake_sender.send(b"\0")
        except (_Stopped, OSError):
            # Stopped between the lines above: nobody waits for this outcome any more.
            return

    def _run_async(self, arguments: dict[str, Any]) -> object:
        with asyncio.Runner() as runner:
            loop = runner.get_loop()

            async def main() -> object:
                self._task = asyncio.current_task()
                self._loop = loop
                return await self._tool.function(**arguments)

            return runner.run(main())


_devnull_file: list[Any] = []


def _devnull() -> Any:
    """An open null device, which faulthandler keeps using as long as its timer runs."""
    if not _devnull_file:
        _devnull_file.append(open(os.devnull, "w"))  # noqa: SIM115 - kept for the process's life
    return _devnull_file[0]
