"""Paths that cannot leave the workspace: how the file tools open what a model names.

A path is walked name by name. Each folder is opened relative to the one before it and kept open, so that
`..` goes back to the folder the walk came through, whatever has been moved meanwhile. The system never
follows a link: its target is read, and walked here by the same rules. So what is opened has been reached
from the workspace's top through folders that were in one another, also when somebody swaps a folder or a
file for a link during the call.

What counts is where a path leads. `..`, absolute paths and links may go above the top as long as they come
back to it; above the top nothing is opened, names are only compared with the top's own.

What this cannot tell: a hard link is the file itself, so a file outside that has a second name inside can
be read (writing gives the name inside a new file, and leaves the one outside as it was; see
`replacement`). What is mounted inside is inside. A folder that somebody moves out of the workspace while a
call has it open is still open.

Layer: tools; no Ray.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self

from palaver.tools.call import ToolCallInfo
from palaver.tools.errors import ToolError
from palaver.tools.file_name import nearest, shown, unescaped

_MAX_LINKS = 40
"""As many links as Linux follows in one path (path_resolution(7))."""

_MAX_DEPTH = 200
"""Folders that are open at once. Many systems let a process have 1,024 files open, some 256."""

# A folder that is only passed needs no permission to be listed, where the system tells the two apart.
_PASS = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
_LIST = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_RDONLY
# O_NONBLOCK: what was swapped in may be a FIFO, and must not hang the call.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Confined:
    """The workspace of one call, open until the end of a `with`.

    Raises ToolError, for the model to read, when there is none.
    """

    def __init__(self, info: ToolCallInfo) -> None:
        self._tool_name = info.tool_name
        if info.workspace is None:
            raise self.refusal("the conversation has no workspace, so there are no files to work with")
        self.top = os.path.realpath(info.workspace)
        """The real path of the top folder."""
        self.top_parts = _parts(self.top)
        self._given = _parts(info.workspace)
        try:
            self.folder = os.open(self.top, _PASS)
        except OSError as error:
            raise self.failure(f"the workspace '{self.top}' cannot be opened", error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.folder)

    def refusal(self, text: str) -> ToolError:
        """An error of this call that tells the model `text`."""
        return ToolError(self._tool_name, text)

    def failure(self, what: str, error: OSError) -> ToolError:
        """An error of this call: the system refused `what`."""
        return self.refusal(f"{what}: {error.strerror or error}")

    @contextmanager
    def place(self, path: str, *, make_parents: bool = False) -> Generator[Place]:
        """Where `path` leads, all links followed; open until the end of the `with`.

        The last name need not be there. Raises ToolError when the path leads out of the workspace, or a
        folder on the way is missing; `make_parents` makes it.
        """
        walk = _Walk(self, path, make_parents)
        try:
            yield walk.run()
        finally:
            walk.close()

    def within(self, parts: list[str]) -> list[str]:
        """The parts of an absolute path; the workspace's, if it was given through a link, made real."""
        count = len(self._given)
        return [*self.top_parts, *parts[count:]] if parts[:count] == self._given else parts

    def next_above(self, above: list[str], name: str) -> list[str] | None:
        """Where `name` leads from `above`, a folder above the top. None when not towards the top."""
        if name == "..":
            return above[:-1]
        return [*above, name] if self.top_parts[len(above)] == name else None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads: `name` in the open folder `folder`. `name` is "" for that folder itself.

    `path` leads there from the top, without any link; "" is the top.
    """

    files: Confined
    folder: int
    name: str
    path: str

    @property
    def shown(self) -> str:
        """The path as a model reads it."""
        return shown(self.path) or "."

    def status(self) -> os.stat_result | None:
        """What is there, a link not followed; None when nothing is."""
        try:
            return os.stat(self.name or ".", dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.files.failure(f"cannot look at '{self.shown}'", error) from error

    @contextmanager
    def open_file(self) -> Generator[int]:
        """A file descriptor to read the regular file that is there. Raises ToolError for anything else."""
        # Looked at before it is opened: to open a FIFO or a device can already do something.
        status = self.status()
        if status is None:
            raise self.missing()
        self.check_regular(status)
        try:
            file = os.open(self.name, _READ, dir_fd=self.folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EMLINK):
                raise self._swapped() from error
            raise self.files.failure(f"cannot read '{self.shown}'", error) from error
        try:
            self.check_regular(os.fstat(file))
            yield file
        finally:
            os.close(file)

    @contextmanager
    def open_folder(self) -> Generator[int]:
        """A file descriptor to list the folder that is there. Raises ToolError for anything else."""
        try:
            folder = os.open(self.name or ".", _LIST, dir_fd=self.folder)
        except FileNotFoundError as error:
            raise self.missing() from error
        except NotADirectoryError as error:
            raise self.files.refusal(
                f"'{self.shown}' is no folder; read_file shows what is in a file"
            ) from error
        except OSError as error:
            raise self.files.failure(f"cannot list '{self.shown}'", error) from error
        try:
            yield folder
        finally:
            os.close(folder)

    def check_regular(self, status: os.stat_result) -> None:
        """Raise ToolError unless it is a regular file."""
        if stat.S_ISREG(status.st_mode):
            return
        if stat.S_ISLNK(status.st_mode):
            raise self._swapped()
        what = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        advice = (
            "list_files shows what is in it" if stat.S_ISDIR(status.st_mode) else "only files can be used"
        )
        raise self.files.refusal(f"'{self.shown}' is {what}, not a file; {advice}")

    def missing(self) -> ToolError:
        """The error that nothing is there, with the names that are most like it."""
        parent, _, name = self.path.rpartition("/")
        prefix = f"{shown(parent)}/" if parent else ""
        near = ", ".join(f"'{prefix}{shown(each)}'" for each in nearest(name, self.folder))
        where = f"in the folder '{shown(parent)}'" if parent else "at the workspace's top"
        advice = f"did you mean {near}?" if near else "list_files shows what there is"
        return self.files.refusal(
            f"'{self.shown}' does not exist: there is no '{shown(name)}' {where}; {advice}"
        )

    def _swapped(self) -> ToolError:
        return self.files.refusal(
            f"'{self.shown}' was swapped for a link while it was being opened; nothing was done. Try again."
        )


class _Walk:
    """One path's way from the top. Whoever runs it closes it."""

    def __init__(self, files: Confined, path: str, make_parents: bool) -> None:
        self._files = files
        self._path = path
        self._make_parents = make_parents
        self._folders = [files.folder]
        self._names: list[str] = []
        self._above: list[str] | None = None
        self._pending: deque[str] = deque()
        self._links = 0
        self._through = ""

    def run(self) -> Place:
        """Walk to the last name, or to the folder that the path ends in."""
        self._check()
        self._put(self._path)
        while self._pending:
            name = self._pending.popleft()
            if self._above is not None:
                self._above = self._files.next_above(self._above, name)
                if self._above is None:
                    raise self._outside()
                if self._above == self._files.top_parts:
                    self._above = None
            elif name == "..":
                self._up()
            elif self._pending:
                self._into(self._actual(name))
            else:
                name = self._actual(name)
                target = self._link(name)
                if target is None:
                    return self._place(name)
                self._follow(name, target)
        if self._above is not None:
            raise self._outside()
        return self._place("")

    def close(self) -> None:
        """Close every folder below the top."""
        while len(self._folders) > 1:
            self._leave()

    def _check(self) -> None:
        try:
            wrong = "it is empty" if not self._path else "it has a NUL" if "\0" in self._path else ""
            os.fsencode(self._path)
        except UnicodeEncodeError:
            wrong = "it has half a character (a surrogate)"
        if wrong:
            raise self._files.refusal(f"{self._path!r:.200} is no path: {wrong}")

    def _put(self, path: str) -> None:
        """Go on with `path`, before what was still to come."""
        parts = _parts(path)
        if path.startswith("/"):
            self.close()
            parts = self._files.within(parts)
            self._above = [] if self._files.top_parts else None
        self._pending.extendleft(reversed(parts))

    def _up(self) -> None:
        if len(self._folders) > 1:
            self._leave()
        else:
            top = self._files.top_parts
            self._above = top[:-1] if top else None

    def _leave(self) -> None:
        os.close(self._folders.pop())
        self._names.pop()

    def _into(self, name: str) -> None:
        """Go into a folder, or on to where a link of that name leads."""
        if len(self._folders) > _MAX_DEPTH:
            raise self._files.refusal(f"path {self._said} goes through more than {_MAX_DEPTH} folders")
        try:
            folder = self._open(name)
        except OSError as error:
            target = self._link(name) if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EMLINK) else None
            if target is not None:
                self._follow(name, target)
                return
            here = self._place(name)
            if error.errno == errno.ENOENT:
                raise here.missing() from error
            if error.errno == errno.ENOTDIR:
                raise self._files.refusal(
                    f"path {self._said} goes through '{here.shown}', which is no folder"
                ) from error
            raise self._files.failure(f"cannot open '{here.shown}'", error) from error
        self._folders.append(folder)
        self._names.append(name)

    def _open(self, name: str) -> int:
        try:
            return os.open(name, _PASS, dir_fd=self._folders[-1])
        except FileNotFoundError:
            # Not for a path that comes back out of what it wants made.
            if not self._make_parents or ".." in self._pending:
                raise
        with suppress(FileExistsError):  # what somebody else has made just now is opened as anything else
            os.mkdir(name, dir_fd=self._folders[-1])
        return os.open(name, _PASS, dir_fd=self._folders[-1])

    def _link(self, name: str) -> str | None:
        """Where the link `name` leads; None when it is no link, or not there."""
        try:
            return os.readlink(name, dir_fd=self._folders[-1])
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return None
            raise self._files.failure(f"cannot open '{self._place(name).shown}'", error) from error

    def _follow(self, name: str, target: str) -> None:
        self._links += 1
        link = self._place(name).shown
        self._through = f", through the link '{link}' to '{shown(target)[:200]}'"
        if self._links > _MAX_LINKS:
            raise self._files.refusal(
                f"path {self._said} goes through more than {_MAX_LINKS} links, the last '{link}'; "
                "they may lead in a circle"
            )
        self._put(target)

    def _actual(self, name: str) -> str:
        """The name in the folder that is meant by `name`, which may be as `shown` gave it."""
        other = unescaped(name)
        return name if other is None or self._is_there(name) or not self._is_there(other) else other

    def _is_there(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._folders[-1], follow_symlinks=False)
        except OSError:
            return False
        return True

    def _place(self, name: str) -> Place:
        path = "/".join([*self._names, name] if name else self._names)
        return Place(self._files, self._folders[-1], name, path)

    def _outside(self) -> ToolError:
        return self._files.refusal(
            f"path {self._said} leads out of the workspace{self._through}. Only what is inside can be used: "
            "give a path relative to the workspace's top, such as 'docs/notes.txt', or one that starts with "
            f"'{self._files.top}'."
        )

    @property
    def _said(self) -> str:
        return f"'{shown(self._path)[:500]}'"


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
