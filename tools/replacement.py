"""A file's new content, put in place whole or not at all.

It is written to a file beside the old one, which it then replaces in one step. So whoever reads sees the old
content or the new; a full disk, a limit or a kill leaves the old as it was; and the name is never written
through, whatever has been put there meanwhile. A file with several names (hard links) keeps its old content
under the others. Only a process that is killed while it writes leaves its file, `.palaver-….tmp`, behind.

Layer: tools; no Ray.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress

from palaver.tools.confined import Place
from palaver.tools.errors import ToolError

_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_LOCK_WAIT_S = 10.0
"""How long a folder's lock may take, which palaver itself holds for no longer than a rename."""

_LOCK_LOOK_S = 0.005


def replace(place: Place, content: bytes, *, read: os.stat_result | None = None) -> bool:
    """Make `content` the file's content; what is missing is made. Keeps the permissions of a file.

    `read` is the file's status when it was read: nothing is done, and the answer is False, when the file is
    no longer what it was then. Raises ToolError when it cannot be written; nothing has changed then.
    """
    before = _replaceable(place)
    try:
        return _replace(place, content, before, read)
    except OSError as error:
        what = "the old content is as it was" if before else "there is no such file now"
        raise _failure(place, error, f"; {what}") from error


def _replaceable(place: Place) -> os.stat_result | None:
    """The status of the file to replace; None when there is none. Raises ToolError for what must stay."""
    if not place.name:
        raise place.files.refusal(f"'{place.shown}' is a folder; give the path of a file")
    before = place.status()
    if before is None:
        return None
    place.check_regular(before)
    # A rename needs no permission for the file itself, so it has to be looked at. The mode is, because
    # root may write everything, and a file that nobody may write is not to be changed by root either.
    if not before.st_mode & 0o222:
        raise place.files.refusal(
            f"'{place.shown}' is read-only (mode {stat.S_IMODE(before.st_mode):o}); it was not changed"
        )
    try:
        os.close(os.open(place.name, _WRITE, dir_fd=place.folder))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ETXTBSY:  # a program that runs can be replaced
            raise _failure(place, error, "; it was not changed") from error
    return before


def _replace(
    place: Place, content: bytes, before: os.stat_result | None, read: os.stat_result | None
) -> bool:
    temporary = f".palaver-{secrets.token_hex(8)}.tmp"
    try:
        # Until it has the old file's permissions, nobody else may read it.
        file = os.open(temporary, _CREATE, 0o600 if before else 0o666, dir_fd=place.folder)
        try:
            _write(file, content)
            if before is not None:
                with suppress(PermissionError):  # only root may give a file away
                    os.fchown(file, before.st_uid, before.st_gid)
                # Without set-user-id and the like: that was trust in the old content.
                os.fchmod(file, before.st_mode & 0o777)
            os.fsync(file)
        finally:
            os.close(file)
        with _locked(place) as folder:
            if read is not None and not _same(read, place.status()):
                return False
            os.replace(temporary, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)
            if folder is not None:
                with suppress(OSError):  # the content is safe; only a crash could bring the old name back
                    os.fsync(folder)
        return True
    finally:
        # Gone already when it was renamed; nobody else makes a file of this name.
        with suppress(OSError):
            os.unlink(temporary, dir_fd=place.folder)


def _write(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


@contextmanager
def _locked(place: Place) -> Generator[int | None]:
    """The folder, locked, so that of two calls that read and replace one file none undoes the other."""
    try:
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place.folder)
    except PermissionError:
        yield None  # a folder that may be written and not listed
        return
    try:
        _lock(folder, place)
        yield folder
    finally:
        os.close(folder)


def _lock(folder: int, place: Place) -> None:
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise place.files.refusal(
                    f"'{place.shown}' was not written: another program has held a lock on its folder for "
                    f"{_LOCK_WAIT_S:g} s. Try again later."
                ) from error
            time.sleep(_LOCK_LOOK_S)
        except OSError:
            return  # a file system without locks


def _same(read: os.stat_result, now: os.stat_result | None) -> bool:
    return now is not None and all(
        getattr(read, each) == getattr(now, each)
        for each in ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    )


def _failure(place: Place, error: OSError, outcome: str) -> ToolError:
    return place.files.refusal(f"cannot write '{place.shown}': {error.strerror or error}{outcome}")
