"""The events of one run, for who follows it while it goes on: merged, and batched in time.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from pydantic import NonNegativeFloat, PositiveInt

from palaver.actors.batches import Batches
from palaver.actors.context import Compaction
from palaver.actors.result import RunResult
from palaver.providers.messages import Text, Thinking, ToolResult, ToolUse, Value
from palaver.providers.provider import Response
from palaver.providers.stream import Delta, TextDelta, ThinkingDelta, ToolInputDelta, UsageSoFar


class Responded(Value):
    """An answer is whole, kept and charged."""

    type: Literal["responded"] = "responded"
    response: Response


class ToolStarted(Value):
    """A tool call begins; it may wait for somebody's yes."""

    type: Literal["tool_started"] = "tool_started"
    call: ToolUse


class ToolEnded(Value):
    """A tool call has ended, and the model will get this result."""

    type: Literal["tool_ended"] = "tool_ended"
    call: ToolUse
    result: ToolResult


class Retrying(Value):
    """A request failed and is sent again in `wait_s` seconds (0: as soon as the rate gate lets it)."""

    type: Literal["retrying"] = "retrying"
    reason: str
    attempt: PositiveInt
    """How many tries there were."""
    wait_s: NonNegativeFloat


class Compacted(Value):
    """All messages were replaced by a summary, which came without events of its own."""

    type: Literal["compacted"] = "compacted"
    compaction: Compaction


class RunEnded(Value):
    """The end of the run: what `run` would have returned. Always the last event."""

    type: Literal["run_ended"] = "run_ended"
    result: RunResult[Any]


ConvoEvent: TypeAlias = Delta | Responded | Retrying | Compacted | ToolStarted | ToolEnded | RunEnded


class Feed(Batches[ConvoEvent]):
    """What happens in one run, until somebody takes it; pieces of the same text are joined."""

    def joined(self, last: ConvoEvent, new: ConvoEvent) -> ConvoEvent | None:
        return _joined(last, new)


def _joined(last: ConvoEvent, event: ConvoEvent) -> ConvoEvent | None:
    match last, event:
        case TextDelta(), TextDelta():
            return TextDelta(text=last.text + event.text)
        case ThinkingDelta(), ThinkingDelta():
            return ThinkingDelta(text=last.text + event.text)
        case ToolInputDelta(), ToolInputDelta() if last.position == event.position:
            return event.model_copy(update={"text": last.text + event.text})
        case UsageSoFar(), UsageSoFar():
            return event
        case _:
            return None


def deltas_of(response: Response) -> Iterable[Delta]:
    """The parts of an answer that came whole."""
    position = 0
    for part in response.message.content:
        match part:
            case Text():
                yield TextDelta(text=part.text)
            case Thinking():
                yield ThinkingDelta(text=part.text)
            case ToolUse():
                text = part.malformed_input or json.dumps(part.input, ensure_ascii=False)
                yield ToolInputDelta(position=position, name=part.name, text=text)
                position += 1
            case _:
                pass
    yield UsageSoFar(usage=response.usage)
