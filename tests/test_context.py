"""The context window: how much of it is taken, and conversations that go on from a summary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from palaver.actors.budget import Budget
from palaver.actors.context import ASK, IMAGE_TOKENS, Compaction, asking, estimated_tokens, taken_tokens
from palaver.actors.conversation import Conversation
from palaver.actors.errors import BudgetExceeded, CompactionFailed
from palaver.actors.feed import Compacted, ConvoEvent
from palaver.actors.listener import ConvoInfo, NoopListener
from palaver.actors.options import check_window
from palaver.actors.settings import Settings
from palaver.actors.transcript import NOT_EXECUTED, Transcript, TranscriptEvent
from palaver.providers.errors import ConfigurationError, ContextTooLong
from palaver.providers.messages import Image, Message, Text, ToolResult, ToolUse
from palaver.providers.provider import Request, Response, StopReason
from palaver.providers.scripted import Reply, Scripted
from palaver.providers.stream import TextDelta
from palaver.providers.usage import Usage
from palaver.providers.worst_case import CountedInput
from palaver.tools import tool
from palaver.tools.toolset import InlineToolset

WINDOW = 1_000


@tool
async def look(size: int) -> str:
    """Give back that many bytes."""
    return "x" * size


def counted(text: str, input_tokens: int, output_tokens: int = 10) -> Response:
    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens, cost_usd=Decimal("0.1"))
    return Response(message=Message.assistant(text), usage=usage)


def calling(size: int, input_tokens: int, id: str = "1") -> Response:
    usage = Usage(input_tokens=input_tokens, output_tokens=10, cost_usd=Decimal())
    message = Message.assistant(ToolUse(id=id, name="look", input={"size": size}))
    return Response(message=message, stop_reason=StopReason.TOOL_USE, usage=usage)


def convo(
    replies: Sequence[Reply] | Callable[[Request], Reply],
    *,
    window: int | None = WINDOW,
    listener: Any = None,
    messages: Sequence[Message] = (),
    **settings: Any,
) -> tuple[Conversation, Scripted]:
    provider = Scripted(replies, context_window=window)
    tools = InlineToolset([look])
    conversation = Conversation(provider, tools, Settings(**settings), listener=listener, messages=messages)
    return conversation, provider


def texts(request: Request) -> list[str]:
    return [part.text for message in request.messages for part in message.content if isinstance(part, Text)]


# How much is taken


def test_what_was_counted_is_exact_and_the_rest_is_estimated() -> None:
    request = Request(
        messages=(Message.user("a" * 400), Message.assistant("b" * 400), Message.user("c" * 40)),
        system="s" * 40,
    )
    assert (
        taken_tokens(request, CountedInput(messages=1, input_tokens=123, output_tokens=45)) == 123 + 45 + 10
    )
    assert 220 <= taken_tokens(request, None) <= 222


def test_pictures_and_calls_are_estimated_too() -> None:
    picture = Image(media_type="image/png", data=b"x" * 1_000_000)
    result = ToolResult(tool_use_id="1", content=(picture, Text(text="1234")))
    assert estimated_tokens([result, ToolUse(id="1", name="look", input={"size": 1})]) == IMAGE_TOKENS + 1 + 4


async def test_context_left_goes_by_the_last_exchange_and_the_results_kept_since() -> None:
    c, _ = convo([counted("hi", 300, 50), calling(400, 400)])
    assert 900 < (await c.context_left() or 0) < WINDOW  # the tools take some
    await c.send_user_text_message("x")
    assert await c.context_left() == WINDOW - 350
    response = await c.send_user_text_message("x")
    await c.tool_result_contents(response)
    assert await c.context_left() == WINDOW - 410 - 100


async def test_context_left_is_none_for_an_unknown_window_and_never_below_zero() -> None:
    c, _ = convo([counted("hi", 5_000)], window=None)
    assert await c.context_left() is None
    c, _ = convo([counted("hi", 5_000)])
    await c.send_user_text_message("x")
    assert await c.context_left() == 0


# Compaction when asked for


async def test_compact_replaces_all_messages_by_the_models_summary_and_keeps_usage_and_history() -> None:
    c, provider = convo(
        [counted("hi", 300), counted("We said hi.", 320, 30), "bye"], system_prompt="Be brief."
    )
    await c.send_user_text_message("hello")
    compaction = await c.compact("Keep every number.")
    assert compaction == Compaction(
        number=1,
        summary="We said hi.",
        messages=2,
        request_id=provider.requests[1].id,
        usage=Usage(input_tokens=320, output_tokens=30, cost_usd=Decimal("0.1")),
    )
    asked = provider.requests[1]
    assert asked.messages[:-1] == (Message.user("hello"), Message.assistant("hi"))
    assert (asked.system, asked.tools) == (provider.requests[0].system, provider.requests[0].tools)
    assert asked.tool_choice is not None
    assert asked.tool_choice.type == "none"
    assert asked.messages[-1].text == f"{ASK}\n\nKeep every number."
    assert c.transcript.messages == ()
    assert [len(each) for each in c.transcript.former] == [4]
    await c.send_user_text_message("go on")
    begun = provider.requests[2].messages
    assert len(begun) == 1
    assert begun[0].text.endswith("which you wrote:\n\nWe said hi.\ngo on")
    assert c.transcript.messages[0] == begun[0]
    usage = await c.cumulative_usage()
    assert (usage.responses, usage.known_cost_usd) == (3, Decimal("0.2"))


async def test_a_compaction_answers_open_calls_and_a_run_goes_on_from_it() -> None:
    c, provider = convo([calling(4, 300), "summary", "done"])
    await c.send_user_text_message("hello")
    await c.compact()
    (result,) = provider.requests[1].messages[-1].tool_results
    assert result.text == NOT_EXECUTED
    assert (await c.run("")).text == "done"


async def test_a_run_reports_its_answers_across_a_compaction() -> None:
    c, provider = convo([counted("hi", 100), calling(4, 950), "summary", "done"], compact_from=0.9)
    await c.send_user_text_message("hello")
    result = await c.run("look")
    assert (result.text, result.responses) == ("done", 3)
    assert len(provider.requests) == 4


async def test_there_is_nothing_to_compact_in_a_new_conversation() -> None:
    c, provider = convo(["x"])
    with pytest.raises(CompactionFailed, match="has no messages yet"):
        await c.compact()
    assert provider.requests == []


@pytest.mark.parametrize(
    "reply", [Message.assistant(), Response(message=Message.assistant("No."), stop_reason=StopReason.REFUSAL)]
)
async def test_without_a_summary_the_messages_stand(reply: Any) -> None:
    c, _ = convo(["hi", reply, "still here"])
    await c.send_user_text_message("hello")
    with pytest.raises(CompactionFailed, match="stands as it was: the model gave no summary"):
        await c.compact()
    assert c.transcript.former == ()
    assert c.transcript.messages[0] == Message.user("hello")
    await c.send_user_text_message("and?")


async def test_a_compaction_is_bound_by_the_budget() -> None:
    c, _ = convo(["hi", "summary"], budget=Budget(max_responses=1))
    await c.send_user_text_message("hello")
    with pytest.raises(BudgetExceeded):
        await c.compact()
    assert len(c.transcript.messages) == 2


# By itself


async def test_a_request_that_would_take_the_share_is_sent_after_a_compaction() -> None:
    c, provider = convo([counted("one", 700), counted("two", 790), "summary", "three"], compact_from=0.8)
    await c.run("a")
    await c.run("b")
    assert c.transcript.former == ()
    result = await c.run("c")
    assert result.text == "three"
    assert texts(provider.requests[2])[-1] == ASK
    assert texts(provider.requests[3])[-1] == "c"
    assert "summary" in texts(provider.requests[3])[0]


async def test_results_that_fill_the_window_are_shortened_for_the_summary_and_no_more_sent() -> None:
    c, provider = convo([calling(40_000, 300), "summary", "done"], window=8_000, compact_from=0.8)
    result = await c.run("look")
    assert result.text == "done"
    (shown,) = provider.requests[1].messages[-1].tool_results
    assert 5_000 < len(shown.text) < 20_000
    assert "more bytes did not fit into the context window" in shown.text
    assert taken_tokens(provider.requests[1], None) < 8_000
    assert provider.requests[2].messages[0].tool_results == ()


async def test_a_request_that_is_refused_as_too_long_is_sent_after_a_compaction_once() -> None:
    def reply(request: Request) -> Reply:
        if "too much" in texts(request)[-1]:
            return ContextTooLong("prompt is too long", "scripted", 400)
        return "fine"

    c, provider = convo(reply, compact_from=1.0)
    await c.send_user_text_message("hello")
    with pytest.raises(ContextTooLong):
        await c.send_user_text_message("too much")
    assert len(provider.requests) == 4
    assert len(c.transcript.former) == 1
    assert (await c.send_user_text_message("now?")).message.text == "fine"
    plain, provider = convo(reply)
    await plain.send_user_text_message("hello")
    with pytest.raises(ContextTooLong):
        await plain.send_user_text_message("too much")
    assert len(provider.requests) == 2


async def test_a_message_that_is_too_long_by_itself_is_sent_as_it_is() -> None:
    c, provider = convo(["fine"], compact_from=0.5)
    await c.send_user_text_message("x" * 4_000)
    assert len(provider.requests) == 1


async def test_a_typed_run_goes_on_after_a_compaction() -> None:
    class Sum(BaseModel):
        total: int

    replies = [calling(4, 950), "summary", Message.assistant('{"total": 3}')]
    c, provider = convo(replies, compact_from=0.9)
    result = await c.run("add", output_type=Sum)
    assert result.output == Sum(total=3)
    assert provider.requests[1].tools == provider.requests[0].tools


async def test_sub_conversations_begin_with_the_summary_where_no_message_has_it_yet() -> None:
    c, _ = convo(["hi", "summary"])
    await c.send_user_text_message("hello")
    await c.compact()
    (begun,) = c.transcript.history
    assert "summary" in begun.text


@pytest.mark.parametrize("share", [0, 1.5, -1, "half"])
def test_a_share_that_is_none_is_refused(share: Any) -> None:
    with pytest.raises(ConfigurationError, match="compact_from is"):
        Settings(compact_from=share)


def test_a_share_of_an_unknown_window_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigurationError, match=r"context window of model 'scripted' is not known; give"):
        check_window(Scripted(()), 0.8)
    check_window(Scripted((), context_window=1), 0.8)
    check_window(Scripted(()), None)


# Who is told, and what is kept


async def test_the_listener_is_told_and_a_follower_sees_no_text_of_the_summary() -> None:
    class Recorder(NoopListener):
        told: Compaction | None = None

        def on_compaction(self, convo: ConvoInfo, compaction: Compaction) -> None:
            self.told = compaction

    listener = Recorder()
    c, _ = convo([counted("one", 900), "summary", "two"], compact_from=0.8, listener=listener)
    await c.run("a")
    seen: list[ConvoEvent] = []
    async for batch in c.stream("b"):
        seen += batch
    (event,) = [each for each in seen if isinstance(each, Compacted)]
    assert event.compaction == listener.told
    assert "".join(each.text for each in seen if isinstance(each, TextDelta)) == "two"


async def test_who_replays_the_events_has_the_transcript() -> None:
    events: list[TranscriptEvent] = []
    kept = Transcript("c", on_event=events.append)
    kept.keep_exchange(Message.user("a"), counted("b", 1))
    kept.compact("so far")
    kept.keep_exchange(kept.completed(Message.user("c")), counted("d", 1))
    replayed = Transcript("c")
    for event in events:
        replayed.apply(TranscriptEvent.model_validate_json(event.model_dump_json()))
    assert (replayed.messages, replayed.former) == (kept.messages, kept.former)
    assert replayed.messages[0].text == "so far\nc"


def test_results_are_asked_about_whole_where_they_fit_or_the_room_is_unknown() -> None:
    result = ToolResult(tool_use_id="1", content=(Text(text="y" * 4_000),))
    assert asking([result], "", None)[0] == result
    assert asking([result], "", 100_000)[0] == result
    (shortened, _) = asking([result], "", 100)
    assert isinstance(shortened, ToolResult)
    assert shortened.text == "y" * 400 + "\n[3600 more bytes did not fit into the context window]"
