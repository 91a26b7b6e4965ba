"""Processes a tool call started, down to those that tried to leave: find them and end them.

Layer: tools; no Ray.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import psutil

_PR_SET_CHILD_SUBREAPER = 36
"""linux/prctl.h: orphaned descendants become children of this process, not of init."""

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


@cache
def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent ends, so that they can be found.

    Only Linux offers this; elsewhere a process that daemonised itself is not found.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Descendants:
    """The descendants of this process that were started after `since` (by `process_clock`)."""

    def __init__(self, since: float) -> None:
        self._since = since - _TICK_S

    def terminate(self) -> None:
        """Ask each of them to end."""
        for process in self._find():
            with suppress(psutil.NoSuchProcess):
                process.terminate()

    def kill(self) -> None:
        """End all of them now."""
        _kill_until_gone(self._find)

    def _find(self) -> list[psutil.Process]:
        # Anew each time: what psutil keeps of this process is wrong once the system's clock was set.
        return [each for each in psutil.Process().children(recursive=True) if self._is_ours(each)]

    def _is_ours(self, process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            return started_at(process) >= self._since and process.status() != psutil.STATUS_ZOMBIE
        return False


def end_all(is_meant: Callable[[psutil.Process], bool]) -> None:
    """End every process of this machine that is meant, and all below it; never this one."""

    def find() -> list[psutil.Process]:
        found: set[psutil.Process] = set()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and is_meant(process):
                    found |= {process, *process.children(recursive=True)}
        return [each for each in found if each.pid != os.getpid()]

    _kill_until_gone(find)


def _kill_until_gone(find: Callable[[], list[psutil.Process]]) -> None:
    """Kill what is found. One that forks while it is looked for is found in the next round."""
    missed = 0
    for _ in range(10):
        found = find()
        # Twice: while a process ends, those below it hang from nothing for a moment.
        missed = 0 if found else missed + 1
        if missed == 2:
            return
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=0.05)
        for process in found:
            # Those that were adopted have nobody else to collect them.
            with suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
