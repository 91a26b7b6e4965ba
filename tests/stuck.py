"""Tools that do not end by themselves, in each way a tool can be stuck. Each notes what it has started.

A note is an empty file in the folder `notes`, named by the process's id: `worker-123` for the process the
tool runs in, `child-124` for one it has started.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any, cast

from conftest import is_alive

from palaver.tools import McpTool, Tool, ToolCallInfo, ToolLimits, mcp_tools, tool
from palaver.tools.delegate import DelegatedTask, delegate

FOREVER_S = 120

ELSEWHERE = {"elsewhere": 0.001} if "STUCK_ELSEWHERE" in os.environ else {}
"""What each tool asks of Ray: a node that has this, where there is such a node."""


def note(notes: str, kind: str, pid: int) -> None:
    """Leave a note of a process."""
    (Path(notes) / f"{kind}-{pid}").touch()


def noted(notes: Path, kind: str) -> list[int]:
    """The processes of a kind that were noted."""
    return [int(each.name.partition("-")[2]) for each in notes.glob(f"{kind}-*")]


def left_of(notes: Path, *, server: bool = True) -> list[int]:
    """What still runs of the calls that noted: their children, and workers that are still in a call.

    The server that a call was sent to counts too, unless it is to go on.
    """
    pids = [*noted(notes, "child"), *(noted(notes, "server") if server else ())]
    children = [pid for pid in pids if is_alive(pid)]
    return children + [pid for pid in noted(notes, "worker") if _runs_a_call_of(pid)]


def _runs_a_call_of(pid: int) -> bool:
    try:
        title = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
    return is_alive(pid) and title.startswith(tuple(f"ray::tool {each.name} " for each in STUCK))


@tool(resources=ELSEWHERE)
async def awaits(notes: str) -> str:
    """Wait in the event loop."""
    note(notes, "worker", os.getpid())
    await asyncio.sleep(FOREVER_S)
    return "woke up"


@tool(resources=ELSEWHERE)
def sleeps(notes: str) -> str:
    """Sleep in Python's own sleep."""
    note(notes, "worker", os.getpid())
    time.sleep(FOREVER_S)
    return "woke up"


@tool(resources=ELSEWHERE)
def computes_in_c(notes: str) -> str:
    """Compute in C, with the interpreter lock released."""
    note(notes, "worker", os.getpid())
    return hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9).hex()


@tool(resources=ELSEWHERE)
def waits_for_subprocess(notes: str) -> str:
    """Wait for a subprocess that has a subprocess."""
    process = subprocess.Popen(["sh", "-c", f"sleep {FOREVER_S} & echo $!; wait"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    note(notes, "child", int(process.stdout.readline()))
    note(notes, "child", process.pid)
    note(notes, "worker", os.getpid())
    process.wait()
    return "it ended"


@tool(resources=ELSEWHERE)
async def awaits_deaf_subprocess(notes: str) -> str:
    """Await a subprocess that ignores SIGTERM, in a session of its own."""
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        f"trap '' TERM; echo ready; while true; do sleep {FOREVER_S}; done",
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    note(notes, "child", process.pid)
    note(notes, "worker", os.getpid())
    await process.wait()
    return "it ended"


@tool(resources=ELSEWHERE)
def leaves_a_daemon(notes: str) -> str:
    """Start a daemon that leaves its parent, its session and its environment; then wait."""
    code = (
        "import os, time\n"
        "if os.fork(): os._exit(0)\n"
        f"os.setsid()\nprint(os.getpid(), flush=True)\ntime.sleep({FOREVER_S})"
    )
    command = ["env", "-i", sys.executable, "-I", "-S", "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    note(notes, "child", int(process.stdout.readline()))
    process.wait()
    note(notes, "worker", os.getpid())
    # In steps, so that the tool itself can be unwound: the daemon is the matter here.
    for _ in range(FOREVER_S * 20):
        time.sleep(0.05)
    return "woke up"


@tool(resources=ELSEWHERE)
async def delegates(notes: str, info: ToolCallInfo) -> object:
    """Delegate the same, until three deep; the last delegate waits for a subprocess."""
    note(notes, "worker", os.getpid())
    below = "delegates" if await info.convo.depth.remote() < 2 else waits_for_subprocess.name
    task = DelegatedTask(task=f"{below} {notes}", label=below)
    return await cast("Any", delegate.function)(tasks=[task], info=info)


def calls_mcp(timeout_s: float | None = None) -> McpTool:
    """Call a tool of an MCP server that does the like."""
    command = [sys.executable, str(Path(__file__).with_name("mcp_stuck.py"))]
    env = {"PYTHONPATH": str(Path(__file__).parent)}
    (made,) = mcp_tools(command, env=env, limits=ToolLimits(timeout_s=timeout_s))
    return made


STUCK = [
    awaits,
    sleeps,
    computes_in_c,
    waits_for_subprocess,
    awaits_deaf_subprocess,
    leaves_a_daemon,
    delegates,
]

KINDS = [*(each.name for each in STUCK), "calls_mcp"]


@cache
def stuck(name: str, timeout_s: float | None = None) -> Tool[..., Any] | McpTool:
    """The tool of a kind, with a time limit or without."""
    if name == "calls_mcp":
        return calls_mcp(timeout_s)
    (made,) = (each for each in STUCK if each.name == name)
    if timeout_s is None:
        return made
    return Tool(made.function, limits=ToolLimits(timeout_s=timeout_s), resources=made.resources)
