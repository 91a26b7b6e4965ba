"""The built-in tool that searches the contents of files.

Python's own `re` and not a program such as ripgrep: what a pattern means must not depend on what is
installed on the node. A pattern that never ends holds the interpreter lock; the call's timeout then ends its
process.

Layer: tools; no Ray.
"""

from __future__ import annotations

import re
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from palaver.tools.call import ToolCallInfo
from palaver.tools.confined import Confined, Place
from palaver.tools.errors import ToolError
from palaver.tools.find import Walk, glob_of
from palaver.tools.glob import Glob
from palaver.tools.text_file import Piece, TextFile
from palaver.tools.tool import tool

MAX_SEARCH_BYTES = 100_000
"""UTF-8 that search_files returns at once, as read_file."""

MAX_SHOWN_CHARS = 400
"""Characters that are shown of a line; of a longer one those around the match."""

_PIECE_CHARS = 10_000
"""A longer line is searched in pieces of this length: `re` may take time by the square of it."""

_OVERLAP_CHARS = 1_000
"""By so much the pieces overlap: a match that is no longer is found wherever it is."""

_LOOK_PIECES = 10_000
"""After so many lines, or pieces of one, it is looked whether time is up."""


@tool(in_workspace=True, timeout_s=60)
def search_files(
    pattern: str,
    info: ToolCallInfo,
    path: str = ".",
    glob: str | None = None,
    max_matches: Annotated[int, Field(ge=1, le=5_000)] = 200,
    ignore_case: bool = False,
    context_lines: Annotated[int, Field(ge=0, le=20)] = 0,
) -> str:
    """Search the lines of text files for a regular expression (Python's `re`).

    Each line found is `file:line number:text`, each line of context `file-line number-text`. Binary files
    and links are left out.

    Args:
        pattern: The regular expression; it is matched within one line.
        path: The folder to search with all folders below it, or one file; relative to the workspace.
        glob: Which files, such as "*.py" (a name in any folder) or "src/**/*.{ts,tsx}" (counted from path).
        max_matches: How many lines to find at most.
        ignore_case: Whether upper and lower case are the same.
        context_lines: How many lines to show before and after each line found.
    """
    with Confined(info) as files:
        search = _Search(_compiled(files, pattern, ignore_case), max_matches, context_lines)
        wanted = glob_of(files, "glob", glob) or Glob("**")
        with files.place(path) as place:
            walk = Walk(place, wanted)
            status = place.status()
            if status is None:
                raise place.missing()
            if stat.S_ISDIR(status.st_mode):
                _look_below(files, search, walk)
            else:
                with place.open_file() as file:
                    search.look_through(_text(files, place, file), place.shown, walk)
        return search.result(pattern, walk)


def _look_below(files: Confined, search: _Search, walk: Walk) -> None:
    for found in walk.found():
        if search.full or walk.is_late():
            return
        if not found.is_file:
            continue
        place = Place(files, found.folder, found.name, found.path)
        try:
            with place.open_file() as file:
                search.look_through(_text(files, place, file), place.shown, walk)
        except ToolError:  # no permission, gone, or swapped for something else
            walk.unreadable.append(place.shown)


def _text(files: Confined, place: Place, file: int) -> TextFile:
    return TextFile(files, file, place.shown, errors="replace")


@dataclass
class _Search:
    regex: re.Pattern[str]
    max_matches: int
    context_lines: int
    lines: list[str] = field(default_factory=list[str])
    matches: int = 0
    files: int = 0
    files_with_matches: int = 0
    binary: int = 0
    used: int = 0
    full: bool = False

    def look_through(self, text: TextFile, shown: str, walk: Walk) -> None:
        """Search one file, as long as there is room for what is found."""
        if text.is_binary:
            self.binary += 1
            return
        self.files += 1
        # One more than is shown: the last may be the start of the line that is searched.
        before: deque[Piece] = deque(maxlen=self.context_lines + 1)
        last_shown = after = 0
        found_any = False
        for piece, match in self._lines(text, walk):
            if match is None:
                if after and piece.number > last_shown:
                    after -= 1
                    last_shown = piece.number
                    self._add(f"{shown}-{piece.number}-{_around(piece.text)}")
                elif self.context_lines:
                    before.append(piece)
                continue
            if self.matches == self.max_matches or self.used > MAX_SEARCH_BYTES:
                self.full = True
                break
            since = max(last_shown, piece.number - self.context_lines - 1)
            earlier = [each for each in before if since < each.number < piece.number]
            first = earlier[0].number if earlier else piece.number
            if self.context_lines and self.lines and (not last_shown or first != last_shown + 1):
                self._add("--")
            for each in earlier:
                self._add(f"{shown}-{each.number}-{_around(each.text)}")
            before.clear()
            self._add(f"{shown}:{piece.number}:{_around(match.string, match)}")
            self.matches += 1
            found_any = True
            last_shown, after = piece.number, self.context_lines
        self.files_with_matches += found_any

    def result(self, pattern: str, walk: Walk) -> str:
        """What was found, and a note of what was searched."""
        if self.matches:
            count = f"{self.matches} matching {'line' if self.matches == 1 else 'lines'}"
            notes = [f"{count} in {self.files_with_matches} of {self.files} files searched"]
        else:
            notes = [f"no match for {pattern!r:.200} in {self.files} files searched"]
        if self.full:
            limit = f"max_matches={self.max_matches}"
            if self.matches < self.max_matches:
                limit = f"{MAX_SEARCH_BYTES:,} bytes of result"
            notes.append(f"stopped at {limit}: there are more; use a narrower pattern, path or glob")
        if self.binary:
            notes.append(f"left out {self.binary} binary {'file' if self.binary == 1 else 'files'}")
        return "\n".join([*self.lines, f"[{'; '.join([*notes, *walk.notes()])}]"])

    def _lines(self, text: TextFile, walk: Walk) -> Iterator[tuple[Piece, re.Match[str] | None]]:
        """Each line, by its first piece, and the first match in it; of a long line also by a later piece.

        Lines without a match only where they may be shown around one.
        """
        find = self.regex.search
        all_lines = self.context_lines > 0
        tail = ""
        done = False
        for count, piece in enumerate(text.pieces(_PIECE_CHARS), 1):
            if count % _LOOK_PIECES == 0 and walk.is_late():
                return
            if piece.column == 0:
                match = find(piece.text)
                done = match is not None
                tail = ""
                if done or all_lines:
                    yield piece, match
            elif not done:
                # From 1 on, for "^" is no match there.
                match = find(tail + piece.text, 1)
                if match is not None:
                    done = True
                    yield piece, match
            if piece.ending is None:
                tail = piece.text[-_OVERLAP_CHARS:]

    def _add(self, line: str) -> None:
        self.lines.append(line)
        self.used += len(line.encode("utf-8", "replace")) + 1


def _compiled(files: Confined, pattern: str, ignore_case: bool) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except (re.error, OverflowError, RecursionError) as error:
        raise files.refusal(
            f"pattern {pattern!r:.500} is no regular expression of Python: {error}. Put a backslash before "
            "characters that stand for themselves, such as ( [ { * + ? . |"
        ) from error


def _around(text: str, match: re.Match[str] | None = None) -> str:
    """A line, or of a long one what is around the match."""
    if len(text) <= MAX_SHOWN_CHARS:
        return text
    start = 0
    if match is not None and match.end() > MAX_SHOWN_CHARS:
        start = max(0, match.start() - MAX_SHOWN_CHARS // 4)
    end = start + MAX_SHOWN_CHARS
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"
