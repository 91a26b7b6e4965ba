"""The adapters against llmock on real sockets: the same answers streamed and not, and faults of every kind.

Its journal tells what was really sent: nothing is sent twice unseen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeAlias

import pytest
from llmock.scenarios import Delay, Fail, Reply, SlowFirstToken, StreamFault, ToolCall, ToolFault
from llmock.testing import LLMockServer

from palaver.actors.conversation import Conversation
from palaver.providers import (
    AnswerLost,
    Anthropic,
    Message,
    Opaque,
    OpenAI,
    OpenAIResponses,
    Overloaded,
    Price,
    Profile,
    ProviderError,
    QuotaExhausted,
    RateLimited,
    Request,
    Response,
    RetryPolicy,
    StreamBroken,
    ToolSpec,
    ToolUse,
)
from palaver.tools import tool
from palaver.tools.toolset import InlineToolset

Adapter: TypeAlias = Anthropic | OpenAI
Connect: TypeAlias = Callable[..., Adapter]

PRICE = Price.per_million_tokens(1, 10)
TOOL = ToolSpec(
    name="weather",
    description="The weather at a place",
    input_schema={"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
)
REQUEST = Request(messages=(Message.user("What is the weather in Paris?"),))
QUICK = RetryPolicy(max_attempts=3, first_wait_s=0.01, max_wait_s=0.02)
ADAPTERS = ("anthropic", "chat", "responses")


@pytest.fixture(scope="module")
def running() -> Iterator[LLMockServer]:
    with LLMockServer() as server:
        yield server


@pytest.fixture
def server(running: LLMockServer) -> Iterator[LLMockServer]:
    running.state.reset()
    yield running
    running.state.reset()


@pytest.fixture
async def connect(server: LLMockServer) -> AsyncIterator[Connect]:
    """Makes adapters that are closed after the test."""
    made: list[Adapter] = []

    def adapter(name: str, **options: Any) -> Adapter:
        options = {"api_key": "key", "price": PRICE, "retry": QUICK, "rate_limits": None, **options}
        if name == "anthropic":
            made.append(Anthropic("claude-sonnet-4-5", base_url=server.base_url(name), **options))
        elif name == "responses":
            made.append(OpenAIResponses("gpt-6.1-sol", base_url=server.base_url("openai"), **options))
        else:
            options["profile"] = Profile(stream_usage=True)
            made.append(OpenAI("gpt-4.1", base_url=server.base_url("openai"), **options))
        return made[-1]

    yield adapter
    for each in made:
        await each.aclose()


async def answer(provider: Adapter, *, streamed: bool, request: Request = REQUEST) -> Response:
    if not streamed:
        return await provider.generate(request)
    async for part in provider.stream(request):
        if part.type == "answered":
            return part.response
    raise AssertionError("a stream without an end")


async def failure(provider: Adapter, *, streamed: bool) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await answer(provider, streamed=streamed)
    return caught.value


def sent(server: LLMockServer) -> int:
    """How many requests reached the server, once it has done with them."""
    return len(server.state.journal.records(wait=5))


both = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
each = pytest.mark.parametrize("name", ADAPTERS)


# The same, streamed and not


def told(message: Message) -> list[Any]:
    """What a message says, without the ids that the server makes anew."""
    return [
        (part.name, part.input) if isinstance(part, ToolUse) else getattr(part, "text", part)
        for part in message.content
        if not isinstance(part, Opaque)
    ]


@each
async def test_a_conversation_is_the_same_streamed_and_not(
    name: str, server: LLMockServer, connect: Connect
) -> None:
    @tool(name="weather")
    async def weather(place: str) -> str:
        """The weather at a place."""
        return f"fine in {place}"

    script = [
        Reply(text="Let me look.", tool_calls=(ToolCall("weather", {"place": "Paris, übrigens"}),)),
        Reply(
            tool_calls=(
                ToolCall("weather", {"place": "Rome"}),
                ToolCall("weather", {"place": "Oslo, Norway"}),
            )
        ),
        Reply(text="It is fine everywhere, as far as I can see. ☀"),
    ]
    messages: list[Any] = []
    usage: list[Any] = []
    for streamed in (False, True):
        for reply in script:
            server.state.scenarios.add(reply)
        conversation = Conversation(connect(name), InlineToolset([weather]))
        if streamed:
            async for _ in conversation.stream("What is the weather?"):
                pass
        else:
            assert (await conversation.run("What is the weather?")).finished
        messages.append([(each.role, told(each)) for each in conversation.transcript.messages])
        total = await conversation.cumulative_usage()
        usage.append((total.responses, total.input_tokens, total.output_tokens, total.known_cost_usd))
        await conversation.close()
    whole, streamed_one = messages
    assert [text for _, text in whole][1] == ["Let me look.", ("weather", {"place": "Paris, übrigens"})]
    # The results name their calls by ids that are made anew, and tell when they ran.
    assert [each for each in whole if each[0] == "assistant"] == [
        each for each in streamed_one if each[0] == "assistant"
    ]
    assert usage[0] == usage[1]
    assert usage[0][0] == 3
    assert usage[0][3] > 0
    assert [record.stream for record in server.state.journal.records()] == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("name", "streamed"),
    [("anthropic", True), ("chat", False), ("chat", True), ("responses", False), ("responses", True)],
)
async def test_a_call_whose_input_is_no_json_is_told(
    name: str, streamed: bool, server: LLMockServer, connect: Connect
) -> None:
    server.state.scenarios.add(Reply(tool_calls=(ToolCall("weather", {"place": "Paris"}),)))
    server.state.scenarios.add(ToolFault("malformed_arguments"))
    request = REQUEST.model_copy(update={"tools": (TOOL,)})
    response = await answer(connect(name), streamed=streamed, request=request)
    [call] = response.message.tool_uses
    assert call.input == {}
    assert call.malformed_input


# What the server refuses for the moment


@each
@both
@pytest.mark.parametrize("status", [429, 500, 503, 529])
async def test_what_passes_is_tried_again_until_it_is_answered(
    name: str, streamed: bool, status: int, server: LLMockServer, connect: Connect
) -> None:
    server.state.scenarios.add(Fail(status, times=2))
    response = await answer(connect(name), streamed=streamed)
    assert response.message.text
    assert [record.status for record in server.state.journal.records()] == [status, status, 200]


@each
@both
@pytest.mark.parametrize(("status", "kind"), [(429, RateLimited), (529, Overloaded), (500, Overloaded)])
async def test_what_does_not_pass_fails_after_the_tries_of_the_policy(
    name: str, streamed: bool, status: int, kind: type[ProviderError], server: LLMockServer, connect: Connect
) -> None:
    server.state.scenarios.add(Fail(status, times=None))
    error = await failure(connect(name), streamed=streamed)
    assert type(error) is kind
    assert error.status == status
    assert "gave up after 3 tries" in str(error)
    assert error.usage is None
    assert sent(server) == 3


@each
@both
async def test_retry_after_is_waited_for(
    name: str, streamed: bool, server: LLMockServer, connect: Connect
) -> None:
    server.state.scenarios.add(Fail(429, retry_after=1.0))
    await answer(connect(name, retry=RetryPolicy()), streamed=streamed)
    first, second = server.state.journal.records()
    assert second.started_at - first.ended_at >= 1.0


@each
@both
@pytest.mark.parametrize("status", [400, 401, 404, 413])
async def test_what_will_not_pass_is_sent_once(
    name: str, streamed: bool, status: int, server: LLMockServer, connect: Connect
) -> None:
    server.state.scenarios.add(Fail(status, times=None))
    error = await failure(connect(name), streamed=streamed)
    assert not error.retryable
    assert error.status == status
    assert sent(server) == 1


@both
async def test_a_quota_that_is_used_up_is_fatal(
    streamed: bool, server: LLMockServer, connect: Connect
) -> None:
    server.state.scenarios.add(
        Fail(429, message="You exceeded your current quota.", code="insufficient_quota", times=None)
    )
    assert isinstance(await failure(connect("chat"), streamed=streamed), QuotaExhausted)
    assert sent(server) == 1


# What breaks off


@each
@pytest.mark.parametrize("kind", ["disconnect", "truncate", "malformed"])
async def test_a_stream_that_breaks_off_is_not_sent_again_once_parts_were_handed_out(
    name: str, kind: Any, server: LLMockServer, connect: Connect
) -> None:
    server.state.scenarios.add(Reply(text="one two three four five six seven eight"))
    server.state.scenarios.add(StreamFault(kind, after_chunks=5))
    error = await failure(connect(name), streamed=True)
    assert isinstance(error, StreamBroken)
    assert error.partial is not None
    assert error.partial.text.startswith("one")
    assert error.usage is not None
    assert error.usage.cost_usd
    assert sent(server) == 1


@each
@pytest.mark.parametrize("kind", ["disconnect", "truncate", "malformed"])
async def test_a_stream_that_breaks_off_unseen_is_asked_for_again_and_counted(
    name: str, kind: Any, server: LLMockServer, connect: Connect
) -> None:
    long = REQUEST.model_copy(update={"max_tokens": 30_000})
    server.state.scenarios.add(Reply(text="one two three four five six seven eight", times=2))
    server.state.scenarios.add(StreamFault(kind, after_chunks=5))
    response = await connect(name).generate(long)
    assert response.message.text == "one two three four five six seven eight"
    assert sent(server) == 2
    server.state.scenarios.add(Reply(text="one two three four five six seven eight"))
    once = await connect(name).generate(long)
    assert response.usage.output_tokens > once.usage.output_tokens
    assert response.usage.cost_usd is not None
    assert once.usage.cost_usd is not None
    assert response.usage.cost_usd > once.usage.cost_usd


@each
async def test_a_connection_cut_before_anything_came_is_lost_and_sent_once(
    name: str, server: LLMockServer, connect: Connect
) -> None:
    server.state.scenarios.add(StreamFault("disconnect", after_chunks=0))
    error = await failure(connect(name), streamed=True)
    assert isinstance(error, AnswerLost)
    assert sent(server) == 1


@each
async def test_a_stalled_stream_is_given_up(name: str, server: LLMockServer, connect: Connect) -> None:
    server.state.scenarios.add(Reply(text="one two three four five six seven eight"))
    server.state.scenarios.add(StreamFault("stall", after_chunks=5, stall_seconds=20))
    began = time.monotonic()
    error = await failure(connect(name, timeout_s=0.3), streamed=True)
    assert isinstance(error, StreamBroken)
    assert time.monotonic() - began < 5


@each
async def test_a_slow_answer_is_given_up_and_not_sent_twice(
    name: str, server: LLMockServer, connect: Connect
) -> None:
    server.state.scenarios.add(Delay(1.0))
    error = await failure(connect(name, timeout_s=0.2), streamed=False)
    assert isinstance(error, AnswerLost)
    assert sent(server) == 1


# Cancelled at any point


@each
@both
@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("at", ["the answer", "its middle", "a wait before a retry"])
async def test_a_cancel_takes_effect_at_once_at_any_point(
    name: str, streamed: bool, after_s: float, at: str, server: LLMockServer, connect: Connect
) -> None:
    match at:
        case "the answer":
            server.state.scenarios.add(Delay(2.0))
            server.state.scenarios.add(SlowFirstToken(2.0))
        case "its middle":
            server.state.scenarios.add(StreamFault("stall", after_chunks=5, stall_seconds=2))
            if not streamed:
                server.state.scenarios.add(Delay(2.0))
        case _:
            server.state.scenarios.add(Fail(429, retry_after=30, times=None))
    provider = connect(name, retry=RetryPolicy())
    task = asyncio.create_task(answer(provider, streamed=streamed))
    await asyncio.sleep(after_s)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 0.2
    assert len(server.state.journal.records()) <= 1
    await provider.aclose()
