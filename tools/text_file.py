"""A text file as it is read: which encoding it has, and its lines, of which never many are in memory.

Layer: tools; no Ray.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from palaver.providers.messages import ImageMediaType
from palaver.tools.confined import Confined

_SNIFFED_BYTES = 8192
"""Git looks for a NUL in the first 8,000 bytes to tell binary files (buffer_is_binary, xdiff-interface.c)."""

_CHUNK_BYTES = 65_536

# The longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

_WITHOUT_MARK = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}
"""Python's codecs of these names write a mark themselves, or read the machine's own byte order."""


class Encoding(NamedTuple):
    """How a file's bytes are text: a codec's name, and the byte order mark before the text, if any."""

    codec: str
    mark: bytes = b""

    def __str__(self) -> str:
        return f"{self.codec} with byte order mark" if self.mark else self.codec


class Piece(NamedTuple):
    """A part of a line: the characters from `column` (from 0) on of line `number` (from 1).

    `ending` is what ends the line after it: "\\n", "\\r\\n" or, at the end of the file, "". None when the
    line goes on.
    """

    number: int
    column: int
    text: str
    ending: str | None


class TextFile:
    """An open file that may hold text. Closed by whoever opened it.

    `encoding` is a name that Python knows, and None means UTF-8, or what a byte order mark at the start says.
    With `errors` "replace" bytes that are no text become U+FFFD; with "strict" they raise ToolError.
    """

    def __init__(
        self, files: Confined, file: int, shown: str, encoding: str | None = None, errors: str = "strict"
    ) -> None:
        self._files = files
        self._file = file
        self._shown = shown
        self._errors = errors
        self.status = os.fstat(file)
        """The file as it was when it was opened."""
        self.start = os.pread(file, _SNIFFED_BYTES, 0)
        """Its first bytes."""
        self.encoding = self._encoding(encoding)
        """How its bytes are text."""
        self.is_binary = encoding is None and not self.encoding.mark and b"\0" in self.start
        """Whether it holds no text, as far as its first bytes tell."""
        self.line_count: int | None = None
        """How many lines it has; known when `pieces` has come to the end."""

    @property
    def size(self) -> int:
        """Bytes in the file when it was opened."""
        return self.status.st_size

    @property
    def image_type(self) -> ImageMediaType | None:
        """Which kind of picture it is; None when none that a model can see."""
        if self.start.startswith(b"\x89PNG\r\n\x1a\n"):
            return "image/png"
        if self.start.startswith(b"\xff\xd8\xff"):
            return "image/jpeg"
        if self.start.startswith((b"GIF87a", b"GIF89a")):
            return "image/gif"
        if self.start.startswith(b"RIFF") and self.start[8:12] == b"WEBP":
            return "image/webp"
        return None

    def content(self, max_bytes: int) -> bytes:
        """All bytes; no more than one over `max_bytes`, by which the caller can tell that there are more."""
        parts: list[bytes] = []
        left, at = max_bytes + 1, 0
        while left and (part := os.pread(self._file, min(left, 1 << 20), at)):
            parts.append(part)
            left, at = left - len(part), at + len(part)
        return b"".join(parts)

    def decoded(self, content: bytes) -> str:
        """All of `content`, which is all of the file, as text, less the mark."""
        content = content.removeprefix(self.encoding.mark)
        try:
            return content.decode(self.encoding.codec)
        except UnicodeDecodeError as error:
            line = 1 + content[: error.start].decode(self.encoding.codec, "replace").count("\n")
            raise self._undecodable(error, error.start, line) from error

    def encoded(self, text: str) -> bytes:
        """Text as bytes of the file, with the mark. Raises ToolError for what the encoding does not have."""
        try:
            return self.encoding.mark + text.encode(self.encoding.codec)
        except UnicodeEncodeError as error:
            character = text[error.start]
            raise self._files.refusal(
                f"character {character!a} cannot be written in {self.encoding.codec}, which is the encoding "
                f"of '{self._shown}'; the file was not changed"
            ) from error

    def pieces(self, max_chars: int, first_line: int = 1) -> Iterator[Piece]:
        """The lines from `first_line` on, longer ones in pieces of `max_chars` characters.

        Raises ToolError when it comes to bytes that are no text.
        """
        number, column, rest, unended = 1, 0, "", False
        for chunk in self._chunks():
            text, unended = chunk, not chunk.endswith("\n")
            if number < first_line:
                number, text = _skipped(text, number, first_line)
                if number < first_line:
                    continue
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                parts, last = _split(line, max_chars)
                for part in parts:
                    yield Piece(number, column, part, None)
                    column += max_chars
                ending = "\r\n" if last.endswith("\r") else "\n"
                yield Piece(number, column, last.removesuffix("\r"), ending)
                number, column = number + 1, 0
            parts, rest = _split(rest, max_chars)
            for part in parts:
                yield Piece(number, column, part, None)
                column += max_chars
        self.line_count = number if unended else number - 1
        if rest:
            yield Piece(number, column, rest, "")

    def _chunks(self) -> Iterator[str]:
        """The text, part by part. What comes before bytes that are no text is given before the error."""
        decoder = codecs.getincrementaldecoder(self.encoding.codec)(self._errors)
        at, lines = len(self.encoding.mark), 1
        while True:
            chunk = os.pread(self._file, _CHUNK_BYTES, at)
            at += len(chunk)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                # The decoder has kept the start of a character from the chunk before.
                good = error.object[: error.start].decode(self.encoding.codec, "replace")
                if good:
                    yield good
                offset = at - len(error.object) + error.start - len(self.encoding.mark)
                raise self._undecodable(error, offset, lines + good.count("\n")) from error
            if text:
                yield text
            if not chunk:
                return
            lines += text.count("\n")

    def _undecodable(self, error: UnicodeDecodeError, offset: int, line: int) -> Exception:
        offset += len(self.encoding.mark)
        byte = error.object[error.start]
        return self._files.refusal(
            f"'{self._shown}' is not {self.encoding.codec} text: byte 0x{byte:02x} at offset {offset}, in "
            f'line {line} ({error.reason}). Say which encoding it has, for instance encoding="latin-1", '
            "which takes any bytes."
        )

    def _encoding(self, asked: str | None) -> Encoding:
        """The encoding that is asked for, or else the one that the start of the file tells."""
        codec = "utf-8" if asked is None else self._codec(asked)
        for mark, marked in _MARKS:
            # A mark counts only where it is one: in latin-1 these bytes are characters.
            if self.start.startswith(mark) and (
                asked is None or marked.startswith(codec.removesuffix("-sig"))
            ):
                return Encoding(marked, mark)
        return Encoding(_WITHOUT_MARK.get(codec, codec))

    def _codec(self, asked: str) -> str:
        try:
            with suppress(UnicodeDecodeError):  # what it tells of one byte does not matter here
                b"a".decode(asked)
            codecs.getincrementaldecoder(asked)
            return codecs.lookup(asked).name
        except (LookupError, UnicodeError, ValueError) as error:
            raise self._files.refusal(
                f"encoding {asked!r} is unknown ({error}); use for instance 'utf-8', 'utf-16', 'latin-1', "
                "'cp1252', 'shift_jis', or leave it out"
            ) from error


def _skipped(text: str, number: int, first_line: int) -> tuple[int, str]:
    """The number of the line after all of `text`, or `first_line` and what of `text` is from there on."""
    ends = text.count("\n")
    if number + ends < first_line:
        return number + ends, ""
    at = 0
    for _ in range(first_line - number):
        at = text.index("\n", at) + 1
    return first_line, text[at:]


def _split(text: str, max_chars: int) -> tuple[list[str], str]:
    """The text in pieces of that length, and what is left: the last, which is empty only when all is."""
    cuts = range(0, (len(text) - 1) // max_chars * max_chars, max_chars)
    return [text[at : at + max_chars] for at in cuts], text[len(cuts) * max_chars :]
