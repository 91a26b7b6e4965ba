"""What a running tool can learn of its own call, and what it can leave for later ones.

Layer: tools; no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Job:
    """A call that goes on in the background, after the call that asked for it has its result.

    `tool` is called with `input`, unseen by the model. `label` is what people see of it.
    """

    tool: Any
    input: Mapping[str, Any]
    label: str


@dataclass(frozen=True, slots=True)
class ToolCallInfo:
    """The call a tool is running for.

    A tool gets it through a parameter of this type, or from `current_call()`. `convo` is the handle of
    the conversation's actor (`palaver.actors.ConvoHandle`), for instance to start sub-conversations;
    None when the tool runs outside an actor. `workspace` is the absolute path of the folder that the
    conversation's tree works in; None when it has none.

    `state` holds what tools keep between the calls of one conversation: JSON values, by a key that starts
    with the tool's name. What a call has put there when it ends is there in the next; of calls that run at
    once the last to end wins, key by key. A value None removes the key. A call that was stopped, or whose
    process died, changes nothing.
    """

    tool_use_id: str
    tool_name: str
    convo_id: str
    convo: Any = None
    workspace: str | None = None
    state: dict[str, Any] = field(default_factory=dict[str, Any])
    jobs: list[Job] = field(default_factory=list[Job])

    def start_job(self, tool: Any, input: Mapping[str, Any], label: str) -> None:
        """Go on with a call of `tool` (a Tool) with `input` in the background once this call has ended well.

        `label` is what trees and reports show of it. It has this call's workspace and a copy of its state,
        no timeout but its own, and nobody gets its result: what others are to know of it, it writes
        somewhere. It is stopped, as any call, by `cancel` and `close` of the conversation.
        """
        self.jobs.append(Job(tool, input, label))


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
