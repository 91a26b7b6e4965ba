"""What a person types while the event loop goes on: a line, or a text in their editor.

Layer: actors, command line; no Ray.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import tempfile
import termios
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_LINE_BYTES = 4095
"""Of one line a terminal passes on no more (Linux, termios(3): canonical mode)."""

_LINE_BUFFER_BYTES = 65536
_EDITOR_ENDS_WITHIN_S = 2.0


def forget_typed() -> None:
    """Drop what was typed before it was asked for: it is no answer to a question nobody had read."""
    with suppress(termios.error):
        termios.tcflush(_keyboard(), termios.TCIFLUSH)


async def read_line() -> str | None:
    """The next line of the terminal; None at its end (Ctrl-D, or the terminal is gone)."""
    loop = asyncio.get_running_loop()
    typed: asyncio.Future[None] = loop.create_future()
    loop.add_reader(_keyboard(), lambda: None if typed.done() else typed.set_result(None))
    try:
        await typed
    finally:
        loop.remove_reader(_keyboard())
    try:
        line = os.read(_keyboard(), _LINE_BUFFER_BYTES)
    except OSError:
        return None
    return line.decode(sys.stdin.encoding, "replace").rstrip("\r\n") if line else None


def editor() -> str | None:
    """The command of the person's editor; None when they have none."""
    return os.environ.get("VISUAL") or os.environ.get("EDITOR") or None


async def edit(text: str, command: str) -> str:
    """A text as the person leaves it in the editor. When cancelled, the editor is ended.

    Raises OSError, or ValueError for what cannot be: a command that is none, an editor that failed, or no
    UTF-8.
    """
    with tempfile.TemporaryDirectory(prefix="palaver-") as folder, _terminal_restored():
        path = Path(folder) / "input.json"
        path.write_text(text, encoding="utf-8")
        # Its stdout is the terminal, whatever ours is.
        process = await asyncio.create_subprocess_exec(*shlex.split(command), path, stdout=2)
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await _end(process)
            raise
        if code:
            raise ValueError(f"{command!r} ended with exit code {code}")
        return path.read_text(encoding="utf-8")


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_EDITOR_ENDS_WITHIN_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


@contextmanager
def _terminal_restored() -> Generator[None]:
    """Give the terminal back as it was: an editor that is ended may leave it raw."""
    try:
        before = termios.tcgetattr(_keyboard())
    except termios.error as error:
        raise OSError(*error.args) from error
    try:
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(_keyboard(), termios.TCSADRAIN, before)


def _keyboard() -> int:
    return sys.stdin.fileno()
