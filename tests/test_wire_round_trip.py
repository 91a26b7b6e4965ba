"""Any conversation that can be built survives the way out and back, on every wire format."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jsonschema
import pytest
from conversations import (
    OPENAI_ORIGIN,
    RESPONSES_ORIGIN,
    Turn,
    after,
    anthropic_answers,
    anthropic_response,
    chat_answers,
    chat_response,
    from_outside,
    histories,
    requests,
    responses_answers,
    responses_response,
    turns,
)
from hypothesis import HealthCheck, given, settings
from test_wire_schemas import anthropic_validator, openai_validator, responses_validator

from palaver.providers import (
    Message,
    Opaque,
    Profile,
    Request,
    Text,
    Thinking,
    ToolUse,
    anthropic_wire,
    openai_wire,
    responses_wire,
)
from palaver.providers.profiles import SERVICES

Body = dict[str, Any]

SLOW = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
"""Validating takes long."""


def to_anthropic(request: Request) -> Body:
    return anthropic_wire.to_wire(request, model="claude-sonnet-4-5", max_tokens=1_000)


def to_responses(request: Request) -> Body:
    return responses_wire.to_wire(request, model="gpt-6.1-sol", origin=RESPONSES_ORIGIN)


def to_chat(profile: Profile) -> Callable[[Request], Body]:
    def body(request: Request) -> Body:
        return openai_wire.to_wire(request, model="m", origin=OPENAI_ORIGIN, profile=profile)

    return body


# What a body says of its calls: their ids and those of the results, turn by turn


def anthropic_pairs(body: Body) -> list[tuple[list[str], list[str]]]:
    called: list[list[str]] = []
    answered: list[list[str]] = []
    for message in body["messages"]:
        of_kind = "tool_use" if message["role"] == "assistant" else "tool_result"
        field = "id" if message["role"] == "assistant" else "tool_use_id"
        into = called if message["role"] == "assistant" else answered
        if ids := [block[field] for block in message["content"] if block["type"] == of_kind]:
            into.append(ids)
    return list(zip(called, answered, strict=True))


def in_turns(kinds: list[tuple[str, str]]) -> list[tuple[list[str], list[str]]]:
    """(call or result, id) in the order of the body, parted where a call follows a result."""
    pairs: list[tuple[list[str], list[str]]] = []
    before = "result"
    for kind, id_ in kinds:
        if kind == "call" and before == "result":
            pairs.append(([], []))
        pairs[-1][kind == "result"].append(id_)
        before = kind
    return pairs


def chat_pairs(body: Body) -> list[tuple[list[str], list[str]]]:
    kinds: list[tuple[str, str]] = []
    for message in body["messages"]:
        kinds += [("call", call["id"]) for call in message.get("tool_calls") or ()]
        if message["role"] == "tool":
            kinds.append(("result", message["tool_call_id"]))
    return in_turns(kinds)


def responses_pairs(body: Body) -> list[tuple[list[str], list[str]]]:
    names = {"function_call": "call", "function_call_output": "result"}
    return in_turns(
        [(names[item["type"]], item["call_id"]) for item in body["input"] if item.get("type") in names]
    )


class Wire(NamedTuple):
    to_wire: Callable[[Request], Body]
    validator: Callable[[], jsonschema.Draft202012Validator]
    pairs: Callable[[Body], list[tuple[list[str], list[str]]]]
    history: str


WIRES = {
    "anthropic": Wire(to_anthropic, anthropic_validator, anthropic_pairs, "messages"),
    "responses": Wire(to_responses, responses_validator, responses_pairs, "input"),
    **{
        service.name: Wire(to_chat(service.profile), openai_validator, chat_pairs, "messages")
        for service in SERVICES
        if service.name in ("openai", "gemini", "mistral", "deepseek")
    },
    "unknown": Wire(to_chat(Profile()), openai_validator, chat_pairs, "messages"),
}
each_wire = pytest.mark.parametrize("wire", WIRES.values(), ids=list(WIRES))


@each_wire
@SLOW
@given(request=requests)
def test_any_conversation_fits_the_official_types(wire: Wire, request: Request) -> None:
    body = wire.to_wire(request)
    # What JSON makes of it, which is what is sent.
    wire.validator().validate(json.loads(json.dumps(body, allow_nan=False).encode()))
    json.dumps(body, ensure_ascii=False).encode()


@each_wire
@given(messages=histories)
def test_each_call_has_its_result_and_ids_tell_them_apart(wire: Wire, messages: tuple[Message, ...]) -> None:
    calls = [call.id for message in messages for call in message.tool_uses]
    assert len(set(calls)) == len(calls)
    pairs = wire.pairs(wire.to_wire(Request(messages=messages)))
    assert [len(called) for called, _ in pairs] == [
        len(message.tool_uses) for message in messages if message.tool_uses
    ]
    for called, answered in pairs:
        assert called == answered
        assert len(set(called)) == len(called)


@given(request=requests)
def test_never_more_than_four_cache_marks(request: Request) -> None:
    body = to_anthropic(request.model_copy(update={"prompt_caching": True}))
    assert 1 <= json.dumps(body).count('"cache_control"') <= 4


@each_wire
@given(messages=histories, turn=turns)
def test_what_was_sent_stays_as_it_was_when_the_conversation_grows(
    wire: Wire, messages: tuple[Message, ...], turn: Turn
) -> None:
    shorter = wire.to_wire(Request(messages=messages))[wire.history]
    longer = wire.to_wire(Request(messages=after(messages, turn)))[wire.history]
    assert json.dumps(longer[: len(shorter)]) == json.dumps(shorter)


# There and back


def said(message: Message) -> list[Any]:
    """What a message holds, but for ids, blank texts and what the message itself does not tell apart."""
    return [
        part.text
        if isinstance(part, Text)
        else part.raw
        if isinstance(part, Thinking | Opaque)
        else (part.name, part.input)
        for part in message.content
        if isinstance(part, Text | Thinking | Opaque | ToolUse)
        if not isinstance(part, Text) or part.text.strip()
    ]


@given(answer=anthropic_answers, messages=histories)
def test_an_answer_of_anthropics_goes_back_as_it_came(answer: Body, messages: tuple[Message, ...]) -> None:
    message = anthropic_response(from_outside(answer), Request(messages=messages)).message
    grown = after(messages, Turn(anthropic_response, answer, [((), False)], "go on"))
    sent = to_anthropic(Request(messages=grown))["messages"]
    came = [
        block for block in from_outside(answer)["content"] if block["type"] != "text" or block["text"].strip()
    ]
    # What only whitespace was said in is not sent, nor is a message that holds nothing else.
    back: list[Any] = sent[-2]["content"] if came else []
    assert [{**block, "id": ""} for block in back] == [{**block, "id": ""} for block in came]
    read = anthropic_response({"content": back}, Request(messages=messages)).message
    assert said(read) == said(message)


@given(answer=chat_answers, messages=histories)
def test_an_answer_of_chat_completions_goes_back_as_it_came(
    answer: Body, messages: tuple[Message, ...]
) -> None:
    message = chat_response(from_outside(answer), Request(messages=messages)).message
    grown = after(messages, Turn(chat_response, answer, [((), False)], "go on"))
    sent = to_chat(Profile())(Request(messages=grown))["messages"]
    own = sent[-1 - len(message.tool_uses) - 1]
    if not message.text.strip() and not message.tool_uses:
        assert own["role"] != "assistant" or own == sent[-2]
        return
    assert own["role"] == "assistant"
    read = chat_response({"choices": [{"message": own, "finish_reason": "stop"}]}, Request(messages=messages))
    assert said(read.message) == said(message)


@given(answer=responses_answers, messages=histories)
def test_an_answer_of_responses_goes_back_as_it_came(answer: Body, messages: tuple[Message, ...]) -> None:
    message = responses_response(from_outside(answer), Request(messages=messages)).message
    before = len(to_responses(Request(messages=messages))["input"])
    grown = after(messages, Turn(responses_response, answer, [((), False)], "go on"))
    sent = to_responses(Request(messages=grown))["input"][before : -1 - len(message.tool_uses)]
    # A message that lost its id with its reasoning goes as plain words.
    plain = [
        {"type": "message", "content": [{"type": "output_text", "text": item["content"]}]}
        if "type" not in item
        else item
        for item in sent
    ]
    read = responses_response({"object": "response", "output": plain}, Request(messages=messages)).message
    thoughts = [part.raw for part in read.content if isinstance(part, Thinking)]
    came = [part.raw for part in message.content if isinstance(part, Thinking)]
    left = iter(came)
    assert all(thought in left for thought in thoughts)
    if all(thought.get("encrypted_content") for thought in came) and not isinstance(
        next(reversed(message.content), None), Thinking
    ):
        assert thoughts == came
    assert [(call.name, call.input) for call in read.tool_uses] == [
        (call.name, call.input) for call in message.tool_uses
    ]
    assert read.text.split() == message.text.split()
