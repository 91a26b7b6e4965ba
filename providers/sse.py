"""Server-sent events: bytes in, events out, wherever the bytes were cut.

Follows https://html.spec.whatwg.org/multipage/server-sent-events.html, "Interpreting an event stream", but
for `id` and `retry`, which answers have no use for, and for an event that is cut off at the end of the
stream: it is handed out by `end`, since servers forget the last empty line.

Layer: providers; no I/O.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import NamedTuple


class ServerSentEvent(NamedTuple):
    """One event. `name` is "" where the server gave none."""

    name: str
    data: str


class SseParser:
    """Parses one stream, a chunk at a time."""

    def __init__(self) -> None:
        # "utf-8-sig" drops a byte order mark at the beginning.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._rest: list[str] = []
        """The pieces of a line that has not ended."""
        self._after_cr = False
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """The events that end within `chunk`."""
        text = self._decoder.decode(chunk)
        if not text:
            return
        if self._after_cr and text.startswith("\n"):
            text = text[1:]  # the second half of a line end
        self._after_cr = text.endswith("\r") if text else self._after_cr
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines:
            if (event := self._take("".join((*self._rest, line)))) is not None:
                yield event
            self._rest.clear()
        if rest:
            self._rest.append(rest)

    def end(self) -> ServerSentEvent | None:
        """The event that the end of the stream cut off, if there is one."""
        if self._rest:
            self._take("".join(self._rest))
            self._rest.clear()
        return self._take("")

    def _take(self, line: str) -> ServerSentEvent | None:
        if line:
            field, _, value = line.partition(":")  # a comment has an empty field
            value = value.removeprefix(" ")
            if field == "data":
                self._data.append(value)
            elif field == "event":
                self._name = value
            return None
        event = ServerSentEvent(self._name, "\n".join(self._data)) if self._data else None
        self._name = ""
        self._data.clear()
        return event
