"""Commands in the background, with a real bash."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import eventually, is_alive

from palaver.actors.cluster import Cluster
from palaver.providers.messages import ToolUse
from palaver.tools.bash import BASH_TOOLS, bash_tool
from palaver.tools.bash_jobs import bash_job, run_job
from palaver.tools.job_folder import JobFolder, Order, Status
from palaver.tools.task import RayToolset, pack
from palaver.tools.toolset import InlineToolset, Toolset
from palaver.tools.workspace import Workspace


class Shell:
    """A conversation with bash, in the background too."""

    def __init__(self, toolset: Toolset, workspace: Path) -> None:
        self.toolset = toolset
        self.folder = workspace / ".palaver/jobs/abc-defg"

    async def call(self, name: str, **tool_input: Any) -> str:
        outcome = await self.toolset.run(ToolUse(id="call-1", name=name, input=tool_input))
        return outcome.to_result("call-1").text

    async def start(self, command: str) -> str:
        return await self.call("bash", command=command, background=True)

    async def job(self, number: int | None = None, action: str = "poll", wait_s: float = 0) -> str:
        text = await self.call("bash_job", job=number, action=action, wait_s=wait_s)
        return re.sub(r"(for|after) \d+ s", r"\1 N s", text)

    def status(self, number: int) -> dict[str, Any]:
        return json.loads((self.folder / str(number) / "status.json").read_text())

    async def eventually_prints(self, text: str, number: int = 1) -> None:
        output = self.folder / str(number) / "output"
        printed = lambda: output.exists() and text in output.read_text()  # noqa: E731
        assert await asyncio.to_thread(eventually, printed, 20)


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    made = Shell(InlineToolset(BASH_TOOLS, "abc-defg", workspace=str(tmp_path)), tmp_path)
    yield made
    await made.toolset.aclose()


def job_folder(workspace: Path, command: str = "true", folder: str = "/") -> JobFolder:
    return JobFolder.make(str(workspace), "abc-defg", Order(command=command, folder=folder))


async def test_a_job_is_started_and_polled_to_its_end(shell: Shell, tmp_path: Path) -> None:
    told = await shell.start("echo one; until [ -e go ]; do sleep 0.01; done; echo two; exit 3")
    assert told.startswith("[job 1 starts in the background. bash_job(job=1) tells how it goes")
    assert told.endswith("its output goes to the workspace's file .palaver/jobs/abc-defg/1/output]")
    assert list(shell.toolset.jobs.values()) == [
        "bash job 1: echo one; until [ -e go ]; do sleep 0.01; done; echo two; exit 3"
    ]
    await shell.eventually_prints("one")
    line, new = (await shell.job(1)).split("\n", 1)
    assert line.startswith("[job 1: running for N s, pid ")
    assert new == "one"
    assert (await shell.job(1)).endswith("]\n[no new output]")
    (tmp_path / "go").touch()
    assert await shell.job(1, wait_s=20) == "[job 1: ended after N s, exit code 3]\ntwo"
    status = shell.status(1)
    assert (status["exit_code"], status["signal"], status["stopped"]) == (3, None, "")
    assert status["started_at"] < status["ended_at"]
    assert not is_alive(status["pid"])
    assert not shell.toolset.jobs


async def test_a_job_is_for_its_user_alone(shell: Shell) -> None:
    await shell.start("true")
    await shell.job(1, wait_s=20)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in (shell.folder / "1").iterdir()}
    assert modes == dict.fromkeys(["order.json", "status.json", "output", "lock"], 0o600)
    assert stat.S_IMODE(shell.folder.stat().st_mode) == 0o700


async def test_a_job_starts_in_the_working_directory_and_moves_nothing(shell: Shell, tmp_path: Path) -> None:
    await shell.call("bash", command="mkdir sub; cd sub")
    await shell.start("pwd; cd /")
    assert (await shell.job(1, wait_s=20)).endswith(f"\n{tmp_path}/sub")
    assert await shell.call("bash", command="pwd") == f"{tmp_path}/sub"


async def test_stopping_a_job_ends_all_of_it_and_tells_what_it_printed(shell: Shell) -> None:
    await shell.start("sleep 60 & echo $!; echo on; wait")
    await shell.eventually_prints("on\n")
    line, pid, on = (await shell.job(1, "stop")).split("\n")
    assert line == "[job 1: ended after N s, killed by SIGTERM, stopped: by bash_job]"
    assert on == "on"
    assert not is_alive(int(pid))
    assert shell.status(1)["signal"] == "SIGTERM"
    # Stopping what has ended changes nothing.
    assert await shell.job(1, "stop") == f"{line}\n[no new output]"


async def test_a_job_that_ignores_sigterm_is_killed(shell: Shell) -> None:
    await shell.start("trap '' TERM; echo on; while :; do sleep 0.05; done")
    await shell.eventually_prints("on")
    assert "killed by SIGKILL, stopped: by bash_job]" in await shell.job(1, "stop")


async def test_what_a_job_leaves_running_keeps_it_running(shell: Shell) -> None:
    await shell.start("nohup sleep 60 & echo $!")
    await shell.eventually_prints("\n")
    line, pid = (await shell.job(1, wait_s=0.5)).split("\n")
    assert "running" in line
    assert is_alive(int(pid))
    assert "ended after" in await shell.job(1, "stop")
    assert not is_alive(int(pid))


async def test_ending_the_jobs_of_a_conversation_is_told_in_their_status(shell: Shell) -> None:
    await shell.start("echo on; exec sleep 60")
    await shell.eventually_prints("on")
    pid = shell.status(1)["pid"]
    assert is_alive(pid)
    (ended,) = await shell.toolset.end_jobs("enough")
    assert ended.label == "bash job 1: echo on; exec sleep 60"
    assert not is_alive(pid)
    assert (await shell.job(1)).startswith(
        "[job 1: ended after N s, stopped: by cancel or close of the conversation]\n"
    )


async def test_jobs_started_at_once_have_numbers_of_their_own_and_are_listed(shell: Shell) -> None:
    assert await shell.job(action="list") == "[no jobs; bash starts one with background=true]"
    await asyncio.gather(*(shell.start(f"echo {letter}") for letter in "abcdefgh"))
    for number in range(1, 9):
        await shell.job(number, wait_s=20)
    lines = (await shell.job(action="list")).splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"job {number}" for number in range(1, 9)]
    assert {line[-6:] for line in lines} == {f"echo {letter}" for letter in "abcdefgh"}


async def test_conversations_do_not_see_each_others_jobs(shell: Shell, tmp_path: Path) -> None:
    await shell.start("true")
    other = InlineToolset(BASH_TOOLS, "xyz-1234", workspace=str(tmp_path))
    outcome = await other.run(ToolUse(id="call-1", name="bash_job", input={"job": 1}))
    assert str(outcome.error) == "there is no job 1; this conversation's jobs: none"
    await shell.job(1, wait_s=20)


async def test_an_unknown_job_is_told_with_those_there_are(shell: Shell) -> None:
    await shell.start("true")
    assert await shell.job(7) == "there is no job 7; this conversation's jobs: 1"
    assert await shell.job(action="stop") == "stop needs the number of a job; this conversation's jobs: 1"
    assert "less than or equal to 300" in await shell.job(1, wait_s=301)
    await shell.job(1, wait_s=20)


async def test_long_new_output_is_shortened_and_never_shown_twice(shell: Shell) -> None:
    await shell.start("seq 1 100000")
    text = await shell.job(1, wait_s=20)
    assert text.splitlines()[1:4] == ["1", "2", "3"]
    assert text.endswith("\n99999\n100000")
    assert "all that it has printed is in the workspace's file .palaver/jobs/abc-defg/1/output]" in text
    assert len(text) < 31_000
    assert (await shell.job(1)).endswith("]\n[no new output]")


async def test_half_a_character_waits_for_the_next_poll(shell: Shell, tmp_path: Path) -> None:
    await shell.start("printf 'caf\\303'; until [ -e go ]; do sleep 0.01; done; printf '\\251'")
    output = shell.folder / "1/output"
    assert await asyncio.to_thread(eventually, lambda: output.exists() and output.stat().st_size == 4, 20)
    assert (await shell.job(1)).endswith("\ncaf")
    (tmp_path / "go").touch()
    assert (await shell.job(1, wait_s=20)).endswith("\né")


async def test_a_job_that_prints_without_end_is_stopped(tmp_path: Path) -> None:
    tool = bash_tool(max_file_bytes=100_000, max_output_chars=1000)
    toolset = InlineToolset([tool, bash_job], "abc-defg", workspace=str(tmp_path))
    shell = Shell(toolset, tmp_path)
    await shell.start("yes")
    assert "stopped: it printed 100,000 bytes, the limit; start it again with" in await shell.job(
        1, wait_s=20
    )
    assert (shell.folder / "1/output").stat().st_size == 100_000


async def test_a_job_on_a_full_disk_is_stopped_and_says_so(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, "yes")
    folder.output.symlink_to("/dev/full")
    await run_job.function(str(folder.path), [], 1000)
    state, status = folder.state()
    assert state == "ended"
    assert status.stopped == "its output could not be kept: No space left on device"


async def test_a_job_that_cannot_be_run_says_so(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, folder="/nowhere")
    await run_job.function(str(folder.path), [], 1000)
    state, status = folder.state()
    assert (state, status.exit_code) == ("ended", None)
    assert "No such file or directory: '/nowhere'" in status.stopped


async def test_a_job_stopped_before_it_has_started_never_runs(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, f"touch {tmp_path}/ran")
    assert folder.state() == ("starting", Status())
    folder.ask_to_stop()
    await run_job.function(str(folder.path), [], 1000)
    assert folder.state()[1].stopped == "by bash_job before it had started"
    assert not (tmp_path / "ran").exists()


async def test_a_job_that_does_not_start_is_told_as_starting(shell: Shell, tmp_path: Path) -> None:
    folder = job_folder(tmp_path)
    assert await shell.job(1) == "[job 1: starting for N s]\n[no new output]"
    os.utime(folder.path, (0, 0))
    assert "it never will if the conversation was cancelled meanwhile" in await shell.job(1)


def test_a_status_without_anybody_who_holds_the_job_is_gone(tmp_path: Path) -> None:
    folder = job_folder(tmp_path)
    with folder.held():
        folder.set_status(Status(pid=1))
        assert folder.state()[0] == "running"
    assert folder.state()[0] == "gone"


# On Ray


async def test_jobs_on_ray_run_are_stopped_and_leave_no_process(ray_cluster: Cluster, tmp_path: Path) -> None:
    tools = [pack(each) for each in BASH_TOOLS]
    toolset = RayToolset(tools, ["abc-defg"], None, workspace=Workspace(path=str(tmp_path)))
    shell = Shell(toolset, tmp_path)
    for number in range(1, 4):
        await shell.start(f"sleep 60 & echo job {number}; wait")
    for number in range(1, 4):
        await shell.eventually_prints("job", number)
    pids = [shell.status(number)["pid"] for number in range(1, 4)]
    pids += [child.pid for pid in pids for child in psutil.Process(pid).children()]
    assert len(pids) == 6
    assert (await shell.job(1)).endswith("\njob 1")
    assert (await shell.job(1)).endswith("\n[no new output]")
    stopped = await shell.job(1, "stop")
    assert "killed by SIGTERM, stopped: by bash_job" in stopped
    # The worker that runs the second is killed.
    os.kill(psutil.Process(pids[1]).ppid(), signal.SIGKILL)
    assert await asyncio.to_thread(eventually, lambda: len(toolset.jobs) == 1, 20)
    assert "job 2: gone: the process that ran it was killed" in await shell.job(2)
    (ended,) = await toolset.end_jobs("enough")
    assert ended.stopped.complete
    assert not [pid for pid in pids if is_alive(pid)]
    assert "stopped: by cancel or close of the conversation" in await shell.job(3)
    await toolset.aclose()
