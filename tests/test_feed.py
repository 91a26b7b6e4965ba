"""What happens in a run, followed while it goes on: without Ray, and at the end on a real one."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from decimal import Decimal
from typing import Any

import httpx
import pytest
from kinds import Kind
from pydantic import BaseModel
from test_conversation import call, convo, echo, hang
from wire_fakes import FakeClock, FakeServer, ok

from palaver.actors import RunEnded, ToolEnded, ToolStarted, events, reply
from palaver.actors.budget import Budget
from palaver.actors.conversation import Conversation
from palaver.actors.errors import ConvoBusy
from palaver.actors.feed import ConvoEvent, Feed, Responded, Retrying
from palaver.actors.listener import ConvoInfo, NoopListener
from palaver.providers import (
    Answered,
    MalformedCall,
    Message,
    OpenAI,
    ProviderError,
    RateLimited,
    Request,
    Response,
    Retry,
    Scripted,
    StreamBroken,
    TextDelta,
    ThinkingDelta,
    ToolInputDelta,
    Usage,
    UsageSoFar,
)

pytestmark = pytest.mark.timeout(60)

TWO_TURNS = (["let me see", call("1", "echo", text="ü")], "it is ü")


async def followed(conversation: Conversation, text: str = "go", **options: Any) -> list[ConvoEvent]:
    return [event async for batch in conversation.stream(text, **options) for event in batch]


def texts(told: list[ConvoEvent]) -> str:
    return "".join(event.text for event in told if isinstance(event, TextDelta))


class Number(BaseModel):
    n: int


class Whole:
    """A provider that cannot stream."""

    name = model = "whole"

    def __init__(self, *replies: Any) -> None:
        self._scripted = Scripted(replies)

    async def generate(self, request: Request) -> Response:
        return await self._scripted.generate(request)

    async def aclose(self) -> None:
        pass


class Stuck(Scripted):
    """Tells a word and what it cost so far, and then nothing more, or fails."""

    def __init__(self, failure: ProviderError | None = None) -> None:
        super().__init__([])
        self._failure = failure
        self.closed = False

    async def stream(self, request: Request):  # type: ignore[no-untyped-def]
        try:
            yield TextDelta(text="one")
            yield UsageSoFar(usage=Usage(input_tokens=7, output_tokens=1, cost_usd=Decimal("0.25")))
            if self._failure is not None:
                raise self._failure
            await asyncio.Event().wait()
            yield Answered(response=Response(message=Message.assistant("never")))
        finally:
            self.closed = True


# What is told


@pytest.mark.parametrize("provider", [Scripted(TWO_TURNS), Whole(*TWO_TURNS)])
async def test_a_run_tells_its_parts_its_calls_and_at_last_its_result(provider: Any) -> None:
    c = convo(provider=provider, tools=[echo])
    told = await followed(c)
    kinds = [type(event) for event in told]
    for kind in (ThinkingDelta, UsageSoFar):
        kinds = [each for each in kinds if each is not kind]
    assert [each for n, each in enumerate(kinds) if n == 0 or each is not kinds[n - 1]] == [
        *(TextDelta, ToolInputDelta, Responded, ToolStarted, ToolEnded),
        *(TextDelta, Responded, RunEnded),
    ]
    assert texts(told) == "let me seeit is ü"
    [given] = [event for event in told if isinstance(event, ToolInputDelta)]
    assert (given.position, given.name) == (0, "echo")
    [ended] = [event for event in told if isinstance(event, ToolEnded)]
    assert ended.call.id == "1"
    assert ended.result.text == "ü"
    last = told[-1]
    assert isinstance(last, RunEnded)
    assert last.result.text == "it is ü"
    assert [message.role for message in c.transcript.messages] == ["user", "assistant"] * 2


async def test_a_followed_run_keeps_and_counts_what_any_run_does() -> None:
    followed_one, other = convo(*TWO_TURNS, tools=[echo]), convo(*TWO_TURNS, tools=[echo])
    told = await followed(followed_one)
    result = await other.run("go")
    last = told[-1]
    assert isinstance(last, RunEnded)
    assert last.result.stop == result.stop
    assert last.result.usage.output_tokens == result.usage.output_tokens
    assert [each.model_dump(exclude={"content"}) for each in followed_one.transcript.messages] == [
        each.model_dump(exclude={"content"}) for each in other.transcript.messages
    ]
    assert followed_one.transcript.messages[1] == other.transcript.messages[1]


async def test_an_answer_of_a_type_can_be_followed_too() -> None:
    c = convo(provider=Scripted(['{"n": 3}'], output_by="schema"))
    last = (await followed(c, output_type=Number))[-1]
    assert isinstance(last, RunEnded)
    assert last.result.output == Number(n=3)


async def test_nothing_is_told_of_a_run_that_nobody_follows() -> None:
    c = convo("a", "b")
    await followed(c)
    assert (await c.run("go")).text == "b"


# Ends


async def test_who_stops_listening_stops_the_run_and_pays_for_what_came() -> None:
    provider = Stuck()
    c = convo(provider=provider)
    async with aclosing(c.stream("go")) as batches:
        async for batch in batches:
            if isinstance(batch[-1], UsageSoFar):
                break
    assert provider.closed
    assert c.transcript.messages == ()
    usage = await c.cumulative_usage()
    assert usage.known_cost_usd == Decimal("0.25")
    assert len(asyncio.all_tasks()) == 1


async def test_a_cancel_is_told_as_the_result_and_what_came_is_paid_for() -> None:
    c = convo(provider=Stuck())
    told: list[ConvoEvent] = []
    async for batch in c.stream("go"):
        told += batch
        if isinstance(told[-1], UsageSoFar):
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(c.cancel("enough")))
    last = told[-1]
    assert isinstance(last, RunEnded)
    assert last.result.stop == "cancelled"
    assert last.result.usage.known_cost_usd == Decimal("0.25")


async def test_a_cancelled_tool_call_is_told_with_its_result() -> None:
    c = convo(call("1", "hang"), tools=[hang])
    told: list[ConvoEvent] = []
    async for batch in c.stream("go"):
        told += batch
        if isinstance(told[-1], ToolStarted):
            await c.cancel("enough")
    ended = [event for event in told if isinstance(event, ToolEnded)]
    assert [event.result.is_error for event in ended] == [True]
    assert isinstance(told[-1], RunEnded)


async def test_an_answer_that_broke_off_is_raised_and_charged_and_not_asked_for_again() -> None:
    charged = Usage(input_tokens=7, output_tokens=2, cost_usd=Decimal("0.5"))
    broken = StreamBroken("it broke off", "p", None, None, None, charged, Message.assistant("one"))
    c = convo(provider=Stuck(broken))
    told: list[ConvoEvent] = []
    with pytest.raises(StreamBroken) as caught:
        await _into(told, c)
    assert caught.value.partial == Message.assistant("one")
    assert texts(told) == "one"
    assert (await c.cumulative_usage()).known_cost_usd == Decimal("0.5")
    assert c.transcript.messages == ()


async def _into(told: list[ConvoEvent], c: Conversation) -> None:
    async for batch in c.stream("go"):
        told += batch


async def test_a_second_call_is_refused_while_a_run_is_followed() -> None:
    c = convo(provider=Stuck())
    async with aclosing(c.stream("go")) as batches:
        async for _ in batches:
            break
        with pytest.raises(ConvoBusy):
            await c.run("too")
        with pytest.raises(ConvoBusy):
            await followed(c)


class Told(NoopListener):
    """Keeps the retries it is told of."""

    def __init__(self) -> None:
        self.retries: list[tuple[str, Retry]] = []

    def on_retry(self, convo: ConvoInfo, request_id: str, retry: Retry) -> None:
        self.retries.append((request_id, retry))


async def test_each_try_again_is_told_by_the_provider_and_by_the_conversation() -> None:
    busy = httpx.Response(429, json={"error": {"message": "slow down"}}, headers={"retry-after": "3"})
    malformed = ok(
        {
            "choices": [{"message": {"content": ""}, "finish_reason": "malformed_function_call"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 5},
        }
    )
    server = FakeServer(busy, malformed, busy, ok({"choices": [{"message": {"content": "yes"}}]}))
    provider = OpenAI("m", base_url="http://acme.test/v1", transport=server, clock=FakeClock())
    listener = Told()
    c = convo(provider=provider, listener=listener, clock=FakeClock())
    told = await followed(c)
    assert [(type(each.error), each.attempt, each.wait_s) for _, each in listener.retries] == [
        (RateLimited, 1, 3.0),  # by the provider
        (MalformedCall, 1, 0.25),  # by the conversation, which had to reserve anew
        (RateLimited, 1, 3.0),
    ]
    first, second, third = (request_id for request_id, _ in listener.retries)
    assert first == second != third  # a try that was charged is a request of its own
    reasons = [event.reason for event in told if isinstance(event, Retrying)]
    assert len(reasons) == 3
    assert "slow down" in reasons[0]
    assert isinstance(told[-1], RunEnded)
    assert told[-1].result.text == "yes"


async def test_a_budget_that_is_used_up_is_the_result() -> None:
    c = convo("a", budget=Budget(max_responses=0))
    last = (await followed(c))[-1]
    assert isinstance(last, RunEnded)
    assert last.result.stop == "budget"


# The feed


async def test_the_first_event_comes_at_once_and_the_others_together() -> None:
    feed = Feed()
    batches = feed.batches()
    feed.put(TextDelta(text="a"))
    assert await anext(batches) == (TextDelta(text="a"),)
    for text in "bcd":
        feed.put(TextDelta(text=text))
    feed.put(ToolInputDelta(position=0, name="x", text="{"))
    feed.put(ToolInputDelta(position=0, name="x", text="}"))
    feed.put(ToolInputDelta(position=1, name="x", text="{"))
    feed.put(UsageSoFar(usage=Usage(output_tokens=1)))
    feed.put(UsageSoFar(usage=Usage(output_tokens=2)))
    feed.put(ThinkingDelta(text="h"))
    feed.put(ThinkingDelta(text="m"))
    assert await anext(batches) == (
        TextDelta(text="bcd"),
        ToolInputDelta(position=0, name="x", text="{}"),
        ToolInputDelta(position=1, name="x", text="{"),
        UsageSoFar(usage=Usage(output_tokens=2)),
        ThinkingDelta(text="hm"),
    )
    feed.put(TextDelta(text="e"))
    feed.end()
    assert [batch async for batch in batches] == [(TextDelta(text="e"),)]


async def test_a_feed_that_ends_empty_has_no_events() -> None:
    feed = Feed()
    feed.end()
    assert [batch async for batch in feed.batches()] == []


# On Ray


class Slowly(Scripted):
    """Streams a word each hundredth of a second."""

    async def stream(self, request: Request):  # type: ignore[no-untyped-def]
        async for part in super().stream(request):
            await asyncio.sleep(0.01)
            yield part


@pytest.mark.ray
async def test_an_actor_streams_and_stops_when_nobody_listens(kind: Kind) -> None:
    c = await kind.convo(Slowly([*TWO_TURNS, "word " * 6_000, "again"]), tools=[echo])
    try:
        told = [event async for event in events(c.stream.remote("go"))]
        assert texts(told) == "let me seeit is ü"
        assert isinstance(told[-1], RunEnded)
        assert told[-1].result.responses == 2
        async with aclosing(events(c.stream.remote("long"))) as more:
            async for event in more:
                if isinstance(event, TextDelta):
                    break
        # At once, although a minute of words was left.
        assert (await reply(c.run.remote("again"))).text == "again"
        with pytest.raises(ProviderError, match="the script of"):
            assert [event async for event in events(c.stream.remote("no more"))] == []
    finally:
        await reply(c.close.remote())
