"""Conversations of every kind, for Hypothesis: built up out of answers as servers send them, the server
changing in their midst."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from hypothesis import strategies as st

from palaver.providers import (
    Image,
    Message,
    OutputSchema,
    Price,
    Request,
    Response,
    Text,
    ToolChoice,
    ToolResult,
    ToolSpec,
    anthropic_wire,
    openai_answer,
    responses_answer,
)
from palaver.providers.http_errors import Peer
from palaver.providers.untyped import as_dict, json_in

PRICE = Price.per_million_tokens(Decimal(1), Decimal(2))
NOW = datetime(2026, 11, 1, tzinfo=UTC)
OPENAI_ORIGIN = "openai"
RESPONSES_ORIGIN = "openai/responses"

# Half a surrogate pair can be written in JSON, and nowhere else.
words = st.text(st.characters(exclude_categories=()), max_size=12) | st.sampled_from(
    ["", " ", "\n", "two words"]
)
pieces = words.filter(lambda text: bool(text.strip()))
values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
objects = st.dictionaries(words, values, max_size=3)
names = st.sampled_from(["bash", "look", "mcp__files__read", "functions.look:0"])
call_ids = st.sampled_from(["", "call_1", "call_2", "0", "functions.bash:0", "a b", "ü", "x" * 70])
arguments = objects.map(json.dumps) | st.sampled_from(
    ["", "{oops", "[1]", "null", '{"a":NaN}', '"text"', "9" * 5000]
)
optional_arguments = arguments | objects | st.none()
sealed = st.text("abcDEF0123+/=", min_size=1, max_size=12)

# Anthropic

anthropic_blocks = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, words),
    st.builds(lambda text, seal: {"type": "thinking", "thinking": text, "signature": seal}, words, sealed),
    st.builds(lambda seal: {"type": "redacted_thinking", "data": seal}, sealed),
    st.builds(
        lambda id_, name, given: {"type": "tool_use", "id": id_, "name": name, "input": given},
        call_ids,
        names,
        objects,
    ),
    st.builds(
        lambda text, cited: {
            "type": "text",
            "text": text,
            "citations": [
                {
                    "type": "char_location",
                    "cited_text": cited,
                    "document_index": 0,
                    "document_title": None,
                    "start_char_index": 0,
                    "end_char_index": 1,
                }
            ],
        },
        pieces,
        words,
    ),
    st.builds(
        lambda seal, query: {
            "type": "server_tool_use",
            "id": f"srvtoolu_{seal}",
            "name": "web_search",
            "input": query,
        },
        st.text("abc123", min_size=1, max_size=5),
        objects,
    ),
)
anthropic_answers = st.builds(
    lambda blocks: {
        "id": "msg_1",
        "content": blocks,
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1},
    },
    st.lists(anthropic_blocks, max_size=5),
)

# Chat completions

chat_calls = st.builds(
    lambda id_, name, given, extra: {
        **({"id": id_} if id_ is not None else {}),
        "type": "function",
        "function": {"name": name, "arguments": given},
        **({"extra_content": {"google": {"thought_signature": extra}}} if extra else {}),
    },
    call_ids | st.none(),
    names,
    optional_arguments,
    sealed | st.none(),
)
chat_answers = st.builds(
    lambda content, calls, reasoning, field: {
        "id": "chatcmpl-1",
        "choices": [
            {
                "message": {
                    "role": "assistant",
                    "content": content,
                    **({"tool_calls": calls} if calls else {}),
                    **({field: reasoning} if reasoning else {}),
                },
                "finish_reason": "tool_calls" if calls else "stop",
            }
        ],
    },
    words | st.none(),
    st.lists(chat_calls, max_size=3),
    words,
    st.sampled_from(["reasoning_content", "reasoning"]),
)

# Responses

items = st.one_of(
    st.builds(
        lambda texts, refused: {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": text, "annotations": []} for text in texts]
            + [{"type": "refusal", "refusal": text} for text in refused],
        },
        st.lists(words, max_size=2),
        st.lists(words, max_size=1),
    ),
    st.builds(
        lambda texts, seal: {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": text} for text in texts],
            **({"encrypted_content": seal} if seal else {}),
        },
        st.lists(words, max_size=2),
        sealed | st.none(),
    ),
    st.builds(
        lambda id_, name, given: {
            "type": "function_call",
            "id": "fc_1",
            "call_id": id_,
            "name": name,
            "arguments": given,
            "status": "completed",
        },
        call_ids,
        names,
        arguments,
    ),
    st.builds(
        lambda query: {
            "type": "web_search_call",
            "id": "ws_1",
            "status": "completed",
            "action": {"type": "search", "query": query},
        },
        words,
    ),
)
responses_answers = st.builds(
    lambda output: {"id": "resp_1", "object": "response", "status": "completed", "output": output},
    st.lists(items, max_size=5),
)

# Conversations


def anthropic_response(answer: dict[str, Any], request: Request) -> Response:
    return anthropic_wire.from_wire(answer, request=request, model="claude", price=PRICE)


def chat_response(answer: dict[str, Any], request: Request, origin: str = OPENAI_ORIGIN) -> Response:
    return openai_answer.from_wire(
        answer, request=request, peer=Peer("openai", "m"), origin=origin, price=PRICE, now=NOW
    )


def responses_response(answer: dict[str, Any], request: Request) -> Response:
    return responses_answer.from_wire(
        answer, request=request, peer=Peer("openai", "m"), origin=RESPONSES_ORIGIN, price=PRICE, now=NOW
    )


class Turn(NamedTuple):
    """A model's answer, the outcomes of its calls in order, and what the user says besides."""

    read: Callable[[dict[str, Any], Request], Response]
    answer: dict[str, Any]
    outcomes: list[tuple[tuple[Text | Image, ...], bool]]
    said: str


images = st.builds(
    Image,
    media_type=st.sampled_from(["image/png", "image/jpeg", "image/gif", "image/webp"]),
    data=st.binary(min_size=1, max_size=6),
)
shown = st.lists(st.builds(Text, text=st.text(max_size=8)) | images, max_size=3).map(tuple)
answers = st.one_of(
    st.tuples(st.just(anthropic_response), anthropic_answers),
    st.tuples(st.just(chat_response), chat_answers),
    st.tuples(st.just(responses_response), responses_answers),
)
turns = st.builds(
    lambda answered, outcomes, said: Turn(answered[0], answered[1], outcomes, said),
    answers,
    st.lists(st.tuples(shown, st.booleans()), min_size=1, max_size=3),
    st.text(max_size=8),
)
tools = (
    ToolSpec(name="bash", description="Runs it", input_schema={"type": "object", "properties": {"c": {}}}),
    ToolSpec(name="look", input_schema={"type": "object"}),
)
choices = st.none() | st.builds(
    lambda kind, parallel: ToolChoice(type=kind, parallel=parallel, name="bash" if kind == "tool" else None),
    st.sampled_from(["auto", "any", "none", "tool"]),
    st.booleans(),
)
output_schemas = st.none() | st.just(
    OutputSchema(json_schema={"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
)


def from_outside(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer as it is once it has come over the wire."""
    return as_dict(json_in(json.dumps(answer)))


def after(messages: tuple[Message, ...], turn: Turn) -> tuple[Message, ...]:
    """The conversation one turn on: what was answered, a result for each call, and the user's next words."""
    message = turn.read(from_outside(turn.answer), Request(messages=messages)).message
    results = [
        ToolResult(tool_use_id=call.id, content=content, is_error=failed)
        for n, call in enumerate(message.tool_uses)
        for content, failed in [turn.outcomes[n % len(turn.outcomes)]]
    ]
    answered = (message,) if message.content else ()
    return (*messages, *answered, Message.user(*results, turn.said or "go on"))


def built(first: Message, turns: list[Turn]) -> tuple[Message, ...]:
    """A whole conversation, that the next answer is asked of."""
    messages = (first,)
    for turn in turns:
        messages = after(messages, turn)
    return messages


firsts = st.builds(
    lambda text, pictures: Message.user(text, *pictures),
    st.text(min_size=1, max_size=8).filter(str.strip),
    st.lists(images, max_size=1),
)
histories = st.builds(built, firsts, st.lists(turns, max_size=4))
requests = st.builds(
    Request,
    messages=histories,
    system=st.text(max_size=8),
    tools=st.sampled_from([(), tools]),
    tool_choice=choices,
    max_tokens=st.none() | st.integers(1, 40_000),
    prompt_caching=st.booleans(),
    output_schema=output_schemas,
)
