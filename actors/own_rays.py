"""The Rays that programs of this user started for themselves, and how to join one.

Ray reads how it is to show its token when it is imported, so that a program that has to show another one
begins anew.

Layer: actors, command line; no Ray.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from palaver.providers.errors import ConfigurationError

ADDRESS, TOKEN = "address", "token"
"""Files in the folder of such a Ray: where it listens, and what lets its user in."""

PATTERN = "palaver-[0-9]*-*"
CONNECT_WITHIN_S = 5.0


class NoRay(ConfigurationError):
    """There is no Ray to join, or more than one."""


def join(address: str | None) -> str:
    """The address of the Ray to join. This program may begin anew, with the environment for it.

    Without an address: RAY_ADDRESS, else one that was started on this machine, else the one that a program of
    this user started for itself. Raises NoRay when there is none, or more than one of those.
    """
    own = own_running()
    wanted = address or os.environ.get("RAY_ADDRESS") or started_here()
    if wanted is None and len(own) > 1:
        several = ", ".join(f"{each} ({_program(own[each])})" for each in sorted(own))
        raise NoRay(f"several palavers run here, at {several}; choose one with --address")
    if wanted is None and not own:
        raise NoRay("no palaver runs on this machine; name the Ray of a cluster with --address")
    wanted = wanted or next(iter(own))
    token = {"RAY_AUTH_TOKEN_PATH": str(own[wanted])} if wanted in own else {}
    if any(os.environ.get(name) != value for name, value in token.items()):
        environment = {**os.environ, **token, "RAY_AUTH_MODE": "token"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    return wanted


def own_running() -> dict[str, Path]:
    """Those of this user that run: their addresses, each with its token."""
    found: dict[str, Path] = {}
    for root in {Path(tempfile.gettempdir()), Path("/tmp")}:
        for folder in root.glob(PATTERN):
            with suppress(OSError):
                address = (folder / ADDRESS).read_text()
                if folder.stat().st_uid == os.getuid() and listens(address):
                    found[address] = folder / TOKEN
    return found


def _program(token: Path) -> str:
    """What began the Ray whose token that is: its folder's name has the process."""
    import psutil

    pid = token.parent.name.split("-")[1]
    with suppress(psutil.Error, ValueError):
        words = psutil.Process(int(pid)).cmdline()
        named = " ".join(Path(word).name if word.startswith("/") else word for word in words[1:])
        return f"process {pid}: {named[:60]}"
    return f"process {pid}"


def started_here() -> str | None:
    """The address of a Ray that `ray start` began on this machine; None when there is none."""
    with suppress(OSError):
        address = (Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster").read_text().strip()
        # The file outlives a Ray that was killed.
        if address and listens(address):
            return address
    return None


def listens(address: str) -> bool:
    """Whether something listens at host:port."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_WITHIN_S):
            return True
    except (OSError, ValueError):
        return False
