"""OpenAI's Responses: what goes out, what comes back, and what goes back as it came.

That bodies fit the SDK is in test_wire_schemas, streams in test_stream, faults in test_llmock.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from wire_fakes import KEY, FakeClock, FakeServer, ok

from palaver.providers import (
    BadRequest,
    BadResponse,
    Image,
    Message,
    Opaque,
    OpenAI,
    OpenAIResponses,
    OutputSchema,
    Overloaded,
    Price,
    ProviderError,
    Request,
    Response,
    RetryPolicy,
    StopReason,
    Text,
    Thinking,
    ToolChoice,
    ToolResult,
    ToolSpec,
    ToolUse,
    Usage,
)

PRICE = Price.per_million_tokens(1, 10)
PNG = Image(media_type="image/png", data=b"png")
BASH = ToolSpec(name="bash", description="Runs it", input_schema={"type": "object", "properties": {"c": {}}})
ASK = Request(messages=(Message.user("hello"),))
REASONING = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "First"}, {"type": "summary_text", "text": "then"}],
    "encrypted_content": "gAAAA",
    "status": None,
}
MESSAGE = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "phase": "commentary",
    "content": [
        {"type": "output_text", "text": "I look", "annotations": [{"type": "url_citation", "url": "u"}]},
        {"type": "output_text", "text": " there.", "annotations": []},
    ],
}
CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_1",
    "name": "bash",
    "arguments": '{"c":"ls"}',
    "status": "completed",
}
SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "q"}}


def answer(*output: Any, **fields: Any) -> dict[str, Any]:
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    return {
        "id": "resp_1",
        "object": "response",
        "model": "gpt-6.1",
        "status": "completed",
        "output": list(output),
        "usage": usage,
    } | fields


def provider(*answers: Any, model: str = "gpt-6.1-sol", **options: Any) -> tuple[OpenAIResponses, FakeServer]:
    server = FakeServer(*(ok(each) if isinstance(each, dict) else each for each in answers))
    options = {"api_key": KEY, "price": PRICE, "transport": server, "clock": FakeClock(), **options}
    return OpenAIResponses(model, **options), server


async def response_to(body: dict[str, Any], request: Request = ASK) -> Response:
    made, _ = provider(body, retry=RetryPolicy(max_attempts=1))
    return await made.generate(request)


async def body_of(request: Request, **options: Any) -> dict[str, Any]:
    made, server = provider(answer(), **options)
    await made.generate(request)
    return server.bodies[0]


async def items_after(
    *output: Any, results: tuple[ToolResult, ...] = (), **options: Any
) -> list[dict[str, Any]]:
    """What the next request sends of an answer with this output, before the user's next words."""
    response = await response_to(answer(*output))
    next_ = Request(messages=(*ASK.messages, response.message, Message.user(*results, "go on")))
    _, *items, last = (await body_of(next_, **options))["input"]
    assert last == {"role": "user", "content": [{"type": "input_text", "text": "go on"}]}
    return items


# Out


async def test_request_goes_to_responses_and_is_stored_nowhere() -> None:
    made, server = provider(answer(MESSAGE))
    response = await made.generate(Request(messages=(Message.user("hello", PNG),), system="Be brief."))
    [sent] = server.requests
    assert str(sent.url) == "https://api.openai.com/v1/responses"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert server.bodies == [
        {
            "model": "gpt-6.1-sol",
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "hello"},
                        {"type": "input_image", "image_url": "data:image/png;base64,cG5n", "detail": "auto"},
                    ],
                }
            ],
            "store": False,
            "instructions": "Be brief.",
            "include": ["reasoning.encrypted_content"],
        }
    ]
    assert response.message.text == "I look\n there."
    assert (response.id, response.model, response.stop_reason) == ("resp_1", "gpt-6.1", StopReason.END_TURN)
    assert response.usage == Usage(input_tokens=10, output_tokens=5, cost_usd=Decimal("0.00006"))


@pytest.mark.parametrize(
    ("model", "asked"),
    [("gpt-6.1-sol", True), ("o4-mini", True), ("gpt-4.1", False), ("gpt-5-chat-latest", False)],
)
async def test_sealed_reasoning_is_asked_for_of_models_that_reason(model: str, asked: bool) -> None:
    assert ("include" in await body_of(ASK, model=model)) is asked


async def test_effort_and_summary_are_passed_on() -> None:
    body = await body_of(ASK, reasoning_effort="high", reasoning_summary="auto")
    assert body["reasoning"] == {"effort": "high", "summary": "auto"}
    assert "reasoning" not in await body_of(ASK)


@pytest.mark.parametrize(("bound", "sent"), [(1, 16), (16, 16), (500, 500)])
async def test_an_answer_is_never_bound_to_less_than_the_api_takes(bound: int, sent: int) -> None:
    request = ASK.model_copy(update={"max_tokens": bound})
    assert (await body_of(request))["max_output_tokens"] == sent
    assert provider(answer())[0].worst_case(request).output_tokens == sent


@pytest.mark.parametrize(
    ("choice", "fields"),
    [
        (None, {}),
        (ToolChoice(), {"tool_choice": "auto"}),
        (ToolChoice(type="any"), {"tool_choice": "required"}),
        (ToolChoice(type="none"), {"tool_choice": "none"}),
        (ToolChoice(type="tool", name="bash"), {"tool_choice": {"type": "function", "name": "bash"}}),
        (ToolChoice(parallel=False), {"tool_choice": "auto", "parallel_tool_calls": False}),
    ],
)
async def test_tools_are_functions_that_nobody_makes_strict(
    choice: ToolChoice | None, fields: dict[str, Any]
) -> None:
    body = await body_of(ASK.model_copy(update={"tools": (BASH,), "tool_choice": choice}))
    assert body["tools"] == [
        {
            "type": "function",
            "name": "bash",
            "description": "Runs it",
            "parameters": BASH.input_schema,
            "strict": False,
        }
    ]
    assert {key: body[key] for key in body if key in ("tool_choice", "parallel_tool_calls")} == fields


async def test_a_tool_is_demanded_of_an_unknown_server_by_offering_no_other() -> None:
    choice = ToolChoice(type="tool", name="bash")
    other = ToolSpec(name="look", input_schema={"type": "object"})
    request = ASK.model_copy(update={"tools": (other, BASH), "tool_choice": choice})
    body = await body_of(request, base_url="http://gpu7:8000/v1")
    assert [tool["name"] for tool in body["tools"]] == ["bash"]
    assert body["tool_choice"] == "required"


async def test_an_output_schema_is_the_format_of_the_text() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    body = await body_of(ASK.model_copy(update={"output_schema": OutputSchema(name="N", json_schema=schema)}))
    assert body["text"] == {
        "format": {
            "type": "json_schema",
            "name": "N",
            "schema": {**schema, "additionalProperties": False},
            "strict": True,
        }
    }
    loose = OutputSchema(json_schema={"type": "object", "additionalProperties": {"type": "integer"}})
    body = await body_of(ASK.model_copy(update={"output_schema": loose}))
    assert "strict" not in body["text"]["format"]
    assert body["text"]["format"]["schema"] == loose.json_schema


async def test_results_come_before_the_words_of_their_turn_and_tell_failures() -> None:
    calls = Message.assistant(*(ToolUse(id=f"t{n}", name="bash") for n in range(3)))
    results = (
        ToolResult(tool_use_id="t0", content=(Text(text="a"), Text(text="b"))),
        ToolResult(tool_use_id="t1", content=(Text(text="boom"),), is_error=True),
        ToolResult(tool_use_id="t2", content=(PNG,)),
    )
    body = await body_of(
        Request(messages=(*ASK.messages, calls, Message.user("now", *results)), tools=(BASH,))
    )
    image = {"type": "input_image", "image_url": "data:image/png;base64,cG5n", "detail": "auto"}
    assert body["input"][4:] == [
        {"type": "function_call_output", "call_id": "t0", "output": "a\nb"},
        {"type": "function_call_output", "call_id": "t1", "output": "The tool failed:\nboom"},
        {"type": "function_call_output", "call_id": "t2", "output": [image]},
        {"role": "user", "content": [{"type": "input_text", "text": "now"}]},
    ]


# Back as it came


async def test_items_go_back_to_the_server_of_their_model_as_they_came_and_in_order() -> None:
    result = ToolResult(tool_use_id="call_1", content=(Text(text="out"),))
    *items, output = await items_after(REASONING, MESSAGE, SEARCH, CALL, results=(result,))
    call = {key: value for key, value in CALL.items() if value is not None}
    assert items == [REASONING, MESSAGE, SEARCH, call]
    assert output == {"type": "function_call_output", "call_id": "call_1", "output": "out"}


async def test_items_go_back_in_the_same_bytes_however_often_they_are_sent() -> None:
    response = await response_to(answer(REASONING, MESSAGE))
    grown = Request(messages=(*ASK.messages, response.message, Message.user("b")))
    longer = grown.model_copy(
        update={"messages": (*grown.messages, Message.assistant("c"), Message.user("d"))}
    )
    first, second = (await body_of(grown))["input"], (await body_of(longer))["input"]
    assert json.dumps(second[: len(first)]) == json.dumps(first)


@pytest.mark.parametrize(
    "other", [{"base_url": "https://gpu7:8000/v1"}, {"base_url": "https://openrouter.ai/api/v1"}]
)
async def test_another_server_gets_words_and_calls_alone(other: dict[str, Any]) -> None:
    result = ToolResult(tool_use_id="call_1", content=(Text(text="out"),))
    *items, _ = await items_after(REASONING, MESSAGE, SEARCH, CALL, results=(result,), **other)
    assert items == [
        {"role": "assistant", "content": "I look"},
        {"role": "assistant", "content": " there."},
        {"type": "function_call", "call_id": "call_1", "name": "bash", "arguments": '{"c":"ls"}'},
    ]


async def test_chat_completions_of_the_same_server_get_no_items() -> None:
    response = await response_to(answer(REASONING, MESSAGE, CALL))
    server = FakeServer(ok({"choices": [{"message": {"content": "x"}}]}))
    chat = OpenAI("gpt-4.1", api_key=KEY, price=PRICE, transport=server)
    result = Message.user(ToolResult(tool_use_id="call_1"))
    await chat.generate(Request(messages=(*ASK.messages, response.message, result)))
    [_, sent, _] = server.bodies[0]["messages"]
    assert sent["content"] == "I look\n there."
    assert sent["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "bash", "arguments": '{"c":"ls"}'}}
    ]
    assert set(sent) == {"role", "content", "tool_calls"}


async def test_reasoning_that_nothing_follows_stays_here() -> None:
    assert await items_after(REASONING) == []
    assert await items_after(MESSAGE, REASONING) == [MESSAGE]
    empty = {**MESSAGE, "content": [{"type": "output_text", "text": ""}]}
    assert await items_after(REASONING, empty) == []


@pytest.mark.parametrize("lack", ["", None])
async def test_reasoning_that_is_stored_nowhere_takes_the_ids_of_what_needs_it_along(
    lack: str | None,
) -> None:
    unsealed = {**REASONING, "encrypted_content": lack}
    result = ToolResult(tool_use_id="call_1")
    first, call, second_reasoning, message, _ = await items_after(
        unsealed, MESSAGE, CALL, REASONING, MESSAGE, results=(result,)
    )
    assert first == {"role": "assistant", "content": "I look\n there."}
    assert call == {key: value for key, value in CALL.items() if key != "id"}
    assert (second_reasoning, message) == (REASONING, MESSAGE)


async def test_reasoning_in_the_open_goes_back() -> None:
    open_ = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "so"}],
    }
    assert await items_after(open_, MESSAGE) == [open_, MESSAGE]


# Back


async def test_what_the_model_thought_is_shown_in_its_summary_or_in_the_open() -> None:
    open_ = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "so"}]}
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": "x"}
    message = (await response_to(answer(REASONING, open_, sealed, MESSAGE))).message
    assert [part.text for part in message.content if isinstance(part, Thinking)] == [
        "First\n\nthen",
        "so",
        "",
    ]


async def test_items_nobody_knows_are_kept() -> None:
    message = (await response_to(answer(SEARCH, {"type": "of_tomorrow", "x": 1}))).message
    assert [part.raw for part in message.content if isinstance(part, Opaque)] == [
        SEARCH,
        {"type": "of_tomorrow", "x": 1},
    ]


async def test_calls_are_told_by_their_call_id() -> None:
    response = await response_to(answer(CALL, {**CALL, "call_id": "call_2", "id": "fc_2"}))
    assert [call.id for call in response.message.tool_uses] == ["call_1", "call_2"]
    assert response.stop_reason is StopReason.TOOL_USE


@pytest.mark.parametrize("arguments", ["{oops", "[1]", '"text"', "null", None, ""])
async def test_arguments_that_are_no_object_are_kept_for_the_error(arguments: Any) -> None:
    [call] = (await response_to(answer({**CALL, "arguments": arguments}))).message.tool_uses
    assert call.input == {}
    # No arguments at all are none.
    assert call.malformed_input == (arguments if arguments not in ("", None) else None)
    [item, _] = await items_after(
        {**CALL, "arguments": arguments}, results=(ToolResult(tool_use_id="call_1"),)
    )
    assert item["arguments"] == "{}"


async def test_ids_that_are_missing_or_come_twice_become_unique() -> None:
    nameless = {key: value for key, value in CALL.items() if key not in ("call_id", "name")}
    first, second, third = (await response_to(answer(CALL, CALL, nameless))).message.tool_uses
    assert len({first.id, second.id, third.id}) == 3
    assert third.name == "unnamed_tool"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, StopReason.END_TURN),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            StopReason.MAX_TOKENS,
        ),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, StopReason.REFUSAL),
        ({"status": "incomplete"}, StopReason.MAX_TOKENS),
    ],
)
async def test_stop_reason_follows_the_status(fields: dict[str, Any], reason: StopReason) -> None:
    assert (await response_to(answer(MESSAGE, **fields))).stop_reason is reason


async def test_a_call_that_was_cut_short_is_not_taken_for_a_whole_one() -> None:
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    response = await response_to(answer({**CALL, "arguments": '{"c":"l', "status": "incomplete"}, **cut))
    assert response.stop_reason is StopReason.MAX_TOKENS
    assert response.message.tool_uses[0].malformed_input == '{"c":"l'


async def test_a_refusal_is_shown_as_text_and_goes_back_as_a_refusal() -> None:
    refused = {**MESSAGE, "content": [{"type": "refusal", "refusal": "I will not."}]}
    response = await response_to(answer(refused))
    assert (response.message.text, response.stop_reason) == ("I will not.", StopReason.REFUSAL)
    assert await items_after(refused) == [refused]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (answer(status="failed", error={"code": "server_error", "message": "boom"}), Overloaded),
        (answer(status="failed", error={"code": "invalid_prompt", "message": "no"}), BadRequest),
        (answer(status="failed"), BadResponse),
        (answer(status="cancelled"), BadResponse),
        ({"id": "x", "usage": answer()["usage"]}, BadResponse),
        (answer(output=None), BadResponse),
    ],
)
async def test_answer_of_no_use_is_an_error_that_carries_the_usage(
    body: dict[str, Any], kind: type[ProviderError]
) -> None:
    with pytest.raises(kind) as caught:
        await response_to(body)
    assert caught.value.usage == Usage(input_tokens=10, output_tokens=5, cost_usd=Decimal("0.00006"))


async def test_tokens_are_counted_once_and_at_the_tier_that_served_them() -> None:
    usage = {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 60},
        "output_tokens": 50,
        "output_tokens_details": {"reasoning_tokens": 30},
    }
    served = Price.per_million_tokens(2, 20)
    price = PRICE.model_copy(update={"by_service_tier": {"priority": served}})
    made, _ = provider(answer(MESSAGE, usage=usage, service_tier="priority"), price=price)
    told = (await made.generate(ASK)).usage
    assert (told.input_tokens, told.cache_read_input_tokens, told.output_tokens, told.thinking_tokens) == (
        40,
        60,
        50,
        30,
    )
    assert told.cost_usd == Decimal("0.0012")


async def test_missing_usage_is_unknown_rather_than_free() -> None:
    body = answer(MESSAGE)
    del body["usage"]
    assert (await response_to(body)).usage.cost_usd is None
