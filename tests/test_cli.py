"""The command line: what it refuses before it starts anything, and what the real command does and leaves."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import eventually
from rich.console import Console

from palaver.actors.cli import main, spread
from palaver.actors.inputs import choose_model
from palaver.actors.model_table import table
from palaver.providers.capabilities import context_window
from palaver.providers.errors import ConfigurationError
from palaver.providers.models import known_models
from palaver.providers.prices import Price
from palaver.tools.builtin import CATALOGUE

PALAVER = str(Path(sys.executable).with_name("palaver"))

KEYS = [row.key_variable for row in known_models(with_prices=False) if row.key_variable]

TOOLS = '''
import subprocess
from pathlib import Path
from palaver.tools import ToolCallInfo, tool

@tool
def nap(seconds: int) -> str:
    """Sleep in a process of its own."""
    subprocess.run(["sleep", str(seconds)], check=True)
    return "slept"

@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b

@tool(needs_approval=True)
def deploy(host: str) -> str:
    """Deploy."""
    return f"deployed to {host}"


@tool(name="think")
def other_think() -> None:
    """Think otherwise."""

think = other_think

@tool(in_workspace=True)
def leave(name: str, info: ToolCallInfo) -> str:
    """Leave a file in the workspace, and tell where that is."""
    Path(info.workspace, name).write_text("left")
    return info.workspace

ALL = [nap, add]
NONE = []
'''


def call(name: str, id: str, /, **tool_input: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": tool_input}


def says(*parts: str | dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "assistant", "content": content}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three texts, a module of tools and a script; no key is set."""
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"text {name}\n")
    (tmp_path / "tools_of_test_cli.py").write_text(TOOLS)
    (tmp_path / "script.json").write_text('{"replies": ["an answer"], "cost_usd": "0.0012"}')
    nap = [says(call("add", "t1", a=1, b=2)), says(call("nap", "t2", seconds=977)), "done"]
    (tmp_path / "nap.json").write_text(json.dumps({"replies": nap, "cost_usd": "0.01"}))
    monkeypatch.chdir(tmp_path)
    for variable in [*KEYS, "RAY_ADDRESS"]:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def palaver(*args: str) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert isinstance(ended.value.code, int)
    return ended.value.code


# Before anything is started


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run"], "PROMPT is missing"),
        (["run", " "], "PROMPT is empty"),
        (["run", "x", "--over"], "--over needs a file, or several"),
        (["run", "x", "--over", "--model", "local"], "--over needs a file, or several"),
        (["run", "--over", "a.txt", "x.txt"], "PROMPT is missing: it stands before --over"),
        (["run", "x", "--over", "no-*.txt"], "'no-*.txt' cannot be read: No such file or directory; the"),
        (["run", "x", "--over", "no.txt"], "'no.txt' cannot be read: No such file or directory; check"),
        (["run", "x", "--over", "."], "'.' is a folder; name the files in it, like ./*.txt"),
        (["run", "x", "--over", "/dev/null"], "'/dev/null' is no regular file"),
        (["run", "x", "--over", "a.txt", "./a.txt"], "one file twice, as 'a.txt' and './a.txt'"),
        (["run", "x", "--over", "a.txt", "--out", "a.txt"], "--out 'a.txt' is one of the files of --over"),
        (["run", "x", "--out", "no/where"], "--out 'no/where' cannot be written: No such file or directory"),
        (["run", "x", "--concurrency", "0"], "--concurrency is 0; use 1 or more"),
        (["run", "x", "--max-tokens", "0"], "--max-tokens is 0; use 1 or more"),
        (["run", "x", "--max-dollars", "-1"], "a limit of -1 is negative; use 0 or more, or leave it out"),
        (["run", "x", "--max-dollars", "much"], "--max-dollars is 'much', no amount; write it like 0.50"),
        (["run", "x", "--max-dollars", "nan"], "--max-dollars: "),
        (["run", "x", "--model", "gpt4.1", "--price", "2"], "--price is '2'; write USD per million tokens"),
        (["chat", "--model", "local", "--price", "1/2"], "'local' is free; leave it out"),
        (["run", "x", "--max-responses", "-1"], "--max-responses: a limit of -1 is negative"),
        (["run", "x", "--max-wall-time", "-1"], "--max-wall-time is -1 s; use 0 or more"),
        (["run", "x", "--max-wall-time", "nan"], "--max-wall-time is nan; write seconds"),
        (["run", "x", "--tools", "nothing"], "--tools 'nothing': there is no built-in tool 'nothing'; th"),
        (["run", "x", "--tools", "think,todos"], "no built-in tool 'todos'; did you mean 'todo'?"),
        (["run", "x", "--tools", "my_tools.search"], "For a tool of your own write module:name"),
        (["run", "x", "--tools", "think,"], "--tools has an empty name in it; write names with"),
        (["run", "x", "--tools", ""], "--tools has an empty name in it"),
        (["run", "x", "--tools", ":add"], "':add' is not of the form module:name"),
        (["run", "x", "--tools", "think,tools_of_test_cli:think"], "tool name used more than once: 'think'"),
        (["run", "x", "--tools", "tools_of_test_cli.py:add"], "name the module, like tools_of_test_cli:add"),
        (["run", "x", "--tools", "no_such_module:add"], "there is no module 'no_such_module', neither"),
        (["run", "x", "--tools", "tools_of_test_cli:sub"], "has no 'sub'; its tools: ['nap', 'add', "),
        (["run", "x", "--tools", "tools_of_test_cli:tool"], "is no tool, and no list of tools (found: func"),
        (["run", "x", "--tools", "tools_of_test_cli:NONE"], "no list of tools (found: empty list)"),
        (
            ["run", "x", "--tools", "tools_of_test_cli:ALL", "--tools", "tools_of_test_cli:add"],
            "tool name used more than once: 'add'",
        ),
        (["run", "x", "--model", "gpt4.l"], "model 'gpt4.l' is not known; did you mean 'gpt4.1'"),
        (["run", "x", "--model", "gpt4.1"], "set OPENAI_API_KEY"),
        (["run", "x", "--model", "scripted:no.json"], "'no.json' cannot be read: No such file or directory"),
        (["run", "x", "--base-url", "http://localhost:1"], "--base-url needs --model"),
        (["chat", "--model", "gpt4.l"], "model 'gpt4.l' is not known"),
        (["chat", "--tools", "nothing"], "there is no built-in tool 'nothing'"),
        (["run", "x", "--workspace", "no"], "--workspace 'no' cannot be used: No such file or dir"),
        (["run", "x", "--workspace", ""], "--workspace '' cannot be used: No such file or directory"),
        (["run", "x", "--workspace", "a.txt"], "--workspace 'a.txt' is no folder; name the folder that the"),
        (["chat", "--workspace", "a.txt"], "--workspace 'a.txt' is no folder"),
        (["run", "x", "--tool-timeout", "0"], "--tool-timeout is 0; use seconds above 0, or leave it out"),
        (["run", "x", "--tool-timeout", "-1.5"], "--tool-timeout is -1.5; use seconds above 0"),
        (["run", "x", "--tool-timeout", "nan"], "--tool-timeout is nan; use seconds above 0"),
        (["chat", "--tool-timeout", "0"], "--tool-timeout is 0; use seconds above 0"),
        (["run", "x", "--wrong"], "No such option: --wrong"),
        (["run", "x", "y"], "unexpected extra argument"),
        (["walk"], "No such command 'walk'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_line_before_anything_starts(
    here: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    processes = psutil.Process().children(recursive=True)
    assert palaver(*args) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("palaver: error: ")
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1
    assert psutil.Process().children(recursive=True) == processes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty (0 bytes)"),
        (b" \n", "is empty (2 bytes)"),
        (b"caf\xe9 noir", "is no UTF-8 text: byte 0xe9 at offset 3; convert it (iconv"),
    ],
)
def test_file_without_text_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    Path("bad.txt").write_bytes(content)
    assert palaver("run", "x", "--over", "a.txt", "bad.txt", "--model", "scripted:script.json") == 2
    assert f"palaver: error: --over 'bad.txt' {message}" in capsys.readouterr().err


def test_module_of_tools_that_fails_to_import_says_how(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken_of_test_cli.py").write_text("import no_such_thing\n")
    assert palaver("run", "x", "--tools", "broken_of_test_cli:add") == 2
    assert "failed with ModuleNotFoundError: No module named 'no_such_thing'" in capsys.readouterr().err


def test_nothing_at_all_and_help_show_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert palaver() == 0
    assert all(command in capsys.readouterr().out for command in ("run",))
    assert palaver("run", "--help") == 0
    assert "--over" in capsys.readouterr().out


def test_help_names_the_built_in_tools(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    for command in ("run", "chat"):
        assert palaver(command, "--help") == 0
        shown = capsys.readouterr().out
        assert f"Built in: {', '.join(CATALOGUE)}." in shown
        assert all(option in shown for option in ("--workspace", "--tool-timeout"))


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert palaver("--version") == 0
    assert capsys.readouterr().out.startswith("palaver 0.")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("P --over a b --model m", "P --over a --over b --model m"),
        ("P --over a --over b c", "P --over a --over b --over c"),
        ("--over a b -- P", "--over a --over b -- P"),
        ("--model m P --over=a b", "--model m P --over=a --over b"),
        ("--over a --model m P", "--over a --model m P"),
        ("P --over -", "P --over -"),
        ("P", "P"),
    ],
)
def test_over_takes_all_the_files_that_follow_it(args: str, expected: str) -> None:
    assert spread(args.split(), "--over") == expected.split()


def test_over_without_a_file_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs a file"):
        spread(["P", "--over", "--", "a"], "--over")


def test_models_are_listed_one_per_line_with_price_and_key(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-test")
    assert palaver("models") == 0
    text = capsys.readouterr().out
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in text.splitlines()}
    assert rows["gpt4.1"][1:] == [
        *("2", "8", "1.00M", "OPENAI_API_KEY", "yes", "https://api.openai.com/v1", "chat"),
        "schema, forced calls, one call at a time",
    ]
    assert rows["claude-3.5-haiku"][3:6] == ["200.0k", "ANTHROPIC_API_KEY", "no"]
    assert rows["local"][1:7] == ["0", "0", "4.1k", "not needed", "", "this machine"]
    assert "secret-of-test" not in text


def test_models_fit_a_terminal_of_80_columns() -> None:
    file = io.StringIO()
    Console(file=file, width=80).print(table(known_models(with_prices=False)))
    lines = file.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any(line.startswith("gpt4.1 ") and "OPENAI_API_KEY" in line for line in lines)


def test_models_as_json_have_exact_prices(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert palaver("models", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["gpt4.1"]["input_usd_per_million_tokens"] == "2"
    assert rows["gpt4.1"]["key_is_set"] is False
    assert rows["local"]["key_variable"] is None


class Listed(BaseHTTPRequestHandler):
    """A server of one model, which sets the terminal's title in its name."""

    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": "m\x1b]0;x", "max_model_len": 8192}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Listed) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_a_server_is_asked_for_its_models(server_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert palaver("models", "--base-url", server_url) == 0
    assert capsys.readouterr().out == "id\twindow\tmost output\tabilities\nm\\x1b]0;x\t8.2k\tunknown\t\n"
    assert palaver("models", "--base-url", server_url, "--json") == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert model["context_window"] == 8192
    assert palaver("models", "--base-url", "http://127.0.0.1:9/v1") == 2
    assert "did not tell its models" in capsys.readouterr().err


def test_a_servers_window_is_asked_for_where_a_part_of_it_counts(server_url: str) -> None:
    provider, _ = choose_model("m", server_url, Price.free(), needs_window=True)
    assert context_window(provider) == 8192
    unasked, _ = choose_model("m", server_url, Price.free())
    assert context_window(unasked) is None


def test_a_models_file_with_a_fault_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.yaml").write_text("models:\n  a: {windw: 1}\n")
    monkeypatch.setenv("PALAVER_MODELS", str(tmp_path / "m.yaml"))
    assert palaver("models") == 2
    assert "m.yaml:2: models.a.windw: there is no such field" in capsys.readouterr().err


# The real command, with a Ray of its own


class Box:
    """Runs the real command in a session and with a temp folder of its own, and sees what it leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "TMPDIR": str(folder), "TERM": "xterm-256color", "COLUMNS": "", "LINES": ""}
        self._started: list[subprocess.Popen[str] | subprocess.Popen[bytes]] = []

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*args)
        out, err = process.communicate(timeout=90)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [PALAVER, *args],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def terminal(self, *args: str) -> Terminal:
        terminal = Terminal([PALAVER, *args], self.env)
        self._started.append(terminal.process)
        return terminal

    def left(self) -> list[str]:
        """Processes and files of the commands that still are there."""
        sessions = {process.pid for process in self._started}
        found: list[str] = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {process.name()}")
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found + sorted(os.listdir(self.folder))

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()


class Terminal:
    """A terminal of 24 lines with a command in the foreground."""

    def __init__(self, command: list[str], env: dict[str, str], columns: int = 100) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

        # A session leader without a terminal gets the first one it opens.
        attach = f'exec "$@" <{os.ttyname(slave)} >{os.ttyname(slave)} 2>&1'
        self.process = subprocess.Popen(["sh", "-c", attach, "sh", *command], env=env, start_new_session=True)
        # Kept open: a terminal that nobody has open hangs up.
        self._slave = slave
        os.set_blocking(self._master, False)
        self.text = ""

    def wait_for(self, text: str, within_s: float = 60.0) -> None:
        """Wait until `text` comes, after whatever was waited for before."""
        assert eventually(lambda: text in self._read(), within_s), self.text
        self.text = self.text.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self, within_s: float = 60.0) -> int:
        """Wait for the command's end; its exit code."""
        # What it writes has to be read, or it never ends.
        assert eventually(lambda: self._read() is not None and self.process.poll() is not None, within_s), (
            self.text
        )
        self._read()
        os.close(self._slave)
        os.close(self._master)
        assert self.process.returncode is not None
        return self.process.returncode

    def _read(self) -> str:
        try:
            while block := os.read(self._master, 65536):
                self.text += block.decode(errors="replace")
        except OSError:  # nothing now, or nothing any more
            pass
        return self.text


@pytest.fixture
def box(here: Path) -> Iterator[Box]:
    # Short, since the paths of Ray's sockets below it may have no more than 107 characters.
    with tempfile.TemporaryDirectory(prefix="pt", dir="/tmp") as folder:
        box = Box(Path(folder))
        yield box
        box.close()


def seen(process: subprocess.Popen[str], text: str, within_s: float = 60.0) -> None:
    """Read a command's stderr until a line has `text`."""
    assert process.stderr is not None
    deadline = time.monotonic() + within_s
    for line in process.stderr:
        if text in line:
            return
        assert time.monotonic() < deadline
    raise AssertionError(f"{text!r} never came")


@pytest.mark.ray
def test_run_over_files_answers_on_stdout_tells_on_stderr_and_leaves_nothing(box: Box) -> None:
    model = ("--model", "scripted:script.json")
    done = box.run(
        "run",
        "Sum up.",
        "--over",
        "a.txt",
        "b.txt",
        "c.txt",
        *model,
        "--out",
        "out.jsonl",
        "--concurrency",
        "2",
    )
    assert done.returncode == 0, done.stderr
    sections = sorted(done.stdout.strip().split("\n\n"))
    assert sections == [f"== {name}.txt ==\nan answer" for name in ("a", "b", "c")]
    assert "\x1b" not in done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "model: scripted scripted"
    assert sum(": ended, 1 turns, 4 in, 2 out, $0.0012" in line for line in lines) == 3
    assert lines[-5:-1] == [
        "3 of 3 finished",
        "responses   3",
        "tokens      12 in, 6 out",
        "cost        $0.0036",
    ]
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert sorted(row["file"] for row in rows) == ["a.txt", "b.txt", "c.txt"]
    for row in rows:
        assert (row["finished"], row["stop"], row["text"], row["error"]) == (
            True,
            "end_turn",
            "an answer",
            None,
        )
        assert (row["usage"]["responses"], row["usage"]["cost_usd"]) == (1, "0.0012")
    assert box.left() == []


@pytest.mark.ray
def test_run_with_built_in_tools_works_in_the_workspace_under_the_time_limit(box: Box) -> None:
    first = says(
        call("think", "t1", thought="two steps"),
        call("todo", "t2", items=[{"text": "nap", "status": "in_progress"}, {"text": "leave"}]),
    )
    second = says(call("nap", "t3", seconds=977), call("leave", "t4", name="here.txt"), call("todo", "t5"))
    Path("tools.json").write_text(json.dumps({"replies": [first, second, "done"]}))
    Path("work").mkdir()
    tools = ("--tools", "think,todo", "--tools", "tools_of_test_cli:nap, tools_of_test_cli:leave")
    limits = ("--workspace", "work", "--tool-timeout", "2", "--out", "out.jsonl", "--concurrency", "1")
    done = box.run("run", "x", "--over", "a.txt", "--model", "scripted:tools.json", *tools, *limits)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "== a.txt ==\ndone\n\n"
    assert done.stderr.splitlines()[:2] == ["model: scripted scripted", f"workspace: {Path.cwd() / 'work'}"]
    assert "tool calls  leave 1, nap 1, think 1, todo 2" in done.stderr
    assert Path("work/here.txt").read_text() == "left"
    assert box.left() == []


@pytest.mark.ray
def test_run_that_does_not_finish_everything_says_why_and_exits_1(box: Box) -> None:
    Path("out.jsonl").write_text('{"earlier": true}\n')
    limits = ("--max-responses", "1", "--concurrency", "1", "--out", "out.jsonl")
    done = box.run(
        "run", "x", "--over", "a.txt", "b.txt", "c.txt", "--model", "scripted:script.json", *limits
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == "== a.txt ==\nan answer\n\n"
    assert "2 without a result: " in done.stderr
    assert "max_responses is 1" in done.stderr
    assert "1 of 3 finished" in done.stderr
    earlier, first, *rest = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert earlier == {"earlier": True}
    assert first["finished"]
    assert [(row["convo_id"], row["error_type"]) for row in rest] == [(None, "BudgetExceeded")] * 2
    assert box.left() == []


@pytest.mark.ray
def test_sigterm_cancels_what_runs_tells_what_was_spent_and_leaves_nothing(box: Box) -> None:
    process = box.start("run", "x", "--model", "scripted:nap.json", "--tools", "tools_of_test_cli:ALL")
    seen(process, "tools: nap")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert out == ""
    assert "the run: not finished: stopped (cancelled): interrupted" in err
    assert "cost        $0.02" in err
    assert "tool calls  add 1, nap 1" in err
    assert box.left() == []


@pytest.mark.ray
def test_ctrl_c_typed_in_a_terminal_with_a_live_tree_stops_everything(box: Box) -> None:
    limits = ("--max-dollars", "0.5", "--concurrency", "2")
    tools = ("--tools", "tools_of_test_cli:nap", "--tools", "tools_of_test_cli:add")
    terminal = box.terminal(
        "run", "x", "--over", "a.txt", "b.txt", "c.txt", "--model", "scripted:nap.json", *tools, *limits
    )
    terminal.wait_for("0 of 3 done; 4 turns, ")
    terminal.wait_for("$0.04 of $0.50")
    terminal.wait_for("tools: nap")
    terminal.type("\x03")
    terminal.wait_for("palaver: interrupted; stopping")
    terminal.wait_for("not finished: stopped (cancelled): interrupted")
    terminal.wait_for("1 without a result: ")
    terminal.wait_for("0 of 3 finished")
    terminal.wait_for("cost        $0.04 of $0.50")
    assert terminal.end() == 130
    assert box.left() == []


@pytest.mark.ray
def test_second_ctrl_c_ends_at_once_and_leaves_nothing(box: Box) -> None:
    terminal = box.terminal("run", "x", "--model", "scripted:nap.json", "--tools", "tools_of_test_cli:ALL")
    terminal.wait_for("tools: nap")
    terminal.type("\x03")
    terminal.type("\x03")
    terminal.wait_for("palaver: interrupted")
    assert terminal.end() == 130
    assert "Traceback" not in terminal.text
    assert eventually(lambda: box.left() == [], 5), box.left()


@pytest.mark.ray
def test_ctrl_c_while_ray_starts_is_clean(box: Box) -> None:
    terminal = box.terminal("run", "x", "--model", "scripted:script.json")
    terminal.wait_for("starting Ray")
    assert eventually(lambda: len(psutil.Process(terminal.process.pid).children()) > 0, 30)
    terminal.type("\x03")
    terminal.wait_for("palaver: interrupted; stopping as soon as Ray has started")
    assert terminal.end() == 130
    assert "Traceback" not in terminal.text
    assert box.left() == []


@pytest.mark.ray
def test_chat_shows_tool_calls_and_ctrl_c_cancels_one_answer_alone(box: Box) -> None:
    replies = [
        "hello",
        says("adding", call("add", "t1", a=1, b=2)),
        "it is 3",
        says(call("nap", "t2", seconds=977)),
        "back",
    ]
    Path("chat.json").write_text(json.dumps({"replies": replies, "cost_usd": "0.01"}))
    limits = ("--max-dollars", "0.05")
    terminal = box.terminal(
        "chat", "--model", "scripted:chat.json", "--tools", "tools_of_test_cli:ALL", *limits
    )

    def ask(text: str, *answers: str) -> None:
        terminal.wait_for("> ")
        terminal.type(text + "\n")
        for answer in answers:
            terminal.wait_for(answer)

    ask("hi", "hello")
    ask("add", "adding", 'add({"a": 1, "b": 2})', "  3", "it is 3")
    ask("nap", "tools: nap")
    terminal.type("\x03")
    terminal.wait_for("(cancelled)")
    ask("again", "back")
    ask("more", "is over its budget: $0.05 spent, at least $0.01 more", "max_dollars is $0.05. /budget")
    ask("/wrong", "there is no command '/wrong'", "/usage")
    ask("/usage", "responses   5")
    ask("/budget", "the limits count anew")
    ask("more", "error: the script")
    terminal.wait_for("> ")
    terminal.type("\x04")
    terminal.wait_for("cost        $0.05 of $0.10")
    assert terminal.end() == 0
    assert box.left() == []


@pytest.mark.ray
def test_chat_reads_from_a_pipe_too(box: Box, tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    chat = subprocess.run(
        [PALAVER, "chat", "--model", f"scripted:{script}"],
        env=box.env,
        input="hi\n/quit\nnever read\n",
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (chat.returncode, chat.stdout) == (0, "an answer\n")
    assert chat.stderr.splitlines()[:2] == ["model: scripted scripted", "responses   1"]
    assert os.listdir(box.folder) == []


# Approval


def deploying(*hosts: str) -> Path:
    """A script of a model that deploys to each host in a turn of its own, and then is done."""
    turns = [says(call("deploy", f"t{index}", host=host)) for index, host in enumerate(hosts)]
    Path("deploy.json").write_text(json.dumps({"replies": [*turns, "all done"], "cost_usd": "0.01"}))
    return Path("deploy.json")


DEPLOY = ("--model", "scripted:deploy.json", "--tools", "tools_of_test_cli:deploy")
QUESTION = "[y]es / [n]o / [e]dit? "


@pytest.mark.ray
def test_chat_asks_before_a_call_and_takes_yes_no_with_a_reason_and_an_edit(box: Box, here: Path) -> None:
    deploying("first\u202e", "second", "third", "fourth", "fifth")
    editor = here / "editor"
    editor.write_text('#!/bin/sh\nexec sed -i s/fourth/fixed/ "$1"\n')
    editor.chmod(0o755)
    box.env |= {"EDITOR": str(editor), "VISUAL": ""}
    terminal = box.terminal("chat", *DEPLOY)

    def asked(host: str) -> None:
        terminal.wait_for("needs approval for tool deploy:")
        terminal.wait_for(f'"host": "{host}"')
        terminal.wait_for(QUESTION)

    terminal.wait_for("> ")
    terminal.type("go\n")
    asked("first\\u202e")
    terminal.type("perhaps\n")
    terminal.wait_for(QUESTION)
    terminal.type("y\n")
    terminal.wait_for("  deployed to first")
    asked("second")
    terminal.type("n\n")
    terminal.wait_for("reason, for the model (may be empty): ")
    terminal.type("not now\n")
    terminal.wait_for("failed: tool 'deploy' needs approval, and this call was denied")
    terminal.wait_for("The reason given: not now")
    asked("third")
    terminal.type("\x04")
    terminal.wait_for("No reason was given.")
    asked("fourth")
    terminal.type("e\n")
    terminal.wait_for('ran with: {"host": "fixed"}] deployed to fixed')
    asked("fifth")
    terminal.type("\x03")
    terminal.wait_for("(cancelled)")
    terminal.wait_for("> ")
    terminal.type("/quit\n")
    assert terminal.end() == 0
    assert box.left() == []


@pytest.mark.ray
def test_run_on_a_terminal_asks_below_a_live_tree_and_takes_json_that_is_typed(box: Box) -> None:
    deploying("first")
    box.env |= {"EDITOR": "", "VISUAL": ""}
    terminal = box.terminal("run", "x", "--over", "a.txt", *DEPLOY)
    terminal.wait_for("a.txt ")
    terminal.wait_for("(1 below the root) needs approval for tool deploy:")
    terminal.wait_for(QUESTION)
    terminal.type("e\n")
    for wrong, problem in (("{host}", "that was no input: Expecting property"), ("[]", "a JSON object")):
        terminal.wait_for("input, as one line of JSON (empty: back): ")
        terminal.type(wrong + "\n")
        terminal.wait_for(problem)
    terminal.wait_for("(empty: back): ")
    terminal.type("\n")
    terminal.wait_for(QUESTION)
    terminal.type("e\n")
    terminal.wait_for("(empty: back): ")
    terminal.type('{"host": "typed"}\n')
    terminal.wait_for("0 of 1 done")
    terminal.wait_for("all done")
    terminal.wait_for("1 of 1 finished")
    assert terminal.end() == 0
    assert box.left() == []


@pytest.mark.ray
@pytest.mark.parametrize(
    ("options", "note"),
    [
        ((), "denied, because nobody is there to approve it (--yes approves): deploy({"),
        (("--yes",), "approved, because of --yes: deploy({"),
    ],
)
def test_run_in_a_pipe_denies_and_with_yes_approves(box: Box, options: tuple[str, ...], note: str) -> None:
    deploying("first")
    done = box.run("run", "x", *DEPLOY, *options, "--out", "out.jsonl")
    assert (done.returncode, done.stdout) == (0, "all done\n"), done.stderr
    assert f'{note}"host": "first"}})' in done.stderr
    assert box.left() == []
