from __future__ import annotations

import json
import pickle
import re
from decimal import Decimal
from typing import Any

import httpx
import pytest
from wire_fakes import KEY, FakeClock, FakeServer, ok

from palaver.providers import (
    Anthropic,
    BadRequest,
    BadResponse,
    ConfigurationError,
    Image,
    Message,
    MissingKey,
    Opaque,
    OutputSchema,
    Overloaded,
    Price,
    Provider,
    Request,
    StopReason,
    Text,
    Thinking,
    ToolChoice,
    ToolResult,
    ToolSpec,
    ToolUse,
    Usage,
)
from palaver.providers.anthropic_cost import usage_from_wire
from palaver.providers.anthropic_wire import from_wire, to_wire

PNG = Image(media_type="image/png", data=b"png")
BASH = ToolSpec(name="bash", description="Runs it", input_schema={"type": "object", "properties": {}})
LOOK = ToolSpec(name="look", input_schema={"type": "object"})
SIGNED = {"type": "thinking", "thinking": "hm", "signature": "c2ln", "new_field": {"x": 1}}
REDACTED = {"type": "redacted_thinking", "data": "abc"}
SERVER_BLOCK = {"type": "server_tool_use", "id": "srv", "name": "web_search", "input": {"q": "x"}}
MARK = {"type": "ephemeral"}
PRICE = Price.per_million_tokens(3, 15, cache_read_usd="0.3", cache_write_usd="3.75", cache_write_1h_usd=6)


def wire(*messages: Message, model: str = "claude-sonnet-4-5", **fields: Any) -> dict[str, Any]:
    thinking = fields.pop("thinking", None)
    return to_wire(Request(messages=messages, **fields), model=model, max_tokens=1000, thinking=thinking)


def answer(*content: dict[str, Any], stop_reason: str | None = "end_turn", **usage: Any) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": list(content),
        "stop_reason": stop_reason,
        "usage": {"input_tokens": 10, "output_tokens": 5, **usage},
    }


def response_to(body: dict[str, Any], *messages: Message) -> Any:
    return from_wire(body, request=Request(messages=messages), model="claude-sonnet-4-5", price=PRICE)


def provider(*answers: Any, **options: Any) -> tuple[Anthropic, FakeServer]:
    server = FakeServer(*answers)
    options = {
        "model": "claude-sonnet-4-5",
        "api_key": KEY,
        "price": PRICE,
        "transport": server,
        "clock": FakeClock(),
        **options,
    }
    return Anthropic(**options), server


async def test_request_goes_to_the_messages_api_with_key_and_version() -> None:
    claude, server = provider(ok(answer({"type": "text", "text": "hi"})))
    request = Request(messages=(Message.user("hello"),), system="Be brief.")
    response = await claude.generate(request)
    (sent,) = server.requests
    assert str(sent.url) == "https://api.anthropic.com/v1/messages"
    assert sent.headers["x-api-key"] == KEY
    assert "authorization" not in sent.headers
    assert sent.headers["anthropic-version"] == "2023-06-01"
    assert server.bodies == [
        {
            "model": "claude-sonnet-4-5",
            "max_tokens": 16_384,
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        }
    ]
    assert response.message == Message.assistant("hi")
    assert (response.id, response.request_id) == ("msg_1", request.id)
    assert response.model == "claude-sonnet-4-5-20250929"
    assert response.usage == Usage(input_tokens=10, output_tokens=5, cost_usd=Decimal("0.000105"))
    assert response.started_at is not None
    assert response.ended_at is not None


async def test_overload_is_retried_and_its_error_has_the_request_id() -> None:
    busy = httpx.Response(529, json={"type": "error", "error": {"type": "overloaded_error", "message": "x"}})
    claude, server = provider(busy, ok(answer()))
    assert (await claude.generate(Request(messages=(Message.user("a"),)))).message.content == ()
    assert len(server.requests) == 2
    claude, _ = provider(httpx.Response(500, headers={"request-id": "req_9"}))
    with pytest.raises(Overloaded) as caught:
        await claude.generate(Request(messages=(Message.user("a"),)))
    assert caught.value.request_id == "req_9"


def test_tool_results_go_before_any_text_of_their_turn() -> None:
    results = [ToolResult(tool_use_id=f"t{n}", content=(Text(text=str(n)),)) for n in (1, 2)]
    body = wire(Message.user("and now?", results[0], PNG, results[1]))
    kinds = [(block["type"], block.get("tool_use_id")) for block in body["messages"][0]["content"]]
    assert kinds == [("tool_result", "t1"), ("tool_result", "t2"), ("text", None), ("image", None)]


def test_tool_result_carries_images_and_errors() -> None:
    ill = ToolResult(tool_use_id="t1", content=(Text(text="no"), PNG), is_error=True)
    bare = ToolResult(tool_use_id="t2", is_error=True)
    quiet = ToolResult(tool_use_id="t3", content=(Text(text=" "),))
    blocks = wire(Message.user(ill, bare, quiet))["messages"][0]["content"]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "cG5n"}}
    assert blocks == [
        {"type": "tool_result", "tool_use_id": "t1", "is_error": True,
         "content": [{"type": "text", "text": "no"}, image]},
        {"type": "tool_result", "tool_use_id": "t2", "is_error": True,
         "content": [{"type": "text", "text": "failed without a message"}]},
        {"type": "tool_result", "tool_use_id": "t3"},
    ]  # fmt: skip


def test_what_came_from_anthropic_goes_back_as_it_came() -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"b": 1, "a": 2}}
    with_caller = {**call, "id": "toolu_2", "caller": {"type": "direct"}}
    blocks = [SIGNED, REDACTED, {"type": "text", "text": " a\n"}, SERVER_BLOCK, call, with_caller]
    message = response_to(answer(*blocks, stop_reason="tool_use")).message
    assert message.content[0] == Thinking(text="hm", origin="anthropic", raw=SIGNED)
    replayed = wire(Message.user("q"), message)["messages"][1]["content"]
    assert [json.dumps(block, sort_keys=True) for block in replayed] == [
        json.dumps(block, sort_keys=True) for block in blocks
    ]


def test_what_came_from_elsewhere_is_left_out_or_made_fit() -> None:
    message = Message.assistant(
        Thinking(text="x", origin="openai", raw={"reasoning_content": "x"}),
        Opaque(origin="gemini", raw={"extra_content": 1}),
        ToolUse(id="functions.bash:0", name="bash", origin="together", wire_id="call/9", extra={"x": 1}),
    )
    body = wire(message, Message.user(ToolResult(tool_use_id="functions.bash:0")))
    (call,) = body["messages"][0]["content"]
    assert call.keys() == {"type", "id", "name", "input"}
    assert len(call["id"]) == 9
    assert call["id"].isalnum()
    assert body["messages"][1]["content"][0]["tool_use_id"] == call["id"]


def test_blank_texts_and_empty_messages_are_not_sent() -> None:
    body = wire(
        Message.user("a"), Message.assistant(" \n"), Message.assistant(), Message.user("b"), system=" "
    )
    assert [message["role"] for message in body["messages"]] == ["user", "user"]
    assert "system" not in body
    assert "tools" not in body
    assert "tool_choice" not in body


def test_malformed_arguments_are_replayed_as_an_empty_input() -> None:
    call = ToolUse(id="t", name="bash", malformed_input='{"cmd": ')
    assert wire(Message.assistant(call))["messages"][0]["content"][0]["input"] == {}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (ToolChoice(), {"type": "auto"}),
        (ToolChoice(type="any", parallel=False), {"type": "any", "disable_parallel_tool_use": True}),
        (ToolChoice(type="tool", name="bash"), {"type": "tool", "name": "bash"}),
        (ToolChoice(type="none", parallel=False), {"type": "none"}),
    ],
)
def test_tool_choice_is_passed_on(choice: ToolChoice, expected: dict[str, Any]) -> None:
    assert wire(Message.user("a"), tools=(BASH,), tool_choice=choice)["tool_choice"] == expected


@pytest.mark.parametrize(
    ("model", "thinking"),
    [
        ("claude-fable-5", None),
        ("claude-mythos-5-2", None),
        ("claude-opus-5-5", None),
        ("claude-sonnet-5-5", None),
        ("claude-sonnet-4-5", {"type": "adaptive"}),
        ("claude-sonnet-4-5", {"type": "enabled", "budget_tokens": 2000}),
    ],
)
def test_forced_choice_becomes_auto_where_it_is_refused(model: str, thinking: Any) -> None:
    for choice in (ToolChoice(type="any"), ToolChoice(type="tool", name="bash")):
        body = wire(Message.user("a"), model=model, thinking=thinking, tools=(BASH,), tool_choice=choice)
        assert body["tool_choice"] == {"type": "auto"}


def test_forced_choice_stays_with_thinking_disabled() -> None:
    choice = ToolChoice(type="any")
    body = wire(Message.user("a"), thinking={"type": "disabled"}, tools=(BASH,), tool_choice=choice)
    assert body["tool_choice"] == {"type": "any"}


async def test_a_tool_is_demanded_of_another_server_by_offering_no_other() -> None:
    claude, server = provider(ok(answer()), base_url="http://gpu7:8000")
    tools = tuple(ToolSpec(name=name, input_schema={"type": "object"}) for name in ("look", "bash"))
    choice = ToolChoice(type="tool", name="bash")
    await claude.generate(Request(messages=(Message.user("a"),), tools=tools, tool_choice=choice))
    assert [tool["name"] for tool in server.bodies[0]["tools"]] == ["bash"]
    assert server.bodies[0]["tool_choice"] == {"type": "any"}


async def test_a_model_that_refuses_a_forced_choice_gets_it_as_auto_from_then_on() -> None:
    refusal = httpx.Response(
        400,
        json={
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "tool_choice: 'any' is not supported"},
        },
    )
    asked, server = provider(refusal, ok(answer()), ok(answer()), model="claude-next")
    forced = Request(messages=(Message.user("a"),), tools=(BASH,), tool_choice=ToolChoice(type="any"))
    for _ in range(2):
        await asked.generate(forced)
    choices = [body["tool_choice"]["type"] for body in server.bodies]
    assert choices == ["any", "auto", "auto"]
    other = httpx.Response(400, json={"error": {"type": "invalid_request_error", "message": "no"}})
    asked, server = provider(other)
    with pytest.raises(BadRequest):
        await asked.generate(forced)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            {"thinking": "deep"},
            "thinking is 'deep'; use one of 'adaptive', 'between_tools', 'disabled', None",
        ),
        ({"effort": "huge"}, "effort is 'huge'; use one of None, 'low', 'medium', 'high', 'xhigh', 'max'"),
        ({"cache_ttl": "2h"}, "cache_ttl is '2h'; use one of '5m', '1h'"),
        ({"thinking_display": "omitted"}, "thinking_display goes with thinking='adaptive' alone"),
    ],
)
def test_a_setting_that_the_api_does_not_have_is_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(fault)):
        provider(**options)


def test_a_refusal_tells_why() -> None:
    body = answer(stop_reason="refusal")
    body["stop_details"] = {
        "type": "refusal",
        "category": "cyber",
        "explanation": "It looks like an exploit.",
    }
    response = response_to(body)
    assert response.stop_reason is StopReason.REFUSAL
    assert response.stop_detail == "cyber: It looks like an exploit."
    body["stop_details"] = {"type": "refusal", "category": None, "explanation": None}
    assert response_to(body).stop_detail == ""


def test_citations_go_back_with_their_text_to_anthropic_alone() -> None:
    cited = {"type": "text", "text": "Rain.", "citations": [{"type": "char_location", "cited_text": "rain"}]}
    message = response_to(answer(cited, {"type": "text", "text": "Sun.", "citations": None})).message
    assert message.text == "Rain.\nSun."
    assert wire(message)["messages"][0]["content"] == [cited, {"type": "text", "text": "Sun."}]
    elsewhere = Text(text="a", origin="openai", extra={"annotations": []})
    assert wire(Message.assistant(elsewhere))["messages"][0]["content"] == [{"type": "text", "text": "a"}]


def marks(body: object) -> int:
    return json.dumps(body).count('"cache_control"')


def conversation() -> tuple[Message, ...]:
    thinking = Thinking(text="hm", origin="anthropic", raw=SIGNED)
    return (
        Message.user("one"),
        Message.assistant(thinking, ToolUse(id="t1", name="bash")),
        Message.user(ToolResult(tool_use_id="t1", content=(PNG,))),
        Message.assistant(thinking, ToolUse(id="t2", name="bash")),
        Message.user(ToolResult(tool_use_id="t2"), "go on", PNG),
    )


def test_caching_marks_tools_system_and_the_last_two_user_messages() -> None:
    body = wire(*conversation(), system="s", tools=(BASH, LOOK), prompt_caching=True)
    assert [tool.get("cache_control") for tool in body["tools"]] == [None, MARK]
    assert body["system"][-1]["cache_control"] == MARK
    assert body["messages"][2]["content"][-1]["cache_control"] == MARK
    assert body["messages"][4]["content"][-1]["cache_control"] == MARK
    assert marks(body) == 4


@pytest.mark.parametrize(("own", "ours"), [(1, 3), (3, 1), (4, 0)])
def test_marks_that_blocks_came_with_count_towards_the_four(own: int, ours: int) -> None:
    document = {
        "type": "document",
        "source": {"type": "text"},
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
    }
    documents = [Opaque(origin="anthropic", raw=document)] * own
    body = wire(
        *(Message.user(*documents, "read"), *conversation()), system="s", tools=(BASH,), prompt_caching=True
    )
    assert marks(body) == own + ours == 4
    if ours:  # the newest message first: it holds all that went before
        assert body["messages"][-1]["content"][-1]["cache_control"] == MARK


def test_caching_never_marks_a_block_that_may_not_carry_one() -> None:
    strange = Message(role="user", content=(Text(text="a"), Opaque(origin="anthropic", raw=SERVER_BLOCK)))
    content = wire(strange, prompt_caching=True)["messages"][0]["content"]
    assert content == [{"type": "text", "text": "a", "cache_control": MARK}, SERVER_BLOCK]
    only_thinking = Message(role="user", content=(Thinking(origin="anthropic", raw=SIGNED),))
    assert marks(wire(only_thinking, prompt_caching=True)) == 0


def test_caching_changes_nothing_but_the_marks_and_not_the_request() -> None:
    request = Request(messages=conversation(), system="s", tools=(BASH,), prompt_caching=True)
    before = pickle.dumps(request)
    marked = to_wire(request, model="m", max_tokens=9)
    plain = to_wire(request.model_copy(update={"prompt_caching": False}), model="m", max_tokens=9)
    assert marks(plain) == 0
    assert json.loads(json.dumps(marked).replace(', "cache_control": {"type": "ephemeral"}', "")) == plain
    assert pickle.dumps(request) == before


def test_history_stays_the_same_as_it_grows() -> None:
    short = wire(*conversation()[:3], system="s")["messages"]
    assert wire(*conversation(), system="s")["messages"][:3] == short


def test_hour_long_cache_says_so() -> None:
    request = Request(messages=(Message.user("a"),), prompt_caching=True)
    body = to_wire(request, model="m", max_tokens=9, cache_ttl="1h")
    assert body["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}


async def test_thinking_and_effort_are_passed_on() -> None:
    for thinking, sent in (
        ("adaptive", {"type": "adaptive"}),
        ("disabled", {"type": "disabled"}),
        (2048, {"type": "enabled", "budget_tokens": 2048}),
    ):
        claude, server = provider(ok(answer()), thinking=thinking, effort="high")
        await claude.generate(Request(messages=(Message.user("a"),)))
        assert server.bodies[0]["thinking"] == sent
        assert server.bodies[0]["output_config"] == {"effort": "high"}


@pytest.mark.parametrize("budget", [1023, 16_384])
def test_thinking_budget_that_cannot_work_is_refused(budget: int) -> None:
    with pytest.raises(ConfigurationError, match=f"budget of {budget} tokens"):
        provider(thinking=budget)


@pytest.mark.parametrize(
    ("model", "limit"),
    [("claude-sonnet-5-5", 16_384), ("claude-3-5-haiku-20241022", 8_192), ("claude-3-opus-latest", 4_096)],
)
def test_default_max_tokens_keep_within_the_model(model: str, limit: int) -> None:
    assert provider(model=model)[0].max_tokens == limit


def test_cached_input_is_counted_once_and_hours_apart() -> None:
    counts = {
        "input_tokens": 100,
        "cache_read_input_tokens": 2000,
        "cache_creation_input_tokens": 300,
        "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 100},
        "output_tokens": 50,
        "output_tokens_details": {"thinking_tokens": 40},
    }
    usage = usage_from_wire(counts, PRICE)
    assert usage.total_input_tokens == 2400
    assert (usage.cache_creation_1h_input_tokens, usage.thinking_tokens) == (100, 40)
    assert (
        usage.cost_usd == Decimal(100 * 3 + 2000 * Decimal("0.3") + 200 * Decimal("3.75") + 600 + 750) / 10**6
    )


def test_cost_is_unknown_without_price_or_usage() -> None:
    assert usage_from_wire({"input_tokens": 1}, None).cost_usd is None
    assert usage_from_wire(None, PRICE) == Usage()


@pytest.mark.parametrize(
    ("wire_reason", "reason"),
    [
        ("end_turn", StopReason.END_TURN),
        ("max_tokens", StopReason.MAX_TOKENS),
        ("stop_sequence", StopReason.STOP_SEQUENCE),
        ("tool_use", StopReason.TOOL_USE),
        ("pause_turn", StopReason.PAUSE),
        ("refusal", StopReason.REFUSAL),
        ("model_context_window_exceeded", StopReason.CONTEXT_FULL),
        (None, StopReason.END_TURN),
        ("brand_new", StopReason.END_TURN),
    ],
)
def test_stop_reason_is_mapped(wire_reason: str | None, reason: StopReason) -> None:
    assert response_to(answer(stop_reason=wire_reason)).stop_reason is reason


def test_empty_content_is_a_legal_answer() -> None:
    response = response_to(answer())
    assert response.message == Message.assistant()
    assert response.stop_reason is StopReason.END_TURN


def test_answer_without_content_is_refused_with_its_usage() -> None:
    with pytest.raises(BadResponse, match="without a content list") as caught:
        response_to({"usage": {"input_tokens": 10, "output_tokens": 0}})
    assert caught.value.usage == Usage(input_tokens=10, cost_usd=Decimal("0.00003"))


def test_repeated_and_missing_ids_become_unique_and_go_back_as_they_were() -> None:
    def call(wire_id: str) -> dict[str, Any]:
        return {"type": "tool_use", "id": wire_id, "name": "bash", "input": {}}

    first = response_to(answer(call("a"))).message
    second = response_to(answer(call("a"), call("a"), call("")), first).message
    ids = [use.id for use in (*first.tool_uses, *second.tool_uses)]
    assert len(set(ids)) == 4
    results = Message.user(*(ToolResult(tool_use_id=use.id) for use in second.tool_uses))
    sent = wire(first, second, results)["messages"]
    called = [block["id"] for block in sent[1]["content"]]
    assert called[0] == "a"
    assert len(set(called)) == 3
    assert [block["tool_use_id"] for block in sent[2]["content"]] == called


def test_missing_key_names_the_variable_and_the_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(MissingKey, match="set ANTHROPIC_API_KEY or pass api_key"):
        Anthropic()


def test_key_is_taken_from_the_environment_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    claude = Anthropic(price=PRICE)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert isinstance(pickle.loads(pickle.dumps(claude)), Provider)


def test_list_price_is_looked_up_and_travels() -> None:
    price = pickle.loads(pickle.dumps(Anthropic("claude-sonnet-4-5", api_key=KEY))).price
    assert price is not None
    assert price.usd_per_million_tokens.output == 15
    assert Anthropic("claude-of-tomorrow", api_key=KEY).price is None


async def test_provider_pickles_after_use_without_showing_its_key() -> None:
    claude, _ = provider(ok(answer()), transport=httpx.MockTransport(module_answer))
    await claude.generate(Request(messages=(Message.user("a"),)))
    data = pickle.dumps(claude)
    assert KEY.encode() not in data
    assert KEY not in repr(claude)
    copy = pickle.loads(data)
    assert (await copy.generate(Request(messages=(Message.user("a"),)))).message == Message.assistant()
    await copy.aclose()


def module_answer(_: httpx.Request) -> httpx.Response:
    return ok(answer())


PET = OutputSchema(
    name="Pet",
    json_schema={"type": "object", "properties": {"legs": {"type": "integer", "minimum": 0}}},
)


def test_an_output_schema_goes_beside_the_effort_closed_and_without_limits() -> None:
    request = Request(messages=(Message.user("a"),), output_schema=PET)
    body = to_wire(request, model="claude-sonnet-4-5", max_tokens=9, effort="low")
    assert body["output_config"] == {
        "effort": "low",
        "format": {
            "type": "json_schema",
            "schema": {
                "type": "object",
                "properties": {"legs": {"type": "integer", "description": "minimum: 0"}},
                "required": ["legs"],
                "additionalProperties": False,
            },
        },
    }
    assert "output_config" not in wire(Message.user("a"))


@pytest.mark.parametrize(
    ("model", "by"),
    [
        ("claude-sonnet-4-5", "schema"),
        ("claude-opus-4-1", "schema"),
        ("claude-haiku-4-5-20251001", "schema"),
        ("claude-opus-5-5", "schema"),
        ("claude-fable-5", "schema"),
        ("claude-sonnet-4-20250514", "tool"),
        ("claude-opus-4-0", "tool"),
        ("claude-3-7-sonnet-latest", "tool"),
        ("smollm2-135m-instruct", "tool"),
    ],
)
@pytest.mark.parametrize("has_tools", [True, False])
def test_answers_are_held_to_a_schema_by_models_that_take_one(model: str, by: str, has_tools: bool) -> None:
    claude, _ = provider(model=model)
    assert claude.output_by(PET, has_tools=has_tools) == by


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {
            "type": "object",
            "properties": {"answer": {"$ref": "#/$defs/Node"}},
            "$defs": {
                "Node": {
                    "type": "object",
                    "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
                }
            },
        },
    ],
    ids=["any property", "recursive"],
)
def test_a_schema_that_the_api_refuses_is_asked_for_by_tool(schema: dict[str, Any]) -> None:
    claude, _ = provider()
    assert claude.output_by(OutputSchema(json_schema=schema), has_tools=False) == "tool"
