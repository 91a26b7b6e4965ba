"""Cancel with proof, on a real Ray: whatever a call is doing, and whoever dies, nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import eventually, is_alive
from stuck import KINDS, STUCK, left_of, note, noted, stuck, waits_for_subprocess

from palaver.actors import CancelReport, Convo, ConvoCancelled, ConvoClosed, ConvoHandle, reply
from palaver.actors.cluster import Cluster
from palaver.providers.messages import Message, ToolResult, ToolUse
from palaver.providers.provider import Request, Response
from palaver.providers.scripted import Scripted
from palaver.tools import McpTool, Tool, tool

pytestmark = pytest.mark.usefixtures("ray_cluster")

STARTED_WITHIN_S = 60
GONE_WITHIN_S = 15
"""Bounds for a busy machine; `bench/fence.py` measures."""


class Doing(Scripted):
    """Answers `TOOL NOTES` with a call of that tool, and results with "done"."""

    def __init__(self) -> None:
        super().__init__([])

    async def generate(self, request: Request) -> Response:
        last = request.messages[-1]
        if last.tool_results:
            return Response(message=Message.assistant("done"))
        name, _, notes = last.text.partition(" ")
        if notes:
            note(notes, "convo", os.getpid())
        call = ToolUse(id=f"call-{name}", name=name, input={"notes": notes})
        return Response(message=Message.assistant(call))


@tool
def quick(number: int) -> int:
    """Take a moment."""
    time.sleep(0.02)
    return number


def convo_with(*tools: Tool[..., Any] | McpTool, **options: Any) -> ConvoHandle:
    """A conversation with these tools, and what a delegate's delegates need."""
    needed = [waits_for_subprocess] if "delegates" in {each.name for each in tools} else []
    return Convo.remote(Doing(), tools=[*tools, *needed], **options)


async def at_work(notes: Path, name: str) -> None:
    """Wait until the innermost call is stuck."""
    innermost = "waits_for_subprocess" if name == "delegates" else name

    def is_stuck() -> bool:
        wanted = 4 if name == "delegates" else 1
        children = 2 if innermost == "waits_for_subprocess" else 0
        return len(noted(notes, "worker")) >= wanted and len(noted(notes, "child")) >= children

    assert await asyncio.to_thread(eventually, is_stuck, STARTED_WITHIN_S)


async def gone(notes: Path, *, server: bool = True) -> bool:
    return await asyncio.to_thread(eventually, lambda: not left_of(notes, server=server), GONE_WITHIN_S)


async def nothing_is_left_of_one_call(kind: str, notes: Path) -> bool:
    """At once; but a server goes on, since others may call it, and is told to end what it does for this."""
    return await gone(notes, server=False) if kind == "calls_mcp" else not left_of(notes)


async def beside_innocents(work: Awaitable[Any]) -> Any:
    """Do `work` while another conversation makes quick calls, all of which succeed."""
    other = Convo.remote(Scripted([]), tools=[quick])
    calls = [ToolUse(id=str(number), name="quick", input={"number": number}) for number in range(30)]
    unrelated = other.tool_result_contents.remote(Response(message=Message.assistant(*calls)))
    done = await work
    assert [each.text for each in await unrelated] == [str(number) for number in range(30)]
    await other.close.remote()
    return done


def results_of(messages: tuple[Message, ...]) -> list[ToolResult]:
    return [result for message in messages for result in message.tool_results]


async def by_cancel_tool_use(convo: ConvoHandle, name: str, running: Any) -> None:
    stopped = await convo.cancel_tool_use.remote(f"call-{name}", "enough")
    assert (stopped.tool_use_id, stopped.tool_name, stopped.problem) == (f"call-{name}", name, "")


async def by_cancel(convo: ConvoHandle, name: str, running: Any) -> None:
    report: CancelReport = await convo.cancel.remote("enough")
    assert report.fenced, report
    assert len(report.conversations) == (4 if name == "delegates" else 1)
    assert report.tool_calls[0].tool_name == name


IN_TIME: dict[str, Callable[[ConvoHandle, str, Any], Awaitable[None]]] = {
    "cancel_tool_use": by_cancel_tool_use,
    "cancel": by_cancel,
}


@pytest.mark.parametrize("cause", IN_TIME)
@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_left_when_the_cancel_returns(kind: str, cause: str, tmp_path: Path) -> None:
    async def work() -> None:
        convo = convo_with(await asyncio.to_thread(stuck, kind))
        running = convo.run.remote(f"{kind} {tmp_path}")
        await at_work(tmp_path, kind)
        await IN_TIME[cause](convo, kind, running)
        if cause == "cancel":
            assert left_of(tmp_path) == []
        else:
            assert await nothing_is_left_of_one_call(kind, tmp_path), left_of(tmp_path)
        result = await running
        assert result.stop == ("cancelled" if cause == "cancel" else "end_turn")
        # It can go on, and the call has exactly one result.
        assert (await convo.run.remote("" if cause == "cancel" else "quick")).stop
        (answer,) = [
            each for each in results_of(await convo.messages.remote()) if each.tool_use_id.endswith(kind)
        ]
        assert (answer.is_error, answer.text) == (True, "enough")
        tree = await convo.tree.remote()
        assert {each.state for each in tree.children} <= {"closed", "lost"}
        await convo.close.remote()

    await beside_innocents(work())


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_left_when_a_call_has_timed_out(kind: str, tmp_path: Path) -> None:
    async def work() -> None:
        limit_s = 8 if kind == "delegates" else 1
        convo = convo_with(await asyncio.to_thread(stuck, kind, limit_s))
        result = await convo.run.remote(f"{kind} {tmp_path}")
        assert await nothing_is_left_of_one_call(kind, tmp_path), left_of(tmp_path)
        assert result.stop == "end_turn"
        (answer,) = results_of(await convo.messages.remote())
        assert answer.is_error
        assert "took longer than its limit" in answer.text
        await convo.close.remote()

    await beside_innocents(work())


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_left_when_the_worker_of_a_call_was_killed(kind: str, tmp_path: Path) -> None:
    async def work() -> None:
        convo = convo_with(await asyncio.to_thread(stuck, kind))
        running = convo.run.remote(f"{kind} {tmp_path}")
        await at_work(tmp_path, kind)
        os.kill(worker_of(kind, tmp_path), signal.SIGKILL)
        result = await running
        assert left_of(tmp_path) == []
        assert result.stop == "end_turn"
        (answer,) = results_of(await convo.messages.remote())
        assert answer.is_error
        assert "died" in answer.text or "was killed" in answer.text
        await convo.close.remote()

    await beside_innocents(work())


def worker_of(name: str, notes: Path) -> int:
    """The process of the outermost call of a tool: the one whose title has the earliest ULID.

    A call of an MCP server's tool is made by the process that holds the connection.
    """
    if name == "calls_mcp":
        return noted(notes, "worker")[0]
    found: list[tuple[str, int]] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_text().rstrip("\0 ")
            except OSError:
                continue
            if title.startswith(f"ray::tool {name} "):
                found.append((title.split()[2], int(entry.name)))
    return min(found)[1]


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_left_when_the_process_of_the_conversation_was_killed(
    kind: str, tmp_path: Path
) -> None:
    async def work() -> None:
        convo = convo_with(await asyncio.to_thread(stuck, kind), label=f"doomed {kind}")
        running = convo.run.remote(f"{kind} {tmp_path}")
        await at_work(tmp_path, kind)
        os.kill(root_of(tmp_path), signal.SIGKILL)
        with pytest.raises(ConvoClosed):
            await reply(running)
        assert await gone(tmp_path), left_of(tmp_path)

    await beside_innocents(work())


def root_of(notes: Path) -> int:
    """The process of the conversation that sent the first request."""
    first = min(notes.glob("convo-*"), key=lambda each: each.stat().st_mtime_ns)
    return int(first.name.partition("-")[2])


async def test_fifty_tools_in_ten_conversations_are_stopped_and_told_of_by_one_cancel(tmp_path: Path) -> None:
    """Of each kind but the one that starts conversations of its own."""
    kinds = [each for each in STUCK if each.name != "delegates"]
    root = convo_with(*kinds, label="root")
    children = [await root.sub_convo.remote(tools=kinds, label=f"child {number}") for number in range(10)]
    calls = {
        number: [
            ToolUse(id=f"call-{number}-{index}", name=kind.name, input={"notes": str(tmp_path)})
            for index, kind in enumerate((kinds * 2)[number % len(kinds) :][:5])
        ]
        for number in range(10)
    }
    running = [
        child.tool_result_contents.remote(Response(message=Message.assistant(*calls[number])))
        for number, child in enumerate(children)
    ]
    stuck = await asyncio.to_thread(
        eventually, lambda: len(noted(tmp_path, "worker")) == 50, STARTED_WITHIN_S * 2
    )
    assert stuck
    report: CancelReport = await root.cancel.remote("enough")
    assert left_of(tmp_path) == []
    assert report.fenced, report
    assert report.cause == "enough"
    assert report.conversations[0].label == "root"
    told = {
        (convo.label, call.tool_use_id, call.tool_name)
        for convo in report.conversations
        for call in convo.tool_calls
    }
    assert told == {(f"child {number}", call.id, call.name) for number in range(10) for call in calls[number]}
    assert report.requests == ()
    assert {each.pid for each in report.processes} >= set(noted(tmp_path, "child"))
    print(f"50 tools: {report.took_s:.2f} s")
    for each in running:
        with pytest.raises(ConvoCancelled):
            await reply(each)
    for child in children:
        await child.close.remote()
    await root.close.remote()


DRIVER = """
import sys, time
from pathlib import Path
from palaver.actors.cluster import cluster
from stuck import KINDS, stuck
from test_fence import convo_with
address, notes, *names = sys.argv[1:]
chosen = names or KINDS
with cluster(address or "local", num_cpus=None if address else 2, log_to_driver=False):
    convos = [convo_with(stuck(kind)) for kind in chosen]
    running = [
        convo.run.remote(f"{kind} {Path(notes) / kind}")
        for convo, kind in zip(convos, chosen, strict=True)
    ]
    time.sleep(600)
"""


@pytest.mark.parametrize("owns_ray", [False, True], ids=["joined_ray", "own_ray"])
async def test_nothing_is_left_when_the_driver_was_killed(
    owns_ray: bool, ray_cluster: Cluster, tmp_path: Path
) -> None:
    for kind in KINDS:
        (tmp_path / kind).mkdir()
    address = "" if owns_ray else ray_cluster.address
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, address, str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for kind in KINDS:
            await at_work(tmp_path / kind, kind)
        below = psutil.Process(driver.pid).children(recursive=True)
        assert not owns_ray or len(below) > 5
        driver.kill()
        driver.wait()
        for what_is_left in (
            lambda: [pid for kind in KINDS for pid in left_of(tmp_path / kind)],
            lambda: [each.pid for each in below if is_alive(each.pid)],
            lambda: list(Path(tempfile.gettempdir()).glob(f"palaver-{driver.pid}-*")),
        ):
            empty = await asyncio.to_thread(eventually, lambda what=what_is_left: not what(), GONE_WITHIN_S)
            assert empty, what_is_left()
    finally:
        driver.kill()
        driver.wait()
