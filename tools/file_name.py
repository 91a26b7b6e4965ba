r"""Names of files as a model reads and writes them.

A name on disk is bytes, which need be no UTF-8 and may have line ends or signs that turn text around. What
cannot be printed is shown as `\x` and two digits for each byte; a name that was shown so can be given so.

Layer: tools; no Ray.
"""

from __future__ import annotations

import difflib
import os
import re
from itertools import islice

_NAMES_COMPARED = 2_000
"""Of a folder with more names, only so many are looked at for one like the name that is missing."""

_MAX_NEAREST = 3

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")


def shown(path: str) -> str:
    """A name or a path as text that can be sent and read."""
    if path.isprintable():
        return path
    return "".join(
        each if each.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(each))
        for each in path
    )


def unescaped(name: str) -> str | None:
    """The name that is shown as `name`; None when there is no other than `name` itself."""
    if not _ESCAPED.search(name):
        return None
    other = _ESCAPED.sub(lambda found: os.fsdecode(bytes([int(found[1], 16)])), name)
    other = os.fsdecode(os.fsencode(other))
    # What can be printed is never shown so: this cannot be "..", nor have a "/" in it.
    return other if shown(other) == name and "\0" not in other else None


def nearest(name: str, folder: int) -> list[str]:
    """The names in an open folder that are most like a name that is missing there."""
    try:
        listed = os.open(".", _FOLDER, dir_fd=folder)
        try:
            with os.scandir(listed) as entries:
                names = [entry.name for entry in islice(entries, _NAMES_COMPARED)]
        finally:
            os.close(listed)
    except OSError:
        return []
    near = [each for each in names if each.lower() == name.lower()]
    near += [each for each in difflib.get_close_matches(name, names) if each not in near]
    return near[:_MAX_NEAREST]
