"""An exact replacement in a text, and why it could not be made.

Line ends are the one thing that need not be exact: a model sees lines, and cannot know how they end. "\\n"
matches "\\r\\n" too, and what is put in gets the line ends of the place where it goes. Nothing outside of
the match changes, so that a file with mixed line ends stays as it is everywhere else.

Layer: tools; no Ray.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

_CONTEXT_LINES = 3
_MAX_SHOWN_LINES = 40
_MAX_SHOWN_CHARS = 500
_MAX_PLACES = 20
"""How much of a text a model is shown: lines around a change, lines in all, characters of a line, places."""

_LINES_COMPARED = 5_000
"""In how many lines one is looked for that is only like the wanted one, at about 20 µs each."""

_NUMBERED = re.compile(r"^ *\d+\t", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Edit:
    """Put `new` where `old` is, once, or with `everywhere` wherever it is."""

    old: str
    new: str
    everywhere: bool = False

    def problem(self) -> str | None:
        """Why it is no edit of any text; None when it may be."""
        if not self.old:
            return (
                "old is empty; give the text that is to be replaced. To add text, replace a line next to the "
                "place by itself and what is new; to write a whole file, use write_file"
            )
        if _lf(self.old) == _lf(self.new):
            return "old and new are the same, so there is nothing to change"
        return None

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where `old` is in `text`."""
        pattern = r"\r?\n".join(re.escape(line) for line in _lf(self.old).split("\n"))
        return [match.span() for match in re.finditer(pattern, text)]

    def why_not(self, text: str, spans: Sequence[tuple[int, int]]) -> str | None:
        """Why `old`, which is at `spans`, cannot be replaced in `text`; None when it can."""
        if not spans:
            return self._not_found(text)
        if len(spans) > 1 and not self.everywhere:
            places = _listed([line_at(text, start) for start, _ in spans])
            return (
                f"old is there {len(spans)} times, in lines {places}; give more of the text around it, so "
                "that it is there once, or replace_all=true to replace each"
            )
        return None

    def applied(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[str, list[int]]:
        """The text with `new` at `spans`, and where each `new` starts in it."""
        parts: list[str] = []
        starts: list[int] = []
        done = length = 0
        for start, end in spans:
            new = _lf(self.new).replace("\n", _line_end(text, start))
            starts.append(length + start - done)
            parts += text[done:start], new
            length += start - done + len(new)
            done = end
        parts.append(text[done:])
        return "".join(parts), starts

    def _not_found(self, text: str) -> str:
        without = _NUMBERED.sub("", self.old)
        if without != self.old and Edit(without, self.new).spans(text):
            return (
                "old is not there as it was given, but it is without the line numbers before each line, "
                "which read_file adds; leave them out of old and new"
            )
        lines = [line.removesuffix("\r") for line in text.split("\n")]
        wanted = _lf(self.old).strip("\n").split("\n")
        at = _same_but_for_space(lines, wanted)
        if at is not None:
            return (
                "old is not there as it was given, but with other spaces, tabs or indentation it is; copy it "
                f"from the file, which has:\n{numbered(lines, at, at + len(wanted))}"
            )
        told = "old is not there"
        done = Edit(self.new, self.old).spans(text) if self.new.strip() else []
        if done:
            told += (
                f", but new is, in line {line_at(text, done[0][0])}: the change may have been made already"
            )
        at = _most_like(lines, wanted)
        if at is None:
            return f"{told}. There is nothing like old either; read_file shows what the file has"
        return f"{told}. The most like old is:\n{numbered(lines, at, at + len(wanted))}"


def changed(text: str, starts: Sequence[int], new: str) -> str:
    """The lines of an edited text around the first of its changes, numbered."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if lines[-1] == "":
        lines.pop()
    first = line_at(text, starts[0]) - 1
    last = first + _lf(new).count("\n")
    return numbered(lines, max(0, first - _CONTEXT_LINES), min(len(lines), last + 1 + _CONTEXT_LINES))


def numbered(lines: Sequence[str], start: int, end: int) -> str:
    """The lines from index `start` up to `end`, as read_file shows them; the middle left out of many."""
    shown = [f"{index + 1}\t{_clipped(lines[index])}" for index in range(start, min(end, len(lines)))]
    if len(shown) > _MAX_SHOWN_LINES:
        half = _MAX_SHOWN_LINES // 2
        shown[half:-half] = [f"[{len(shown) - 2 * half} lines left out]"]
    return "\n".join(shown)


def lines_of(starts: Sequence[int], text: str) -> str:
    """The lines that changes start in, as text."""
    return _listed([line_at(text, start) for start in starts])


def line_at(text: str, index: int) -> int:
    """The number, from 1, of the line that a character is in."""
    return text.count("\n", 0, index) + 1


def _lf(text: str) -> str:
    return text.replace("\r\n", "\n")


def _line_end(text: str, at: int) -> str:
    """How the line ends that a place is in; in the last line, how the one before it does."""
    end = text.find("\n", at)
    if end < 0:
        end = text.rfind("\n", 0, at)
    return "\r\n" if end > 0 and text[end - 1] == "\r" else "\n"


def _listed(numbers: Sequence[int]) -> str:
    listed = ", ".join(map(str, numbers[:_MAX_PLACES]))
    return listed if len(numbers) <= _MAX_PLACES else f"{listed} and {len(numbers) - _MAX_PLACES} more"


def _clipped(line: str) -> str:
    if len(line) <= _MAX_SHOWN_CHARS:
        return line
    return f"{line[:_MAX_SHOWN_CHARS]}… [{len(line) - _MAX_SHOWN_CHARS} more characters]"


def _same_but_for_space(lines: Sequence[str], wanted: Sequence[str]) -> int | None:
    """The index of the first lines that are the wanted ones but for spaces and tabs."""
    bare = ["".join(line.split()) for line in wanted]
    if not any(bare):
        return None
    # One text of all lines, so that the search runs in C; a line has no NUL, which would be a binary file.
    haystack = "\0" + "\0".join("".join(line.split()).replace("\0", "") for line in lines) + "\0"
    needle = "\0".join(bare)
    at = haystack.find(f"\0{needle}\0")
    if at < 0:
        at = haystack.find(needle)  # begins or ends within a line
        return None if at < 0 else haystack.count("\0", 0, at + 1) - 1
    return haystack.count("\0", 0, at)


def _most_like(lines: Sequence[str], wanted: Sequence[str]) -> int | None:
    """The index from which on most of the wanted lines are, or else one like the longest of them."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for offset, line in enumerate(wanted):
        # Of a line that is there many times, such as "}", the first places will do.
        if line.strip() and len(places[line.strip()]) < _MAX_PLACES:
            places[line.strip()].append(offset)
    votes = Counter(
        index - offset for index, line in enumerate(lines) for offset in places.get(line.strip(), ())
    )
    if votes:
        return max(0, max(votes, key=lambda index: (votes[index], -index)))
    longest = max(range(len(wanted)), key=lambda index: len(wanted[index].strip()))
    near = difflib.get_close_matches(
        _clipped(wanted[longest].strip()),
        [_clipped(line.strip()) for line in lines[:_LINES_COMPARED]],
        n=1,
    )
    if not near:
        return None
    found = next(index for index, line in enumerate(lines) if _clipped(line.strip()) == near[0])
    return max(0, found - longest)
