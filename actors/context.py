"""The context window: how much of it a request takes, and the summary that a full one goes on from.

What providers counted is exact; the rest is estimated at four bytes a token.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from pydantic import NonNegativeInt, PositiveInt

from palaver.providers.messages import (
    Content,
    Image,
    Message,
    Opaque,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Value,
)
from palaver.providers.provider import Request
from palaver.providers.usage import Usage
from palaver.providers.worst_case import CountedInput

BYTES_PER_TOKEN = 4
IMAGE_TOKENS = 1_600
"""About what a large picture takes."""

_SUMMARY_TOKENS = 4_096
"""What is left to the summary itself, or half of the room where that is less."""
_LEFT_OF_A_RESULT = 400
"""Bytes that are kept of a result, at least."""

ASK = """\
This conversation has grown long and ends here. Somebody who sees nothing of it goes on with the work \
from what you write now. Write down all that they need: what was asked for, with every requirement and \
preference, in the words it was given; what was done and what came of it; what was found out, with exact \
names, paths, numbers and quotations; what failed and why; what is under way or still open, and the next \
step. Write nothing else, and call no tool."""

PREFACE = (
    "The conversation so far grew long. It was replaced by this summary of it, which you wrote:\n\n{summary}"
)


class Compaction(Value):
    """One replacement of a conversation's messages by a summary of them.

    `number` counts from 1. `messages` is how many were replaced; `Convo.former_messages` has them. `usage`
    is of the request for the summary, which counts in all sums.
    """

    number: PositiveInt
    summary: str
    messages: NonNegativeInt
    request_id: str
    usage: Usage


def taken_tokens(request: Request, counted: CountedInput | None) -> int:
    """How many tokens of the window a request takes, by what was counted of the one before it."""
    if counted is None:
        around = len(request.system.encode(errors="replace")) + len(
            json.dumps([tool.model_dump() for tool in request.tools])
        )
        return math.ceil(around / BYTES_PER_TOKEN) + _estimated_of(request.messages)
    # The first of the others is the answer.
    return (
        counted.input_tokens + counted.output_tokens + _estimated_of(request.messages[counted.messages + 1 :])
    )


def estimated_tokens(contents: Iterable[Content]) -> int:
    """About how many tokens contents take."""
    return sum(map(_estimated, contents))


def asking(results: Iterable[ToolResult], instructions: str, room_tokens: int | None) -> tuple[Content, ...]:
    """What asks for a summary: the results of open calls, shortened to fit into the room, and the words.

    None: the room is not known, and nothing is shortened.
    """
    words = f"{ASK}\n\n{instructions}" if instructions.strip() else ASK
    whole = tuple(results)
    if room_tokens is not None:
        left = room_tokens - min(_SUMMARY_TOKENS, room_tokens // 2) - estimated_tokens([Text(text=words)])
        if whole and estimated_tokens(whole) > left:
            each = max(_LEFT_OF_A_RESULT, left * BYTES_PER_TOKEN // len(whole))
            whole = tuple(_shortened(result, each) for result in whole)
    return (*whole, Text(text=words))


def _estimated_of(messages: Iterable[Message]) -> int:
    return sum(estimated_tokens(message.content) for message in messages)


def _estimated(part: Content) -> int:
    match part:
        case Image():
            return IMAGE_TOKENS
        case ToolResult():
            return estimated_tokens(part.content)
        case Text() | Thinking():
            size = len(part.text.encode(errors="replace"))
        case ToolUse():
            size = len(part.name) + len(part.malformed_input or json.dumps(part.input))
        case Opaque():
            size = len(json.dumps(part.raw, default=str))
    return math.ceil(size / BYTES_PER_TOKEN)


def _shortened(result: ToolResult, most_bytes: int) -> ToolResult:
    told = "\n".join(part.text if isinstance(part, Text) else "[a picture]" for part in result.content)
    data = told.encode(errors="replace")
    if len(data) > most_bytes:
        kept = data[:most_bytes].decode(errors="ignore")
        told = f"{kept}\n[{len(data) - len(kept.encode())} more bytes did not fit into the context window]"
    return result.model_copy(update={"content": (Text(text=told),)})
