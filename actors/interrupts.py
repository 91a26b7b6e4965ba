"""Interrupts: Ctrl-C, SIGTERM and a closed terminal, turned into an orderly end.

Layer: actors, command line; no Ray.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """The person, or the system, asked this command to end. `exit_code` is the shell's: 128 + signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        return 128 + self.signal_number


class Interrupts:
    """What a signal does, from the start of a command to its end.

    Outside the blocks below the first raises Interrupted where the command is. `received` is the first
    one that came, None when none did. A signal that was ignored when the command started (`nohup`, a job
    in the background of a script) stays ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._count = 0
        self._on_signal: Callable[[int], None] = self._raise
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.getsignal(number)
        self.arm()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def arm(self) -> None:
        """Set the handlers, again where somebody replaced them (`ray.init` does)."""
        for number in self._before:
            signal.signal(number, self._handle)

    @contextmanager
    def held_back(self, notice: str) -> Generator[None]:
        """Let the block come to its end first, and write `notice`; a second signal does not wait.

        Processes that are started meanwhile do not get to see that the terminal was closed: the end that
        this command then comes to needs them. (That they do not see Ctrl-C Ray sees to itself.)
        """

        def hold_back(number: int) -> None:
            if self._count > 1:
                self._raise(number)
            # Neither buffers nor locks: this may have interrupted somebody who holds them.
            with suppress(OSError):
                os.write(2, f"\n{notice}\n".encode())

        with self._while(hold_back):
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
            try:
                yield
            finally:
                self.arm()
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if self.received is not None:
            self._raise(self.received)

    @contextmanager
    def told(self, listener: Callable[[], None]) -> Generator[None]:
        """Call `listener` in the running event loop for the first signal; a second one raises."""
        loop = asyncio.get_running_loop()
        count_before = self._count

        def tell(number: int) -> None:
            if self._count > count_before + 1:
                self._raise(number)
            loop.call_soon_threadsafe(listener)

        with self._while(tell):
            yield

    def ignore(self) -> None:
        """From now on let nothing disturb: the command is about to end anyway."""
        self._on_signal = lambda _: None

    def forget(self) -> None:
        """Take what came so far as dealt with."""
        self.received = None
        self._count = 0

    @contextmanager
    def _while(self, on_signal: Callable[[int], None]) -> Generator[None]:
        before, self._on_signal = self._on_signal, on_signal
        try:
            yield
        finally:
            self._on_signal = before

    def _raise(self, number: int) -> None:
        raise Interrupted(number)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self._count += 1
        if self.received is None:
            self.received = number
        self._on_signal(number)
