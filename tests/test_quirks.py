"""The quirk table of chat completions: one test or more for each row, with where it was seen.

What quirks of streams come to is tested in `test_stream`.
"""

from __future__ import annotations

import asyncio
import json
import re
from decimal import Decimal
from typing import Any

import httpx
import pytest
from chat_fakes import BASH, answer, call, calls, provider, response_to, wire
from wire_fakes import FakeClock, FakeServer, ok

from palaver.actors.conversation import Conversation
from palaver.providers import (
    Answered,
    BadRequest,
    BadResponse,
    ConfigurationError,
    Image,
    LlamaCPP,
    MalformedCall,
    Message,
    Opaque,
    OpenAI,
    OutputSchema,
    Overloaded,
    Price,
    Profile,
    ProviderError,
    RateLimited,
    Request,
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
from palaver.providers.openai_wire import to_wire
from palaver.providers.profiles import SERVERS, profile_for
from palaver.providers.schemas import plain_schema
from palaver.tools import tool
from palaver.tools.toolset import InlineToolset

PNG = Image(media_type="image/png", data=b"png")
PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,cG5n"}}
MISTRAL = profile_for("https://api.mistral.ai/v1", "mistral-large-latest")
LOOK = ToolSpec(name="look", description="Looks", input_schema={"type": "object", "properties": {}})
ASK = Request(messages=(Message.user("a"),))


@tool
async def shout(text: str) -> str:
    """Say it loudly."""
    return text.upper()


def talk(*bodies: dict[str, Any]) -> tuple[Conversation, FakeServer]:
    """A conversation with a server that answers so, and the server."""
    model, server = provider(*map(ok, bodies))
    return Conversation(model, InlineToolset([shout])), server


def shouts(arguments: object, wire_id: object = "call_1") -> dict[str, Any]:
    function = {"name": "shout", "arguments": arguments}
    return calls({"id": wire_id, "type": "function", "function": function})


# Missing or empty call id: vercel/ai#7834, pydantic-ai#1879


@pytest.mark.parametrize("missing", ["", None, 7])
def test_missing_id_is_minted(missing: object) -> None:
    (use,) = response_to(calls(call(wire_id=missing))).message.tool_uses
    assert re.fullmatch("[A-Za-z0-9]{9}", use.id)
    assert use.wire_id is None
    (again,) = response_to(calls(call(wire_id=missing))).message.tool_uses
    assert again.id == use.id  # reading twice gives the same message


async def test_calls_without_ids_are_run_and_their_results_find_their_calls() -> None:
    convo, server = talk(
        {**shouts('{"text": "a"}', ""), "id": "1"},
        {**shouts('{"text": "b"}', None)},
        answer({"content": "x"}),
    )
    assert (await convo.run("go")).text == "x"
    sent = server.bodies[2]["messages"]
    called = [each["tool_calls"][0]["id"] for each in sent if "tool_calls" in each]
    assert called == [each["tool_call_id"] for each in sent if each["role"] == "tool"]
    assert len(set(called)) == 2


# Ids repeat across turns; some models need theirs verbatim: vllm#50295, vllm#32768


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


# Mistral: ids of nine letters and digits, opencode#1680; no user right after a tool, opencode#7488


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


def test_elsewhere_the_user_follows_a_tool_directly_and_a_valid_id_stays() -> None:
    message = Message.assistant(ToolUse(id="functions.bash:0", name="bash"))
    sent = wire(message, Message.user(ToolResult(tool_use_id="functions.bash:0"), "next"))["messages"]
    assert [each["role"] for each in sent] == ["assistant", "tool", "user"]
    assert sent[0]["tool_calls"][0]["id"] == sent[1]["tool_call_id"] == "functions.bash:0"


# Arguments: as an object, llama.cpp#20198; "", openai-agents-js#664; no JSON, llama.cpp#25510 and
# OpenHands#13949


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


async def test_arguments_that_are_no_json_are_an_error_for_the_model_and_stay_out_of_the_history() -> None:
    convo, server = talk(shouts('{"text": '), answer({"content": "sorry"}))
    assert (await convo.run("go")).text == "sorry"
    _, called, result = server.bodies[1]["messages"]
    assert called["tool_calls"][0]["function"]["arguments"] == "{}"
    assert result["role"] == "tool"
    assert result["content"].startswith("The tool failed:")
    assert "was no JSON object" in result["content"]


# Tool calls with finish "stop": sglang#2877


@pytest.mark.parametrize("finish", ["stop", "eos", "", None])
async def test_calls_are_run_whatever_the_finish_says(finish: object) -> None:
    body = shouts('{"text": "a"}')
    body["choices"][0]["finish_reason"] = finish
    assert response_to(body).stop_reason is StopReason.TOOL_USE
    convo, server = talk(body, answer({"content": "done"}))
    assert (await convo.run("go")).text == "done"
    assert server.bodies[1]["messages"][-1]["content"] == "A"


async def test_calls_of_an_answer_that_was_cut_at_its_length_are_not_run() -> None:
    body = shouts('{"text": "a"}')
    body["choices"][0]["finish_reason"] = "length"
    convo, server = talk(body)
    assert (await convo.run("go")).stop == "max_tokens"
    assert len(server.requests) == 1


# finish_reason missing: pydantic-ai#6610, vercel/ai#19165


def test_missing_finish_is_inferred_and_nothing_at_all_is_an_error() -> None:
    assert response_to(answer({"content": "a"}, None)).stop_reason is StopReason.END_TURN
    with pytest.raises(BadResponse, match="neither content nor finish_reason"):
        response_to(answer({"content": ""}, None))


# null or "" content beside calls: vercel/ai#13505, lmstudio-bug-tracker#261


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


def test_content_is_null_beside_calls_alone() -> None:
    said, called = wire(Message.assistant("hi"), Message.assistant(ToolUse(id="t1", name="bash")))["messages"]
    assert (said["content"], called["content"]) == ("hi", None)
    assert profile_for("http://localhost:1234/v1", "qwen").content_beside_calls == "empty"


# Several system messages, the `developer` role: pydantic-ai#5812


def test_system_prompt_and_told_schema_are_one_system_message() -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    body = wire(Message.user("a"), system="Be brief.", output_schema=OutputSchema(json_schema=schema))
    assert [each["role"] for each in body["messages"]] == ["system", "user"]
    assert body["messages"][0]["content"].startswith("Be brief.")


# Forced choice ignored, or refused: lmstudio-bug-tracker#670, vllm#44216, llama.cpp#26535, DeepSeek-V3#1376


@pytest.mark.parametrize(
    ("base_url", "one", "any_choice", "tools"),
    [
        ("https://api.openai.com/v1", {"type": "function", "function": {"name": "look"}}, "required", 2),
        ("http://gpu7:8000/v1", "required", "required", 1),
        ("http://localhost:1234/v1", "required", "required", 1),
        ("https://api.deepseek.com/v1", None, None, 2),
    ],
)
def test_a_call_is_demanded_as_each_server_takes_it(
    base_url: str, one: object, any_choice: object, tools: int
) -> None:
    profile = profile_for(base_url, "m")
    asked = {"profile": profile, "tools": (BASH, LOOK)}
    body = wire(Message.user("a"), **asked, tool_choice=ToolChoice(type="tool", name="look"))
    assert (body.get("tool_choice"), len(body["tools"])) == (one, tools)
    assert body["tools"][-1]["function"]["name"] == "look"
    body = wire(Message.user("a"), **asked, tool_choice=ToolChoice(type="any"))
    assert (body.get("tool_choice"), len(body["tools"])) == (any_choice, 2)


async def test_answer_in_text_where_a_call_was_demanded_is_asked_for_again() -> None:
    server = FakeServer(
        ok(answer({"content": "I will not."})),
        ok(calls({"id": "1", "function": {"name": "final_answer", "arguments": '{"answer": 4}'}})),
    )
    model = OpenAI("m", base_url="http://gpu7:8000/v1", price=Price.free(), transport=server)
    result = await Conversation(model, InlineToolset([])).run("2 + 2?", output_type=int)
    assert result.output == 4
    assert server.bodies[0]["tool_choice"] == "required"
    assert "by calling the tool final_answer" in server.bodies[1]["messages"][-1]["content"]


async def test_model_that_never_calls_what_was_demanded_does_not_pass_for_finished() -> None:
    server = FakeServer(ok(answer({"content": "I will not."})))
    model = OpenAI("m", base_url="http://gpu7:8000/v1", price=Price.free(), transport=server)
    result = await Conversation(model, InlineToolset([])).run("2 + 2?", output_type=int, output_retries=1)
    assert (result.stop, result.finished) == ("invalid_output", False)
    assert len(server.requests) == 2


# Schema keywords refused: litellm#6136, pydantic-ai#10243


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


def test_schemas_are_plain_where_keywords_are_refused_and_whole_elsewhere() -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    tools = (ToolSpec(name="t", description="", input_schema=schema),)
    for server, sent in (("gemini", {"type": "object"}), ("openai", schema)):
        body = wire(Message.user("a"), profile=SERVERS[server], tools=tools)
        assert body["tools"][0]["function"]["parameters"] == sent


# Unknown fields refused: deer-flow#1515


def test_a_server_that_is_not_known_gets_the_smallest_body() -> None:
    asked = {"tools": (BASH,), "tool_choice": ToolChoice(parallel=False), "system": "s", "max_tokens": 5}
    body = wire(Message.user("a"), **asked)
    assert body.keys() == {"model", "messages", "tools", "max_tokens"}
    assert body["tools"][0].keys() == {"type", "function"}


def test_parallel_calls_are_forbidden_only_where_the_field_is_known() -> None:
    one = ToolChoice(parallel=False)
    known = Profile(parallel_tool_calls=True)
    assert "parallel_tool_calls" not in wire(Message.user("a"), tools=(BASH,), tool_choice=one)
    assert (
        wire(Message.user("a"), profile=known, tools=(BASH,), tool_choice=one)["parallel_tool_calls"] is False
    )


def test_servers_that_know_the_field_are_told_to_call_one_tool_at_a_time() -> None:
    knows = {name for name, profile in SERVERS.items() if profile.parallel_tool_calls}
    assert knows == {"openai", "mistral", "groq", "openrouter", "vllm"}


def test_tools_and_choice_are_left_out_when_there_are_none() -> None:
    body = wire(Message.user("a"), tool_choice=ToolChoice(type="any", parallel=False))
    assert body.keys() == {"model", "messages"}


def test_max_tokens_has_the_name_the_server_knows() -> None:
    assert wire(Message.user("a"), max_tokens=5)["max_tokens"] == 5
    new = Profile(max_tokens_field="max_completion_tokens")
    assert wire(Message.user("a"), profile=new, max_tokens=5)["max_completion_tokens"] == 5


# Gemini's thought signature in `extra_content`: openhuman#3548


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


# DeepSeek wants `reasoning_content` back, vLLM calls it `reasoning`: new-api#4806, vllm#27755


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


def test_reasoning_stays_here_where_the_field_is_refused() -> None:
    for server, replayed in (("deepseek", True), ("vllm", True), ("groq", False), ("mistral", False)):
        assert SERVERS[server].replay_reasoning is replayed


# HTTP 200 with an error body; an error inside a choice: litellm#21755, aider#3550


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"code": 429, "message": "slow"}}, RateLimited),
        ({"choices": [{"error": {"code": 429, "message": "slow"}, "finish_reason": "error"}]}, RateLimited),
        ({"error": {"message": "Provider returned error", "code": 502}}, Overloaded),
        ({"error": "odd"}, BadResponse),
    ],
)
async def test_an_error_under_http_200_is_what_its_code_says(body: dict[str, Any], kind: type) -> None:
    model, _ = provider(ok(body), retry=RetryPolicy(max_attempts=1))
    with pytest.raises(ProviderError) as caught:
        await model.generate(ASK)
    assert type(caught.value) is kind


async def test_error_inside_a_choice_is_retried_by_its_code() -> None:
    busy = ok({"choices": [{"error": {"code": 503, "message": "busy"}}]})
    gpt, server = provider(busy, ok(answer({"content": "hi"})))
    assert (await gpt.generate(Request(messages=(Message.user("a"),)))).message.text == "hi"
    assert len(server.requests) == 2


# Groq `tool_use_failed`, Gemini `MALFORMED_FUNCTION_CALL`: smolagents#1119, pydantic-ai#631


async def test_malformed_call_is_tried_again_and_both_tries_are_counted() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 1}
    bad = ok(answer(None, "MALFORMED_FUNCTION_CALL", usage=usage))
    gpt, server = provider(bad, ok({**calls(call()), "usage": usage}))
    response = await gpt.generate(Request(messages=(Message.user("a"),)))
    assert len(server.requests) == 2
    assert response.usage == Usage(input_tokens=20, output_tokens=2, cost_usd=Decimal("0.000056"))


@pytest.mark.parametrize(
    "bad",
    [
        httpx.Response(400, json={"error": {"code": "tool_use_failed", "message": "Failed to call"}}),
        ok(answer(None, "function_call_filter: MALFORMED_FUNCTION_CALL")),
        ok(answer(None, "MALFORMED_FUNCTION_CALL", usage={"prompt_tokens": 10, "completion_tokens": 1})),
    ],
)
async def test_model_that_never_writes_a_call_that_can_be_read_is_an_error_after_two_retries(
    bad: httpx.Response,
) -> None:
    model, server = provider(bad)
    with pytest.raises(MalformedCall, match="gave up after 3 tries"):
        await model.generate(ASK)
    assert len(server.requests) == 3
    model, server = provider(bad)
    talking = Conversation(model, InlineToolset([shout]))
    with pytest.raises(MalformedCall):
        await talking.run("go")
    assert len(server.requests) == 3


# Images in tool results: agenthub#209


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


# HTML or {"error": "text"} bodies, 502 pages: nanobot#2289


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (httpx.Response(502, text="<html><h1>Bad Gateway</h1></html>"), Overloaded),
        (httpx.Response(200, text="<html><h1>Bad Gateway</h1></html>"), BadResponse),
        (httpx.Response(503, json={"error": "Bad Gateway"}), Overloaded),
    ],
)
async def test_what_a_proxy_says_is_in_the_error(given: httpx.Response, kind: type) -> None:
    model, _ = provider(given, retry=RetryPolicy(max_attempts=1))
    with pytest.raises(ProviderError, match="Bad Gateway") as caught:
        await model.generate(ASK)
    assert type(caught.value) is kind


# Retry hint only in the body; Gemini's error is an array: pydantic-ai#1879


@pytest.mark.parametrize(("hint", "wait_s"), [("39s", 39.0), ("4000s", 60.0)])
async def test_hint_in_a_body_is_kept_up_to_the_cap(hint: str, wait_s: float) -> None:
    clock = FakeClock()
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": hint}]
    error = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "slow", "details": details}}
    model, _ = provider(httpx.Response(429, json=[error]), ok(answer({"content": "x"})), clock=clock)
    await model.generate(ASK)
    assert clock.waits == [wait_s]


async def test_an_error_in_an_array_is_told_in_its_words_under_any_status() -> None:
    error = {"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "no such field"}}
    for status in (400, 200):
        model, _ = provider(httpx.Response(status, json=[error]))
        with pytest.raises(BadRequest, match=f"HTTP {status}: INVALID_ARGUMENT: no such field;"):
            await model.generate(ASK)


# stream_options refused (422): opencode#27672, openai-agents-python#442


def test_usage_of_streams_is_asked_for_where_it_is_known_to_be_taken() -> None:
    asks = {name for name, profile in SERVERS.items() if profile.stream_usage}
    assert asks == {
        "openai", "gemini", "fireworks", "deepseek", "groq", "openrouter", "xai", "vllm",
        "sglang", "llama.cpp", "ollama", "lm-studio", "litellm",
    }  # fmt: skip
    assert not Profile().stream_usage


# Which server has which flags


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        ("https://api.x.ai/v1", "xai"),
        ("https://API.GROQ.com/openai/v1/", "groq"),
        ("http://localhost:11434/v1", "ollama"),
        ("http://gpu7:1234/v1", "lm-studio"),
    ],
)
def test_a_server_is_told_by_its_host_or_by_a_port_of_its_own(base_url: str, name: str) -> None:
    assert profile_for(base_url, "qwen") == SERVERS[name]


@pytest.mark.parametrize("port", [80, 4000, 8000, 8080, 30000])
def test_a_port_that_is_anybodys_tells_nothing(port: int) -> None:
    assert profile_for(f"http://localhost:{port}/v1", "qwen") == Profile()


def test_a_server_can_be_named_and_single_flags_changed() -> None:
    def flags(**options: Any) -> Profile:
        return OpenAI("qwen", base_url="http://gpu7:8000/v1", price=Price.free(), **options).profile

    assert flags(server="vllm") == SERVERS["vllm"]
    assert flags(server="vllm", profile={"replay_reasoning": False}) == SERVERS["vllm"].model_copy(
        update={"replay_reasoning": False}
    )
    assert flags(server="vllm", profile=Profile()) == Profile()
    assert flags(profile={"stream_usage": True}) == Profile(stream_usage=True)
    assert LlamaCPP(profile={"stream_usage": False}).profile.output_schema == "without_tools"
    with pytest.raises(ConfigurationError, match="server 'vlm' is not known; use one of"):
        flags(server="vlm")
    with pytest.raises(ConfigurationError, match="profile has no flag 'usage'"):
        flags(profile={"usage": True})
    with pytest.raises(ConfigurationError, match="content_beside_calls"):
        flags(profile={"content_beside_calls": "maybe"})


def test_flags_of_a_model_hold_on_a_named_server_too() -> None:
    assert profile_for("http://gpu7:8000/v1", "mistralai/Mistral-Small", server="vllm") == SERVERS[
        "vllm"
    ].model_copy(update={"tool_call_id_pattern": r"[A-Za-z0-9]{9}", "user_may_follow_tool": False})


# The connection closed after a stream, though it was said to be kept: llama.cpp


async def test_a_connection_that_llama_cpp_closes_after_a_stream_is_not_used_again() -> None:
    events = b'data: {"choices":[{"delta":{"content":"hello"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    requests: list[int] = []

    async def stream_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(0)
        await reader.readuntil(b'"stream":true}')
        writer.write(
            b"HTTP/1.1 200 OK\r\nserver: llama.cpp\r\ncontent-type: text/event-stream\r\n"
            b"keep-alive: timeout=5, max=100\r\ntransfer-encoding: chunked\r\n\r\n"
            b"%x\r\n%s\r\n0\r\n\r\n" % (len(events), events)
        )
        requests[-1] += 1
        # It closes at the worst moment: when the next request, if one comes this way, has been sent.
        if await reader.read(1):
            requests[-1] += 1
        writer.close()

    async with await asyncio.start_server(stream_once, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        provider = OpenAI("m", base_url=f"http://127.0.0.1:{port}", api_key="k", price=Price.free())
        for _ in range(2):
            *_, end = [part async for part in provider.stream(ASK)]
            assert isinstance(end, Answered)
            assert end.response.message.text == "hello"
        await provider.aclose()
    assert requests == [1, 1]
