"""How long until nothing is left of a tool call, by what the call is doing and what ends it: the seconds from
the cause to the death of its last process, against the call of a bare actor.

`python bench/fence.py NODES ROUNDS`: on one node or two (1), so many times each (5). It takes minutes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))
os.environ["PYTHONPATH"] = str(TESTS)

if sys.argv[1:2] == ["2"]:
    os.environ |= {"STUCK_ELSEWHERE": "1", "RAY_AUTH_MODE": "disabled"}

from report import Bare, report  # noqa: E402
from stuck import KINDS, left_of, stuck  # noqa: E402
from test_fence import DRIVER, at_work, convo_with, root_of, worker_of  # noqa: E402

from palaver.actors.cluster import cluster  # noqa: E402
from palaver.providers.errors import PalaverError  # noqa: E402

LIMIT_S = {"delegates": 8.0}
USUAL_LIMIT_S = 2.0


async def until_gone(notes: Path, since: float, *, server: bool = True) -> float:
    """Seconds from `since` until nothing of the noted processes is left."""
    while left_of(notes, server=server):
        await asyncio.sleep(0.002)
    return time.monotonic() - since


async def ended_by(
    cause: str, end: Callable[[Any, str, Path], Awaitable[object]], kind: str, notes: Path
) -> float:
    """Start a call, end it once it is at work, and time its end."""
    convo = convo_with(await asyncio.to_thread(stuck, kind))
    running = asyncio.ensure_future(_quietly(convo.run.remote(f"{kind} {notes}")))
    await at_work(notes, kind)
    await asyncio.sleep(0.3)
    began = time.monotonic()
    ending = asyncio.ensure_future(_quietly(end(convo, kind, notes)))
    # The server of an MCP tool goes on when one call is cancelled or times out.
    took_s = await until_gone(notes, began, server=cause != "cancel_tool_use")
    await asyncio.gather(running, ending)
    await _quietly(convo.close.remote())
    return took_s


async def timed_out(kind: str, notes: Path) -> float:
    """Time the end of a call that has a limit, less the limit."""
    limit_s = LIMIT_S.get(kind, USUAL_LIMIT_S)
    convo = convo_with(await asyncio.to_thread(stuck, kind, limit_s))
    await convo.id.remote()
    running = asyncio.ensure_future(_quietly(convo.run.remote(f"{kind} {notes}")))
    while not list(notes.glob("worker-*")):
        await asyncio.sleep(0.002)
    took_s = await until_gone(notes, time.monotonic(), server=False)
    await running
    await _quietly(convo.close.remote())
    return max(0.0, took_s - limit_s)


async def driver_killed(kind: str, notes: Path, address: str) -> float:
    """Time the end of a call whose driver is killed."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, address, str(notes.parent), kind],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    await at_work(notes, kind)
    await asyncio.sleep(0.3)
    began = time.monotonic()
    driver.kill()
    took_s = await until_gone(notes, began)
    driver.wait()
    return took_s


async def _quietly(work: Awaitable[object]) -> None:
    with suppress(PalaverError, Exception):
        await work


async def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)


ENDS: dict[str, Callable[[Any, str, Path], Awaitable[object]]] = {
    "cancel_tool_use": lambda convo, name, _: convo.cancel_tool_use.remote(f"call-{name}", "benchmark"),
    "cancel": lambda convo, _name, _notes: convo.cancel.remote("benchmark"),
    "SIGKILL of the worker": lambda _convo, name, notes: kill(worker_of(name, notes)),
    "SIGKILL of the conversation": lambda _convo, _name, notes: kill(root_of(notes)),
}


async def measure(address: str, rounds: int) -> None:
    """Print a line for each kind of call and each cause."""
    bare = cast("Any", Bare).remote()
    calls_s: list[float] = []
    for _ in range(50):
        before = time.perf_counter()
        await bare.ping.remote()
        calls_s.append(time.perf_counter() - before)
    for kind in KINDS:
        for cause in (*ENDS, "timeout", "SIGKILL of the driver"):
            times_s: list[float] = []
            for _ in range(rounds):
                with tempfile.TemporaryDirectory() as folder:
                    notes = Path(folder) / kind
                    notes.mkdir()
                    if cause in ENDS:
                        times_s.append(await ended_by(cause, ENDS[cause], kind, notes))
                    elif cause == "timeout":
                        times_s.append(await timed_out(kind, notes))
                    else:
                        times_s.append(await driver_killed(kind, notes, address))
            report(
                f"{kind}: {cause}",
                ratio=statistics.median(times_s) / statistics.median(calls_s),
                median_s=statistics.median(times_s),
                worst_s=max(times_s),
            )


def main() -> None:
    """Measure on the Ray that was asked for."""
    nodes, rounds = (int(each) for each in (*sys.argv[1:], 1, 5)[:2])
    with ExitStack() as stack:
        address: str | None = None
        if nodes == 2:
            both = subprocess.Popen(
                [sys.executable, str(TESTS / "two_nodes.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            stack.callback(both.wait)
            stack.enter_context(both)
            assert both.stdout is not None
            address = both.stdout.readline().strip()
        joined = stack.enter_context(cluster(address, num_cpus=None if address else 2, log_to_driver=False))
        asyncio.run(measure(joined.address, rounds))


if __name__ == "__main__":
    main()
