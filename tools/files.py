"""The built-in tools that read, write and edit files of the workspace.

A text is shown with its line numbers, as `cat -n` does: nearly all coding agents do that, models are used
to it, and edit_file and search_files speak of the same numbers. The number is not padded, which costs tokens
and tells nothing. What is more than a model can use at once is cut, and the result says how to get the rest.

Layer: tools; no Ray.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from palaver.providers.messages import Image
from palaver.tools.call import ToolCallInfo
from palaver.tools.confined import Confined, Place
from palaver.tools.edit import Edit, changed, lines_of
from palaver.tools.find import list_files
from palaver.tools.outcome import MAX_IMAGE_BYTES
from palaver.tools.replacement import replace
from palaver.tools.search import search_files
from palaver.tools.text_file import TextFile
from palaver.tools.tool import tool

MAX_READ_BYTES = 100_000
"""UTF-8 that read_file returns at once: some 25,000 tokens, an eighth of a context window of 200,000."""

MAX_LINE_CHARS = 2_000
"""Characters of one line that read_file shows, as most coding agents do."""

MAX_EDIT_BYTES = 10_000_000
"""The largest file that edit_file takes. It holds the file in memory several times over."""

_EDIT_TRIES = 20
"""How often an edit is made again because somebody else has changed the file meanwhile."""


@tool(in_workspace=True, timeout_s=60)
def read_file(
    path: str,
    info: ToolCallInfo,
    start_line: Annotated[int, Field(ge=1)] = 1,
    max_lines: Annotated[int, Field(ge=1)] = 2000,
    encoding: str | None = None,
) -> str | list[str | Image]:
    """Read a text file, each line with its number and a tab before it, or look at a picture.

    A result ends with a note in brackets: how much of the file it is, and how to read on. Pictures are PNG,
    JPEG, GIF and WebP.

    Args:
        path: The file, relative to the workspace.
        start_line: The number of the first line to read.
        max_lines: How many lines to read at most. A long file is cut sooner; the note says where.
        encoding: The text's encoding, such as "latin-1", for files that are neither UTF-8 nor marked UTF-16.
    """
    with Confined(info) as files, files.place(path) as place, place.open_file() as file:
        text = TextFile(files, file, place.shown, encoding)
        if not text.size and not text.start:
            return f"['{place.shown}' is empty: 0 bytes]"
        if encoding is None and text.image_type is not None:
            if text.size > MAX_IMAGE_BYTES:
                raise files.refusal(
                    f"'{place.shown}' is a picture ({text.image_type}) of {text.size:,} bytes; the limit is "
                    f"{MAX_IMAGE_BYTES:,}. Make a smaller copy of it and read that."
                )
            picture = Image(media_type=text.image_type, data=text.content(MAX_IMAGE_BYTES))
            return [f"['{place.shown}': {text.image_type}, {text.size:,} bytes]", picture]
        _check_text(files, text, place.shown)
        return _read_lines(files, text, place.shown, start_line, max_lines)


@tool(in_workspace=True)
def write_file(path: str, content: str, info: ToolCallInfo) -> str:
    """Write a text file in UTF-8: a new one, or in place of the one that is there.

    Missing folders are made. To change a part of a file use edit_file.

    Args:
        path: The file, relative to the workspace.
        content: All of the text that the file is to have.
    """
    with Confined(info) as files:
        try:
            data = content.encode()
        except UnicodeEncodeError as error:
            raise files.refusal(
                f"content has half a character (a surrogate) at character {error.start + 1}, which no file "
                "can have; nothing was written"
            ) from error
        with files.place(path, make_parents=True) as place:
            if path.endswith("/"):
                raise files.refusal(f"'{path}' is the path of a folder; give the path of a file")
            before = place.status()
            replace(place, data)
            lines = content.count("\n") + (not content.endswith("\n") and content != "")
            size = f"{lines:,} {'line' if lines == 1 else 'lines'}, {len(data):,} bytes"
            if before is None:
                return f"made '{place.shown}': {size}"
            return f"replaced '{place.shown}': {size} (it had {before.st_size:,} bytes)"


@tool(in_workspace=True)
def edit_file(
    path: str,
    old: str,
    new: str,
    info: ToolCallInfo,
    replace_all: bool = False,
    encoding: str | None = None,
) -> str:
    """Replace a text in a file by another; the file's encoding and line ends stay as they are.

    `old` must be in the file exactly once, spaces and indentation included, and without the line numbers of
    read_file.

    Args:
        path: The file, relative to the workspace.
        old: The text to replace.
        new: The text to put in its place; empty to delete it.
        replace_all: Replace `old` wherever it is.
        encoding: As in read_file.
    """
    edit = Edit(old, new, replace_all)
    with Confined(info) as files:
        problem = edit.problem()
        if problem is not None:
            raise files.refusal(f"'{path}' was not changed: {problem}")
        for _ in range(_EDIT_TRIES):
            with files.place(path) as place, place.open_file() as file:
                done = _edited(files, place, TextFile(files, file, place.shown, encoding), edit)
                if done is not None:
                    return done
        raise files.refusal(
            f"'{path}' was not changed: it has changed itself at each of {_EDIT_TRIES} tries. Try later."
        )


FILE_TOOLS = (read_file, write_file, edit_file, list_files, search_files)
"""All tools that work with files, for a conversation that has a workspace."""


def _check_text(files: Confined, text: TextFile, shown: str) -> None:
    if text.is_binary:
        raise files.refusal(
            f"'{shown}' is a binary file of {text.size:,} bytes (NUL at offset {text.start.index(0)}), and "
            "this tool reads text and pictures (PNG, JPEG, GIF, WebP). Use a program that knows its format; "
            'if it is text in UTF-16 without a byte order mark, say encoding="utf-16".'
        )


def _read_lines(files: Confined, text: TextFile, shown: str, start_line: int, max_lines: int) -> str:
    lines: list[str] = []
    endings: set[str] = set()
    used = cut = 0
    whole = True
    for piece in text.pieces(MAX_LINE_CHARS, start_line):
        if piece.column == 0:
            if "\0" in piece.text:
                raise files.refusal(
                    f"'{shown}' has a NUL in line {piece.number}, so it is no text from there on; read the "
                    f"lines before it with max_lines, or those after it with start_line={piece.number + 1}"
                )
            line = f"{piece.number}\t{piece.text}"
            used += len(line.encode("utf-8", "replace")) + 1
            if len(lines) == max_lines or (lines and used > MAX_READ_BYTES):
                whole = False
                break
            lines.append(line)
        elif piece.column == MAX_LINE_CHARS:
            lines[-1] += "…"
            cut += 1
        if piece.ending is not None:
            endings.add(piece.ending)
    if not lines:
        raise files.refusal(
            f"start_line is {start_line}, and '{shown}' has {text.line_count} lines ({text.size:,} bytes)"
        )
    last = start_line + len(lines) - 1
    notes = [f"lines {start_line} to {last} of a file of {text.size:,} bytes"]
    if whole:
        notes = [f"lines {start_line} to {last}, the end of the file; {text.size:,} bytes in all"]
        if start_line == 1:
            notes = [f"the whole file: {last:,} {'line' if last == 1 else 'lines'}, {text.size:,} bytes"]
    else:
        notes.append(f"read on with start_line={last + 1}")
    if cut:
        notes.append(
            f"{cut} {'line is' if cut == 1 else 'lines are'} cut after {MAX_LINE_CHARS:,} characters (…); "
            "search_files shows what is around a match"
        )
    if "\r\n" in endings:
        notes.append("some lines end with CRLF" if "\n" in endings else "lines end with CRLF")
    if "" in endings:
        notes.append("no line end after the last line")
    if text.encoding != ("utf-8", b""):
        notes.append(f"encoding {text.encoding}")
    return "\n".join([*lines, f"[{'; '.join(notes)}]"])


def _edited(files: Confined, place: Place, text: TextFile, edit: Edit) -> str | None:
    """Make an edit in an open file and tell of it. None when somebody else has changed the file meanwhile."""
    before = _whole(files, text, place.shown)
    spans = edit.spans(before)
    problem = edit.why_not(before, spans)
    if problem is not None:
        raise files.refusal(f"'{place.shown}' was not changed: {problem}")
    after, starts = edit.applied(before, spans)
    # The file is still open, so no other can have got its number on the disk meanwhile.
    if not replace(place, text.encoded(after), read=text.status):
        return None
    places = f"{len(spans)} places, in lines" if len(spans) > 1 else "1 place, in line"
    shown = changed(after, starts, edit.new)
    return f"'{place.shown}': replaced {places} {lines_of(starts, after)}. Now:\n{shown}"


def _whole(files: Confined, text: TextFile, shown: str) -> str:
    """All text of a file that is to be edited."""
    if text.size > MAX_EDIT_BYTES:
        raise files.refusal(
            f"'{shown}' has {text.size:,} bytes; edit_file takes files of up to {MAX_EDIT_BYTES:,}. Change "
            "it with a program."
        )
    _check_text(files, text, shown)
    content = text.content(MAX_EDIT_BYTES)
    decoded = text.decoded(content)
    if text.encoded(decoded) != content:
        raise files.refusal(
            f"'{shown}' cannot be edited as {text.encoding}: parts that stay would not be the same bytes "
            "after it. Is it that encoding?"
        )
    return decoded
