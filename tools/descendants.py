"""Processes a tool call started, down to those that tried to leave: find them and end them.

Layer: tools; no Ray.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from contextlib import suppress

import psutil

_PR_SET_CHILD_SUBREAPER = 36
"""linux/prctl.h: orphaned descendants become children of this process, not of init."""

_TICK_S = 0.02
"""Two of the kernel's clock ticks, in which the start of a process is counted."""


def process_clock() -> float:
    """Now, on the clock by which psutil tells when a process was started.

    On Linux that is the boot time, known to the second only, plus the time since then.
    """
    if sys.platform == "linux":
        return psutil.boot_time() + time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time()


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
        self._self = psutil.Process()

    def terminate(self) -> None:
        """Ask each of them to end."""
        for process in self._find():
            with suppress(psutil.NoSuchProcess):
                process.terminate()

    def kill(self) -> None:
        """End all of them now. One that forks while it is looked for is found in the next round."""
        for _ in range(10):
            found = self._find()
            if not found:
                return
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(found, timeout=0.05)
            for process in found:
                # Those that were adopted have nobody else to collect them.
                with suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)

    def _find(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for process in self._self.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.create_time() >= self._since and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found
