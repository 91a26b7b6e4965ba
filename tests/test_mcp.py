"""`mcp_tools` and what an MCP server answers, without Ray. The servers are real ones."""

from __future__ import annotations

import base64
import pickle
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mcp_types as types
import psutil
import pytest
from conftest import is_alive
from mcp_program import PNG

from palaver.actors.tool_names import load_mcp
from palaver.providers.errors import ConfigurationError
from palaver.providers.messages import Image, Text
from palaver.tools import McpTool, Tool, ToolDefinitionError, mcp_tools, tool
from palaver.tools.limits import ToolLimits
from palaver.tools.mcp import name_for
from palaver.tools.mcp_content import content_of, error_of
from palaver.tools.mcp_host import McpHost, Order
from palaver.tools.mcp_server import McpServer, server_of
from palaver.tools.toolset import InlineToolset

PROGRAM = [sys.executable, str(Path(__file__).parent / "mcp_program.py")]
TIME = [str(Path(sys.executable).parent / "mcp-server-time"), "--local-timezone", "Etc/UTC"]
HUSH = "hush-9f31c7"


def server(command: list[str] | None = None, **given: Any) -> McpServer:
    defaults: dict[str, Any] = {"url": None, "env": None, "headers": None, "cwd": None, "name": None}
    return server_of(command, **{**defaults, "start_timeout_s": 30, "in_workspace": False, **given})


# What can be asked for


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "needs a command or a url, and got neither"),
        ({"command": ["x"], "url": "http://h/"}, "needs a command or a url, and got both"),
        ({"command": "uvx mcp-server-time"}, "pass a list of strings"),
        ({"command": []}, "pass a list of strings"),
        ({"command": ["x"], "headers": {"A": "b"}}, "headers are for an MCP server with a url"),
        ({"url": "http://h/", "env": {"A": "b"}}, "env of an MCP server with a url"),
        ({"url": f"gopher://h/{HUSH}"}, "no http:// or https:// URL"),
        ({"url": f"http://h:port/{HUSH}"}, "no http:// or https:// URL"),
        ({"url": "http://h/", "headers": {"A": f"{HUSH}\n"}}, r"headers of MCP server 'http://h/': \['A'\]"),
        ({"command": ["x"], "env": {"A=": HUSH}}, r"env of MCP server 'x': \['A='\]"),
        ({"command": ["x"], "env": {"A": 1}}, r"env\['A'\] of an MCP server is a int"),
        ({"command": ["x"], "start_timeout_s": 0}, "start_timeout_s of an MCP server is 0"),
        ({"command": ["x"], "cwd": "/tmp", "in_workspace": True}, "leave one of them out"),
        ({"command": ["x"], "limits": ToolLimits(max_per_node=1)}, "max_per_node of MCP server 'x' is 1"),
        ({"command": ["x"], "limits": ToolLimits(timeout_s=0)}, "timeout_s of MCP server 'x' is 0"),
        ({"command": ["x"], "retries": -1}, "retries of MCP server 'x' is -1"),
        ({"command": ["x"], "needs_approval": "yes"}, "needs_approval of MCP server 'x' is 'yes'"),
    ],
)
def test_what_cannot_be_a_server_is_refused_before_anything_is_started(
    given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told) as refused:
        mcp_tools(**given)
    assert HUSH not in str(refused.value)


def test_secrets_show_in_no_repr_and_no_pickle_and_are_covered_in_text() -> None:
    by_command = server(["x"], env={"TOKEN": HUSH, "DEBUG": "1"})
    by_url = server(
        url=f"https://{HUSH}:pass-{HUSH}@host/mcp?key=key-{HUSH}",
        headers={"Authorization": f"Bearer b-{HUSH}"},
    )
    for each in (by_command, by_url):
        assert HUSH not in repr(each)
        assert HUSH not in each.label
        assert HUSH.encode() not in pickle.dumps(each)
        assert pickle.loads(pickle.dumps(each)) == each
        assert hash(pickle.loads(pickle.dumps(each))) == hash(each)
    assert by_url.label == "https://host/mcp"
    assert by_command.cover(f"1: {HUSH}!") == "1: ***!"
    assert (
        by_url.cover(f"b-{HUSH} at {by_url.url.reveal() if by_url.url else ''}") == "*** at https://host/mcp"
    )


def test_a_program_named_by_a_path_is_found_from_other_folders(tmp_path: Path) -> None:
    assert server(["./serve", "a/b"], cwd=tmp_path).command == (f"{tmp_path}/./serve", "a/b")
    assert server(["serve"]).command == ("serve",)
    assert server(["serve"], in_workspace=True).folder("/the/workspace") == "/the/workspace"
    assert server(["serve"], cwd=tmp_path).folder("/the/workspace") == str(tmp_path)


def test_names_become_ones_that_models_can_call() -> None:
    assert name_for("a.b/c d") == "a_b_c_d"
    assert name_for("read", "files") == "files_read"
    long = name_for("x" * 70)
    assert len(long) == 64
    assert long != name_for("x" * 71)
    assert long == name_for("x" * 70)


# The list


async def test_the_tools_of_a_server_are_listed_also_in_a_running_loop_and_nothing_of_it_is_left() -> None:
    before = set(psutil.Process().children(recursive=True))
    tools = mcp_tools(TIME, only=["convert_time"], name="clock", limits=ToolLimits(timeout_s=5), retries=1)
    assert not set(psutil.Process().children(recursive=True)) - before
    (convert,) = tools
    assert convert.name == "clock_convert_time"
    assert convert.wire_name == "convert_time"
    assert "timezone" in convert.spec.description
    assert convert.spec.input_schema["required"] == ["source_timezone", "time", "target_timezone"]
    assert convert.limits.timeout_s == 5
    assert convert.repeatable
    assert not convert.may_need_approval
    assert repr(convert) == "McpTool('clock_convert_time', McpServer('clock'))"


def test_all_pages_are_listed_and_a_tool_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        ConfigurationError, match=r"no tool 'tell'; there are: \['t0', 't1', 't2', 't3', 't4'\]"
    ):
        mcp_tools([*PROGRAM, "pages"], only=["t1", "tell"])


def test_a_program_that_is_not_installed_is_named() -> None:
    with pytest.raises(ConfigurationError, match="there is no program 'no-such-program' on PATH"):
        mcp_tools(["no-such-program"])


def test_a_server_that_ends_at_its_start_is_quoted_without_secrets() -> None:
    with pytest.raises(ConfigurationError) as failed:
        mcp_tools(["sh", "-c", "echo TOKEN is $TOKEN >&2; exit 3"], name="broken", env={"TOKEN": HUSH})
    assert str(failed.value) == (
        "MCP server 'broken' ended with exit code 3 before it had answered. It last said:\nTOKEN is ***"
    )


def test_a_server_that_does_not_answer_is_ended_with_its_daemons(tmp_path: Path) -> None:
    script = "setsid sleep 60 & echo $! > pid; exec sleep 60"
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"did not answer within 3 s"):
        mcp_tools(["sh", "-c", script], cwd=tmp_path, start_timeout_s=3)
    assert time.monotonic() - began < 30
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_http_errors_name_the_status_and_what_to_check() -> None:
    with subprocess.Popen([*PROGRAM, "http", HUSH], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            at = f"http://127.0.0.1:{int(process.stdout.readline())}"
            headers = {"Authorization": f"Bearer {HUSH}"}
            assert "whoami" in {each.name for each in mcp_tools(url=f"{at}/mcp", headers=headers)}
            with pytest.raises(ConfigurationError, match="401 Unauthorized; check the key"):
                mcp_tools(url=f"{at}/mcp", headers={"Authorization": f"Bearer not-{HUSH}"})
            with pytest.raises(ConfigurationError, match="404 Not Found; check the path"):
                mcp_tools(url=f"{at}/elsewhere", headers=headers)
        finally:
            process.kill()
    with pytest.raises(ConfigurationError, match="cannot be reached: ConnectError") as failed:
        mcp_tools(url=f"{at}/mcp?key={HUSH}")
    assert HUSH not in str(failed.value)


def test_without_the_sdk_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mcp.py").write_text("raise ImportError('No module named mcp')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"pip install 'palaver\[mcp\]'"):
        mcp_tools(TIME)


def test_importing_the_tools_does_not_import_the_sdk() -> None:
    program = "import sys, palaver.tools.task; print([m for m in ('mcp', 'httpx2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_tools_that_run_in_this_process_cannot_be_of_a_server() -> None:
    @tool
    def own() -> str:
        return "own"

    spec = own.spec
    wrong: Any = McpTool(spec, server(["x"]), "own", ToolLimits(), 0, False)
    with pytest.raises(ToolDefinitionError, match="tools of MCP servers run in a Convo"):
        InlineToolset([own, wrong])
    assert isinstance(own, Tool)


def test_the_command_line_takes_commands_and_urls() -> None:
    assert [each.name for each in load_mcp([shlex.join(TIME)])] == ["get_current_time", "convert_time"]
    for spec, told in (
        ("", "--mcp is empty"),
        ("run 'it", "is no command: No closing quotation"),
        ("http://", "URL"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            load_mcp([spec])


# The host, without Ray


async def test_a_host_asks_a_function_whether_a_call_needs_a_yes() -> None:
    def on_weekends(given: dict[str, Any]) -> bool:
        return given["day"] == "Sunday"

    host = McpHost(server(["x"]), "a title", ["abc-defg"], None)
    from palaver.tools.mcp_servers import packed_approval

    for day, asks in (("Sunday", True), ("Monday", False)):
        order = Order("t", "t", {"day": day}, ToolLimits(), packed_approval("x", on_weekends))
        if asks:
            answer = await host.call(order)
            assert answer.outcome is not None
            assert answer.outcome.asks_approval
    broken = Order("t", "t", {}, ToolLimits(), b"no pickle")
    answer = await host.call(broken)
    assert answer.outcome is not None
    assert answer.outcome.asks_approval


# What a server answers


def result(*content: types.ContentBlock, **more: Any) -> types.CallToolResult:
    return types.CallToolResult(content=list(content), **more)


def test_text_images_and_embedded_text_arrive_and_the_rest_says_what_was_left_out() -> None:
    png = base64.b64encode(PNG).decode()
    parts = content_of(
        result(
            types.TextContent(text="a text"),
            types.ImageContent(data=png, mime_type="image/png"),
            types.ImageContent(data=png, mime_type="image/tiff"),
            types.ImageContent(data="no base64!", mime_type="image/png"),
            types.AudioContent(data="AAAA", mime_type="audio/wav"),
            types.EmbeddedResource(resource=types.TextResourceContents(uri="file:///a", text="its text")),
            types.EmbeddedResource(
                resource=types.BlobResourceContents(uri="file:///b", blob=png, mime_type="image/png")
            ),
            types.EmbeddedResource(resource=types.BlobResourceContents(uri="file:///c", blob="AAAA")),
            types.ResourceLink(
                name="report", uri="file:///d", mime_type="text/plain", description="of today"
            ),
            structured_content={"repeated": True},
        )
    )
    image, size = Image(media_type="image/png", data=PNG), len(png) * 3 // 4
    assert parts == [
        Text(text="a text"),
        image,
        Text(text=f"[an image of image/tiff, about {size} bytes, left out: no model takes it here]"),
        Text(text="[an image of image/png left out: it is no base64]"),
        Text(text="[audio of audio/wav, about 3 bytes, left out: no model takes it here]"),
        Text(text="its text"),
        image,
        Text(text="[resource file:///c of unknown type, about 3 bytes, left out: no model takes it here]"),
        Text(text="[resource 'report' (text/plain) at file:///d: of today]"),
    ]
    failed = result(types.TextContent(text="it failed"), types.ImageContent(data=png, mime_type="image/png"))
    assert error_of(failed) == "it failed\n[1 images left out]"


def test_structured_content_counts_where_there_is_no_other() -> None:
    assert content_of(result(structured_content={"a": ["ü"]})) == [Text(text='{"a": ["ü"]}')]
    assert content_of(result()) == [Text(text="(the tool answered without content)")]
