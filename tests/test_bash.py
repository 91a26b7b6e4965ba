"""`bash` with a real bash. In the background: test_bash_jobs."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually, is_alive

from palaver.actors.cluster import Cluster
from palaver.providers.anthropic import ANTHROPIC_KEY_VARIABLE
from palaver.providers.messages import ToolUse
from palaver.providers.profiles import SERVICES
from palaver.tools import Tool, ToolDefinitionError
from palaver.tools.bash import BASH_TOOLS, bash, bash_tool
from palaver.tools.outcome import Outcome
from palaver.tools.task import RayToolset, pack
from palaver.tools.toolset import InlineToolset, Toolset
from palaver.tools.workspace import Workspace


class Shell:
    """A conversation's bash."""

    def __init__(self, workspace: Path, tool: Tool[..., Any] = bash) -> None:
        self.toolset: Toolset = InlineToolset([tool], "abc-defg", workspace=str(workspace))

    async def outcome(self, command: str, **more: Any) -> Outcome:
        return await self.toolset.run(ToolUse(id="call-1", name="bash", input={"command": command, **more}))

    async def __call__(self, command: str, **more: Any) -> str:
        return (await self.outcome(command, **more)).to_result("call-1").text


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


async def pid_in(file: Path) -> int:
    """The process id that a command writes into a file."""
    assert await asyncio.to_thread(eventually, lambda: file.exists() and file.read_text().strip(), 20)
    return int(file.read_text())


# What a command prints, and how it ends


async def test_stdout_and_stderr_come_together_in_their_order(shell: Shell) -> None:
    assert await shell("echo one; echo two >&2; echo three") == "one\ntwo\nthree"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("true", "[no output]"),
        ("exit 3", "[no output]\n[exit code 3]"),
        ("echo so far; false", "so far\n[exit code 1]"),
        ("kill -KILL $$", "[no output]\n[killed by SIGKILL]"),
        ("exit 137", "[no output]\n[exit code 137 (as after SIGKILL)]"),
        ("printf '\\377 caf\\303\\251'", "\ufffd café"),
        ("read line; echo $?; tty", "1\nnot a tty\n[exit code 1]"),
        ('echo "[$0] [$1] [$#]"', "[bash] [] [0]"),
        ("echo x\nnosuch_command", "x\nbash: line 2: nosuch_command: command not found\n[exit code 127]"),
        ("set -x\necho x", "+ echo x\nx"),
        ("echo x > /dev/stderr; echo y > /dev/stdout", "x\ny"),
    ],
)
async def test_the_result_is_the_output_and_an_exit_code_that_is_not_0(
    shell: Shell, command: str, expected: str
) -> None:
    assert await shell(command) == expected


async def test_a_process_substitution_that_prints_late_is_waited_for_and_not_told_of(shell: Shell) -> None:
    assert await shell("echo x > >(sleep 0.1; cat)") == "x"


async def test_long_output_is_shown_with_its_head_and_tail_and_kept_whole(
    shell: Shell, tmp_path: Path
) -> None:
    text = await shell("cd /; seq 1 100000; exit 4")
    assert text.startswith("1\n2\n3\n")
    assert text.endswith("\n99999\n100000\n[exit code 4]\n[working directory: /]")
    assert 25_000 < len(text) < 31_000
    _, _, left_out = text.partition("characters left out; the whole output (588,895 bytes) is in ")
    path = left_out.removeprefix("the workspace's file ").partition("]")[0]
    assert path.startswith(".palaver/output/")
    kept = tmp_path / path
    assert kept.read_text() == "".join(f"{number}\n" for number in range(1, 100_001))
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / ".palaver").stat().st_mode) == 0o700
    assert (tmp_path / ".palaver/.gitignore").read_text() == "*\n"


async def test_short_output_leaves_nothing_in_the_workspace(shell: Shell, tmp_path: Path) -> None:
    await shell("echo x")
    assert list(tmp_path.iterdir()) == []


async def test_a_command_that_prints_without_end_is_stopped(tmp_path: Path) -> None:
    shell = Shell(tmp_path, bash_tool(max_file_bytes=1_000_000, max_output_chars=1000))
    text = await shell("yes", timeout_s=60)
    assert text.endswith(
        "\ny\n[stopped: it printed 1,000,000 bytes, the limit. Have it print less, or into a file]"
    )
    (kept,) = (tmp_path / ".palaver/output").iterdir()
    assert kept.stat().st_size == 1_000_000


async def test_output_that_cannot_be_kept_is_still_shown_in_part(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / ".palaver").write_text("in the way")
    text = await shell("seq 1 100000")
    assert text.startswith("1\n2\n")
    assert "characters left out; it could not be kept in a file: File exists]" in text
    assert text.endswith("\n100000")


# When it does not end


async def test_a_command_over_its_time_is_stopped_and_tells_what_it_printed(
    shell: Shell, tmp_path: Path
) -> None:
    text = await shell("echo $$ > pid; echo so far; sleep 60", timeout_s=1)
    assert text == (
        "so far\n[stopped: it took longer than 1 s. Give it more time (timeout_s up to 3600), or run it "
        "with background=true]"
    )
    assert not is_alive(int((tmp_path / "pid").read_text()))


async def test_a_stopped_command_can_clean_up(shell: Shell) -> None:
    text = await shell("trap 'echo cleaned up; exit' TERM; echo on; sleep 60 & wait", timeout_s=1)
    assert text.startswith("on\ncleaned up\n[stopped: ")


async def test_a_command_that_ignores_sigterm_is_killed(shell: Shell, tmp_path: Path) -> None:
    await shell("trap '' TERM; echo $$ > pid; while :; do sleep 0.05; done", timeout_s=1)
    assert not is_alive(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    "command",
    [
        "sleep 60 & echo $! > pid; echo started",
        "sleep 60 > /dev/null 2>&1 & echo $! > pid; echo started",
        "nohup sleep 60 & echo $! > pid; sleep 0.1; echo started",
        "set -m; sleep 60 & echo $! > pid; disown; echo started",
    ],
)
async def test_what_a_command_leaves_running_is_ended_with_it_and_told(
    shell: Shell, tmp_path: Path, command: str
) -> None:
    before = time.monotonic()
    text = await shell(command, timeout_s=30)
    assert time.monotonic() - before < 10
    assert "started\n[it left processes running (sleep), which were ended with the call; " in text
    assert not is_alive(int((tmp_path / "pid").read_text()))


async def test_what_prints_on_in_the_background_does_not_hold_the_call(shell: Shell, tmp_path: Path) -> None:
    text = await shell("(echo $BASHPID > pid; while sleep 0.01; do echo more; done) &", timeout_s=30)
    assert "it left processes running" in text
    assert not is_alive(int((tmp_path / "pid").read_text()))


async def test_a_cancelled_call_leaves_no_process_and_no_file(shell: Shell, tmp_path: Path) -> None:
    command = "cd /; seq 1 100000; sleep 60 & echo $! > $OLDPWD/pid; wait"
    call = asyncio.create_task(shell.outcome(command))
    pid = await pid_in(tmp_path / "pid")
    before = time.monotonic()
    call.cancel()
    assert (await call).stopped is not None
    assert time.monotonic() - before < 2
    assert not is_alive(pid)
    assert list((tmp_path / ".palaver/output").iterdir()) == []
    assert await shell("pwd") == str(tmp_path)


SUPERVISED = """
import json, sys, threading, time, _thread
from pathlib import Path
from palaver.tools import ToolCallInfo
from palaver.tools.bash import bash
from palaver.tools.supervisor import Supervisor

workspace, command, stops = sys.argv[1:]
pid = Path(workspace, "pid")

def interrupt():
    while not (pid.exists() and pid.read_text().strip()):
        time.sleep(0.01)
    _thread.interrupt_main()

if stops:
    threading.Thread(target=interrupt, daemon=True).start()
info = ToolCallInfo("call-1", "bash", "abc-defg", workspace=workspace)
outcome = Supervisor(bash, {"command": command}, info).run()
print(json.dumps([outcome.to_result("call-1").text, outcome.stopped is not None, pid.read_text()]))
"""


def as_in_a_worker(workspace: Path, command: str, *, stops: bool) -> tuple[str, bool, int]:
    """The result, whether the call was stopped, and the process id that the command wrote to `pid`."""
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISED, str(workspace), command, "yes" if stops else ""],
        capture_output=True,
        text=True,
        timeout=40,
        check=True,
    )
    assert done.stderr == ""
    text, stopped, pid = json.loads(done.stdout)
    return text, stopped, int(pid)


@pytest.mark.parametrize(
    "command",
    [
        "echo $$ > pid; sleep 60",
        "trap '' TERM; echo $$ > pid; while :; do sleep 0.05; done",
        "setsid sh -c 'echo $$ > pid; sleep 60' & wait",
    ],
)
def test_a_call_that_is_stopped_as_in_a_worker_leaves_no_process(tmp_path: Path, command: str) -> None:
    text, stopped, pid = as_in_a_worker(tmp_path, command, stops=True)
    assert text == "tool 'bash' was cancelled"
    assert stopped
    assert not is_alive(pid)


def test_what_has_left_the_session_is_ended_and_told_in_a_worker(tmp_path: Path) -> None:
    command = "setsid sh -c 'echo $$ > pid; exec sleep 60' & until [ -s pid ]; do sleep 0.01; done; echo x"
    text, stopped, pid = as_in_a_worker(tmp_path, command, stops=False)
    assert text.startswith("x\n[it left processes running (")
    assert not stopped
    assert not is_alive(pid)


# The working directory


async def test_the_working_directory_is_kept(shell: Shell, tmp_path: Path) -> None:
    assert await shell("mkdir -p sub/below; cd sub; exit 5") == (
        "[no output]\n[exit code 5]\n[working directory: sub]"
    )
    assert await shell("pwd") == str(tmp_path / "sub")
    assert await shell("cd below && false") == ("[no output]\n[exit code 1]\n[working directory: sub/below]")
    assert await shell("cd /usr; (cd /etc)") == "[no output]\n[working directory: /usr]"
    assert await shell(f"cd {tmp_path}") == "[no output]\n[working directory: the workspace]"
    assert (await shell.outcome("pwd")).state == {}


@pytest.mark.parametrize(
    "command",
    [
        "set -eu; set -o noclobber; cd sub; false; cd /",
        "set -x; cd sub",
        "pwd() { echo no; }; cd sub",
        "cd sub; kill -TERM $$; sleep 60",
        "cd sub; trap 'echo gone' USR1; exec 3>&1; exec 3>&-",
    ],
)
async def test_the_working_directory_is_kept_however_the_command_ends(
    shell: Shell, tmp_path: Path, command: str
) -> None:
    (tmp_path / "sub").mkdir()
    await shell(command)
    assert await shell("pwd") == str(tmp_path / "sub")


async def test_an_exit_trap_of_the_commands_own_runs_and_the_working_directory_stays(
    shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    assert await shell("trap 'echo bye' EXIT; cd sub; exit 4") == "bye\n[exit code 4]"
    assert await shell("pwd") == str(tmp_path)
    assert await shell("cd sub; exec true") == "[no output]"


async def test_a_working_directory_that_is_gone_is_told_and_the_workspace_used(
    shell: Shell, tmp_path: Path
) -> None:
    await shell("mkdir sub; cd sub")
    (tmp_path / "sub").rmdir()
    assert await shell("pwd") == (
        f"[the working directory {tmp_path}/sub is gone; this ran in the workspace]\n{tmp_path}"
    )
    assert await shell("pwd") == str(tmp_path)


async def test_calls_at_once_that_stay_where_they_are_do_not_undo_one_that_moves(
    shell: Shell, tmp_path: Path
) -> None:
    await asyncio.gather(shell("mkdir sub; cd sub"), shell("sleep 0.3"))
    assert await shell("pwd") == str(tmp_path / "sub")


async def test_a_workspace_behind_a_link_is_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    outcome = await Shell(tmp_path / "link").outcome("cd /; cd -")
    assert outcome.state == {}


# The environment


async def test_variables_are_not_kept(shell: Shell) -> None:
    assert await shell("export X=1; echo $X") == "1"
    assert await shell("echo [$X]") == "[]"


async def test_keys_are_not_in_the_environment_unless_they_are_passed_on_purpose(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {ANTHROPIC_KEY_VARIABLE, *(each.key_variable for each in SERVICES if each.key_variable)}
    assert len(keys) > 5
    keys |= {"SOME_OTHER_API_KEY", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "ANTHROPIC_AUTH_TOKEN"}
    for each in (*keys, "KEYBOARD"):
        monkeypatch.setenv(each, "value-of-it")
    show = "env | grep value-of-it | sort"
    assert await shell(show) == "KEYBOARD=value-of-it"
    shell = Shell(tmp_path, bash_tool(pass_env=("OPENAI_API_KEY",)))
    assert await shell(show) == "KEYBOARD=value-of-it\nOPENAI_API_KEY=value-of-it"


async def test_a_bash_env_of_the_users_own_still_counts(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "its env").write_text("greet() { echo hello; }")
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "its env"))
    assert await shell("greet; mkdir sub; cd sub; bash -c greet; echo $BASH_ENV") == (
        f"hello\nhello\n{tmp_path}/its env\n[working directory: sub]"
    )
    monkeypatch.delenv("BASH_ENV")
    assert await shell("echo ${BASH_ENV-none}") == "none"


async def test_a_node_without_bash_is_told(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    text = await shell("true")
    assert text.startswith(f"bash could not be started in {tmp_path}: there is no bash on the PATH")


# The tool


@pytest.mark.parametrize(
    ("tool_input", "expected"),
    [
        ({"command": "true", "timeout_s": 3601}, "timeout_s: Input should be less than or equal to 3600"),
        ({"command": "true", "timeout_s": 0}, "timeout_s: Input should be greater than 0"),
        ({"command": ""}, "command: String should have at least 1 character"),
        ({"command": "x" * 200_000}, "Argument list too long (the command has 200,000 bytes; write long"),
        ({"command": "echo \0"}, "embedded null byte"),
        ({"command": "echo \ud800"}, "unable to parse raw data as a unicode string"),
    ],
)
async def test_what_cannot_be_run_is_told(shell: Shell, tool_input: dict[str, Any], expected: str) -> None:
    outcome = await shell.outcome(**tool_input)
    assert outcome.error is not None
    assert expected in str(outcome.error)


async def test_no_workspace_or_one_that_is_gone_is_told(tmp_path: Path) -> None:
    assert await Shell(tmp_path / "gone")("true") == (
        f"the workspace {tmp_path}/gone is not there, or cannot be entered"
    )
    toolset = InlineToolset([bash])
    outcome = await toolset.run(ToolUse(id="call-1", name="bash", input={"command": "true"}))
    assert str(outcome.error) == "tool 'bash' works in a workspace; this conversation has none"


def test_a_tool_of_ones_own_has_its_own_limits() -> None:
    own = bash_tool(name="sh", timeout_s=5, max_timeout_s=10, max_output_chars=500, max_per_node=2)
    schema = own.spec.input_schema["properties"]["timeout_s"]
    assert (schema["default"], schema["maximum"]) == (5, 10)
    assert "500 characters" in own.spec.description
    assert own.limits.max_per_node == 2
    # The command's own limit comes first, and what it printed is told.
    assert own.limits.timeout_s is not None
    assert own.limits.timeout_s > 10 + 2
    assert (own.name, own.in_workspace) == ("sh", True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout_s": 0},
        {"timeout_s": 20, "max_timeout_s": 10},
        {"max_timeout_s": float("inf")},
        {"max_output_chars": 0},
        {"max_file_bytes": 10},
        {"pass_env": "OPENAI_API_KEY"},
    ],
)
def test_limits_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ToolDefinitionError, match="of 'bash' is"):
        bash_tool(**wrong)


async def test_the_tool_travels_by_its_name_and_one_of_ones_own_by_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_name = pack(bash)
    assert by_name.unpack() is bash
    assert len(by_name.code) < 200
    monkeypatch.setenv("OPENAI_API_KEY", "value-of-it")
    own = pack(bash_tool(pass_env=("OPENAI_API_KEY",), max_timeout_s=300)).unpack()
    assert own is not bash
    assert own.spec.input_schema["properties"]["timeout_s"]["maximum"] == 300
    shell = Shell(tmp_path, own)
    assert await shell("echo $OPENAI_API_KEY") == "value-of-it"
    assert "less than or equal to 300" in await shell("true", timeout_s=301)


# On Ray


async def test_on_ray_the_working_directory_is_kept_and_a_cancel_leaves_nothing(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    tools = [pack(each) for each in BASH_TOOLS]
    toolset = RayToolset(tools, ["abc-defg"], None, workspace=Workspace(path=str(tmp_path)))

    async def run(command: str) -> Outcome:
        return await toolset.run(ToolUse(id="call-1", name="bash", input={"command": command}))

    moved = await run("mkdir sub; cd sub; seq 1 20000 | tail -1")
    assert moved.to_result("call-1").text == "20000\n[working directory: sub]"
    assert (await run("pwd")).to_result("call-1").text == str(tmp_path / "sub")
    left = (await run("setsid sleep 60 & echo $!")).to_result("call-1").text
    assert "it left processes running (sleep)" in left
    assert not is_alive(int(left.splitlines()[0]))
    call = asyncio.create_task(run("echo $$ > pid; sleep 60"))
    pid = await pid_in(tmp_path / "sub/pid")
    call.cancel()
    stopped = (await call).stopped
    assert stopped is not None
    assert stopped.complete
    assert not is_alive(pid)
    await toolset.aclose()
