"""What comes of a run.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Literal, TypeAlias

from palaver.actors.usage import CumulativeUsage
from palaver.providers.messages import Message, Value
from palaver.providers.provider import Response, StopReason

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=None)
    """Of what type the answer is; None where none was asked for."""
else:
    from typing import TypeVar

    # Pydantic would check every output against the default.
    T = TypeVar("T")

RunStop: TypeAlias = Literal[
    "end_turn",
    "stop_sequence",
    "no_response",
    "max_tokens",
    "refusal",
    "pause",
    "context_full",
    "empty_reply",
    "invalid_output",
    "budget",
    "cancelled",
]
"""Why a run ended. The first three are a proper end: the model ended its turn, met a stop sequence, or
called only tools that want no answer. The rest are limits: the answer was cut at max_tokens, refused,
paused by the provider, or did not fit the context window; the model gave nothing at all, or time and again
an answer that is not of the type asked for, or no call where there has to be one;
a budget is used up; or the run was cancelled."""


class RunResult(Value, Generic[T]):
    """How a run ended, and what came of it.

    `text` is the text of the model's last message. `usage` is cumulative: all of the conversation and
    its sub-conversations. `detail` says more about a stop by a limit, None otherwise. `output` is the answer
    as a value of the run's `output_type`; None when none was asked for, or the run stopped before there was
    one: then `finished` is False, or the stop is "no_response".

    Always made as plain `RunResult(...)`: a `RunResult[Model](...)` is of a class made on the fly, which
    does not travel between processes.
    """

    convo_id: str
    stop: RunStop
    text: str
    message: Message | None
    responses: int
    usage: CumulativeUsage
    detail: str | None = None
    output: T | None = None

    @property
    def finished(self) -> bool:
        """Whether the run came to a proper end, rather than being stopped by a limit."""
        return self.stop in ("end_turn", "stop_sequence", "no_response")


def stop_of(response: Response, *, first: bool) -> RunStop:
    """Why a run ends with a response whose tools are not called."""
    match response.stop_reason:
        case StopReason.MAX_TOKENS | StopReason.REFUSAL | StopReason.PAUSE | StopReason.CONTEXT_FULL as stop:
            return stop.value
        case StopReason.STOP_SEQUENCE:
            return "stop_sequence"
        case _:
            # After tool calls a model may have nothing to add; at the start that is a failure.
            return "empty_reply" if first and not response.message.text.strip() else "end_turn"
