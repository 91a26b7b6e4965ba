"""Processes a tool call started, down to those that tried to leave: find them and end them.

Layer: tools; no Ray.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from functools import cache

import psutil

from palaver.tools.stopped import EndedProcess

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h: a signal to get when the parent ends."""

_PR_SET_CHILD_SUBREAPER = 36
"""linux/prctl.h: orphaned descendants become children of this process, not of init."""

_ROUNDS = 10

_TICK_S = 0.02
"""Two of the kernel's clock ticks, in which the start of a process is counted."""


def process_clock() -> float:
    """Now, on the clock by which it is known when a process was started.

    On Linux that is the time since boot, which nobody can set.
    """
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time()


def started_at(process: psutil.Process) -> float:
    """When a process was started, by `process_clock`. Raises psutil.NoSuchProcess."""
    if sys.platform == "linux":
        # psutil has added the boot time, which moves when the system's clock is set.
        return process.create_time() - psutil.boot_time()
    return process.create_time()


def end_with_parent() -> None:
    """Have this process killed when the thread that started it ends. Linux only."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it had ended before


@cache
def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent ends, so that they can be found.

    Only Linux offers this; elsewhere a process that daemonised itself is not found.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def any_left() -> bool:
    """Whether this process has any child at all; with orphans adopted, any descendant. Takes microseconds.

    Collects those that have ended.
    """
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def collect_orphans(but: int | None) -> None:
    """Collect the adopted processes that have ended, which nobody else does, but for child `but`.

    Once that one has ended, it is in the way of the others, and they wait for `any_left`.
    """
    if sys.platform == "linux":
        with suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid == but:
                    return
                os.waitpid(ended.si_pid, os.WNOHANG)


class Descendants:
    """The descendants of this process that were started after `since` (by `process_clock`)."""

    def __init__(self, since: float) -> None:
        self._since = since - _TICK_S
        self._names: dict[int, str] = {}
        self._killed: set[int] = set()

    @property
    def ended(self) -> tuple[EndedProcess, ...]:
        """Those that were asked to end, or killed."""
        node = socket.gethostname()
        return tuple(
            EndedProcess(pid=pid, name=name, node=node, killed=pid in self._killed)
            for pid, name in self._names.items()
        )

    def terminate(self) -> bool:
        """Ask each of them to end; whether there is any."""
        found = self.find()
        for process in found:
            with suppress(psutil.NoSuchProcess):
                self._names[process.pid] = process.name()
                process.terminate()
        return bool(found)

    def kill(self) -> None:
        """End all of them now. One that forks while it is looked for is found in the next round."""
        missed = 0
        for _ in range(_ROUNDS):
            found = self.find()
            # Twice: while a process ends, those below it hang from nothing for a moment.
            missed = 0 if found else missed + 1
            if missed == 2:
                break
            for process in found:
                with suppress(psutil.Error):
                    self._names.setdefault(process.pid, process.name())
                    process.kill()
                    self._killed.add(process.pid)
            psutil.wait_procs(found, timeout=0.05)
        # Those that were adopted have nobody else to collect them.
        any_left()

    def find(self) -> list[psutil.Process]:
        """Those that run."""
        # Anew each time: what psutil keeps of this process is wrong once the system's clock was set.
        this = psutil.Process()
        mark = _mark_of(this)
        return [each for each in this.children(recursive=True) if self._is_ours(each, mark)]

    def _is_ours(self, process: psutil.Process, mark: int) -> bool:
        with suppress(psutil.Error):
            return (
                started_at(process) >= self._since
                and process.status() != psutil.STATUS_ZOMBIE
                and _mark_of(process) == mark
            )
        return False


def _mark_of(process: psutil.Process) -> int:
    """What it has inherited from the call it belongs to (see `palaver.tools.guarded`).

    What is to outlive the call, such as a server that others use too, takes it off.
    """
    return process.rlimit(psutil.RLIMIT_RTTIME)[0] if sys.platform == "linux" else 0
