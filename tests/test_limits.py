"""Limits of tool calls: how they combine, and that they hold."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
from kinds import Kind

from palaver.actors import Convo
from palaver.providers.messages import Message, ToolUse
from palaver.providers.provider import Response
from palaver.providers.scripted import Scripted
from palaver.tools import ToolCallInfo, ToolDefinitionError, ToolLimits, tool
from palaver.tools.limits import DEFAULT_MAX_OUTPUT_BYTES
from palaver.tools.places import take_place


@tool(max_per_node=1)
def alone(notes: str, number: int) -> str:
    """Tell who else is at work."""
    mine = Path(notes) / str(number)
    mine.touch()
    others = [each.name for each in Path(notes).iterdir() if each != mine]
    time.sleep(0.1)
    mine.unlink()
    return ",".join(others)


def _dies_at_first(notes: str) -> str:
    first = Path(notes) / "first"
    if not first.exists():
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second"


@tool(retries=1)
def repeatable(notes: str) -> str:
    """Be killed in the first call."""
    return _dies_at_first(notes)


@tool
def unrepeatable(notes: str) -> str:
    """Be killed in the first call."""
    return _dies_at_first(notes)


@tool(timeout_s=math.inf)
async def patient() -> str:
    """Take longer than others may."""
    await asyncio.sleep(0.6)
    return "done"


@tool
async def slow() -> str:
    """Take longer than it may."""
    await asyncio.sleep(60)
    return "done"


@tool
def counts(info: ToolCallInfo) -> int:
    """Count the calls of this conversation."""
    info.state["counts.n"] = info.state.get("counts.n", 0) + 1
    return info.state["counts.n"]


@tool
def forgets(info: ToolCallInfo) -> str:
    """Take the count away, and fail when there is none."""
    del info.state["counts.n"]
    return "forgotten"


def calls(*uses: tuple[str, dict[str, object]]) -> Response:
    return Response(
        message=Message.assistant(
            *(ToolUse(id=str(n), name=name, input=given) for n, (name, given) in enumerate(uses))
        )
    )


def test_a_tools_own_limits_go_before_the_default() -> None:
    own = ToolLimits(timeout_s=1, max_per_node=2)
    default = ToolLimits(timeout_s=5, max_output_bytes=7)
    assert own.or_else(default) == ToolLimits(timeout_s=1, max_output_bytes=7, max_per_node=2)
    assert ToolLimits().or_else(default) == default


def test_no_limit_is_none_and_infinity_is_none_whatever_the_default() -> None:
    assert ToolLimits().seconds is None
    assert ToolLimits(timeout_s=math.inf).or_else(ToolLimits(timeout_s=5)).seconds is None
    assert ToolLimits().output_bytes == DEFAULT_MAX_OUTPUT_BYTES


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (ToolLimits(timeout_s=0), "timeout_s of tool_limits is 0.0; use seconds above 0"),
        (ToolLimits(timeout_s=math.nan), "timeout_s of tool_limits is nan"),
        (ToolLimits(max_output_bytes=0), "max_output_bytes of tool_limits is 0; use 1 or more"),
        (ToolLimits(max_per_node=-1), "max_per_node of tool_limits is -1; use 1 or more"),
    ],
)
def test_limits_that_are_none_are_refused_before_anything_starts(limits: ToolLimits, problem: str) -> None:
    with pytest.raises(ToolDefinitionError, match=problem):
        Convo.remote(Scripted([]), tool_limits=limits)


@pytest.mark.parametrize("retries", [-1])
def test_fewer_retries_than_none_are_refused(retries: int) -> None:
    with pytest.raises(ToolDefinitionError, match="retries of tool 'f' is -1; use 0 or more"):
        tool(name="f", retries=retries)(lambda: None)


def test_places_are_taken_and_given_back() -> None:
    name = f"tool-{uuid4()}"
    with ExitStack() as stack:
        places = [take_place(name, 2) for _ in range(3)]
        for each in places:
            if each is not None:
                stack.enter_context(each)
        assert [each is None for each in places] == [False, False, True]
        assert places[0] is not None
        places[0].close()
        again = take_place(name, 2)
        assert again is not None
        stack.enter_context(again)
        assert take_place(name, 2) is None


async def test_no_more_calls_of_a_tool_run_at_once_than_it_allows_on_a_node(
    kind: Kind, tmp_path: Path
) -> None:
    convo, other = [await kind.convo(Scripted([]), tools=[alone]) for _ in range(2)]
    answers = await asyncio.gather(
        *(
            each.tool_result_contents.remote(
                calls(*(("alone", {"notes": str(tmp_path), "number": first + n}) for n in range(4)))
            )
            for first, each in ((0, convo), (10, other))
        )
    )
    assert [result.text for results in answers for result in results] == [""] * 8
    await asyncio.gather(convo.close.remote(), other.close.remote())


async def test_a_call_that_waits_for_a_place_can_be_cancelled(kind: Kind, tmp_path: Path) -> None:
    place = take_place("alone", 1)
    assert place is not None
    with place:
        convo = await kind.convo(Scripted([]), tools=[alone])
        waiting = convo.tool_result_contents.remote(calls(("alone", {"notes": str(tmp_path), "number": 1})))
        while not (await convo.tree.remote()).running_tools:
            await asyncio.sleep(0.02)
        stopped = await convo.cancel_tool_use.remote("0", "enough")
        assert stopped.problem == ""
        assert [each.text for each in await waiting] == ["enough"]
    assert list(tmp_path.iterdir()) == []
    await convo.close.remote()


async def test_a_call_whose_process_died_is_made_again_only_when_its_tool_says_so(
    kind: Kind, tmp_path: Path
) -> None:
    convo = await kind.convo(Scripted([]), tools=[repeatable, unrepeatable])
    folders = [tmp_path / "a", tmp_path / "b"]
    for each in folders:
        each.mkdir()
    again, once = await convo.tool_result_contents.remote(
        calls(("repeatable", {"notes": str(folders[0])}), ("unrepeatable", {"notes": str(folders[1])}))
    )
    assert (again.is_error, again.text) == (False, "second")
    assert once.is_error
    assert "died" in once.text
    await convo.close.remote()


async def test_a_conversations_limits_hold_for_tools_that_set_none_and_below(kind: Kind) -> None:
    convo = await kind.convo(Scripted([]), tools=[patient, slow], tool_limits=ToolLimits(timeout_s=0.4))
    child = await kind.sub(convo, tools=["slow"])
    done, late = await convo.tool_result_contents.remote(calls(("patient", {}), ("slow", {})))
    (below,) = await child.tool_result_contents.remote(calls(("slow", {})))
    assert done.text == "done"
    for each in (late, below):
        assert each.text == "tool 'slow' was stopped: it took longer than its limit of 0.4 s"
    await convo.close.remote()


async def test_state_is_kept_between_the_calls_of_one_conversation_alone(kind: Kind) -> None:
    convo, other = [await kind.convo(Scripted([]), tools=[counts, forgets]) for _ in range(2)]
    told: list[str] = []
    for each, name in ((convo, "counts"), (convo, "counts"), (other, "counts"), (convo, "forgets")):
        (result,) = await each.tool_result_contents.remote(calls((name, {})))
        told.append(result.text)
    (failed,) = await convo.tool_result_contents.remote(calls(("forgets", {})))
    (again,) = await convo.tool_result_contents.remote(calls(("counts", {})))
    assert told == ["1", "2", "1", "forgotten"]
    assert failed.is_error
    assert again.text == "1"
    await asyncio.gather(convo.close.remote(), other.close.remote())
