"""Where a command writes: answers to stdout, everything else to stderr, both kept clear of Ray's notices.

Layer: actors, command line; no Ray.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

_AS_WIDE_AS_IT_IS = 10_000


def printable(text: str, *, keep: str = "") -> str:
    """`text` without control characters, which could move the cursor or set the terminal's title.

    Those in `keep` stay; the others are shown as Python escapes.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )


class Screen:
    """The person's stdout and stderr.

    `live` is whether stderr is a terminal on which a picture can be redrawn, `can_ask` whether there is
    somebody to ask: what is typed comes from a terminal, and questions go to one. Made while `sys.stdout` and
    `sys.stderr` are the real ones; `quiet` then keeps everybody else off them.
    """

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        for stream in (self._out, self._err):
            if isinstance(stream, io.TextIOWrapper):
                # A model may answer what the terminal's encoding cannot show.
                stream.reconfigure(errors="backslashreplace")
        self.out_is_terminal = self._out.isatty()
        self.live = self._err.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
        self.can_ask = self._err.isatty() and _is_terminal(sys.stdin)
        self.console = Console(
            file=self._err, force_terminal=self.live, highlight=False, markup=False, emoji=False
        )
        self._out_console: Console | None = None
        self._picture: Live | None = None
        self._shown: RenderableType = ""
        self._later: list[Callable[[], None]] | None = None
        self._parts: ExitStack | None = None
        """What is undone at the end of an answer that comes in parts."""
        self._line_open = False

    def answer(self, text: str) -> None:
        """Write what was asked for: to stdout, above the picture where they share a terminal.

        Raises BrokenPipeError when nobody reads it any more.
        """
        shared = self.out_is_terminal and self._is_one_terminal()
        if self._later is not None and shared:
            self._later.append(lambda: self.answer(text))
            return
        if self._picture is not None and shared:
            self.console.print(Text(printable(text, keep="\n\t")), soft_wrap=True)
            return
        self._out.write((printable(text, keep="\n\t") if self.out_is_terminal else text) + "\n")
        self._out.flush()

    @property
    def out_console(self) -> Console:
        """A console on stdout, for who draws on all of it."""
        if self._out_console is None:
            self._out_console = Console(file=self._out, highlight=False, markup=False, emoji=False)
        return self._out_console

    def table(self, table: RenderableType) -> None:
        """Write a table that was asked for: to stdout, as wide as the terminal, or as it is."""
        width = None if self.out_is_terminal else _AS_WIDE_AS_IT_IS
        Console(file=self._out, width=width, highlight=False, markup=False, emoji=False).print(table)

    def part(self, text: str) -> None:
        """Write a further part of an answer, as `answer` does; `end_parts` ends it.

        Where both share a terminal, the picture makes room for it until then, and others wait.
        Raises BrokenPipeError when nobody reads it any more.
        """
        if self._parts is None:
            self._parts = ExitStack()
            if self._picture is not None and self.out_is_terminal and self._is_one_terminal():
                self._parts.enter_context(self._alone())
        self._out.write(printable(text, keep="\n\t") if self.out_is_terminal else text)
        self._out.flush()
        self._line_open = not text.endswith("\n")

    def end_parts(self) -> None:
        """An answer that came in parts is whole, or comes no further. Harmless when there is none."""
        parts, self._parts = self._parts, None
        if parts is None:
            return
        with parts:
            if self._line_open:
                with suppress(OSError, ValueError):
                    self._out.write("\n")
                    self._out.flush()

    def note(self, text: str) -> None:
        """Write something about the run: to stderr. Never fails: it may be about the end of all."""
        if self._later is not None:
            self._later.append(lambda: self.note(text))
            return
        with suppress(OSError, ValueError):
            self.console.print(Text(printable(text, keep="\n\t")), soft_wrap=True)

    def show(self, picture: RenderableType) -> None:
        """Draw or redraw the picture."""
        self._shown = picture
        if self._picture is not None and self._later is None:
            with suppress(OSError):
                self._picture.update(picture, refresh=True)

    def say(self, text: str, *, end: str = "\n") -> None:
        """Write a part of a question, within `asking`. Never fails."""
        with suppress(OSError, ValueError):
            self.console.print(Text(printable(text, keep="\n\t")), soft_wrap=True, end=end)

    @property
    def lines(self) -> int:
        """How many lines a picture may have."""
        return max(4, self.console.size.height - 1)

    @property
    def ascii_only(self) -> bool:
        """Whether the terminal's encoding has no box-drawing characters."""
        return self.console.options.ascii_only

    @contextmanager
    def picture(self) -> Generator[None]:
        """A part of the terminal that `show` redraws, and that is gone after the block."""
        self._shown = ""
        self._picture = self._new_picture()
        try:
            yield
        finally:
            self.clear()

    @contextmanager
    def asking(self) -> Generator[None]:
        """Take the picture away for the block, and hold back what others write to this terminal."""
        self.end_parts()
        with self._alone():
            yield

    @contextmanager
    def _alone(self) -> Generator[None]:
        if self._picture is not None:
            with suppress(OSError):
                self._picture.stop()
        self._later = []
        try:
            yield
        finally:
            later, self._later = self._later, None
            if self._picture is not None:
                # Another one: the old would draw over what was written since.
                self._picture = self._new_picture()
                self.show(self._shown)
            for write in later:
                with suppress(OSError):  # who holds back cannot be told
                    write()

    def _new_picture(self) -> Live:
        live = Live(
            console=self.console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        if self._later is None:
            with suppress(OSError):
                live.start()
        return live

    def clear(self) -> None:
        """Take the picture away, if there is one: for who does not come back to the end of `picture`."""
        self.end_parts()
        live, self._picture = self._picture, None
        if live is not None:
            with suppress(OSError):
                live.stop()

    @contextmanager
    def quiet(self) -> Generator[None]:
        """Keep whatever others print, Ray above all, away from both streams for the block."""
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = _Nowhere(self._out), _Nowhere(self._err)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before

    def _is_one_terminal(self) -> bool:
        try:
            return os.fstat(self._out.fileno()).st_rdev == os.fstat(self._err.fileno()).st_rdev
        except (OSError, ValueError):
            return False


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it was closed
        return False


class _Nowhere(io.TextIOBase):
    """Takes what is written and drops it. Says of itself what the stream it stands for says, so that
    `input()` still offers line editing and child processes get the real file."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, s: str, /) -> int:
        return len(s)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.errors
