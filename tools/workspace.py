"""The folder that a tree of conversations works in, and the part of it that tools keep things in.

Layer: tools; no Ray.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from palaver.providers.messages import Value

OWN_FOLDER = ".palaver"
"""In a workspace: what tools keep there beside the work itself. Git ignores it."""


class Workspace(Value):
    """A folder, by its absolute path, on the node `node_id` of the cluster; calls of tools that work with
    it run there. `node_id` None means that the path leads to the same folder on every node.
    """

    path: str
    node_id: str | None = None


def own_folder(workspace: str, *names: str) -> Path:
    """The folder `.palaver/<names...>` of a workspace, made where it is missing; nobody else can read it.

    Raises OSError when it cannot be made.
    """
    folder = Path(workspace, OWN_FOLDER)
    folder.mkdir(0o700, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        with suppress(FileExistsError):  # made by another call just now
            file = os.open(ignore, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(file, b"*\n")
            finally:
                os.close(file)
    for name in names:
        folder /= name
        folder.mkdir(0o700, exist_ok=True)
    return folder
