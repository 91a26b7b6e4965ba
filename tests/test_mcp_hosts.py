"""MCP servers of conversations on a real Ray, with real servers: what is kept, stopped, and left behind."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import eventually, is_alive

from palaver.actors import Convo
from palaver.providers.messages import Image, Text, ToolUse
from palaver.providers.scripted import Scripted
from palaver.tools import McpTool, ToolCancelled, ToolCrashed, ToolTimedOut, mcp_tools
from palaver.tools.limits import ToolLimits
from palaver.tools.outcome import Outcome
from palaver.tools.task import RayToolset

EVERYTHING = "@modelcontextprotocol/server-everything@2026.8.31"
"""The protocol's test server, in TypeScript: another implementation of both transports."""

EVERYTHING_SHA512 = "5U3OZh8Xq0Li4nA26l6uNvV9/1suMDuWSn+NjLZIhzinhMY6N3A4DCrxVecBGPf2PsNFKTEv5krxGPRwzxc7jQ=="
BEFORE = "2026-11-01"
"""What it depends on is taken as it was then."""

OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH")

pytestmark = pytest.mark.usefixtures("ray_cluster")

PROGRAM = [sys.executable, str(Path(__file__).parent / "mcp_program.py")]
HUSH = "hush-9f31c7"
WITHIN_S = 30


@pytest.fixture(scope="module")
def program() -> tuple[McpTool, ...]:
    """The tools of the test's own server, run as a command."""
    return mcp_tools(PROGRAM, name="program", env={"TOKEN": HUSH}, needs_approval=False)


@asynccontextmanager
async def toolset(tools: Sequence[McpTool]) -> AsyncIterator[RayToolset]:
    made = RayToolset(tools, ["abc-defg"], None)
    try:
        yield made
    finally:
        await made.aclose()


async def call(tools: RayToolset, name: str, /, **tool_input: object) -> Outcome:
    return await tools.run(ToolUse(id=f"call-{name}", name=f"program_{name}", input=tool_input))


def text(outcome: Outcome) -> str:
    return outcome.to_result("call").text


async def pid_of(tools: RayToolset) -> int:
    return int(text(await call(tools, "whoami")).split()[0])


async def there(path: Path) -> bool:
    return await asyncio.to_thread(eventually, path.exists, WITHIN_S)


async def test_one_server_answers_all_calls_with_text_images_and_errors(program: tuple[McpTool, ...]) -> None:
    async with toolset(program) as tools:
        first, second = await asyncio.gather(call(tools, "whoami"), call(tools, "whoami"))
        assert text(first) == text(second)
        assert text(first).split()[1] == os.getcwd()
        assert text(await call(tools, "dotted_name_of_a_tool")) == "called"
        assert text(await call(tools, "variable", name="TOKEN")) == HUSH
        # What it is not given, it does not get.
        assert text(await call(tools, "variable", name="PYTHONPATH")) == "not set"

        pixel = await call(tools, "picture")
        assert isinstance(pixel.content[0], Text)
        assert isinstance(pixel.content[1], Image)
        assert pixel.content[1].media_type == "image/png"

        failed = await call(tools, "fails", text="no such thing")
        assert failed.to_result("call").is_error
        assert "no such thing" in text(failed)
        refused = await call(tools, "fails")
        assert refused.error is not None
        assert "text" in text(refused)


async def test_a_cancelled_call_is_told_to_the_server_and_the_other_goes_on(
    program: tuple[McpTool, ...], tmp_path: Path
) -> None:
    async with toolset(program) as tools:
        before = await pid_of(tools)
        meant = asyncio.create_task(call(tools, "waits", folder=str(tmp_path), name="a"))
        other = asyncio.create_task(call(tools, "waits", folder=str(tmp_path), name="b"))
        assert await there(tmp_path / "began-a")
        assert await there(tmp_path / "began-b")
        meant.cancel()
        outcome = await meant
        assert type(outcome.error) is ToolCancelled
        assert outcome.stopped is not None
        assert outcome.stopped.complete
        assert await there(tmp_path / "cancelled-a")
        (tmp_path / "go-b").touch()
        assert text(await other) == "b went"
        assert await pid_of(tools) == before


async def test_a_call_over_its_limit_is_stopped_and_the_server_stays(
    program: tuple[McpTool, ...], tmp_path: Path
) -> None:
    limited = [replace(each, limits=ToolLimits(timeout_s=2, max_output_bytes=10)) for each in program]
    async with toolset(limited) as tools:
        outcome = await call(tools, "waits", folder=str(tmp_path), name="a")
        assert type(outcome.error) is ToolTimedOut
        assert await there(tmp_path / "cancelled-a")
        assert "the limit is 10" in text(await call(tools, "whoami"))
        assert text(await call(tools, "dotted_name_of_a_tool")) == "called"


async def test_a_server_that_dies_is_started_again_once_and_then_reported(
    program: tuple[McpTool, ...], tmp_path: Path
) -> None:
    async with toolset(program) as tools:
        first = await pid_of(tools)
        # Safe to repeat, says the server: the model does not hear of it.
        assert text(await call(tools, "dies_once", folder=str(tmp_path))) == "alive"
        second = await pid_of(tools)
        assert first != second

        waiting = asyncio.create_task(call(tools, "waits", folder=str(tmp_path), name="a"))
        assert await there(tmp_path / "began-a")
        os.kill(second, signal.SIGKILL)
        assert "exit code -9" in text(await waiting)
        assert "is not started again" in text(await waiting)
        refused = await call(tools, "whoami")
        assert type(refused.error) is ToolCrashed
        assert "failed 2 times in this conversation" in text(refused)
        assert "exit code -9" in text(refused)

        # Whoever ends what runs may have mended it.
        assert await tools.end_jobs("somebody looked at it") == []
        died = await call(tools, "dies", folder=str(tmp_path), last_words=f"the key is {HUSH}")
        assert type(died.error) is ToolCrashed
        assert "exit code 7" in text(died)
        assert "the key is ***" in text(died)
        assert "Whether the call had an effect is not known. The next call starts it again." in text(died)
        # Not repeated: nobody said that this is safe.
        assert (tmp_path / "deaths").read_text() == "xx"


async def test_ending_the_jobs_ends_the_server_with_all_it_has_started(program: tuple[McpTool, ...]) -> None:
    async with toolset(program) as tools:
        assert await tools.end_jobs("nothing runs") == []
        server = await pid_of(tools)
        daemon = int(text(await call(tools, "starts_daemon")))
        host = psutil.Process(server).parent()
        assert host is not None
        assert HUSH not in " ".join(host.cmdline())
        (ended,) = await tools.end_jobs("enough")
        assert ended.label == "mcp server program"
        assert ended.stopped.complete
        assert {server, daemon} <= {each.pid for each in ended.stopped.processes}
        assert not is_alive(server)
        assert not is_alive(daemon)
        assert await asyncio.to_thread(eventually, lambda: not is_alive(host.pid), WITHIN_S)
        assert await pid_of(tools) != server


async def test_a_killed_host_takes_all_that_its_server_started_along_and_counts_as_a_death(
    program: tuple[McpTool, ...], tmp_path: Path
) -> None:
    async with toolset(program) as tools:
        server = await pid_of(tools)
        daemon = int(text(await call(tools, "starts_daemon")))
        host = psutil.Process(server).parent()
        assert host is not None
        waiting = asyncio.create_task(call(tools, "waits", folder=str(tmp_path), name="a"))
        assert await there(tmp_path / "began-a")
        os.kill(host.pid, signal.SIGKILL)
        outcome = await waiting
        assert not [pid for pid in (server, daemon) if is_alive(pid)]
        assert type(outcome.error) is ToolCrashed
        assert "its host process was killed" in text(outcome)
        assert await pid_of(tools) != server


async def test_a_cancelled_conversation_leaves_no_process_and_tells_of_its_server(
    program: tuple[McpTool, ...], tmp_path: Path
) -> None:
    use = ToolUse(id="wait", name="program_waits", input={"folder": str(tmp_path), "name": "a"})
    who = ToolUse(id="who", name="program_whoami", input={})
    convo = Convo.remote(Scripted([[use, who], "done", who, "done"]), tools=program)
    running = asyncio.ensure_future(convo.run.remote("go"))
    assert await there(tmp_path / "began-a")
    report = await convo.cancel.remote("enough")
    (stopped,) = (each for each in report.conversations[0].tool_calls if each.in_background)
    assert stopped.tool_name == "mcp server program"
    assert stopped.processes
    assert not [each.pid for each in stopped.processes if is_alive(each.pid)]
    assert (await running).stop == "cancelled"
    # The next call has a server again; it goes with the conversation.
    assert (await convo.run.remote("again")).text == "done"
    await convo.close.remote()


@contextmanager
def served() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The test's own server over HTTP, and its URL."""
    with subprocess.Popen([*PROGRAM, "http", HUSH], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process, f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"
        finally:
            process.kill()


async def test_a_server_over_http_is_called_told_of_a_cancel_and_missed_when_it_is_gone(
    tmp_path: Path,
) -> None:
    with served() as (process, url):
        headers = {"Authorization": f"Bearer {HUSH}"}
        over_http = mcp_tools(url=url, name="program", headers=headers)
        async with toolset(over_http) as tools:
            assert await pid_of(tools) == process.pid
            waiting = [
                asyncio.create_task(call(tools, "waits", folder=str(tmp_path), name=name)) for name in "ab"
            ]
            assert await there(tmp_path / "began-a")
            assert await there(tmp_path / "began-b")
            waiting[0].cancel()
            assert type((await waiting[0]).error) is ToolCancelled
            assert await there(tmp_path / "cancelled-a")
            process.kill()
            lost = await waiting[1]
            assert type(lost.error) is ToolCrashed
            assert "Whether the call had an effect is not known" in text(lost)
            gone = [await call(tools, "fails", text="x") for _ in range(3)]
            assert [type(each.error) for each in gone] == [ToolCrashed] * 3
            assert HUSH not in "".join(map(text, gone))
            assert "cannot be reached" in text(gone[-1])


@pytest.fixture(scope="module")
def everything(request: pytest.FixtureRequest) -> list[str]:
    """The command of npm's server, installed once below pytest's cache."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("npm and node are not installed")
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir("mcp-server-everything") / EVERYTHING.rpartition("@")[2]
    program = folder / "node_modules/.bin/mcp-server-everything"
    if not program.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        run_npm([npm, "pack", EVERYTHING, "--silent"], folder)
        (archive,) = folder.glob("*.tgz")
        assert base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() == EVERYTHING_SHA512
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
        run_npm([npm, "install", f"./{archive.name}", "--prefix", ".", f"--before={BEFORE}", *quiet], folder)
    return [node, str(program)]


NPM_WITHIN_S = 15


def run_npm(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=NPM_WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm's registry did not answer within {NPM_WITHIN_S} s")
    if done.returncode and any(code in done.stderr for code in OFFLINE):
        pytest.skip(f"npm's registry cannot be reached: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr


@contextmanager
def everything_served(everything: list[str], port: int) -> Iterator[str]:
    """npm's server over HTTP, and its URL."""
    env = {**os.environ, "PORT": str(port)}
    with subprocess.Popen([*everything, "streamableHttp"], env=env, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            while b"listening" not in (line := process.stderr.readline()):
                assert line, "the server ended"
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.kill()


async def everything_works(tools: RayToolset) -> None:
    assert text(await call(tools, "echo", message="über")) == "Echo: über"
    image = await call(tools, "get-tiny-image")
    assert [type(each) for each in image.content] == [Text, Image, Text]
    embedded = await call(tools, "get-resource-reference", resourceType="Text", resourceId=1)
    assert "plaintext resource" in text(embedded)
    wrong = await call(tools, "get-sum", a="one", b=2)
    assert "expected number" in text(wrong)
    long = asyncio.create_task(call(tools, "trigger-long-running-operation", duration=60, steps=600))
    assert "is 3" in text(await call(tools, "get-sum", a=1, b=2))
    long.cancel()
    assert type((await long).error) is ToolCancelled
    assert "is 3" in text(await call(tools, "get-sum", a=1, b=2))


async def test_a_server_of_another_implementation_works_over_stdio_and_http(everything: list[str]) -> None:
    names = ["echo", "get-tiny-image", "get-sum", "get-resource-reference", "trigger-long-running-operation"]
    by_command = mcp_tools(everything, name="program", only=names)
    async with toolset(by_command) as tools:
        await everything_works(tools)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with everything_served(everything, port) as url:
        by_url = mcp_tools(url=url, name="program", only=names)
    assert [each.spec for each in by_url] == [each.spec for each in by_command]
    async with toolset(by_url) as tools:
        with everything_served(everything, port):
            await everything_works(tools)
        # The session went with the server; the next call opens another, and nobody notices.
        with everything_served(everything, port):
            assert text(await call(tools, "echo", message="again")) == "Echo: again"
