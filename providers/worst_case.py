"""The most that one request can come to, before it is sent: what a budget reserves.

Input is bounded by bytes, since a token of a byte-level tokenizer is at least one byte of UTF-8: what goes
over the wire, less the pictures, plus what a provider adds of its own. That is three to four times too much
for English text (November 2026), but only for what is new: earlier messages are as the provider counted them.

Layer: providers; pure functions of neutral values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol, runtime_checkable

from palaver.providers.messages import Content, Image, Message, ToolResult, ToolUse
from palaver.providers.prices import CacheWrites, Price
from palaver.providers.provider import Request

USEFUL_TOKENS = 256
"""An answer that is cut before this is of no use."""

_PER_MESSAGE = 16
"""Tokens around a message: the role, begin and end. OpenAI documents 3; open chat templates have up to 8."""
_PER_BLOCK = 16
"""Tokens around a piece of a message: a text, a picture, a call, a result."""
_PER_TOOL = 32
"""Tokens around the definition of a tool."""


@dataclass(frozen=True, slots=True)
class WorstCase:
    """The most that one request can come to, before it is sent.

    An answer is charged with `usd_per_output_token` for each token, thinking included. Both amounts are
    None together.
    """

    input_tokens: int
    """Counted, or estimated from above."""
    output_tokens: int | None
    """The most the answer may have, thinking included. None: nothing bounds it."""
    min_output_tokens: int
    """An answer cut shorter than this is of no use; at most `output_tokens`."""
    input_usd: Decimal | None
    """None: the price is unknown."""
    usd_per_output_token: Decimal | None


@dataclass(frozen=True, slots=True)
class CountedInput:
    """What the provider counted for an earlier request of the same conversation.

    Its messages are a prefix of the next request's; system prompt and tools are the same.
    """

    messages: int
    """How many messages of the request it covers."""
    input_tokens: int
    """All input of that exchange, cached or not."""
    output_tokens: int
    """Of its answer, which is the next message."""


@runtime_checkable
class BoundsCost(Protocol):
    """What a provider has besides when it can tell beforehand what a request may cost at most.

    One without it has no known price.
    """

    def worst_case(self, request: Request, counted: CountedInput | None = None) -> WorstCase:
        """The most that one try of `request` can come to. Nothing is sent."""
        ...


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a provider adds to the input that is in no byte of the request, in tokens."""

    per_request: int
    """A system prompt of its own, and what a chat template adds."""
    for_tools: int
    """What it adds when there are tools."""
    for_tool_choice: int
    """The most by which another tool choice changes `for_tools`."""
    for_output_schema: int
    """What it adds when the answer is held to a schema, besides the schema."""
    per_image: int
    """The most that it counts for a picture of any size."""


def worst_input_tokens(
    request: Request,
    counted: CountedInput | None,
    to_wire: Callable[[Request], Mapping[str, Any]],
    overhead: Overhead,
) -> int:
    """A bound of the input tokens of `request`, from above."""
    if counted is not None and counted.messages >= len(request.messages):
        counted = None  # of another conversation, it seems
    new = request.messages if counted is None else _after(request.messages, counted.messages)
    parts = [part for message in new for part in _pieces(message)]
    tokens = (
        len(new) * _PER_MESSAGE
        + len(parts) * _PER_BLOCK
        + sum(isinstance(part, Image) for part in parts) * overhead.per_image
    )
    if request.output_schema is not None:
        # It may not have been part of the request that was counted.
        tokens += overhead.for_output_schema
    if counted is None:
        tokens += overhead.per_request
        if request.tools:
            tokens += overhead.for_tools + len(request.tools) * _PER_TOOL
        system, tools = request.system, request.tools
    else:
        tokens += counted.input_tokens + counted.output_tokens
        if request.tools:
            tokens += overhead.for_tool_choice
        system, tools = "", ()
    sent = request.model_copy(
        update={"messages": tuple(map(_without_images, new)), "system": system, "tools": tools}
    )
    body = dict(to_wire(sent))
    # Some chat templates show tools as indented JSON (Llama's), some escape what is not ASCII.
    shown_tools = json.dumps(body.pop("tools", ()), indent=4, default=str)
    rest = json.dumps(body, ensure_ascii=False, default=str)
    return tokens + len(shown_tools) + len(rest.encode(errors="surrogatepass"))


def priced(
    price: Price | None,
    input_tokens: int,
    *,
    output_tokens: int | None,
    cache_writes: CacheWrites,
    service_tiers: Iterable[str] = (),
    thinking_tokens: int = 0,
) -> WorstCase:
    """The worst case of that many tokens at most, of which thinking may take `thinking_tokens` first.

    `cache_writes` and `service_tiers` as in `Price.worst_rates`.
    """
    useful = thinking_tokens + USEFUL_TOKENS
    rates = None
    if price is not None:
        rates = price.worst_rates(input_tokens, cache_writes=cache_writes, service_tiers=service_tiers)
    return WorstCase(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        min_output_tokens=useful if output_tokens is None else min(useful, output_tokens),
        input_usd=None if rates is None else rates.input_usd(input_tokens),
        usd_per_output_token=None if rates is None else rates.usd_per_output_token,
    )


def _after(messages: tuple[Message, ...], covered: int) -> tuple[Message, ...]:
    """The messages that come after the answer to the first `covered` ones.

    Of the answer its calls are kept, without their input: the ids of results are sent as those of calls.
    """
    answer = messages[covered]
    if answer.role != "assistant":
        return messages[covered:]  # the answer was empty, and is in no history
    calls = tuple(
        ToolUse(id=call.id, name=call.name, wire_id=call.wire_id, origin=call.origin)
        for call in answer.tool_uses
    )
    return (Message(role="assistant", content=calls), *messages[covered + 1 :])


def _pieces(message: Message) -> list[Content]:
    inner = [part for result in message.tool_results for part in result.content]
    return [*message.content, *inner]


def _without_images(message: Message) -> Message:
    """The message with its pictures empty: they are not counted by their bytes, nor worth encoding."""
    if not any(isinstance(part, Image) for part in _pieces(message)):
        return message
    content = tuple(
        part.model_copy(update={"content": tuple(map(_empty, part.content))})
        if isinstance(part, ToolResult)
        else _empty(part)
        for part in message.content
    )
    return message.model_copy(update={"content": content})


def _empty(part: Content) -> Content:
    return part.model_copy(update={"data": b""}) if isinstance(part, Image) else part
