"""Answers that come in parts: the parts, and what puts them together to a whole answer.

A stream is assembled to the JSON that the server would have sent without streaming, and read by the same
code: so both give the same message.

Layer: providers; imports the neutral types alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from pydantic import NonNegativeInt

from palaver.providers.messages import Value
from palaver.providers.provider import Request, Response
from palaver.providers.usage import Usage

LONG_ANSWER_TOKENS = 21_333
"""An answer that may have more is streamed inside, whoever asks: it might take longer than the ten minutes
that connections are kept, at 128,000 tokens an hour, as the official SDK reckons (`anthropic` 2.12,
`_calculate_nonstreaming_timeout`)."""

END = "[DONE]"
"""What some formats send for data at the end of a stream."""


class TextDelta(Value):
    """A further piece of the answer's text."""

    type: Literal["text"] = "text"
    text: str


class ThinkingDelta(Value):
    """A further piece of the reasoning that the model shows."""

    type: Literal["thinking"] = "thinking"
    text: str


class ToolInputDelta(Value):
    """A further piece of a tool call's input: JSON that is whole only at the end.

    `position` tells the calls of an answer apart: 0 for its first. The first piece of a call may be empty.
    """

    type: Literal["tool_input"] = "tool_input"
    position: NonNegativeInt
    name: str
    text: str


class UsageSoFar(Value):
    """What the provider has counted of this answer so far; each replaces the one before."""

    type: Literal["usage"] = "usage"
    usage: Usage


Delta: TypeAlias = TextDelta | ThinkingDelta | ToolInputDelta | UsageSoFar


class Answered(Value):
    """The end of a stream: the whole response, as `Provider.generate` would have returned it."""

    type: Literal["answered"] = "answered"
    response: Response


@runtime_checkable
class Streams(Protocol):
    """What a provider has besides when it can hand out an answer while it comes."""

    def stream(self, request: Request) -> AsyncGenerator[Delta | Answered]:
        """The parts of one answer, as they come; the last is `Answered`.

        Tries that fail before anything was handed out are made again as in `Provider.generate`. After that,
        raises StreamBroken, which carries what had come. Closing the generator stops the request at once.
        """
        ...


class Assembler(Protocol):
    """Puts the events of one stream together to the JSON of a whole answer."""

    def feed(self, event: str, data: Mapping[str, Any]) -> Sequence[Delta]:
        """Take one event, by its name ("" where the format names none) and its JSON; the parts in it.

        END comes as a name, without data.
        """
        ...

    @property
    def complete(self) -> bool:
        """Whether the answer has come to its end."""
        ...

    def answer(self) -> dict[str, Any]:
        """What has come so far, as the server would have sent it without streaming."""
        ...


async def handed_out(
    answer: Callable[[Callable[[Delta], None]], Awaitable[Response]],
) -> AsyncGenerator[Delta | Answered]:
    """The parts that `answer` hands out, and then the response it returns; what it raises is raised.

    Closing the generator cancels it.
    """
    parts: asyncio.Queue[Delta | None] = asyncio.Queue()

    async def work() -> Response:
        try:
            return await answer(parts.put_nowait)
        finally:
            parts.put_nowait(None)

    working = asyncio.create_task(work())
    try:
        while (part := await parts.get()) is not None:
            yield part
        yield Answered(response=await working)
    finally:
        working.cancel()
        await asyncio.wait({working})
