"""What a running tool can learn of its own call.

Layer: tools; no Ray.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCallInfo:
    """The call a tool is running for.

    A tool gets it through a parameter of this type, or from `current_call()`. `convo` is the handle of
    the conversation's actor (`palaver.actors.ConvoHandle`), for instance to start sub-conversations;
    None when the tool runs outside an actor.
    """

    tool_use_id: str
    tool_name: str
    convo_id: str
    convo: Any = None


_current: ContextVar[ToolCallInfo] = ContextVar("palaver_tool_call")


def current_call() -> ToolCallInfo:
    """The call that the caller is running for. Raises LookupError outside a tool call."""
    try:
        return _current.get()
    except LookupError:
        raise LookupError("current_call() works only inside a tool call; there is none here") from None


def set_current_call(info: ToolCallInfo) -> None:
    """Make `info` what `current_call()` gives in this context."""
    _current.set(info)
