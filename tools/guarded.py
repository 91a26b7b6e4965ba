"""Puts a tool call under the eyes of the node's guardian, and asks the guardian to end calls.

A call begins by wearing its mark: from then on everything this process starts inherits it. Where there
is no guardian (Linux alone has what it needs), calls run all the same, and what a killed worker leaves
behind lives on.

Layer: tools; no Ray.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

from palaver.tools import guardian
from palaver.tools.stopped import EndedProcess, Stopped

_STARTED_WITHIN_S = 10.0
_ANSWERS_WITHIN_S = 10.0
"""How long the guardian may take to end calls: twice what it gives one that does not end."""

_MARKED = 1 << 62
"""Marks are limits of 146,000 years and more for a process of a real-time class without a pause, in
microseconds (getrlimit(2), RLIMIT_RTTIME)."""

available = sys.platform == "linux"
"""Whether this system can have a guardian."""

_connection: int | None = None
"""The descriptor of the one connection, open for as long as the process lives."""


@cache
def address() -> str:
    """The name of this node's guardian: one for each version, each user, and each view of process ids."""
    import hashlib

    with open(guardian.__file__, "rb") as file:
        version = hashlib.sha256(file.read()).hexdigest()[:12]
    return f"palaver-guardian-{os.getuid()}-{os.stat('/proc/self/ns/pid').st_ino}-{version}"


@contextmanager
def guarded(title: str, lineage: Sequence[str] = (), *, folder: str | None = None) -> Generator[None]:
    """While in the block, what this process starts is ended when the process dies.

    `title` names what it does, `lineage` the conversations it is for, the root first. `folder` is removed
    after that. One block at a time in a process.
    """
    if not available:
        yield
        return
    import resource

    connect()
    mark = _MARKED | secrets.randbits(61)
    before, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
    # First the mark: a guardian that is to end this at once has to find it.
    resource.setrlimit(resource.RLIMIT_RTTIME, (mark, hard))
    try:
        _tell({"do": "begin", "title": title, "lineage": list(lineage), "mark": mark, "folder": folder})
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_RTTIME, (before, hard))
        _tell({"do": "end"})


def connect() -> None:
    """Have this process watched by the guardian from now on; starts one where there is none."""
    global _connection  # noqa: PLW0603 - of the process, as what it tells of is
    if available and _connection is None:
        _connection = _connected()


def _tell(what: dict[str, Any]) -> None:
    global _connection  # noqa: PLW0603
    line = json.dumps(what).encode() + b"\n"
    for _ in range(3):
        connect()
        assert _connection is not None
        try:
            os.write(_connection, line)
            return
        except OSError:  # it was killed
            os.close(_connection)
            _connection = None
            if what["do"] == "end":
                return
    raise RuntimeError("the guardian of this node does not stay; is somebody killing it?")


def _connected() -> int:
    name = address()
    deadline = time.monotonic() + _STARTED_WITHIN_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect("\0" + name)
            # One that is just ending takes connections and never answers.
            if connection.recv(16):
                return connection.detach()
        except OSError:
            pass
        connection.close()
        if time.monotonic() > deadline:
            raise RuntimeError(f"the guardian of this node does not start within {_STARTED_WITHIN_S:g} s")
        _start(name)


def _start(name: str) -> None:
    """Start the guardian, unless there is one. It takes connections when this returns."""
    subprocess.run(
        [sys.executable, "-I", "-S", guardian.__file__, name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Nothing it could give away; where libraries are is all it may need.
        env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
        check=False,
        timeout=_STARTED_WITHIN_S,
    )


async def kill_call(title: str) -> Stopped:
    """Have a call of this node ended at once, with its worker; or what is left of it, if that has died."""
    return _stopped(await _ask({"do": "kill", "title": title}))


async def fence(convo_ids: Sequence[str]) -> Stopped:
    """Have every call on this node ended that is for one of these conversations, or for one below it.

    From then on none can begin there.
    """
    return _stopped(await _ask({"do": "fence", "convos": list(convo_ids)}))


async def _ask(what: dict[str, Any]) -> dict[str, Any]:
    # Not through the event loop: an actor's (uvloop) knows no abstract sockets.
    return await asyncio.to_thread(_answer_to, what) if available else {}


def _answer_to(what: dict[str, Any]) -> dict[str, Any]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_ANSWERS_WITHIN_S)
    try:
        with connection, connection.makefile("rb") as lines:
            connection.connect("\0" + address())
            lines.readline()
            connection.sendall(json.dumps(what).encode() + b"\n")
            line = lines.readline()
    except TimeoutError:
        late = f"the guardian of {socket.gethostname()} did not answer within {_ANSWERS_WITHIN_S:g} s"
        return {"complete": False, "problem": late}
    except OSError:
        line = b""
    # None there, or one that has just ended, which it does only when nothing is left.
    return cast("dict[str, Any]", json.loads(line)) if line else {}


def _stopped(answer: dict[str, Any]) -> Stopped:
    node = socket.gethostname()
    processes = tuple(
        EndedProcess(pid=pid, name=name, node=node, killed=True) for pid, name in answer.get("killed", ())
    )
    complete = answer.get("complete", True)
    problem = answer.get("problem") or ("" if complete else f"a process on {node} does not end on SIGKILL")
    return Stopped(
        processes=processes,
        complete=complete,
        problem=problem,
        ran_s=cast("float | None", answer.get("ran_s")),
    )
