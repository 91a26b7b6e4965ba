from __future__ import annotations

import json
import pickle
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest
from wire_fakes import KEY, FakeClock, FakeServer, ok

from palaver.providers import (
    BadResponse,
    Image,
    LlamaCPP,
    MalformedCall,
    Message,
    MissingKey,
    Opaque,
    OpenAI,
    OutputSchema,
    Overloaded,
    Price,
    Profile,
    RateLimited,
    Request,
    Response,
    StopReason,
    Text,
    Thinking,
    ToolChoice,
    ToolResult,
    ToolSpec,
    ToolUse,
    Usage,
)
from palaver.providers.http_errors import Peer
from palaver.providers.openai_answer import from_wire, usage_from_wire
from palaver.providers.openai_wire import to_wire
from palaver.providers.profiles import profile_for, server_name
from palaver.providers.schemas import plain_schema

PNG = Image(media_type="image/png", data=b"png")
PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,cG5n"}}
BASH = ToolSpec(name="bash", description="Runs it", input_schema={"type": "object", "properties": {}})
PRICE = Price.per_million_tokens(2, 8, cache_read_usd="0.5")
MISTRAL = profile_for("https://api.mistral.ai/v1", "mistral-large-latest")


def wire(*messages: Message, profile: Profile | None = None, **fields: Any) -> dict[str, Any]:
    request = Request(messages=messages, **fields)
    return to_wire(request, model="m", origin="here", profile=profile or Profile())


def answer(message: dict[str, Any] | None, finish: object = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "c1", "model": "m-1", "choices": [choice], **more}


def response_to(body: dict[str, Any], *messages: Message, price: Price | None = PRICE) -> Response:
    return from_wire(
        body,
        request=Request(id="01J", messages=messages),
        peer=Peer("here", "m"),
        origin="here",
        price=price,
        now=datetime(2026, 11, 1, tzinfo=UTC),
    )


def call(arguments: object = "{}", wire_id: object = "call_1", **more: Any) -> dict[str, Any]:
    return {"id": wire_id, "type": "function", "function": {"name": "bash", "arguments": arguments}, **more}


def calls(*wire_calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return answer(
        {"role": "assistant", "content": None, "tool_calls": list(wire_calls), **more}, "tool_calls"
    )


def provider(*answers: Any, model: str = "gpt-4.1", **options: Any) -> tuple[OpenAI, FakeServer]:
    server = FakeServer(*answers)
    options = {"api_key": KEY, "price": PRICE, "transport": server, "clock": FakeClock(), **options}
    return OpenAI(model, **options), server


async def test_request_goes_to_chat_completions_with_no_more_than_it_needs() -> None:
    gpt, server = provider(ok(answer({"role": "assistant", "content": "hi"})))
    request = Request(messages=(Message.user("hello"),), system="Be brief.")
    response = await gpt.generate(request)
    (sent,) = server.requests
    assert str(sent.url) == "https://api.openai.com/v1/chat/completions"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert server.bodies == [
        {
            "model": "gpt-4.1",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        }
    ]
    assert response.message == Message.assistant("hi")
    assert (response.id, response.request_id, response.model) == ("c1", request.id, "m-1")
    assert response.usage == Usage()  # the server told nothing: the cost is unknown


def test_tools_are_functions_and_their_choice_has_openais_words() -> None:
    body = wire(Message.user("a"), tools=(BASH,), tool_choice=ToolChoice(type="any"))
    function = {"name": "bash", "description": "Runs it", "parameters": BASH.input_schema}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == "required"
    for choice, sent in (
        (ToolChoice(), "auto"),
        (ToolChoice(type="none"), "none"),
        (ToolChoice(type="tool", name="bash"), {"type": "function", "function": {"name": "bash"}}),
    ):
        assert wire(Message.user("a"), tools=(BASH,), tool_choice=choice)["tool_choice"] == sent


def test_tools_and_choice_are_left_out_when_there_are_none() -> None:
    body = wire(Message.user("a"), tool_choice=ToolChoice(type="any", parallel=False))
    assert body.keys() == {"model", "messages"}


def test_forced_choice_is_asked_for_gently_where_a_server_cannot() -> None:
    gentle = Profile(forced_tool_choice=False)
    body = wire(Message.user("a"), profile=gentle, tools=(BASH,), tool_choice=ToolChoice(type="any"))
    assert body["tool_choice"] == "auto"


def test_parallel_calls_are_forbidden_only_where_the_field_is_known() -> None:
    one = ToolChoice(parallel=False)
    known = Profile(parallel_tool_calls=True)
    assert "parallel_tool_calls" not in wire(Message.user("a"), tools=(BASH,), tool_choice=one)
    assert (
        wire(Message.user("a"), profile=known, tools=(BASH,), tool_choice=one)["parallel_tool_calls"] is False
    )


def test_tool_results_come_first_then_one_user_message_with_all_else() -> None:
    results = (
        ToolResult(tool_use_id="t1", content=(Text(text="a"), Text(text="b"), PNG)),
        ToolResult(tool_use_id="t2", content=(Text(text="broke"),), is_error=True),
        ToolResult(tool_use_id="t3"),
        ToolResult(tool_use_id="t4", content=(PNG,)),
    )
    assert wire(Message.user("look", *results, PNG))["messages"] == [
        {"role": "tool", "tool_call_id": "t1", "content": "a\nb"},
        {"role": "tool", "tool_call_id": "t2", "content": "The tool failed:\nbroke"},
        {"role": "tool", "tool_call_id": "t3", "content": "(no output)"},
        {"role": "tool", "tool_call_id": "t4", "content": "(images follow)"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Images in the result of tool call t1:"},
                PNG_PART,
                {"type": "text", "text": "Images in the result of tool call t4:"},
                PNG_PART,
                {"type": "text", "text": "look"},
                PNG_PART,
            ],
        },
    ]


def test_images_stay_in_tool_results_where_a_server_takes_them() -> None:
    result = ToolResult(tool_use_id="t1", content=(Text(text="a"), PNG))
    (message,) = wire(Message.user(result), profile=Profile(images_in_tool_results=True))["messages"]
    assert message["content"] == [{"type": "text", "text": "a"}, PNG_PART]


def test_plain_text_is_sent_as_a_string() -> None:
    assert wire(Message.user("a", "b"))["messages"] == [{"role": "user", "content": "a\nb"}]


def test_empty_messages_are_not_sent() -> None:
    body = wire(Message.user("a"), Message.assistant(" "), Message.user(), Message.user("b"), system="  ")
    assert [message["content"] for message in body["messages"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("style", "fields"),
    [("null", {"content": None}), ("empty", {"content": ""}), ("absent", {})],
)
def test_content_beside_calls_follows_the_profile(style: Any, fields: dict[str, Any]) -> None:
    message = Message.assistant(ToolUse(id="t1", name="bash", input={"ü": 1}))
    (sent,) = wire(message, profile=Profile(content_beside_calls=style))["messages"]
    function = {"name": "bash", "arguments": '{"ü":1}'}
    expected = [{"id": "t1", "type": "function", "function": function}]
    assert sent == {"role": "assistant", **fields, "tool_calls": expected}


def test_text_beside_calls_is_kept() -> None:
    (sent,) = wire(Message.assistant("I look.", ToolUse(id="t1", name="bash")))["messages"]
    assert sent["content"] == "I look."


def test_max_tokens_has_the_name_the_server_knows() -> None:
    assert wire(Message.user("a"), max_tokens=5)["max_tokens"] == 5
    new = Profile(max_tokens_field="max_completion_tokens")
    assert wire(Message.user("a"), profile=new, max_tokens=5)["max_completion_tokens"] == 5


@pytest.mark.parametrize(
    ("arguments", "given", "malformed"),
    [
        ('{"cmd": "ls"}', {"cmd": "ls"}, None),
        ({"cmd": "ls"}, {"cmd": "ls"}, None),
        ("", {}, None),
        (None, {}, None),
        ('{"cmd": ', {}, '{"cmd": '),
        ("[1]", {}, "[1]"),
        ('{"a": NaN}', {}, '{"a": NaN}'),
        ([1], {}, "[1]"),
        ('"text"', {}, '"text"'),
    ],
)
def test_arguments_of_any_shape_are_read_and_replayed_as_valid_json(
    arguments: object, given: dict[str, Any], malformed: str | None
) -> None:
    response = response_to(calls(call(arguments)))
    (use,) = response.message.tool_uses
    assert (use.input, use.malformed_input) == (given, malformed)
    replayed = wire(response.message)["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(replayed) == given


@pytest.mark.parametrize("missing", ["", None, 7])
def test_missing_id_is_minted(missing: object) -> None:
    (use,) = response_to(calls(call(wire_id=missing))).message.tool_uses
    assert re.fullmatch("[A-Za-z0-9]{9}", use.id)
    assert use.wire_id is None
    (again,) = response_to(calls(call(wire_id=missing))).message.tool_uses
    assert again.id == use.id  # reading twice gives the same message


def test_ids_that_repeat_across_turns_are_unique_inside_and_their_own_outside() -> None:
    first = response_to(calls(call(wire_id="functions.bash:0"))).message
    second = response_to(calls(call(wire_id="functions.bash:0")), first).message
    ids = [use.id for use in (*first.tool_uses, *second.tool_uses)]
    assert len(set(ids)) == 2
    sent = wire(first, second, Message.user(ToolResult(tool_use_id=ids[1])))["messages"]
    assert [message["tool_calls"][0]["id"] for message in sent[:2]] == ["functions.bash:0"] * 2
    assert sent[2]["tool_call_id"] == "functions.bash:0"


def test_ids_that_repeat_within_an_answer_are_told_apart_on_the_wire_too() -> None:
    message = response_to(calls(call(wire_id="x"), call(wire_id="x"), call(wire_id=""))).message
    results = Message.user(*(ToolResult(tool_use_id=use.id) for use in message.tool_uses))
    sent = wire(message, results)["messages"]
    called = [each["id"] for each in sent[0]["tool_calls"]]
    assert len(set(called)) == 3
    assert [each["tool_call_id"] for each in sent[1:]] == called


def test_mistral_gets_nine_letters_and_digits_always_the_same() -> None:
    message = Message.assistant(
        ToolUse(id="toolu_0123456789", name="bash"), ToolUse(id="abcDEF123", name="x")
    )
    results = Message.user(*(ToolResult(tool_use_id=use.id) for use in message.tool_uses), "next")
    sent = wire(message, results, profile=MISTRAL)["messages"]
    called = [each["id"] for each in sent[0]["tool_calls"]]
    assert re.fullmatch("[A-Za-z0-9]{9}", called[0])
    assert called[1] == "abcDEF123"
    assert [each["tool_call_id"] for each in sent[1:3]] == called
    assert [each["role"] for each in sent] == ["assistant", "tool", "tool", "assistant", "user"]
    assert wire(message, profile=MISTRAL)["messages"][0]["tool_calls"][0]["id"] == called[0]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_goes_back_in_its_field_to_its_origin_alone(field: str) -> None:
    details = [{"type": "reasoning.encrypted", "data": "x"}]
    message = response_to(
        answer({"content": "42", field: "so", "reasoning_details": details}),
    ).message
    assert message.content[0] == Thinking(
        text="so", origin="here", raw={field: "so", "reasoning_details": details}
    )
    sent = {"role": "assistant", "content": "42", field: "so", "reasoning_details": details}
    assert wire(message)["messages"] == [sent]
    plain = [{"role": "assistant", "content": "42"}]
    assert wire(message, profile=Profile(replay_reasoning=False))["messages"] == plain
    elsewhere = to_wire(Request(messages=(message,)), model="m", origin="there", profile=Profile())
    assert elsewhere["messages"] == plain


def test_mistrals_thinking_parts_are_told_from_its_text() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "so"}]}
    message = response_to(answer({"content": [thinking, {"type": "text", "text": "42"}]})).message
    assert message.text == "42"
    assert isinstance(message.content[0], Thinking)
    assert message.content[0].text == "so"
    assert wire(message)["messages"] == [{"role": "assistant", "content": "42"}]


def test_geminis_signatures_go_back_to_gemini_alone() -> None:
    signature = {"google": {"thought_signature": "sig"}}
    message = response_to(calls(call(extra_content=signature, index=0), extra_content=signature)).message
    (use,) = message.tool_uses
    assert use.extra == {"extra_content": signature}
    assert "sig" not in repr(use)
    assert Opaque(origin="here", raw={"extra_content": signature}) in message.content
    (sent,) = wire(message)["messages"]
    assert sent["tool_calls"][0]["extra_content"] == sent["extra_content"] == signature
    elsewhere = to_wire(Request(messages=(message,)), model="m", origin="there", profile=Profile())
    assert "sig" not in json.dumps(elsewhere)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (answer({"content": "a"}, "stop"), StopReason.END_TURN),
        (answer({"content": "a"}, "length"), StopReason.MAX_TOKENS),
        (answer({"content": "a"}, "content_filter"), StopReason.REFUSAL),
        (answer({"content": None, "refusal": "I won't"}, "stop"), StopReason.REFUSAL),
        (answer({"content": "a"}, "model_length"), StopReason.CONTEXT_FULL),
        (answer({"content": "a"}, None), StopReason.END_TURN),
        (answer({"content": "a"}, ""), StopReason.END_TURN),
        (answer({"content": "a"}, "eos"), StopReason.END_TURN),
        (answer({"content": "", "tool_calls": [call()]}, "stop"), StopReason.TOOL_USE),
        (answer({"content": "", "tool_calls": [call()]}, None), StopReason.TOOL_USE),
        (answer({"content": "", "tool_calls": [call()]}, "length"), StopReason.MAX_TOKENS),
        (answer({"content": "", "tool_calls": []}, "stop"), StopReason.END_TURN),
        (
            answer({"function_call": {"name": "bash", "arguments": "{}"}}, "function_call"),
            StopReason.TOOL_USE,
        ),
    ],
)
def test_stop_reason_follows_what_is_there(body: dict[str, Any], reason: StopReason) -> None:
    assert response_to(body).stop_reason is reason


def test_refusal_is_shown_as_text() -> None:
    assert response_to(answer({"content": None, "refusal": "I won't"})).message.text == "I won't"


def test_empty_answer_with_a_finish_is_legal() -> None:
    assert response_to(answer({"content": ""})).message == Message.assistant()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"choices": []}, BadResponse),
        ({"choices": None}, BadResponse),
        ({"hello": "world"}, BadResponse),
        (answer(None, None), BadResponse),
        (answer({"content": ""}, ""), BadResponse),
        (answer({"content": ""}, "error"), BadResponse),
        (answer({"content": ""}, "insufficient_system_resource"), Overloaded),
        (answer(None, "function_call_filter: MALFORMED_FUNCTION_CALL"), MalformedCall),
        ({"choices": [{"error": {"code": 429, "message": "slow"}, "finish_reason": "error"}]}, RateLimited),
        ({"choices": [{"error": {"code": 502, "message": "up"}, "finish_reason": "error"}]}, Overloaded),
        ({"choices": [{"error": {"message": "odd"}}]}, BadResponse),
    ],
)
def test_answer_of_no_use_is_an_error_that_carries_the_usage(body: dict[str, Any], kind: type) -> None:
    with pytest.raises(BadResponse if issubclass(kind, BadResponse) else kind) as caught:
        response_to({**body, "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}})
    assert type(caught.value) is kind
    assert caught.value.usage == Usage(input_tokens=10, output_tokens=1, cost_usd=Decimal("0.000028"))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110,
          "prompt_tokens_details": {"cached_tokens": 60},
          "completion_tokens_details": {"reasoning_tokens": 4}},
         Usage(input_tokens=40, cache_read_input_tokens=60, output_tokens=10, thinking_tokens=4)),
        ({"prompt_tokens": 100, "completion_tokens": 10, "prompt_cache_hit_tokens": 60,
          "prompt_cache_miss_tokens": 40},
         Usage(input_tokens=40, cache_read_input_tokens=60, output_tokens=10)),
        ({"prompt_tokens": 100, "completion_tokens": 10,
          "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30}},
         Usage(input_tokens=10, cache_read_input_tokens=60, cache_creation_input_tokens=30,
               output_tokens=10)),
        ({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 150},
         Usage(input_tokens=100, output_tokens=50, thinking_tokens=40)),
        ({"prompt_tokens": 5, "completion_tokens": None, "prompt_tokens_details": None,
          "completion_tokens_details": None}, Usage(input_tokens=5)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}},
         Usage(cache_read_input_tokens=5)),
        ({"prompt_tokens": "5", "completion_tokens": True, "total_tokens": -1}, Usage()),
    ],
)  # fmt: skip
def test_each_token_is_counted_once(counts: dict[str, Any], expected: Usage) -> None:
    assert usage_from_wire(counts, None) == expected
    assert usage_from_wire(counts, PRICE).cost_usd == PRICE.cost(expected)


def test_missing_usage_is_unknown_rather_than_free() -> None:
    for usage in (None, {}, []):
        assert usage_from_wire(usage, PRICE).cost_usd is None


@pytest.mark.parametrize(
    ("counts", "cost"),
    [
        ({"prompt_tokens": 9, "cost": 0.00014}, Decimal("0.00014")),
        ({"prompt_tokens": 9, "cost": 0}, Decimal(0)),
        ({"prompt_tokens": 9, "cost": {"total_cost": 0.5}}, Decimal("0.5")),
        ({"prompt_tokens": 9, "cost": 0.01, "is_byok": True,
          "cost_details": {"upstream_inference_cost": 0.2}}, Decimal("0.21")),
        ({"prompt_tokens": 1_000_000, "cost": None}, Decimal(2)),
        ({"prompt_tokens": 1_000_000, "cost": "much"}, Decimal(2)),
    ],
)  # fmt: skip
def test_cost_the_server_reports_wins_over_the_price(counts: dict[str, Any], cost: Decimal) -> None:
    assert usage_from_wire(counts, PRICE).cost_usd == cost


async def test_malformed_call_is_tried_again_and_both_tries_are_counted() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 1}
    bad = ok(answer(None, "MALFORMED_FUNCTION_CALL", usage=usage))
    gpt, server = provider(bad, ok({**calls(call()), "usage": usage}))
    response = await gpt.generate(Request(messages=(Message.user("a"),)))
    assert len(server.requests) == 2
    assert response.usage == Usage(input_tokens=20, output_tokens=2, cost_usd=Decimal("0.000056"))


async def test_error_inside_a_choice_is_retried_by_its_code() -> None:
    busy = ok({"choices": [{"error": {"code": 503, "message": "busy"}}]})
    gpt, server = provider(busy, ok(answer({"content": "hi"})))
    assert (await gpt.generate(Request(messages=(Message.user("a"),)))).message.text == "hi"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("base_url", "model", "expected"),
    [
        ("https://api.openai.com/v1", "gpt-4.1", {"max_tokens_field": "max_completion_tokens"}),
        ("https://api.openai.com/v1", "gpt-5.6-sol", {"effort_with_tools": "none"}),
        ("https://api.openai.com/v1", "gpt-5.4", {"effort_with_tools": None}),
        ("https://openrouter.ai/api/v1", "openai/gpt-6-sol", {"effort_with_tools": None}),
        ("https://api.deepseek.com", "deepseek-chat", {"max_tokens_field": "max_tokens"}),
        ("https://api.together.xyz/v1", "mistralai/Mistral-Small-24B", {"user_may_follow_tool": False}),
        ("https://api.groq.com/openai/v1", "qwen", {"replay_reasoning": False}),
        (
            "https://generativelanguage.googleapis.com/v1beta/openai/",
            "gemini-2.5-pro",
            {"plain_schemas": True},
        ),
    ],
)
def test_profile_is_chosen_by_url_and_model(base_url: str, model: str, expected: dict[str, Any]) -> None:
    profile = profile_for(base_url, model).model_dump()
    assert {name: profile[name] for name in expected} == expected


def test_unknown_server_gets_the_most_conservative_profile_and_is_named_by_its_host() -> None:
    assert profile_for("http://gpu7:8000/v1", "anything") == Profile()
    assert server_name("http://gpu7:8000/v1") == "gpu7:8000"
    assert server_name("https://user:pw@llm.example.com/v1") == "llm.example.com"


async def test_profile_and_effort_of_the_user_win() -> None:
    done = ok(answer({"content": "x"}))
    request = Request(messages=(Message.user("a"),), tools=(BASH,), max_tokens=7)
    gpt, server = provider(done, model="gpt-6.1-sol")
    await gpt.generate(request)
    assert server.bodies[0]["reasoning_effort"] == "none"
    assert server.bodies[0]["max_completion_tokens"] == 7
    gpt, server = provider(done, model="gpt-6.1-sol", reasoning_effort="low", profile=Profile())
    await gpt.generate(request)
    assert server.bodies[0]["reasoning_effort"] == "low"
    assert server.bodies[0]["max_tokens"] == 7


def test_key_of_one_service_is_never_sent_to_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("TOGETHER_API_KEY", raising=False)
    server = FakeServer(ok(answer({"content": "x"})))
    stranger = OpenAI("m", base_url="http://gpu7:8000/v1", transport=server, price=PRICE)
    assert stranger.name == "gpu7:8000"
    with pytest.raises(MissingKey, match="set TOGETHER_API_KEY"):
        OpenAI("m", base_url="https://api.together.xyz/v1")


async def test_unknown_server_gets_no_authorization_header() -> None:
    server = FakeServer(ok(answer({"content": "x"})))
    stranger = OpenAI("m", base_url="http://gpu7:8000/v1", transport=server, price=PRICE)
    await stranger.generate(Request(messages=(Message.user("a"),)))
    assert "authorization" not in server.requests[0].headers


def test_variable_of_the_key_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPU7_KEY", raising=False)
    with pytest.raises(MissingKey, match="set GPU7_KEY"):
        OpenAI("m", base_url="http://gpu7:8000/v1", api_key_env="GPU7_KEY")


async def test_llama_cpp_is_free_needs_no_key_and_pickles() -> None:
    counted = answer({"content": "x"}, usage={"prompt_tokens": 5, "completion_tokens": 2})
    server = FakeServer(ok(counted))
    llama = LlamaCPP(transport=server)
    response = await llama.generate(Request(messages=(Message.user("a"),)))
    assert str(server.requests[0].url) == "http://localhost:8080/v1/chat/completions"
    assert response.usage.cost_usd == 0
    assert (
        repr(pickle.loads(pickle.dumps(LlamaCPP()))) == "LlamaCPP(model='llama.cpp', host='localhost:8080')"
    )


async def test_provider_pickles_after_use_without_showing_its_key() -> None:
    gpt, _ = provider(transport=httpx.MockTransport(module_answer))
    await gpt.generate(Request(messages=(Message.user("a"),)))
    data = pickle.dumps(gpt)
    assert KEY.encode() not in data
    assert KEY not in repr(gpt)
    assert (await pickle.loads(data).generate(Request(messages=(Message.user("a"),)))).message.text == "hi"


def module_answer(_: httpx.Request) -> httpx.Response:
    return ok(answer({"content": "hi"}))


def test_plain_schema_writes_references_out_and_drops_what_is_refused() -> None:
    schema = {
        "$schema": "x",
        "type": "object",
        "title": "dropped",
        "additionalProperties": False,
        "properties": {
            "title": {"type": "string", "default": "kept as a property, without its default"},
            "point": {"$ref": "#/$defs/Point", "description": "where"},
            "tree": {"$ref": "#/$defs/Tree"},
            "kind": {"const": "a"},
            "many": {"type": "array", "items": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Point"}]}},
        },
        "required": ["title"],
        "$defs": {
            "Point": {"type": "object", "properties": {"x": {"type": "number", "exclusiveMinimum": 0}}},
            "Tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/Tree"}}},
        },
    }
    point = {"type": "object", "properties": {"x": {"type": "number"}}}
    assert plain_schema(schema) == {
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "point": {**point, "description": "where"},
            "tree": {"type": "object", "properties": {"left": {"type": "object"}}},
            "kind": {"type": "string", "enum": ["a"]},
            "many": {"type": "array", "items": {"anyOf": [{"type": "null"}, point]}},
        },
        "required": ["title"],
    }


PET = OutputSchema(
    name="Pet",
    json_schema={
        "type": "object",
        "properties": {"legs": {"type": "integer", "minimum": 0}, "name": {"type": "string", "minLength": 1}},
        "required": ["legs"],
        "additionalProperties": False,
    },
)
GEMINI_URL = "https://generativelanguage.googleapis.com/v1beta/openai"


def test_an_output_schema_is_strict_where_it_can_be() -> None:
    body = wire(
        Message.user("a"), output_schema=PET, profile=profile_for("https://api.openai.com/v1", "gpt-5")
    )
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "Pet",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {
                    "legs": {"type": "integer", "minimum": 0},
                    "name": {"type": "string", "description": "minLength: 1"},
                },
                "required": ["legs", "name"],
                "additionalProperties": False,
            },
        },
    }
    assert body["messages"] == [{"role": "user", "content": "a"}]
    assert "response_format" not in wire(Message.user("a"))


def test_an_output_schema_that_cannot_be_strict_is_sent_as_it_is() -> None:
    schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    body = wire(Message.user("a"), output_schema=OutputSchema(json_schema=schema))
    assert body["response_format"]["json_schema"] == {"name": "answer", "schema": schema}


def test_an_output_schema_for_a_server_of_plain_schemas_is_plain() -> None:
    body = wire(Message.user("a"), output_schema=PET, profile=profile_for(GEMINI_URL, "gemini-2.5-flash"))
    assert body["response_format"]["json_schema"] == {
        "name": "Pet",
        "schema": {key: each for key, each in PET.json_schema.items() if key != "additionalProperties"},
    }


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_server_that_hides_the_schema_from_its_model_has_it_in_the_system_prompt(system: str) -> None:
    body = wire(Message.user("a"), output_schema=PET, system=system)
    told, question = body["messages"]
    assert question == {"role": "user", "content": "a"}
    assert told["role"] == "system"
    assert told["content"].startswith(system)
    assert json.loads(told["content"].splitlines()[-1]) == PET.json_schema


@pytest.mark.parametrize(
    ("base_url", "model", "alone", "beside_tools"),
    [
        ("https://api.openai.com/v1", "gpt-4.1", "schema", "schema"),
        ("https://api.openai.com/v1", "gpt-4o", "schema", "schema"),
        ("https://api.openai.com/v1", "gpt-6.1-sol", "schema", "schema"),
        ("https://api.openai.com/v1", "ft:gpt-4.1:acme", "schema", "schema"),
        ("https://api.openai.com/v1", "gpt-4", "tool", "tool"),
        ("https://api.openai.com/v1", "gpt-4-turbo", "tool", "tool"),
        ("https://api.openai.com/v1", "gpt-3.5-turbo", "tool", "tool"),
        (GEMINI_URL, "gemini-2.5-flash", "schema", "tool"),
        ("https://api.together.xyz/v1", "meta-llama/Llama-4-Maverick", "schema", "tool"),
        ("https://api.fireworks.ai/inference/v1", "accounts/fireworks/models/deepseek-v3", "schema", "tool"),
        ("https://api.mistral.ai/v1", "mistral-large-latest", "schema", "tool"),
        ("https://api.deepseek.com/v1", "deepseek-chat", "tool", "tool"),
        ("https://api.groq.com/openai/v1", "llama-4-scout", "tool", "tool"),
        ("https://openrouter.ai/api/v1", "openai/gpt-4.1", "tool", "tool"),
        ("http://gpu7:8000/v1", "qwen", "tool", "tool"),
        ("http://gpu7:8000/v1", "mistral-small", "tool", "tool"),
    ],
)
def test_answers_are_held_to_a_schema_by_servers_that_are_known_to(
    base_url: str, model: str, alone: str, beside_tools: str
) -> None:
    provider = OpenAI(model, base_url=base_url, api_key=KEY, price=Price.free())
    assert provider.output_by(PET, has_tools=False) == alone
    assert provider.output_by(PET, has_tools=True) == beside_tools


def test_a_server_that_is_not_known_takes_a_schema_when_its_profile_says_so() -> None:
    vllm = OpenAI(
        "qwen",
        base_url="http://gpu7:8000/v1",
        profile=Profile(output_schema="without_tools"),
        price=Price.free(),
    )
    assert vllm.output_by(PET, has_tools=False) == LlamaCPP().output_by(PET, has_tools=False) == "schema"
    assert vllm.output_by(PET, has_tools=True) == LlamaCPP().output_by(PET, has_tools=True) == "tool"
    own = Profile(output_schema="never")
    assert LlamaCPP(profile=own).output_by(PET, has_tools=False) == "tool"


def test_a_fine_tuned_model_is_told_limits_in_words() -> None:
    tuned = profile_for("https://api.openai.com/v1", "ft:gpt-4.1:acme")
    body = wire(Message.user("a"), output_schema=PET, profile=tuned)
    legs = body["response_format"]["json_schema"]["schema"]["properties"]["legs"]
    assert legs == {"type": "integer", "description": "minimum: 0"}
