"""Answers in parts: put together they are the answer that comes whole, and what breaks off is told."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_fakes import anthropic_events, chat_events, pieces_of, responses_events, sse, streaming
from wire_fakes import KEY, FakeClock, FakeServer, ok

from palaver.providers import (
    Answered,
    AnswerLost,
    Anthropic,
    BadResponse,
    IncompleteAnswer,
    Message,
    OpenAI,
    OpenAIResponses,
    Overloaded,
    Price,
    Profile,
    ProviderError,
    Request,
    Response,
    RetryPolicy,
    StopReason,
    StreamBroken,
    Streams,
    TextDelta,
    ThinkingDelta,
    ToolInputDelta,
    UsageSoFar,
)

PRICE = Price.per_million_tokens(1, 10)
REQUEST = Request(messages=(Message.user("go"),))
CUT = httpx.ReadError("connection reset")

ANTHROPIC: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [
        {"type": "thinking", "thinking": "Let me see what there is.", "signature": "c2lnbmVk"},
        {"type": "redacted_thinking", "data": "abc"},
        {
            "type": "text",
            "text": "I look twice.",
            "citations": [{"type": "char_location", "cited_text": "x"}],
        },
        {
            "type": "tool_use",
            "id": "toolu_1",
            "name": "look",
            "input": {"at": "the door", "deep": [{"a": 1}]},
        },
        {"type": "tool_use", "id": "toolu_2", "name": "wait", "input": {}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 100, "cache_read_input_tokens": 50, "output_tokens": 40},
}
CHAT: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "m-1",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "reasoning_content": "Let me see what there is.",
                "content": "I look twice.",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "look", "arguments": '{"at": "the door", "deep": [{"a": 1}]}'},
                    },
                    {"id": "call_2", "type": "function", "function": {"name": "wait", "arguments": "{}"}},
                ],
            },
            "finish_reason": "tool_calls",
        }
    ],
    "usage": {"prompt_tokens": 150, "completion_tokens": 40, "prompt_tokens_details": {"cached_tokens": 50}},
}
RESPONSES: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "model": "gpt-6.1-sol",
    "error": None,
    "output": [
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "Let me see what there is."}],
            "encrypted_content": "c2VhbGVk",
        },
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "phase": "commentary",
            "content": [{"type": "output_text", "text": "I look twice.", "annotations": []}],
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": "look",
            "arguments": '{"at": "the door", "deep": [{"a": 1}]}',
            "status": "completed",
        },
        {"type": "function_call", "id": "fc_2", "call_id": "call_2", "name": "wait", "arguments": "{}"},
    ],
    "usage": {"input_tokens": 150, "input_tokens_details": {"cached_tokens": 50}, "output_tokens": 40},
}
TEXT_CHAT: dict[str, Any] = {
    **CHAT,
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "all is well here"}, "finish_reason": "stop"}
    ],
}


def claude(*answers: Any, **options: Any) -> tuple[Anthropic, FakeServer]:
    server = FakeServer(*answers)
    options = {"clock": FakeClock(), "price": PRICE, **options}
    return Anthropic("claude-x", api_key=KEY, transport=server, **options), server


def chat(*answers: Any, **options: Any) -> tuple[OpenAI, FakeServer]:
    server = FakeServer(*answers)
    options = {"clock": FakeClock(), "price": PRICE, **options}
    return OpenAI("m-1", base_url="http://acme.test/v1", api_key=KEY, transport=server, **options), server


def responses(*answers: Any, **options: Any) -> tuple[OpenAIResponses, FakeServer]:
    server = FakeServer(*answers)
    options = {"clock": FakeClock(), "price": PRICE, "api_key": KEY, **options}
    return OpenAIResponses("gpt-6.1-sol", base_url="http://acme.test/v1", transport=server, **options), server


MAKERS = [claude, chat, responses]
WHOLE: dict[Any, dict[str, Any]] = {claude: ANTHROPIC, chat: CHAT, responses: RESPONSES}


def body_of(make: Any) -> bytes:
    """A whole answer, streamed."""
    if make is claude:
        return sse(anthropic_events(ANTHROPIC))
    return sse(chat_events(CHAT), done=True) if make is chat else sse(responses_events(RESPONSES))


def comparable(response: Response) -> Response:
    return response.model_copy(update={"started_at": None, "ended_at": None, "request_id": ""})


async def parts_of(provider: Streams, request: Request = REQUEST) -> list[Any]:
    return [part async for part in provider.stream(request)]


async def failure_of(provider: Streams) -> tuple[ProviderError, list[Any]]:
    parts: list[Any] = []
    try:
        async for part in provider.stream(REQUEST):
            parts.append(part)  # noqa: PERF401 - what came before the failure counts
    except ProviderError as error:
        return error, parts
    raise AssertionError("it did not fail")


# The same as without streaming


@given(st.lists(st.integers(1, 9), max_size=5), st.lists(st.integers(1, 60), max_size=5))
def test_assembled_answer_is_the_whole_one_however_it_is_cut(words: list[int], chunks: list[int]) -> None:
    async def check() -> None:
        for make, answer, events, done in (
            (claude, ANTHROPIC, anthropic_events(ANTHROPIC, pieces_of(words)), False),
            (chat, CHAT, chat_events(CHAT, pieces_of(words)), True),
            (responses, RESPONSES, responses_events(RESPONSES, pieces_of(words)), False),
        ):
            body = sse(events, done=done)
            sizes = pieces_of(chunks)
            pieces = [piece.encode("latin-1") for piece in sizes(body.decode("latin-1"))]
            whole, _ = make(ok(answer))
            streamed, server = make(streaming(pieces))
            *_, last = await parts_of(streamed)
            assert comparable(last.response) == comparable(await whole.generate(REQUEST))
            assert server.bodies[0]["stream"] is True

    asyncio.run(check())


async def test_parts_come_in_order_and_tell_calls_apart() -> None:
    for provider in (make(streaming(body_of(make)))[0] for make in MAKERS):
        parts = await parts_of(provider)
        texts = [part.text for part in parts if isinstance(part, TextDelta)]
        thoughts = [part.text for part in parts if isinstance(part, ThinkingDelta)]
        inputs = [part for part in parts if isinstance(part, ToolInputDelta)]
        assert texts == ["I", " look", " twice."]
        assert "".join(thoughts) == "Let me see what there is."
        assert {(part.position, part.name) for part in inputs} == {(0, "look"), (1, "wait")}
        first = "".join(part.text for part in inputs if part.position == 0)
        assert json.loads(first) == {"at": "the door", "deep": [{"a": 1}]}
        usage = [part.usage for part in parts if isinstance(part, UsageSoFar)]
        assert usage[-1].output_tokens == 40
        assert usage[-1].cost_usd == Decimal("0.00055") or usage[-1].cost_usd is not None
        assert isinstance(parts[-1], Answered)
        assert parts[-1].response.usage == usage[-1]


async def test_one_answer_that_may_be_long_is_streamed_inside() -> None:
    long = REQUEST.model_copy(update={"max_tokens": 30_000})
    for provider, server in (make(streaming(body_of(make))) for make in MAKERS):
        assert (await provider.generate(long)).message.text == "I look twice."
        [body] = server.bodies
        assert body["stream"] is True
        assert body.get("max_output_tokens", body.get("max_tokens")) == 30_000


async def test_server_that_answers_whole_although_a_stream_was_asked_for_is_understood() -> None:
    for provider in (make(ok(WHOLE[make]))[0] for make in MAKERS):
        [answered] = await parts_of(provider)
        assert answered.response.message.text == "I look twice."


# Anthropic's events


async def test_unknown_events_and_blocks_are_kept_or_passed_over() -> None:
    search = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "a b"}}
    found = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"url": "u"}]}
    answer = {**ANTHROPIC, "content": [search, found], "stop_reason": "pause_turn"}
    events = anthropic_events(answer)
    events.insert(1, {"type": "something_new", "index": 7})
    provider, _ = claude(streaming(sse(events)))
    *_, last = await parts_of(provider)
    whole, _ = claude(ok(answer))
    assert comparable(last.response) == comparable(await whole.generate(REQUEST))
    assert last.response.stop_reason is StopReason.PAUSE


async def test_input_that_is_no_json_becomes_an_error_for_the_model() -> None:
    events = anthropic_events({**ANTHROPIC, "content": ANTHROPIC["content"][3:4]})
    for event in events:
        if event.get("delta", {}).get("partial_json") == ' "the':
            event["delta"]["partial_json"] = " oops"
    provider, _ = claude(streaming(sse(events)))
    *_, last = await parts_of(provider)
    [call] = last.response.message.tool_uses
    assert call.input == {}
    assert call.malformed_input is not None
    assert "oops" in call.malformed_input


async def test_counts_of_a_stream_replace_each_other_and_are_never_summed() -> None:
    events = anthropic_events(ANTHROPIC)
    early = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 7, "input_tokens": None}}
    events.insert(-2, early)
    provider, _ = claude(streaming(sse(events)))
    *_, last = await parts_of(provider)
    assert last.response.usage.output_tokens == 40
    assert last.response.usage.total_input_tokens == 150


# Chat completions as servers stream them


def calls_in(*chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events whose deltas have these pieces of tool calls."""
    events: list[dict[str, Any]] = [{"choices": [{"delta": {"tool_calls": pieces}}]} for pieces in chunks]
    return [*events, {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}]


def call(name: str | None = None, arguments: Any = None, **fields: Any) -> dict[str, Any]:
    given = {"name": name, "arguments": arguments}
    return {**fields, "function": {key: value for key, value in given.items() if value is not None}}


TWO = [("look", {"a": 1}), ("wait", {"b": 2})]


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        pytest.param(
            [[call("look", '{"a"', id="x")], [call(None, ": 1}")], [call("wait", '{"b": 2}', id="y")]],
            TWO,
            id="without an index, by id (openai-python#3246)",
        ),
        pytest.param(
            [[call("look", '{"a": 1}', id="x", index=0)], [call("wait", '{"b": 2}', id="y", index=0)]],
            TWO,
            id="each with index 0 (ollama#7881)",
        ),
        pytest.param(
            [[call("look", '{"a": 1}')], [call("wait", '{"b": 2}')]], TWO, id="neither index nor id, one each"
        ),
        pytest.param(
            [[call("look", '{"a": 1}'), call("wait", '{"b"')], [call(None, ""), call(None, ": 2}")]],
            TWO,
            id="neither index nor id, by place",
        ),
        pytest.param(
            [[call("look", {"a": 1}, index=0, id="x"), call("wait", {"b": 2}, index=1, id="y")]],
            TWO,
            id="arguments as objects (llama.cpp#20198)",
        ),
        pytest.param(
            [[call("look", '{"a"', index=0, id="x")], [call("look", ": 1}", index=0, id="x")]],
            TWO[:1],
            id="name and id repeated with each piece",
        ),
        pytest.param(
            [[call("lo", "", index=0, id="x")], [call("ok", '{"a": 1}', index=0)]],
            TWO[:1],
            id="name in pieces",
        ),
        pytest.param([[call("look", "", index=0, id="")]], [("look", {})], id="arguments empty, id empty"),
        pytest.param(
            [
                [call("wait", "", index=1, id="y")],
                [call("look", '{"a": 1}', index=0, id="x")],
                [call(None, '{"b": 2}', index=1)],
            ],
            TWO[::-1],
            id="in turns",
        ),
    ],
)
async def test_pieces_of_calls_find_their_call(chunks: Any, expected: Any) -> None:
    provider, _ = chat(streaming(sse(calls_in(*chunks), done=True)))
    *_, last = await parts_of(provider)
    calls = last.response.message.tool_uses
    assert [(each.name, each.input) for each in calls] == expected
    assert len({each.id for each in calls}) == len(expected)


async def test_usage_is_the_last_that_is_told_wherever_it_comes() -> None:
    growing = chat_events({**TEXT_CHAT, "usage": None})
    for number, event in enumerate(growing):
        event["usage"] = {"prompt_tokens": 9, "completion_tokens": number}
    groq = chat_events({**TEXT_CHAT, "usage": None})
    groq[-1]["x_groq"] = {"usage": {"prompt_tokens": 9, "completion_tokens": 5}}
    repeated = chat_events(TEXT_CHAT)
    nulls = [{**event, "usage": event.get("usage")} for event in chat_events(TEXT_CHAT)]
    for events, output_tokens in ((growing, 5), (groq, 5), ([*repeated, repeated[-1]], 40), (nulls, 40)):
        provider, _ = chat(streaming(sse(events, done=True)))
        *_, last = await parts_of(provider)
        assert last.response.usage.output_tokens == output_tokens


async def test_stream_without_usage_has_an_unknown_cost() -> None:
    provider, _ = chat(streaming(sse(chat_events({**TEXT_CHAT, "usage": None}), done=True)))
    *_, last = await parts_of(provider)
    assert last.response.usage.cost_usd is None


async def test_end_is_a_finish_reason_or_the_end_mark() -> None:
    events = chat_events({**TEXT_CHAT, "usage": None})
    for body in (sse(events), sse(events[:-1], done=True)):
        provider, _ = chat(streaming(body))
        *_, last = await parts_of(provider)
        assert last.response.message.text == "all is well here"
        assert last.response.stop_reason is StopReason.END_TURN


async def test_answer_whose_connection_is_cut_after_its_end_is_whole() -> None:
    provider, server = chat(streaming(sse(chat_events(TEXT_CHAT)), CUT))
    *_, last = await parts_of(provider)
    assert last.response.usage.output_tokens == 40
    assert len(server.requests) == 1


async def test_comments_while_the_server_waits_are_passed_over() -> None:
    body = b": OPENROUTER PROCESSING\n\n" * 3 + sse(chat_events(TEXT_CHAT), done=True)
    provider, _ = chat(streaming(body))
    *_, last = await parts_of(provider)
    assert last.response.message.text == "all is well here"


async def test_reasoning_goes_back_as_it_would_have_come_whole() -> None:
    detail = {"type": "reasoning.text", "index": 0, "format": "x"}
    events: list[dict[str, Any]] = [
        {"choices": [{"delta": {"reasoning": "so", "reasoning_details": [{**detail, "text": "so"}]}}]},
        {"choices": [{"delta": {"reasoning": " it", "reasoning_details": [{**detail, "text": " it"}]}}]},
        {"choices": [{"delta": {"reasoning_details": [{**detail, "signature": "sig"}]}}]},
        {"choices": [{"delta": {"content": "yes"}, "finish_reason": "stop"}]},
    ]
    provider, _ = chat(streaming(sse(events, done=True)))
    *_, last = await parts_of(provider)
    [thinking, _] = last.response.message.content
    assert thinking.text == "so it"
    assert thinking.raw["reasoning_details"] == [{**detail, "text": "so it", "signature": "sig"}]


async def test_usage_of_a_stream_is_asked_for_where_the_profile_allows_it() -> None:
    for allowed in (False, True):
        profile = Profile(stream_usage=allowed)
        provider, server = chat(streaming(sse(chat_events(TEXT_CHAT), done=True)), profile=profile)
        await parts_of(provider)
        assert ("stream_options" in server.bodies[0]) is allowed


# What breaks off


def beginning(make: Any) -> bytes:
    """The first words of an answer."""
    if make is claude:
        return sse(
            anthropic_events({**ANTHROPIC, "content": [{"type": "text", "text": "one two three"}]})[:4]
        )
    if make is responses:
        return sse(responses_events({**RESPONSES, "output": RESPONSES["output"][1:2]})[:4])
    return sse(chat_events(TEXT_CHAT)[:3])


BREAKS = [
    pytest.param(None, id="an early end"),
    pytest.param(CUT, id="a cut connection"),
    pytest.param(httpx.RemoteProtocolError("incomplete chunked read"), id="a torn chunk"),
]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("end", BREAKS)
async def test_answer_that_breaks_off_is_handed_on_with_its_cost(make: Any, end: Any) -> None:
    provider, server = make(streaming(beginning(make), end))
    error, parts = await failure_of(provider)
    assert isinstance(error, StreamBroken)
    text = "".join(part.text for part in parts if isinstance(part, TextDelta))
    assert error.partial is not None
    assert error.partial.text == text != ""
    assert error.request_id == "req_1"
    assert error.usage is not None
    assert error.usage.output_tokens >= 1
    assert error.usage.cost_usd is not None
    assert error.usage.cost_usd > 0
    assert len(server.requests) == 1  # never again once something was handed out


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("end", BREAKS)
async def test_answer_that_breaks_off_unseen_is_asked_for_again_and_charged_twice(
    make: Any, end: Any
) -> None:
    whole = body_of(make)
    provider, server = make(streaming(beginning(make), end), streaming(whole))
    response = await provider.generate(REQUEST.model_copy(update={"max_tokens": 30_000}))
    assert response.message.text == "I look twice."
    assert len(server.requests) == 2
    assert response.usage.output_tokens > 40
    assert response.usage.total_input_tokens > 150
    once = await make(ok(WHOLE[make]))[0].generate(REQUEST)
    assert response.usage.cost_usd > once.usage.cost_usd


@pytest.mark.parametrize("make", MAKERS)
async def test_who_keeps_a_budget_hears_of_each_answer_that_broke_off(make: Any) -> None:
    provider, server = make(streaming(beginning(make)))
    long = REQUEST.model_copy(update={"max_tokens": 30_000, "retry_charged": False})
    with pytest.raises(IncompleteAnswer) as caught:
        await provider.generate(long)
    assert caught.value.retryable
    assert caught.value.usage is not None
    assert len(server.requests) == 1


@pytest.mark.parametrize("make", MAKERS)
async def test_stream_that_is_lost_before_its_first_event_is_not_sent_again(make: Any) -> None:
    provider, server = make(streaming([], CUT))
    error, parts = await failure_of(provider)
    assert isinstance(error, AnswerLost)
    assert parts == []
    assert len(server.requests) == 1
    patient, server = make(streaming([], CUT), retry=RetryPolicy(retry_lost_answers=True, max_attempts=3))
    await failure_of(patient)
    assert len(server.requests) == 3


@pytest.mark.parametrize("make", MAKERS)
async def test_error_inside_a_stream_is_told_as_what_it_is(make: Any) -> None:
    kind = {"type": "overloaded_error", "message": "busy"}
    told: dict[Any, dict[str, Any]] = {
        claude: {"type": "error", "error": kind},
        chat: {"error": {**kind, "code": 503}},
        responses: {"type": "error", "code": "server_error", "message": "busy"},
    }
    fault = sse([told[make]])
    whole = body_of(make)
    provider, server = make(streaming(fault), streaming(whole))
    *_, last = await parts_of(provider)  # nothing had come yet, so it was asked for again
    assert last.response.message.text == "I look twice."
    assert len(server.requests) == 2
    provider, server = make(streaming(beginning(make) + fault))
    error, _ = await failure_of(provider)
    assert isinstance(error, StreamBroken)
    assert "busy" in str(error)
    assert len(server.requests) == 1
    hurt, _ = make(streaming(fault), retry=RetryPolicy(max_attempts=1))
    error, _ = await failure_of(hurt)
    assert isinstance(error, Overloaded)


async def test_event_that_is_no_json_breaks_the_answer_off() -> None:
    provider, _ = chat(streaming(beginning(chat) + b"data: {oops\n\n"))
    error, _ = await failure_of(provider)
    assert isinstance(error, StreamBroken)
    assert "no JSON object: {oops" in str(error)
    provider, _ = chat(streaming(b"data: {oops\n\n"), retry=RetryPolicy(max_attempts=1))
    error, _ = await failure_of(provider)
    assert isinstance(error, BadResponse)


@pytest.mark.parametrize("make", MAKERS)
async def test_stalled_stream_is_given_up_after_the_timeout_of_a_part(make: Any) -> None:
    provider, _ = make(streaming(beginning(make), stalls=True), timeout_s=0.05)
    error, _ = await failure_of(provider)
    assert isinstance(error, StreamBroken)
    assert "no further part of its answer in time (0.05 s)" in str(error)


@pytest.mark.parametrize("make", MAKERS)
async def test_comments_and_pings_keep_no_stream_alive(make: Any) -> None:
    alive = b': keep-alive\n\nevent: ping\ndata: {"type": "ping"}\n\n'
    provider, _ = make(streaming([beginning(make)], stalls=True, alive=alive), timeout_s=0.05)
    error, _ = await failure_of(provider)
    assert isinstance(error, StreamBroken)
    assert "no further part of its answer in time (0.05 s)" in str(error)


@pytest.mark.parametrize("make", MAKERS)
async def test_closing_a_stream_ends_its_request_at_once(make: Any) -> None:
    body: list[Any] = []
    answer = streaming(beginning(make), stalls=True)

    def kept(request: httpx.Request) -> httpx.Response:
        response = answer(request)
        body.append(response.stream)
        return response

    provider, _ = make(kept)
    stream = provider.stream(REQUEST)
    async for _ in stream:
        break
    await stream.aclose()
    assert body[0].closed
    assert len(asyncio.all_tasks()) == 1


async def test_key_is_in_no_error_of_a_stream() -> None:
    provider, _ = chat(streaming(beginning(chat) + f"data: {{{KEY}\n\n".encode()))
    error, _ = await failure_of(provider)
    assert KEY not in str(error)
    assert KEY not in repr(error)
    assert error.__cause__ is None
    assert error.__context__ is None
