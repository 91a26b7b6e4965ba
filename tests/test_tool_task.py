"""Tool calls as Ray tasks, where it matters that it is Ray. What a cancel does is in test_cancel."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from conftest import eventually, is_alive

from palaver.providers.messages import ToolUse
from palaver.tools import Tool, ToolCallInfo, ToolCrashed, ToolRaised, ToolTimedOut, current_call, tool
from palaver.tools.outcome import Outcome
from palaver.tools.task import RayToolset, pack

pytestmark = pytest.mark.usefixtures("ray_cluster")

HEAD = "node:__internal_head__"
"""A custom resource that every Ray has."""


@tool
def who(info: ToolCallInfo) -> list[str]:
    """Tell whose call it is."""
    return [current_call().tool_use_id, info.tool_name, info.convo_id, str(info.convo)]


@tool(num_cpus=1, resources={HEAD: 0.001}, memory=10_000_000)
def what_it_got() -> dict[str, float]:
    """Tell what Ray set aside for the call."""
    return ray.get_runtime_context().get_assigned_resources()


@tool
def process() -> int:
    """Tell the worker's process id."""
    return os.getpid()


def _start_child(pids: str) -> None:
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    for pid in (os.getpid(), child.pid):
        (Path(pids) / str(pid)).touch()


@tool
def waits_with_child(pids: str) -> None:
    """Start a process that leaves the family, and wait."""
    _start_child(pids)
    time.sleep(60)


@tool(timeout_s=0.5)
def sleeps_too_long() -> None:
    """Sleep where nothing can unwind it."""
    time.sleep(60)


@tool
def holds_the_lock_with_child(pids: str) -> None:
    """Start a process that leaves the family, and let no Python run."""
    _start_child(pids)
    re.match(r"(a+)+$", "a" * 40 + "b")


@tool(resources={"unobtainium": 2})
def impossible() -> None:
    """Ask for what there is not."""


@tool(num_gpus=1.5)
def one_and_a_half_gpus() -> None:
    """Ask for what Ray refuses only when the call is made."""


@asynccontextmanager
async def toolset(*tools: Tool[..., Any]) -> AsyncIterator[RayToolset]:
    made = RayToolset([pack(each) for each in tools], ["abc-defg"], "the convo's handle")
    yield made
    await made.aclose()


def call(made: Tool[..., Any], **tool_input: Any) -> ToolUse:
    return ToolUse(id="call-1", name=made.name, input=tool_input)


def text(outcome: Outcome) -> str:
    return outcome.to_result("call-1").text


async def started(pids: Path) -> list[int]:
    """The ids of a worker and its child, as soon as there are both."""
    assert await asyncio.to_thread(eventually, lambda: len(list(pids.iterdir())) == 2, 20)
    return [int(each.name) for each in pids.iterdir()]


async def test_a_call_knows_itself_and_what_ray_set_aside_for_it() -> None:
    async with toolset(who, what_it_got) as tools:
        known, got = await asyncio.gather(tools.run(call(who)), tools.run(call(what_it_got)))
        assert text(known) == '["call-1","who","abc-defg","the convo\'s handle"]'
        assert known.error is None
        assert {"CPU": 1.0, HEAD: 0.001}.items() <= eval(text(got)).items()


async def test_large_code_is_shipped_once_and_runs_every_time() -> None:
    payload = os.urandom(300_000)

    @tool
    def weigh(times: int) -> int:
        return len(payload) * times

    assert len(pack(weigh).code) > 300_000
    async with toolset(weigh) as tools:
        for times in (1, 2):
            assert text(await tools.run(call(weigh, times=times))) == str(300_000 * times)


async def test_a_module_that_workers_do_not_have_is_named_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a_module_only_the_driver_has"
    (tmp_path / f"{name}.py").write_text(
        "from palaver.tools import tool\n@tool\ndef shout(text: str) -> str:\n    return text.upper()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    shout = importlib.import_module(name).shout
    async with toolset(shout, process) as tools:
        outcome = await tools.run(call(shout, text="a"))
        assert type(outcome.error) is ToolCrashed
        assert text(outcome) == (
            "tool 'shout' could not be loaded where it was to run: ModuleNotFoundError: No module named "
            f"{name!r}. What it needs has to be installed on every node."
        )
        assert (await tools.run(call(process))).error is None
    del sys.modules[name]


async def test_an_error_of_the_tools_own_class_arrives_as_text() -> None:
    class OwnError(Exception):
        pass

    @tool
    def fails() -> None:
        raise OwnError("in its own way")

    async with toolset(fails) as tools:
        outcome = await tools.run(call(fails))
        assert type(outcome.error) is ToolRaised
        assert text(outcome) == "tool 'fails' raised OwnError: in its own way"


async def test_a_killed_worker_is_one_error_its_processes_go_and_the_next_calls_succeed(
    tmp_path: Path,
) -> None:
    async with toolset(waits_with_child, process) as tools:
        running = asyncio.create_task(tools.run(call(waits_with_child, pids=str(tmp_path))))
        pids = await started(tmp_path)
        (worker,) = (pid for pid in pids if "ray::" in psutil.Process(pid).cmdline()[0])
        os.kill(worker, signal.SIGKILL)
        outcome = await running
        assert not [pid for pid in pids if is_alive(pid)]
        assert type(outcome.error) is ToolCrashed
        assert text(outcome).startswith("the process of tool 'waits_with_child' died")
        for _ in range(3):
            assert (await tools.run(call(process))).error is None


async def test_a_call_over_its_limit_that_takes_its_worker_along_still_timed_out() -> None:
    async with toolset(sleeps_too_long) as tools:
        outcome = await tools.run(call(sleeps_too_long))
        assert type(outcome.error) is ToolTimedOut
        assert text(outcome).endswith("it took longer than its limit of 0.5 s")


async def test_cancelling_a_call_that_lets_no_python_run_takes_its_processes_along(tmp_path: Path) -> None:
    async with toolset(holds_the_lock_with_child) as tools:
        running = asyncio.create_task(tools.run(call(holds_the_lock_with_child, pids=str(tmp_path))))
        pids = await started(tmp_path)
        running.cancel()
        stopped = (await running).stopped
        assert not [pid for pid in pids if is_alive(pid)]
        assert stopped is not None
        assert stopped.complete
        assert {each.pid for each in stopped.processes} == set(pids)


async def test_a_call_that_no_node_can_run_is_told_once_waits_and_can_be_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with toolset(impossible, process) as tools:
        with caplog.at_level(logging.WARNING, "palaver.tools"):
            waiting = [asyncio.create_task(tools.run(call(impossible))) for _ in range(2)]
            assert await asyncio.to_thread(eventually, lambda: caplog.records, 20)
            # The loop is free meanwhile.
            assert (await tools.run(call(process))).error is None
        (record,) = caplog.records
        assert record.getMessage() == (
            "tool 'impossible' waits: it asks for 2 unobtainium, and no node of the cluster has that; of 1 "
            "nodes the most that one has is 0 unobtainium. It runs when such a node joins."
        )
        assert not any(each.done() for each in waiting)
        before = time.monotonic()
        for each in waiting:
            each.cancel()
        assert [bool(each.stopped) for each in await asyncio.gather(*waiting)] == [True, True]
        assert time.monotonic() - before < 2


async def test_a_call_that_ray_refuses_is_an_error() -> None:
    async with toolset(one_and_a_half_gpus) as tools:
        outcome = await tools.run(call(one_and_a_half_gpus))
        assert type(outcome.error) is ToolCrashed
        assert "could not be started" in text(outcome)
