"""The places that calls of one tool have on a node, when it may run only so many at once.

A place is a socket bound to a name that one process of the node at a time can have. The kernel frees it
when that process closes it or dies, and it leaves no file. Linux only.

Layer: tools; no Ray.
"""

from __future__ import annotations

import errno
import os
import socket
import sys

from palaver.tools.errors import ToolCrashed

PLACE_LOOK_S = 0.05
"""How often a call that waits looks for a free place."""


def take_place(tool_name: str, places: int) -> socket.socket | None:
    """One of the `places` of this node; free again when closed. None when all are taken."""
    if sys.platform != "linux":
        raise ToolCrashed(tool_name, f"max_per_node of tool {tool_name!r} works on Linux only")
    for number in range(places):
        place = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            place.bind(f"\0palaver-place-{os.getuid()}-{tool_name}-{number}")
        except OSError as error:
            place.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return place
    return None
