"""What a command prints, as it comes: the head and the tail of it in memory, all of it in a file.

Layer: tools; no Ray.
"""

from __future__ import annotations

import codecs
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MAX_OUTPUT_CHARS = 30_000
"""How much of what a command prints a model gets to read, about 8,000 tokens. Of more it gets the head and
the tail."""

MAX_FILE_BYTES = 1_000_000_000
"""A command that prints more than this is stopped: what it prints is kept on the workspace's disk."""


class Shortened:
    """Text that arrives as bytes: all of it while it is short, else its head and its tail.

    Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, max_chars: int = MAX_OUTPUT_CHARS) -> None:
        self._max_chars = max_chars
        self._half = max_chars // 2
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._start = ""
        self._tail = ""
        self._chars = 0

    def take(self, data: bytes, *, last: bool = False) -> None:
        """More of it. A character of which only a part has come waits for the rest, unless it is the last."""
        text = self._decoder.decode(data, last)
        self._chars += len(text)
        if len(self._start) < self._max_chars:
            self._start += text[: self._max_chars - len(self._start)]
        self._tail = (self._tail + text[-self._half :])[-self._half :]

    @property
    def waiting_bytes(self) -> int:
        """How many bytes at the end wait for the rest of their character."""
        return len(self._decoder.getstate()[0])

    @property
    def is_shortened(self) -> bool:
        """Whether something is left out."""
        return self._chars > self._max_chars

    def text(self, where: str) -> str:
        """The text; where something is left out, a line says how much, and `where` the whole is."""
        if not self.is_shortened:
            return self._start
        head, tail = self._start[: self._half], self._tail
        # Whole lines are easier to read, unless they are long ones.
        if (end := head.rfind("\n")) > self._half // 2:
            head = head[:end]
        if -1 < (end := tail.find("\n")) < self._half // 2:
            tail = tail[end + 1 :]
        left_out = self._chars - len(head) - len(tail)
        return f"{head.rstrip()}\n[{left_out:,} characters left out; {where}]\n{tail}"


class Output:
    """What one command prints. Only what is too long to be shown whole goes into a file.

    `folder` makes the folder for that file. Nothing here raises when the file cannot be written: the
    command has done its work all the same, and `problem` tells of it.
    """

    def __init__(
        self, folder: Callable[[], Path], max_chars: int = MAX_OUTPUT_CHARS, max_bytes: int = MAX_FILE_BYTES
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._shown = Shortened(max_chars)
        self._not_in_file = bytearray()
        self._file: int | None = None
        self._bytes = 0
        self.path: Path | None = None
        self.problem = ""

    def take(self, data: bytes, *, last: bool = False) -> None:
        """More of it. What is beyond the limit is dropped."""
        data = data[: self._max_bytes - self._bytes]
        self._bytes += len(data)
        self._shown.take(data, last=last)
        if self.problem:
            return
        if self._file is None:
            self._not_in_file += data
            if not self._shown.is_shortened:
                return
            data = bytes(self._not_in_file)
            self._not_in_file.clear()
        try:
            if self._file is None:
                self._file, path = tempfile.mkstemp(prefix="output-", suffix=".txt", dir=self._folder())
                self.path = Path(path)
            write_all(self._file, data)
        except OSError as error:
            self.discard()
            self.problem = f"it could not be kept in a file: {error.strerror or error}"

    @property
    def is_full(self) -> bool:
        """Whether it has reached the limit."""
        return self._bytes >= self._max_bytes

    def text(self, workspace: str) -> str:
        """What is shown of it, with where the rest is. To be asked once there is no more."""
        self.take(b"", last=True)
        where = self.problem
        if self.path is not None:
            path = self.path.relative_to(workspace)
            where = f"the whole output ({self._bytes:,} bytes) is in the workspace's file {path}"
        return self._shown.text(where)

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def discard(self) -> None:
        """Remove the file, if there is one: nobody will be told of it."""
        self.close()
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()
            self.path = None


def write_all(file: int, data: bytes) -> None:
    """Write `data` to an open file, all of it. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
