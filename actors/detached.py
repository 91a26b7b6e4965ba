"""A run that goes on without the terminal, and the command, that began it.

Layer: actors, command line; no Ray, which a process must not have joined before it divides.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from palaver.providers.errors import ConfigurationError

_TOLD_LINES = 5


class NotBegun(ConfigurationError):
    """The run in the background ended before it had begun."""


class Detached:
    """Divides this process in two: one goes on in the background, the other tells how that began.

    `in_background` is whether this is the one that goes on: it reads nothing, writes to `log`, which is added
    to, and hears no Ctrl-C and no terminal that is closed.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        began_at = os.fstat(target).st_size
        reads, writes = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        self.in_background = self.pid == 0
        if self.in_background:
            os.close(reads)
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            for theirs, ours in ((nothing, 0), (target, 1), (target, 2)):
                os.dup2(theirs, ours)
            os.close(nothing)
        else:
            os.close(writes)
        os.close(target)
        self._pipe = writes if self.in_background else reads
        self._began_at = began_at

    def begun(self, what: str) -> None:
        """In the background: say that the run has begun, and under which name."""
        os.write(self._pipe, what.encode())
        os.close(self._pipe)

    def wait(self) -> str:
        """The name under which the run has begun.

        Raises NotBegun when it ended before that, with what it said last. A signal meanwhile leaves it
        running.
        """
        said = b""
        while more := os.read(self._pipe, 1024):
            said += more
        os.close(self._pipe)
        if said:
            return said.decode()
        os.waitpid(self.pid, 0)
        with self.log.open("rb") as log:
            log.seek(self._began_at)
            lines = log.read().decode(errors="replace").strip().splitlines()
        told = "\n".join(lines[-_TOLD_LINES:]).rpartition("palaver: error: ")[2]
        raise NotBegun(told or f"the run in the background ended at once, and said nothing in {self.log}")
