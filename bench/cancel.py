"""The time from asking for a tool call's cancel to its result (0.5 s or less), by what the tool is doing,
against a bare actor call; and 20 calls of two seconds in one response (4 s or less)."""

from __future__ import annotations

import asyncio
import hashlib
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import ray
from report import report

from palaver.actors import Convo, ConvoHandle
from palaver.actors.cluster import cluster
from palaver.providers.messages import Message, ToolUse
from palaver.providers.provider import Response
from palaver.providers.scripted import Scripted
from palaver.tools import tool

ROUNDS = 7
FOREVER_S = 60


@tool
def sleeps(started: str) -> None:
    """Sleep in a plain function."""
    Path(started).touch()
    time.sleep(FOREVER_S)


@tool
def waits_for_a_subprocess(started: str) -> None:
    """Wait for a subprocess."""
    Path(started).touch()
    subprocess.run(["sleep", str(FOREVER_S)], check=False)


@tool
async def awaits(started: str) -> None:
    """Wait in the event loop."""
    Path(started).touch()
    await asyncio.sleep(FOREVER_S)


@tool
def computes_in_c(started: str) -> None:
    """Compute in C, without the interpreter lock."""
    Path(started).touch()
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)


@tool
def computes_with_the_lock(started: str) -> None:
    """Compute in C, with the interpreter lock."""
    Path(started).touch()
    re.match(r"(a+)+$", "a" * 40 + "b")


@tool
def nap() -> None:
    """Sleep for two seconds."""
    time.sleep(2)


TOOLS = [sleeps, waits_for_a_subprocess, awaits, computes_in_c, computes_with_the_lock]


def response(*calls: ToolUse) -> Response:
    """A response with these calls."""
    return Response(message=Message.assistant(*calls))


def cancelled_in_s(convo: ConvoHandle, name: str) -> float:
    """Start a tool, cancel it once it is at work, and time it to its result."""
    with tempfile.TemporaryDirectory() as folder:
        started = Path(folder) / "started"
        call = ToolUse(id="doomed", name=name, input={"started": str(started)})
        results = convo.tool_result_contents.remote(response(call))
        while not started.exists():
            time.sleep(0.01)
        time.sleep(0.1)
        before = time.perf_counter()
        cancel = convo.cancel_tool_use.remote("doomed", "benchmark")
        (result,) = ray.get(results)
        took_s = time.perf_counter() - before
        ray.get(cancel)
        assert result.text == "benchmark", result
    return took_s


def main() -> None:
    """Print a line for each kind of tool, and one for 20 calls at once."""
    with cluster(num_cpus=2, log_to_driver=False):
        convo = Convo.remote(Scripted([]), tools=[*TOOLS, nap])
        naps = [ToolUse(id=str(number), name="nap") for number in range(20)]
        ray.get(convo.tool_result_contents.remote(response(*naps)))
        rounds_s: list[float] = []
        for _ in range(3):
            before = time.perf_counter()
            ray.get(convo.tool_result_contents.remote(response(*naps)))
            rounds_s.append(time.perf_counter() - before)
        report(
            "20 calls of 2 s",
            ratio=statistics.median(rounds_s) / 2,
            target_s="4 or less",
            median_s=statistics.median(rounds_s),
            worst_s=max(rounds_s),
        )
        for each in TOOLS:
            call_s: list[float] = []
            for _ in range(20):
                before = time.perf_counter()
                ray.get(convo.id.remote())
                call_s.append(time.perf_counter() - before)
            times_s = [cancelled_in_s(convo, each.name) for _ in range(ROUNDS)]
            report(
                f"cancel of a tool that {each.name.replace('_', ' ')}",
                ratio=statistics.median(times_s) / statistics.median(call_s),
                target_s="0.5 or less",
                median_s=statistics.median(times_s),
                worst_s=max(times_s),
            )


if __name__ == "__main__":
    main()
