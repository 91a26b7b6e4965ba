"""The built-in tool that lists files, and the walk through folders that searching uses too.

A walk opens each folder relative to the one it is in and follows no link, so it stays in the workspace and
ends. A folder's names are read before the first of them is looked at, in order.

Layer: tools; no Ray.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated

from pydantic import Field

from palaver.tools.call import ToolCallInfo
from palaver.tools.confined import Confined, Place
from palaver.tools.errors import ToolError
from palaver.tools.file_name import shown
from palaver.tools.glob import Glob, State
from palaver.tools.tool import tool

SKIPPED = frozenset(
    {
        ".git",
        ".hg",
        ".svn",
        ".palaver",
        "node_modules",
        "__pycache__",
        ".venv",
        ".tox",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
    }
)
"""Folders that are entered only when the path or the pattern names them: nobody wrote what is in them."""

MAX_WALK_S = 45.0
"""How long a walk goes on; then it ends with what it has, before the call's timeout of 60 s."""

_MAX_NAMES = 100_000
"""Of a folder with more entries only so many are read."""

_MAX_DEPTH = 100
"""Folders in one another that a walk enters; each is open while it is in it."""

_MAX_TOLD = 10

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Found:
    """Something in a folder: `name` in the open folder `folder`. `path` leads there from the top."""

    folder: int
    name: str
    path: str
    is_folder: bool
    is_link: bool
    is_file: bool

    @property
    def shown(self) -> str:
        """The path as a model reads it."""
        return shown(self.path)

    def size(self) -> int | None:
        """Bytes; None when it is gone."""
        try:
            return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False).st_size
        except OSError:
            return None

    def target(self) -> str:
        """Where a link leads, as it is written in it; "" when it is none any more."""
        try:
            return os.readlink(self.name, dir_fd=self.folder)
        except OSError:
            return ""


@dataclass
class Walk:
    """All that a glob means in a folder and in those below it, in the order of their names.

    Without a glob it is what is in the folder itself. What could not be looked at is kept, to be told.
    """

    place: Place
    glob: Glob | None
    skipped: Counter[str] = field(default_factory=Counter[str])
    unreadable: list[str] = field(default_factory=list[str])
    cut: list[str] = field(default_factory=list[str])
    deep: list[str] = field(default_factory=list[str])
    late: bool = False

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + MAX_WALK_S

    def found(self) -> Iterator[Found]:
        """Each entry, while its folder is open. Raises ToolError when there is no such folder."""
        with self.place.open_folder() as folder:
            yield from self._within(folder, self.place.path, self.glob.start if self.glob else None, 0)

    def is_late(self) -> bool:
        """Whether time is up."""
        self.late = self.late or time.monotonic() > self._deadline
        return self.late

    def notes(self) -> list[str]:
        """What the walk did not look at, as text."""
        skipped = [
            f"{name}/ ({count:,})" if count > 1 else f"{name}/" for name, count in self.skipped.items()
        ]
        told = [
            ("not entered unless named by path or pattern", skipped),
            ("no permission to read", self.unreadable),
            (f"only the first {_MAX_NAMES:,} names read of", self.cut),
            (f"not entered, because more than {_MAX_DEPTH} folders deep", self.deep),
        ]
        notes = [f"{what}: {_told(paths)}" for what, paths in told if paths]
        if self.late:
            notes.append(
                f"stopped after {MAX_WALK_S:g} s, so this is not all; name a folder below, or a narrower "
                "pattern"
            )
        return notes

    def _within(self, folder: int, path: str, state: State | None, depth: int) -> Iterator[Found]:
        for name, entry in self._entries(folder, path):
            if self.is_late():
                return
            below = self.glob.below(state, name) if self.glob is not None and state is not None else None
            found = _found(folder, f"{path}/{name}" if path else name, entry)
            if self.glob is None or (below is not None and self.glob.matches(below)):
                yield found
            if found.is_folder and below:
                yield from self._into(found, below, depth)

    def _into(self, found: Found, state: State, depth: int) -> Iterator[Found]:
        if found.name in SKIPPED and not (self.glob is not None and self.glob.names(found.name)):
            self.skipped[found.name] += 1
            return
        if depth >= _MAX_DEPTH:
            self.deep.append(f"{found.shown}/")
            return
        try:
            folder = os.open(found.name, _FOLDER, dir_fd=found.folder)
        except OSError:
            self.unreadable.append(f"{found.shown}/")
            return
        try:
            yield from self._within(folder, found.path, state, depth + 1)
        finally:
            os.close(folder)

    def _entries(self, folder: int, path: str) -> list[tuple[str, os.DirEntry[str]]]:
        try:
            with os.scandir(folder) as entries:
                names = [(entry.name, entry) for entry in islice(entries, _MAX_NAMES + 1)]
        except OSError:
            self.unreadable.append(f"{shown(path)}/")
            return []
        if len(names) > _MAX_NAMES:
            self.cut.append(f"{shown(path) or '.'}/")
            names.pop()
        names.sort(key=lambda each: each[0])
        return names


def _found(folder: int, path: str, entry: os.DirEntry[str]) -> Found:
    try:
        is_folder, is_file = entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False)
        return Found(folder, entry.name, path, is_folder, entry.is_symlink(), is_file)
    except OSError:  # where the system has to look again, and may not
        return Found(folder, entry.name, path, False, False, False)


def glob_of(files: Confined, parameter: str, pattern: str | None) -> Glob | None:
    """The glob that a model gave. Raises ToolError for one that is none."""
    if pattern is None:
        return None
    try:
        return Glob(pattern)
    except ValueError as error:
        raise files.refusal(f"{parameter} {pattern!r:.200} is no glob: {error}") from error


@tool(in_workspace=True, timeout_s=60)
def list_files(
    info: ToolCallInfo,
    path: str = ".",
    pattern: str | None = None,
    max_entries: Annotated[int, Field(ge=1, le=10_000)] = 1000,
) -> str:
    """List what is in a folder, or with a pattern what matches it in the folder and all folders below.

    Folders end with "/", links show where they lead, files their size. Links are not followed.

    Args:
        path: The folder, relative to the workspace.
        pattern: A glob such as "src/**/*.py" (counted from path), "*.md" (a name in any folder), "**" (all).
        max_entries: How many entries to list at most.
    """
    lines: list[str] = []
    more = False
    with Confined(info) as files:
        glob = glob_of(files, "pattern", pattern)
        with files.place(path) as place:
            walk = Walk(place, glob)
            for found in walk.found():
                if len(lines) == max_entries:
                    more = True
                    break
                lines.append(_line(files, found))
    count = f"{len(lines):,} {'entry' if len(lines) == 1 else 'entries'}"
    notes = [
        f"{'the first ' if more else ''}{count} of '{place.shown}'" + (f" for {pattern!r}" if glob else "")
    ]
    if more:
        notes.append("there are more: name a folder below, or a narrower pattern, or raise max_entries")
    return "\n".join([*lines, f"[{'; '.join([*notes, *walk.notes()])}]"])


def _line(files: Confined, found: Found) -> str:
    if found.is_folder:
        return f"{found.shown}/"
    if found.is_link:
        return f"{found.shown} -> {shown(found.target())}{_remark(files, found)}"
    if not found.is_file:
        return f"{found.shown} (no file: a FIFO, socket or device)"
    size = found.size()
    return f"{found.shown} (gone)" if size is None else f"{found.shown} ({size:,} bytes)"


def _remark(files: Confined, found: Found) -> str:
    """What is to be said of where a link leads."""
    try:
        with files.place(found.path) as place:
            return "" if place.status() is not None else " (not there)"
    except ToolError:
        return " (cannot be used)"


def _told(paths: list[str]) -> str:
    told = ", ".join(paths[:_MAX_TOLD])
    return told if len(paths) <= _MAX_TOLD else f"{told} and {len(paths) - _MAX_TOLD} more"
