"""Every body that is sent fits the official SDKs' own types."""

from __future__ import annotations

import copy
import functools
from typing import Any

import jsonschema
import pytest
from anthropic.types import message_create_params
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params
from pydantic import TypeAdapter
from wire_fakes import KEY, FakeServer, ok

from palaver.providers import (
    Anthropic,
    Image,
    LlamaCPP,
    Message,
    Opaque,
    OpenAI,
    OpenAIResponses,
    OutputSchema,
    Price,
    Profile,
    Provider,
    Request,
    Text,
    Thinking,
    ToolChoice,
    ToolResult,
    ToolSpec,
    ToolUse,
)

PNG = Image(media_type="image/png", data=b"png")
SIGNED = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
TOOLS = (
    ToolSpec(name="bash", description="Runs it", input_schema={"type": "object", "properties": {"c": {}}}),
    ToolSpec(name="look", input_schema={"type": "object"}),
)
CALLS = Message.assistant(
    Thinking(text="hm", origin="anthropic", raw=SIGNED),
    Thinking(origin="anthropic", raw={"type": "redacted_thinking", "data": "abc"}),
    Thinking(text="so", origin="gemini", raw={"reasoning_content": "so"}),
    Opaque(origin="gemini", raw={"extra_content": {"google": {"thought_signature": "s"}}}),
    "I look.",
    ToolUse(id="t1", name="bash", input={"c": "ls", "deep": [{"a": None}]}),
    ToolUse(id="functions.look:0", name="look", malformed_input="{oops", origin="x", extra={"e": 1}),
)
RESULTS = (
    ToolResult(tool_use_id="t1", content=(Text(text="out"), PNG)),
    ToolResult(tool_use_id="functions.look:0", is_error=True),
)
CALL_ALONE = Message.assistant(ToolUse(id="t3", name="look"))

OUTPUT = OutputSchema(
    name="Pet",
    json_schema={
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "legs": {"type": "integer", "minimum": 0, "default": 4},
            "mother": {"anyOf": [{"$ref": "#/$defs/Mother"}, {"type": "null"}], "default": None},
        },
        "required": ["name"],
        "$defs": {"Mother": {"type": "object", "properties": {"name": {"type": "string"}}}},
    },
)
LOOSE_OUTPUT = OutputSchema(
    json_schema={"type": "object", "additionalProperties": {"type": "integer"}, "description": "Counts"}
)

CONVERSATIONS = {
    "one text": Request(messages=(Message.user("hello"),)),
    "images": Request(messages=(Message.user("what is this?", PNG, PNG),), max_tokens=9),
    "blank": Request(
        messages=(Message.user("a"), Message.assistant(" "), Message.assistant(), Message.user("b"))
    ),
    "tools": Request(messages=(Message.user("a"),), system="s", tools=TOOLS),
    "calls": Request(messages=(Message.user("a"), CALLS, Message.user(*RESULTS)), system="s", tools=TOOLS),
    "calls and a word": Request(
        messages=(Message.user("a"), CALLS, Message.user("go on", *RESULTS, PNG)), tools=TOOLS
    ),
    "output": Request(messages=(Message.user("a"),), output_schema=OUTPUT),
    "loose output": Request(messages=(Message.user("a"),), system="s", output_schema=LOOSE_OUTPUT),
    "output and tools": Request(messages=(Message.user("a"),), tools=TOOLS, output_schema=OUTPUT),
    "call alone": Request(
        messages=(Message.user("a"), CALL_ALONE, Message.user(ToolResult(tool_use_id="t3"))), tools=TOOLS
    ),
    **{
        f"choice {choice.type} parallel={choice.parallel}": Request(
            messages=(Message.user("a"),), tools=TOOLS, tool_choice=choice
        )
        for parallel in (True, False)
        for choice in (
            ToolChoice(parallel=parallel),
            ToolChoice(type="any", parallel=parallel),
            ToolChoice(type="none", parallel=parallel),
            ToolChoice(type="tool", name="bash", parallel=parallel),
        )
    },
}
REQUESTS = {
    f"{title}{', cached' if caching else ''}": request.model_copy(update={"prompt_caching": caching})
    for title, request in CONVERSATIONS.items()
    for caching in (False, True)
}

FREE: dict[str, Any] = {"price": Price.free(), "api_key": KEY}
ANTHROPIC = {
    "plain": functools.partial(Anthropic, **FREE),
    "adaptive": functools.partial(Anthropic, "claude-opus-5-5", thinking="adaptive", effort="xhigh", **FREE),
    "budget": functools.partial(Anthropic, thinking=2048, cache_ttl="1h", **FREE),
    "disabled": functools.partial(Anthropic, thinking="disabled", **FREE),
}
OPENAI = {
    "openai": functools.partial(OpenAI, "gpt-4.1", **FREE),
    "newest": functools.partial(OpenAI, "gpt-6.1-sol", **FREE),
    "effort": functools.partial(OpenAI, "gpt-6.1-sol", reasoning_effort="high", max_tokens=10, **FREE),
    "gemini": functools.partial(
        OpenAI, "gemini-3.8-flash", base_url="https://generativelanguage.googleapis.com/v1beta/openai", **FREE
    ),
    "mistral": functools.partial(OpenAI, "mistral-large", base_url="https://api.mistral.ai/v1", **FREE),
    "unknown": functools.partial(OpenAI, "m", base_url="http://gpu7:8000/v1", **FREE),
    "absent": functools.partial(OpenAI, "m", profile=Profile(content_beside_calls="absent"), **FREE),
    "empty": functools.partial(OpenAI, "m", profile=Profile(content_beside_calls="empty"), **FREE),
    "llama.cpp": LlamaCPP,
}

RESPONSES = {
    "newest": functools.partial(OpenAIResponses, "gpt-6.1-sol", **FREE),
    "effort": functools.partial(
        OpenAIResponses, "gpt-5.5", reasoning_effort="high", reasoning_summary="auto", max_tokens=3, **FREE
    ),
    "no reasoning": functools.partial(OpenAIResponses, "gpt-4.1", **FREE),
}


def closed(schema: Any, *, but: frozenset[str] = frozenset()) -> Any:
    """The schema with every object of named properties refusing all others."""
    if isinstance(schema, list):
        return [closed(item, but=but) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value, but=but) for key, value in schema.items()}
    if isinstance(inner.get("properties"), dict) and inner.get("title") not in but:
        inner.setdefault("additionalProperties", False)
    return inner


# The extra fields of Gemini and of reasoning are outside OpenAI's own types.
EXTENSIBLE = frozenset({"ChatCompletionAssistantMessageParam", "ChatCompletionMessageFunctionToolCallParam"})


@functools.cache
def validator(kind: Any) -> jsonschema.Draft202012Validator:
    schema = TypeAdapter(kind).json_schema()
    return jsonschema.Draft202012Validator(closed(schema, but=EXTENSIBLE))


def responses_validator() -> jsonschema.Draft202012Validator:
    return validator(response_create_params.ResponseCreateParamsNonStreaming)


def anthropic_validator() -> jsonschema.Draft202012Validator:
    return validator(message_create_params.MessageCreateParamsNonStreaming)


def openai_validator() -> jsonschema.Draft202012Validator:
    return validator(completion_create_params.CompletionCreateParamsNonStreaming)


async def body_of(make: Any, request: Request, answer: dict[str, Any]) -> dict[str, Any]:
    server = FakeServer(ok(answer))
    provider: Provider = make(transport=server)
    await provider.generate(request)
    return server.bodies[0]


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=list(REQUESTS))
@pytest.mark.parametrize("make", ANTHROPIC.values(), ids=list(ANTHROPIC))
async def test_body_to_anthropic_fits_its_sdk(make: Any, request_: Request) -> None:
    body = await body_of(make, request_, {"content": []})
    anthropic_validator().validate(body)


@pytest.mark.parametrize("request_", CONVERSATIONS.values(), ids=list(CONVERSATIONS))
@pytest.mark.parametrize("make", OPENAI.values(), ids=list(OPENAI))
async def test_body_to_openai_fits_its_sdk(make: Any, request_: Request) -> None:
    body = await body_of(make, request_, {"choices": [{"message": {"content": "x"}}]})
    openai_validator().validate(body)


@pytest.mark.parametrize("request_", CONVERSATIONS.values(), ids=list(CONVERSATIONS))
@pytest.mark.parametrize("make", RESPONSES.values(), ids=list(RESPONSES))
async def test_body_to_responses_fits_its_sdk(make: Any, request_: Request) -> None:
    body = await body_of(make, request_, {"output": []})
    responses_validator().validate(body)


WRONG_FOR_ANTHROPIC = [
    lambda body: body.pop("max_tokens"),
    lambda body: body["messages"][0].update(role="system-ish"),
    lambda body: body["messages"][1]["content"][0].pop("signature"),
    lambda body: body["messages"][2]["content"][0].pop("tool_use_id"),
    lambda body: body["messages"][2]["content"][0]["content"][1]["source"].update(media_type="image/bmp"),
    lambda body: body["tools"][0].pop("input_schema"),
    lambda body: body.update(tool_choice={"type": "required"}),
    lambda body: body["system"][0].update(cache_control={"type": "for ever"}),
    lambda body: body.update(max_completion_tokens=5),
    lambda body: body.update(output_config={"format": {"type": "json_schema"}}),
    lambda body: body.update(response_format={"type": "text"}),
]
WRONG_FOR_RESPONSES = [
    lambda body: body["input"][0].update(role="narrator"),
    lambda body: body["input"][2].update(arguments={"c": "ls"}),
    lambda body: body["input"][2].pop("call_id"),
    lambda body: body["tools"][0].pop("parameters"),
    lambda body: body.update(tool_choice="any"),
    lambda body: body.update(max_tokens=5),
    lambda body: body.update(include=["everything"]),
    lambda body: body.update(text={"format": {"type": "json_schema", "name": "x"}}),
]
WRONG_FOR_OPENAI = [
    lambda body: body.pop("messages"),
    lambda body: body["messages"][0].update(role="narrator"),
    lambda body: body["messages"][2]["tool_calls"][0]["function"].update(arguments={"c": "ls"}),
    lambda body: body["messages"][2]["tool_calls"][0].pop("id"),
    lambda body: body["messages"][3].pop("tool_call_id"),
    lambda body: body["messages"][3].update(content=[{"type": "image_url", "image_url": {"url": "x"}}]),
    lambda body: body.update(tool_choice="any"),
    lambda body: body["tools"][0].pop("function"),
    lambda body: body.update(max_output_tokens=5),
    lambda body: body.update(response_format={"type": "json_schema", "json_schema": {"schema": {}}}),
    lambda body: body.update(
        response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": "yes"}}
    ),
]


@pytest.mark.parametrize("spoil", WRONG_FOR_ANTHROPIC)
async def test_wrong_body_to_anthropic_is_noticed(spoil: Any) -> None:
    body = await body_of(ANTHROPIC["plain"], CONVERSATIONS["calls"], {"content": []})
    wrong = copy.deepcopy(body)
    spoil(wrong)
    assert wrong != body
    assert not anthropic_validator().is_valid(wrong)


@pytest.mark.parametrize("spoil", WRONG_FOR_OPENAI)
async def test_wrong_body_to_openai_is_noticed(spoil: Any) -> None:
    body = await body_of(
        OPENAI["openai"], CONVERSATIONS["calls"], {"choices": [{"message": {"content": "x"}}]}
    )
    wrong = copy.deepcopy(body)
    spoil(wrong)
    assert wrong != body
    assert not openai_validator().is_valid(wrong)


@pytest.mark.parametrize("spoil", WRONG_FOR_RESPONSES)
async def test_wrong_body_to_responses_is_noticed(spoil: Any) -> None:
    body = await body_of(RESPONSES["newest"], CONVERSATIONS["calls"], {"output": []})
    wrong = copy.deepcopy(body)
    spoil(wrong)
    assert wrong != body
    assert not responses_validator().is_valid(wrong)
