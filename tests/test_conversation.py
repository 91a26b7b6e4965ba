"""The conversation without Ray: its provider, tools, parent and clock are fakes that ship with palaver."""

from __future__ import annotations

import asyncio
import pickle
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from wire_fakes import FakeClock

from palaver.actors.budget import Budget
from palaver.actors.conversation import Conversation
from palaver.actors.entries import AccountOpened, ResponseCharged
from palaver.actors.errors import (
    Breach,
    BudgetExceeded,
    ConvoBusy,
    ConvoCancelled,
    ConvoClosed,
    ConvoUnreachable,
    NothingToSend,
    TooManySubConvos,
    UnknownConvo,
    UnknownPrice,
    UnknownToolCall,
)
from palaver.actors.exchanges import MAX_PAUSES
from palaver.actors.kin import State
from palaver.actors.listener import ConvoInfo, NoopListener
from palaver.actors.report import CancelReport
from palaver.actors.settings import Settings
from palaver.actors.tool_calls import USER_CANCELLED
from palaver.actors.transcript import NOT_EXECUTED
from palaver.actors.treasury import RootTreasury
from palaver.providers.errors import BadResponse, ConfigurationError, Overloaded, PalaverError
from palaver.providers.messages import Message, Text, ToolResult, ToolUse
from palaver.providers.provider import Request, Response, StopReason
from palaver.providers.scripted import Reply, Scripted
from palaver.providers.usage import Usage
from palaver.tools import DoNotRespond, Tool, tool
from palaver.tools.toolset import InlineToolset


@tool
async def echo(text: str) -> str:
    """Give the text back."""
    return text


@tool
async def after(turns: int, text: str) -> str:
    """Give the text back after some turns of the event loop."""
    for _ in range(turns):
        await asyncio.sleep(0)
    return text


@tool
async def hang() -> str:
    """Never end."""
    await asyncio.Event().wait()
    return "unreachable"


@tool
def done() -> None:
    """Want no answer."""
    raise DoNotRespond


@tool
def fail() -> None:
    """Fail."""
    raise RuntimeError("kaput")


def call(id: str, name: str, **input: Any) -> ToolUse:
    return ToolUse(id=id, name=name, input=input)


def convo(
    *replies: Reply, tools: Sequence[Tool[..., Any]] = (), provider: Any = None, **settings: Any
) -> Conversation:
    place = {key: settings.pop(key) for key in ("listener", "clock", "messages") if key in settings}
    provider = provider or Scripted(replies)
    return Conversation(provider, InlineToolset(tools), Settings(**settings), **place)


def requests_of(conversation: Conversation) -> list[Request]:
    provider = conversation.provider
    assert isinstance(provider, Scripted)
    return provider.requests


class Recorder(NoopListener):
    """Keeps what it is told, as (method, id or name)."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []
        self.infos: list[ConvoInfo] = []

    def on_request(self, convo: ConvoInfo, request_id: str, message: Message) -> None:
        self.infos.append(convo)
        self.told.append(("request", message.text))

    def on_response(
        self, convo: ConvoInfo, request_id: str, response: Response | None, error: PalaverError | None
    ) -> None:
        self.told.append(("response", response.message.text if response else error))

    def on_tool_call(self, convo: ConvoInfo, call: ToolUse) -> None:
        self.told.append(("call", call.id))

    def on_tool_result(
        self, convo: ConvoInfo, call: ToolUse, result: ToolResult, error: PalaverError | None
    ) -> None:
        self.told.append(("result", (call.id, result.text, error is not None)))


class Waiting(Scripted):
    """A provider whose answers come when `release` is set."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        super().__init__(replies)
        self.release = asyncio.Event()
        self.asked = asyncio.Event()

    async def generate(self, request: Request) -> Response:
        self.asked.set()
        await self.release.wait()
        return await super().generate(request)


# Identity


def test_an_id_is_seven_crockford_characters_in_two_groups() -> None:
    ids = {convo().id for _ in range(200)}
    assert len(ids) == 200
    assert all(re.fullmatch(r"[0-9a-hjkmnp-tv-z]{3}-[0-9a-hjkmnp-tv-z]{4}", each) for each in ids)


async def test_a_root_has_depth_0_and_each_sub_conversation_one_more() -> None:
    root = convo()
    child = await root.sub_conversation(InlineToolset(()))
    grandchild = await child.sub_conversation(InlineToolset(()))
    assert [root.depth, child.depth, grandchild.depth] == [0, 1, 2]


# Sending


async def test_a_sent_message_and_its_answer_are_kept() -> None:
    c = convo("hello")
    response = await c.send_user_text_message("hi")
    assert response.message.text == "hello"
    assert [each.text for each in c.transcript.messages] == ["hi", "hello"]


async def test_contents_come_before_the_text() -> None:
    c = convo("ok")
    await c.send_user_text_message("last", Text(text="first"))
    assert requests_of(c)[0].messages[0].text == "first\nlast"


async def test_the_request_carries_system_prompt_tools_caching_and_history() -> None:
    c = convo("one", "two", tools=[echo], system_prompt="be brief", max_tokens=7)
    await c.send_user_text_message("a")
    await c.send_user_text_message("b")
    request = requests_of(c)[1]
    assert (request.system, request.prompt_caching, request.max_tokens) == ("be brief", True, 7)
    assert [each.name for each in request.tools] == ["echo"]
    assert request.tool_choice is None
    assert [each.text for each in request.messages] == ["a", "one", "b"]


async def test_tool_use_only_makes_the_model_call_a_tool() -> None:
    c = convo(call("1", "done"), tools=[done], tool_use_only=True)
    await c.run("go")
    choice = requests_of(c)[0].tool_choice
    assert choice is not None
    assert choice.type == "any"


def test_tool_use_only_without_tools_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="tool_use_only needs at least one tool"):
        convo(tool_use_only=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"system_prompt": b"bytes"}, "system_prompt is a bytes; it has to be text"),
        ({"budget": 5}, r"budget is a int; pass a Budget\(...\)"),
        ({"max_tokens": 0}, "max_tokens is 0; use 1 or more"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Settings(**settings)


async def test_nothing_is_kept_when_the_request_fails_and_it_can_be_sent_again() -> None:
    c = convo(Overloaded("busy", "x", 529), "fine")
    with pytest.raises(Overloaded):
        await c.send_user_text_message("hi")
    assert c.transcript.messages == ()
    assert (await c.cumulative_usage()).responses == 0
    assert (await c.send_user_text_message("hi")).message.text == "fine"


async def test_what_a_failed_request_cost_is_charged() -> None:
    root = convo(BadResponse("garbled", usage=Usage(output_tokens=9, cost_usd=Decimal("0.5"))))
    child = await root.sub_conversation(InlineToolset(()))
    with pytest.raises(BadResponse):
        await child.send_user_text_message("hi")
    usage = await root.cumulative_usage()
    assert (usage.total_cost_usd, usage.responses) == (Decimal("0.5"), 0)


@pytest.mark.parametrize("text", ["", " \n"])
async def test_sending_nothing_is_refused(text: str) -> None:
    with pytest.raises(NothingToSend):
        await convo("x").send_user_text_message(text)


async def test_missing_tool_results_are_inserted_and_kept_as_they_were_sent() -> None:
    c = convo([call("a", "echo"), call("b", "echo")], "ok", tools=[echo])
    await c.send_user_text_message("go")
    await c.send_user_text_message("never mind")
    sent = requests_of(c)[1].messages[-1]
    assert [each.text for each in sent.tool_results] == [NOT_EXECUTED, NOT_EXECUTED]
    assert c.transcript.messages[2] == sent


async def test_empty_answers_are_left_out_of_later_requests() -> None:
    c = convo(Message.assistant(), "ok")
    await c.send_user_text_message("a")
    await c.send_user_text_message("b")
    assert [each.text for each in requests_of(c)[1].messages] == ["a", "b"]


async def test_a_second_send_is_refused_while_the_first_goes_on() -> None:
    provider = Waiting(["first", "second"])
    c = convo(provider=provider)
    first = asyncio.create_task(c.send_user_text_message("a"))
    await provider.asked.wait()
    with pytest.raises(ConvoBusy, match=r"busy with a request\. Await that call first"):
        await c.run("b")
    provider.release.set()
    assert (await first).message.text == "first"
    assert (await c.send_user_text_message("b")).message.text == "second"


# Tools


async def test_results_come_in_the_order_of_the_calls_not_of_their_ends() -> None:
    c = convo(tools=[after])
    calls = [call("slow", "after", turns=9, text="1"), call("fast", "after", turns=1, text="2")]
    results = await c.tool_result_contents(Response(message=Message.assistant(*calls)))
    assert [each.text for each in results] == ["1", "2"]


async def test_all_calls_of_a_response_run_at_once() -> None:
    barrier = asyncio.Barrier(3)

    @tool
    async def meet() -> str:
        """Wait for the others."""
        await barrier.wait()
        return "met"

    c = convo(tools=[meet])
    results = await c.tool_result_contents(
        Response(message=Message.assistant(*(call(str(i), "meet") for i in range(3))))
    )
    assert [each.text for each in results] == ["met"] * 3


async def test_errors_of_tools_are_results_the_model_can_read() -> None:
    c = convo(tools=[echo, fail])
    malformed = ToolUse(id="4", name="echo", malformed_input="{text:")
    calls = [call("1", "ecko"), call("2", "fail"), call("3", "echo", txt="x"), malformed]
    results = await c.tool_result_contents(Response(message=Message.assistant(*calls)))
    assert all(each.is_error for each in results)
    assert results[0].text == "tool 'ecko' not found; available: ['echo', 'fail']"
    assert results[1].text == "tool 'fail' raised RuntimeError: kaput"
    assert "text: Field required" in results[2].text
    assert "no JSON object" in results[3].text


async def test_a_tool_that_wants_no_response_has_no_result() -> None:
    c = convo(tools=[done, echo])
    calls = [call("1", "done"), call("2", "echo", text="x")]
    results = await c.tool_result_contents(Response(message=Message.assistant(*calls)))
    assert [each.tool_use_id for each in results] == ["2"]


async def test_a_response_cut_at_max_tokens_runs_no_tools() -> None:
    c = convo(tools=[echo])
    cut = Response(message=Message.assistant(call("1", "echo")), stop_reason=StopReason.MAX_TOKENS)
    assert await c.tool_result_contents(cut) == []


async def test_tool_calls_run_even_when_the_model_says_it_ended_its_turn() -> None:
    c = convo(tools=[echo])
    response = Response(
        message=Message.assistant(call("1", "echo", text="x")), stop_reason=StopReason.END_TURN
    )
    assert len(await c.tool_result_contents(response)) == 1


async def test_cancel_contents_answer_every_call_and_count_them() -> None:
    c = convo(tools=[echo])
    response = Response(message=Message.assistant(call("1", "echo"), call("2", "echo")))
    results = await c.tool_result_cancel_contents(response)
    assert [(each.tool_use_id, each.is_error, each.text) for each in results] == [
        ("1", True, USER_CANCELLED),
        ("2", True, USER_CANCELLED),
    ]
    assert (await c.cumulative_usage()).tool_uses == {"echo": 2}


async def test_cancelling_one_call_leaves_the_others_alone() -> None:
    c = convo(tools=[hang, echo])
    calls = [call("1", "echo", text="x"), call("2", "hang"), call("3", "echo", text="y")]
    results = asyncio.create_task(c.tool_result_contents(Response(message=Message.assistant(*calls))))
    await _until(lambda: "2" in c.tool_calls.running)
    await c.cancel_tool_use("2", "too slow")
    assert [(each.text, each.is_error) for each in await results] == [
        ("x", False),
        ("too slow", True),
        ("y", False),
    ]


async def test_a_call_of_a_sub_conversation_can_be_cancelled() -> None:
    child = await convo().sub_conversation(InlineToolset([hang]))
    results = asyncio.create_task(
        child.tool_result_contents(Response(message=Message.assistant(call("1", "hang"))))
    )
    await _until(lambda: bool(child.tool_calls.running))
    await child.cancel_tool_use("1", "enough")
    assert (await results)[0].text == "enough"


async def test_cancelling_an_unknown_call_names_the_running_ones() -> None:
    with pytest.raises(UnknownToolCall, match=r"no running tool call 'x'; running: \[\]"):
        await convo().cancel_tool_use("x", "why not")


async def test_a_call_that_is_running_is_not_started_again() -> None:
    c = convo(tools=[hang])
    response = Response(message=Message.assistant(call("1", "hang")))
    first = asyncio.create_task(c.tool_result_contents(response))
    await _until(lambda: bool(c.tool_calls.running))
    with pytest.raises(ConvoBusy, match="busy with its tool calls"):
        await c.tool_result_contents(response)
    await c.cancel_tool_use("1", "x")
    await first


# Running


async def test_run_calls_tools_until_the_model_ends_its_turn() -> None:
    c = convo([call("1", "echo", text="x")], [call("2", "echo", text="y")], "done", tools=[echo])
    result = await c.run("go")
    assert (result.stop, result.finished, result.text, result.responses) == ("end_turn", True, "done", 3)
    assert result.usage.tool_uses == {"echo": 2}
    assert [each.role for each in c.transcript.messages] == ["user", "assistant"] * 3


async def test_run_ends_when_all_tools_want_no_response() -> None:
    result = await convo(call("1", "done"), tools=[done]).run("go")
    assert (result.stop, result.finished) == ("no_response", True)


@pytest.mark.parametrize(
    ("reason", "stop"),
    [
        (StopReason.MAX_TOKENS, "max_tokens"),
        (StopReason.REFUSAL, "refusal"),
        (StopReason.CONTEXT_FULL, "context_full"),
    ],
)
async def test_a_run_that_a_limit_stopped_says_which(reason: StopReason, stop: str) -> None:
    result = await convo(Response(message=Message.assistant("part"), stop_reason=reason)).run("go")
    assert (result.stop, result.finished, result.text) == (stop, False, "part")


async def test_a_run_that_was_refused_tells_why() -> None:
    refused = Response(message=Message.assistant(), stop_reason=StopReason.REFUSAL, stop_detail="cyber: no")
    result = await convo(refused).run("go")
    assert (result.stop, result.detail) == ("refusal", "cyber: no")


def paused(text: str) -> Response:
    return Response(
        message=Message.assistant(text),
        stop_reason=StopReason.PAUSE,
        usage=Usage(input_tokens=1, output_tokens=1, cost_usd=Decimal("0.1")),
    )


async def test_an_answer_that_was_paused_is_gone_on_with_and_is_one_in_the_transcript() -> None:
    provider = Scripted([paused("one"), paused("two"), "three", "four"], cost_usd=Decimal("0.1"))
    c = convo(provider=provider, budget=Budget(max_dollars="0.4"))
    response = await c.send_user_text_message("go")
    assert response.message.text == "one\ntwo\nthree"
    assert (response.stop_reason, response.usage.cost_usd) == (StopReason.END_TURN, Decimal("0.3"))
    assert [message.role for message in c.transcript.messages] == ["user", "assistant"]
    assert c.transcript.messages[-1] == response.message
    assert [request.messages[-1].text for request in provider.requests] == ["go", "one", "one\ntwo"]
    assert len({request.id for request in provider.requests}) == 3
    usage = await c.cumulative_usage()
    assert (usage.responses, usage.total_cost_usd) == (3, Decimal("0.3"))
    await c.send_user_text_message("more")
    assert [message.text for message in provider.requests[-1].messages] == ["go", "one\ntwo\nthree", "more"]


async def test_a_budget_that_ends_at_a_pause_keeps_what_came_before_it() -> None:
    provider = Scripted([paused("one"), "two"], cost_usd=Decimal("0.1"))
    c = convo(provider=provider, budget=Budget(max_dollars="0.15"))
    result = await c.run("go")
    assert (result.stop, result.text) == ("budget", "one")
    assert len(provider.requests) == 1


async def test_an_answer_that_never_stops_pausing_ends_the_run_with_all_of_it() -> None:
    provider = Scripted(lambda _: paused("x"))
    result = await convo(provider=provider).run("go")
    assert (result.stop, len(provider.requests)) == ("pause", MAX_PAUSES + 1)
    assert result.text == "\n".join("x" * (MAX_PAUSES + 1))


async def test_a_run_tells_a_model_that_has_to_call_a_tool_and_did_not() -> None:
    provider = Scripted(["Done!", call("1", "echo", text="x"), call("2", "done")])
    result = await convo(provider=provider, tools=[echo, done], tool_use_only=True).run("go")
    assert (result.stop, len(provider.requests)) == ("no_response", 3)
    assert provider.requests[1].messages[-1].text.startswith("Go on by calling a tool")
    provider = Scripted(["Done!"] * 3)
    result = await convo(provider=provider, tools=[done], tool_use_only=True).run("go")
    assert (result.stop, result.text) == ("invalid_output", "Done!")
    assert result.detail == "the model answered 3 times without calling a tool"


async def test_an_empty_first_answer_is_no_proper_end_but_one_after_tools_is() -> None:
    assert (await convo(Message.assistant()).run("go")).stop == "empty_reply"
    after_tools = await convo(call("1", "echo", text="x"), Message.assistant(), tools=[echo]).run("go")
    assert (after_tools.stop, after_tools.finished) == ("end_turn", True)


async def test_a_budget_stops_the_run_before_the_next_request_and_keeps_what_was_done() -> None:
    c = convo(call("1", "echo", text="x"), "never", tools=[echo], budget=Budget(max_responses=1))
    result = await c.run("go")
    assert (result.stop, result.finished, result.responses) == ("budget", False, 1)
    assert result.detail is not None
    assert f"conversation {c.id} is over its budget: 1 responses received" in result.detail
    assert [each.text for each in c.transcript.kept_results] == ["x"]
    await c.reset_budget(Budget(max_responses=1))
    assert (await c.run("")).text == "never"
    assert requests_of(c)[1].messages[-1].tool_results[0].text == "x"


async def test_a_failed_request_in_a_run_loses_no_tool_result() -> None:
    ran: list[str] = []

    @tool
    def once() -> str:
        """Have an effect."""
        ran.append("x")
        return "effect"

    c = convo(call("1", "once"), Overloaded("busy"), "ok", tools=[once])
    with pytest.raises(Overloaded):
        await c.run("go")
    assert (await c.run("")).text == "ok"
    assert requests_of(c)[2].messages[-1].tool_results[0].text == "effect"
    assert ran == ["x"]


# Usage and budget over the tree


async def test_usage_reaches_every_ancestor_before_the_call_returns() -> None:
    root = convo(provider=Scripted(["hi"], cost_usd=Decimal("0.25")))
    child = await root.sub_conversation(InlineToolset(()))
    grandchild = await child.sub_conversation(InlineToolset(()))
    await grandchild.send_user_text_message("x")
    for each in (root, child, grandchild):
        usage = await each.cumulative_usage()
        assert (usage.responses, usage.total_cost_usd) == (1, Decimal("0.25"))


async def test_tool_uses_are_shared_over_the_tree() -> None:
    root = convo(tools=[echo])
    child, sibling = [await root.sub_conversation(InlineToolset([echo])) for _ in range(2)]
    await child.tool_result_contents(Response(message=Message.assistant(call("1", "echo", text="x"))))
    assert (await root.cumulative_usage()).tool_uses == {"echo": 1}
    assert (await sibling.cumulative_usage()).tool_uses == {"echo": 1}


async def test_a_root_over_budget_stops_a_grandchild_and_is_the_one_named() -> None:
    root = convo(provider=Scripted(lambda _: "ok"), budget=Budget(max_responses=1))
    grandchild = await (await root.sub_conversation(InlineToolset(()))).sub_conversation(InlineToolset(()))
    await root.send_user_text_message("x")
    with pytest.raises(BudgetExceeded, match=root.id):
        await grandchild.send_user_text_message("y")
    assert (await grandchild.over_budget()) is not None


async def test_a_childs_budget_does_not_stop_its_parent() -> None:
    root = convo(provider=Scripted(lambda _: "ok"))
    child = await root.sub_conversation(InlineToolset(()), Settings(budget=Budget(max_responses=1)))
    await child.send_user_text_message("x")
    with pytest.raises(BudgetExceeded, match=child.id):
        await child.send_user_text_message("x")
    assert await root.over_budget() is None
    await root.send_user_text_message("x")


async def test_what_is_left_is_the_tightest_of_each_limit_from_here_to_the_root() -> None:
    provider = Scripted(lambda _: "ok", cost_usd=1)
    root = convo(provider=provider, budget=Budget(max_dollars=5, max_responses=100))
    child = await root.sub_conversation(InlineToolset(()), Settings(budget=Budget(max_responses=7)))
    grandchild = await child.sub_conversation(InlineToolset(()), Settings(budget=Budget(max_dollars=50)))
    await root.send_user_text_message("x")
    await child.send_user_text_message("y")
    assert await grandchild.budget_left() == Budget(max_dollars=3, max_responses=6)
    assert await grandchild.budget_share(0.5) == Budget(max_dollars=Decimal("1.5"), max_responses=3)


async def test_of_a_budget_that_is_used_up_there_is_no_share() -> None:
    root = convo("ok", budget=Budget(max_responses=1))
    child = await root.sub_conversation(InlineToolset(()))
    await root.send_user_text_message("x")
    with pytest.raises(BudgetExceeded, match=root.id):
        await child.budget_share(0.5)


async def test_wall_time_counts_on_the_given_clock() -> None:
    clock = FakeClock()
    c = convo("never", clock=clock, budget=Budget(max_wall_time=timedelta(seconds=10)))
    assert await c.over_budget() is None
    clock.time_s = 10.0
    over = await c.over_budget()
    assert over is not None
    assert over.breaches == (Breach("max_wall_time", Decimal("10.0"), Decimal("10.0")),)
    await c.reset_budget(Budget(max_wall_time=timedelta(seconds=5)))
    assert (await c.tree()).budget.max_wall_time == timedelta(seconds=15)


async def test_budgets_and_messages_and_tools_are_not_inherited() -> None:
    root = convo("hi", tools=[echo], budget=Budget(max_responses=9))
    await root.send_user_text_message("x")
    child = await root.sub_conversation(InlineToolset(()))
    assert (await child.tree()).budget == Budget()
    assert child.transcript.messages == ()
    assert child.toolset.specs == []
    assert child.provider.model == root.provider.model
    with_history = await root.sub_conversation(InlineToolset(()), messages=root.transcript.messages)
    assert with_history.transcript.messages == root.transcript.messages


# Cancelling and closing


async def test_cancel_stops_a_request_and_the_conversation_can_go_on() -> None:
    provider = Waiting(["late", "ok"])
    c = convo(provider=provider)
    send = asyncio.create_task(c.send_user_text_message("a"))
    await provider.asked.wait()
    await c.cancel("changed plans")
    with pytest.raises(ConvoCancelled, match="was cancelled: changed plans"):
        await send
    assert c.transcript.messages == ()
    provider.release.set()
    await c.send_user_text_message("b")
    assert c.transcript.messages[0].text == "b"


async def test_cancel_of_a_run_is_a_result_that_keeps_what_was_done() -> None:
    c = convo([call("1", "echo", text="x"), call("2", "hang")], "ok", tools=[echo, hang])
    run = asyncio.create_task(c.run("go"))
    await _until(lambda: [*c.tool_calls.running] == ["2"])
    await c.cancel("stop it")
    result = await run
    assert (result.stop, result.detail, result.responses) == ("cancelled", "stop it", 1)
    assert [each.text for each in c.transcript.kept_results] == ["x", "stop it"]
    assert (await c.run("go on")).text == "ok"
    assert [each.text for each in requests_of(c)[1].messages[-1].tool_results] == ["x", "stop it"]


async def test_cancel_reaches_every_descendant() -> None:
    root = convo()
    child = await root.sub_conversation(InlineToolset([hang]))
    grandchild = await child.sub_conversation(InlineToolset([hang]))
    response = Response(message=Message.assistant(call("1", "hang")))
    calls = [asyncio.create_task(each.tool_result_contents(response)) for each in (child, grandchild)]
    await _until(lambda: bool(child.tool_calls.running) and bool(grandchild.tool_calls.running))
    await root.cancel("everybody out")
    for each in calls:
        with pytest.raises(ConvoCancelled, match="everybody out"):
            await each


async def test_cancel_of_an_idle_conversation_does_nothing() -> None:
    c = convo("ok")
    await c.cancel("why not")
    assert (await c.send_user_text_message("x")).message.text == "ok"


async def test_an_answer_that_comes_as_it_is_cancelled_is_kept_and_charged() -> None:
    class AnswersOnCancel(Scripted):
        async def generate(self, request: Request) -> Response:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return await super().generate(request)
            raise AssertionError

    c = convo(provider=AnswersOnCancel(["paid for"], cost_usd=1))
    send = asyncio.create_task(c.send_user_text_message("a"))
    await _until(lambda: c.exchanges.request_id)
    await asyncio.sleep(0)
    await c.cancel("now")
    with pytest.raises(ConvoCancelled):
        await send
    assert c.transcript.messages[1].text == "paid for"
    assert (await c.cumulative_usage()).total_cost_usd == 1


async def test_cancelling_the_callers_task_stops_its_tools_too() -> None:
    c = convo([call("1", "hang")], tools=[hang])
    run = asyncio.create_task(c.run("go"))
    await _until(lambda: bool(c.tool_calls.running))
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert not c.tool_calls.running
    assert c.transcript.kept_results[0].is_error


async def test_a_closed_conversation_refuses_everything_by_name() -> None:
    c = convo("x", tools=[echo])
    await c.close()
    response = Response(message=Message.assistant(call("1", "echo")))
    for attempt in (c.send_user_text_message("a"), c.run("a"), c.tool_result_contents(response)):
        with pytest.raises(ConvoClosed, match=f"conversation {c.id} takes no more calls: it was closed"):
            await attempt
    with pytest.raises(ConvoClosed):
        await c.sub_conversation(InlineToolset(()))
    await c.close()


async def test_close_stops_what_runs_and_closes_the_children() -> None:
    root = convo()
    child = await root.sub_conversation(InlineToolset([hang]))
    response = Response(message=Message.assistant(call("1", "hang")))
    running = asyncio.create_task(child.tool_result_contents(response))
    await _until(lambda: bool(child.tool_calls.running))
    await root.close()
    with pytest.raises(ConvoCancelled, match="was closed"):
        await running
    with pytest.raises(ConvoClosed):
        await child.run("x")


class SlowChild:
    """A child that ends when it is let, or fails to."""

    label = "slow"
    is_starting = False

    def __init__(self, error: Exception | None = None) -> None:
        self.asked = asyncio.Event()
        self.let = asyncio.Event()
        self.error = error
        self.killed = False

    async def cancel(self, cause: str) -> CancelReport:
        self.asked.set()
        if self.error is not None:
            raise self.error
        await self.let.wait()
        return CancelReport(cause=cause, took_s=0, conversations=())

    async def close(self) -> None:
        await self.cancel("")

    async def activity(self) -> Any:
        raise ConvoClosed("slo-w000")

    def kill(self) -> None:
        self.killed = True


async def adopt(parent: Conversation, id: str, child: Any) -> None:
    opened = AccountOpened(convo_id=id, parent_id=parent.id, label=child.label, at=datetime.now(UTC))
    await parent.treasury.open([opened])
    parent.adopt(id, child)


async def test_a_send_that_comes_during_a_cancel_waits_for_its_end_and_is_not_cancelled() -> None:
    c, child = convo("ok"), SlowChild()
    await adopt(c, "slo-w000", child)
    cancel = asyncio.create_task(c.cancel("stop"))
    await child.asked.wait()
    run = asyncio.create_task(c.run("again"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert requests_of(c) == []
    child.let.set()
    assert (await run).stop == "end_turn"
    await cancel


async def test_a_send_is_refused_while_tool_calls_run() -> None:
    c = convo(call("1", "hang"), "ok", tools=[hang])
    response = await c.send_user_text_message("go")
    running = asyncio.create_task(c.tool_result_contents(response))
    await _until(lambda: bool(c.tool_calls.running))
    with pytest.raises(ConvoBusy, match="busy with its tool calls"):
        await c.send_user_text_message("hurry")
    await c.cancel_tool_use("1", "enough")
    await running


async def test_a_child_that_fails_to_cancel_is_logged_and_the_rest_is_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    c = convo(call("1", "hang"), tools=[hang])
    await adopt(c, "slo-w000", SlowChild(RuntimeError("cannot")))
    run = asyncio.create_task(c.run("go"))
    await _until(lambda: bool(c.tool_calls.running))
    await c.cancel("stop")
    assert (await run).stop == "cancelled"
    assert "conversation slo-w000: cancel failed" in caplog.text


async def test_a_child_that_does_not_close_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palaver.actors.children.CHILD_ENDS_WITHIN_S", 0.01)
    c, child = convo(), SlowChild()
    await adopt(c, "slo-w000", child)
    await c.close()
    assert child.killed


async def test_an_answer_that_is_charged_as_it_is_cancelled_is_in_the_result_and_told() -> None:
    class SlowTreasury(RootTreasury):
        async def settle(self, charge: ResponseCharged) -> None:
            recording.set()
            await let.wait()
            await super().settle(charge)

    recording, let, listener = asyncio.Event(), asyncio.Event(), Recorder()
    parent = convo("paid for", listener=listener)
    assert isinstance(parent.treasury, RootTreasury)
    parent.treasury = SlowTreasury(parent.treasury.ledger)
    child = await parent.sub_conversation(InlineToolset(()))
    run = asyncio.create_task(child.run("x"))
    await recording.wait()
    cancel = asyncio.create_task(child.cancel("stop"))
    await asyncio.sleep(0)
    let.set()
    await cancel
    result = await run
    assert (result.stop, result.text, result.responses) == ("cancelled", "paid for", 1)
    assert listener.told[-1] == ("response", "paid for")


async def test_what_a_request_cost_that_failed_as_it_was_cancelled_is_charged() -> None:
    class FailsOnCancel(Scripted):
        async def generate(self, request: Request) -> Response:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise BadResponse("cut", usage=Usage(output_tokens=3, cost_usd=Decimal(2))) from None
            raise AssertionError

    c = convo(provider=FailsOnCancel([]))
    send = asyncio.create_task(c.send_user_text_message("a"))
    await _until(lambda: c.exchanges.request_id)
    await asyncio.sleep(0)
    await c.cancel("now")
    with pytest.raises(ConvoCancelled):
        await send
    assert (await c.cumulative_usage()).total_cost_usd == 2


async def test_an_answer_with_one_id_twice_is_charged_and_refused() -> None:
    c = convo([call("d", "echo", text="x"), call("d", "echo", text="y")], tools=[echo])
    with pytest.raises(BadResponse, match=r"more than one tool call of id \['d'\]"):
        await c.run("go")
    assert c.transcript.messages == ()
    assert (await c.cumulative_usage()).output_tokens == 2


# Listeners


async def test_the_listener_is_told_of_everything_in_order() -> None:
    listener = Recorder()
    calls = [call("1", "echo", text="x"), call("2", "fail")]
    await convo(calls, "done", tools=[echo, fail], listener=listener, label="l").run("go")
    assert listener.told[:4] == [("request", "go"), ("response", ""), ("call", "1"), ("call", "2")]
    assert sorted(map(str, listener.told[4:6])) == [
        "('result', ('1', 'x', False))",
        "('result', ('2', \"tool 'fail' raised RuntimeError: kaput\", True))",
    ]
    assert listener.told[6:] == [("request", ""), ("response", "done")]
    assert listener.infos[0].label == "l"


async def test_the_listener_is_told_of_a_failed_and_of_a_cancelled_request() -> None:
    listener = Recorder()
    failure = Overloaded("busy")
    with pytest.raises(Overloaded):
        await convo(failure, listener=listener).send_user_text_message("x")
    assert listener.told[-1] == ("response", failure)
    provider = Waiting([])
    c = convo(provider=provider, listener=listener)
    send = asyncio.create_task(c.send_user_text_message("x"))
    await provider.asked.wait()
    await c.cancel("stop")
    with pytest.raises(ConvoCancelled):
        await send
    assert listener.told[-1] == ("response", None)


async def test_sub_conversations_inherit_the_listener() -> None:
    listener = Recorder()
    root = convo("hi", listener=listener)
    child = await root.sub_conversation(InlineToolset(()), Settings(label="child"))
    await child.send_user_text_message("x")
    assert (listener.infos[0].parent_id, listener.infos[0].depth) == (root.id, 1)


async def test_a_listener_that_raises_is_logged_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(NoopListener):
        def on_request(self, convo: ConvoInfo, request_id: str, message: Message) -> None:
            raise SystemExit("listener is broken")

    result = await convo("fine", listener=Broken()).run("go")
    assert result.text == "fine"
    assert "listener Broken.on_request failed" in caplog.text
    assert "listener is broken" in caplog.text


async def test_an_async_listener_is_awaited_in_order() -> None:
    told: list[str] = []

    class Slow(NoopListener):
        async def on_tool_call(self, convo: ConvoInfo, call: ToolUse) -> None:
            for _ in range(5 - int(call.id)):
                await asyncio.sleep(0)
            told.append(call.id)

    calls = [call(str(i), "echo", text="x") for i in range(1, 5)]
    await convo(calls, "done", tools=[echo], listener=Slow()).run("go")
    assert told == ["1", "2", "3", "4"]


# The tree


async def test_the_tree_shows_who_does_what_and_keeps_a_line_for_those_that_ended() -> None:
    root = convo(provider=Scripted(lambda _: "ok", model="m"), label="root")
    child = await root.sub_conversation(InlineToolset([hang]), Settings(label="busy"))
    ended = await root.sub_conversation(InlineToolset(()), Settings(label="ended"))
    await ended.send_user_text_message("x")
    await ended.close()
    running = asyncio.create_task(
        child.tool_result_contents(Response(message=Message.assistant(call("1", "hang"))))
    )
    await _until(lambda: bool(child.tool_calls.running))
    tree = await root.tree()
    assert [(each.label, each.state, each.depth) for each in tree.walk()] == [
        ("root", State.IDLE, 0),
        ("busy", State.RUNNING_TOOLS, 1),
        ("ended", State.CLOSED, 1),
    ]
    assert tree.children[0].running_tools == ("hang",)
    assert (tree.model, tree.usage.responses, tree.children[1].usage.responses) == ("m", 1, 1)
    await child.cancel_tool_use("1", "x")
    await running


async def test_more_children_at_once_than_allowed_are_refused_by_tool_or_altogether() -> None:
    root = convo(tools=[hang, after])
    calls = [call("1", "hang"), call("2", "hang"), call("3", "after", turns=10**9, text="x")]
    running = asyncio.create_task(root.tool_result_contents(Response(message=Message.assistant(*calls))))
    await _until(lambda: len(root.tool_calls.running) == 3)
    children = [await root.sub_conversation(InlineToolset(())) for _ in range(3)]
    for child, within_call in zip(children, ("1", "3", None), strict=True):
        root.adopt(child.id, child, within_call)
    root.refuse_too_many(2, 3, within_call="2")
    with pytest.raises(TooManySubConvos, match=r"3 sub-conversations were asked for; at most 3 .* and 1 do"):
        root.refuse_too_many(3, 3, within_call="2")
    with pytest.raises(TooManySubConvos, match=r"at most 3 .* and 3 do"):
        root.refuse_too_many(1, 3, within_call=None)
    await children[0].close()
    root.refuse_too_many(3, 3, within_call="2")
    await root.cancel("enough")
    with pytest.raises(ConvoCancelled):
        await running


async def test_a_child_that_does_not_answer_is_starting_until_it_has_and_lost_afterwards() -> None:
    class Silent(SlowChild):
        async def activity(self) -> Any:
            raise ConvoUnreachable("sil-en00", "it does not answer")

    root, child = convo(), Silent()
    await adopt(root, "sil-en00", child)
    for is_starting, state in ((True, State.STARTING), (False, State.LOST)):
        child.is_starting = is_starting
        assert [each.state for each in (await root.tree()).children] == [state]
    child.let.set()
    await root.close()


async def test_a_child_whose_process_is_gone_is_shown_as_lost() -> None:
    class Gone:
        label = "gone"
        is_starting = False

        def kill(self) -> None:
            raise AssertionError("there is nothing to kill")

        async def activity(self) -> Any:
            raise ConvoClosed("gon-e000", "its process is gone")

        async def cancel(self, cause: str) -> CancelReport:
            raise ConvoClosed("gon-e000", "its process is gone")

        async def close(self) -> None:
            raise ConvoClosed("gon-e000", "its process is gone")

    root = convo()
    await adopt(root, "gon-e000", Gone())
    for _ in range(2):
        (lost,) = (await root.tree()).children
        assert (lost.id, lost.label, lost.state) == ("gon-e000", "gone", State.LOST)
    await root.cancel("x")
    await root.close()


@pytest.mark.parametrize(
    "error",
    [
        BudgetExceeded("abc-defg", [Breach("max_dollars", Decimal(1), None)]),
        ConvoCancelled("abc-defg", "why"),
        ConvoClosed("abc-defg"),
        ConvoUnreachable("abc-defg", "its node does not answer"),
        ConvoBusy("abc-defg", "a run"),
        UnknownToolCall("abc-defg", "x", "running", ["y"]),
        TooManySubConvos("abc-defg", 3, 2, 4),
        UnknownConvo("abc-defg", "hij-kmnp"),
        UnknownPrice("a-model", "abc-defg"),
        NothingToSend("abc-defg"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_every_error_survives_pickling(error: PalaverError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


async def _until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)
