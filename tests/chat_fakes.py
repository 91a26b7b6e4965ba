"""What servers of chat completions answer, and what is sent to them, for the tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from wire_fakes import KEY, FakeClock, FakeServer

from palaver.providers import Message, OpenAI, Price, Profile, Request, Response, ToolSpec
from palaver.providers.http_errors import Peer
from palaver.providers.openai_answer import from_wire
from palaver.providers.openai_wire import to_wire

BASH = ToolSpec(name="bash", description="Runs it", input_schema={"type": "object", "properties": {}})
PRICE = Price.per_million_tokens(2, 8, cache_read_usd="0.5")


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
