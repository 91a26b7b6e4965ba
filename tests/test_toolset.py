from __future__ import annotations

import asyncio
from typing import Any

import pytest

from palaver.providers.messages import Image, ToolUse
from palaver.tools import DoNotRespond, ToolCallInfo, ToolDefinitionError, current_call, tool
from palaver.tools.outcome import Outcome
from palaver.tools.toolset import InlineToolset, Toolset


@tool
def plain(text: str, info: ToolCallInfo) -> list[object]:
    """Tell what is known of the call."""
    assert current_call() is info
    return [
        f"{text} {info.tool_use_id} {info.tool_name} {info.convo_id}",
        Image(media_type="image/png", data=b"x"),
    ]


@tool
async def awaiting() -> list[str]:
    """Tell whose call it is, in the loop and in a thread."""
    await asyncio.sleep(0)
    return [current_call().tool_use_id, (await asyncio.to_thread(current_call)).tool_use_id]


@tool
def quiet() -> None:
    """Need no answer."""
    raise DoNotRespond


@tool
async def exits() -> None:
    """Try to end the process."""
    raise SystemExit(3)


@tool
def exits_in_thread() -> None:
    """Try to end the process."""
    raise KeyboardInterrupt


@tool
def stops_iteration() -> None:
    """Raise what a future cannot hold."""
    raise StopIteration


@tool
async def cancels_itself() -> None:
    """Raise what looks like a cancel from outside."""
    raise asyncio.CancelledError


@tool(timeout_s=60)
async def gives_up() -> None:
    """Raise a TimeoutError of its own."""
    raise TimeoutError("no answer from the server")


@tool(timeout_s=0.01)
async def slow() -> None:
    """Wait for ever."""
    await asyncio.Event().wait()


CLEANED_UP: list[str] = []


@tool
async def waits() -> None:
    """Wait for ever, and clean up."""
    try:
        await asyncio.Event().wait()
    finally:
        CLEANED_UP.append(current_call().tool_use_id)


TOOLS = InlineToolset(
    [plain, awaiting, quiet, exits, exits_in_thread, stops_iteration, cancels_itself, gives_up, slow, waits],
    convo_id="abc-defg",
)


async def run(name: str, **tool_input: Any) -> Outcome:
    toolset: Toolset = TOOLS
    return await toolset.run(ToolUse(id="call-1", name=name, input=tool_input))


async def text_of(name: str, **tool_input: Any) -> str:
    return (await run(name, **tool_input)).to_result("call-1").text


async def test_a_plain_tool_knows_its_call_and_returns_text_and_images() -> None:
    result = (await run("plain", text="hello")).to_result("call-1")
    assert result.text == "hello call-1 plain abc-defg"
    assert [part.type for part in result.content] == ["text", "image"]
    assert not result.is_error
    assert result.started_at is not None
    assert result.ended_at is not None
    assert result.started_at <= result.ended_at


async def test_an_async_tool_knows_its_call_in_the_threads_it_starts_too() -> None:
    assert await text_of("awaiting") == '["call-1","call-1"]'


async def test_a_call_leaves_nothing_behind_in_the_callers_context() -> None:
    await run("awaiting")
    with pytest.raises(LookupError):
        current_call()


async def test_do_not_respond_gives_no_result() -> None:
    assert not (await run("quiet")).respond


async def test_an_unknown_tool_is_an_error_that_names_those_there_are() -> None:
    assert (await text_of("plian")).startswith(
        "tool 'plian' not found; available: ['awaiting', 'cancels_itself', "
    )


async def test_a_bad_input_is_told_and_the_tool_not_called() -> None:
    assert "text: Field required" in await text_of("plain")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("exits", "tool 'exits' raised SystemExit: 3"),
        ("exits_in_thread", "tool 'exits_in_thread' raised KeyboardInterrupt"),
        ("stops_iteration", "tool 'stops_iteration' raised RuntimeError: StopIteration"),
        ("cancels_itself", "tool 'cancels_itself' raised CancelledError"),
        ("gives_up", "tool 'gives_up' raised TimeoutError: no answer from the server"),
        ("slow", "tool 'slow' was stopped: it took longer than its limit of 0.01 s"),
    ],
)
async def test_whatever_a_tool_raises_is_one_error(name: str, expected: str) -> None:
    outcome = await run(name)
    assert outcome.error is not None
    assert outcome.to_result("call-1").text == expected


async def test_cancelling_a_call_cleans_up_and_gives_an_outcome_that_was_stopped() -> None:
    CLEANED_UP.clear()
    call = asyncio.create_task(run("waits"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    call.cancel()
    assert (await call).stopped is not None
    assert CLEANED_UP == ["call-1"]
    await TOOLS.aclose()


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ToolDefinitionError, match="'plain'"):
        InlineToolset([plain, plain])
