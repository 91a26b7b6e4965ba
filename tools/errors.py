"""Errors of tool calls; they carry on the tree of `palaver.providers.errors`.

    PalaverError
      ToolError               a tool call failed; the model gets the text as the call's result
        ToolNotFound          the model called a tool that the conversation does not have
        ToolInputInvalid      the input does not fit the tool's schema
        ToolRaised            the tool's own code raised
        ToolTimedOut          the call took longer than the tool allows
        ToolCancelled         the call was cancelled
        ToolDenied            the call needed a yes, and got a no
        ToolOverBudget        a budget has no room for another call; it has not run
        ToolOutputInvalid     the tool returned what cannot be sent to a model
        ToolCrashed           the process that ran the tool died
      ToolDefinitionError     a function cannot be made into a tool
    DoNotRespond              raised by a tool: this call gets no result

Layer: tools; no Ray.
"""

from __future__ import annotations

from palaver.providers.errors import ConfigurationError, PalaverError


class ToolError(PalaverError):
    """A call of tool `tool_name` failed. `str(error)` is what the model gets to read."""

    def __init__(self, tool_name: str, message: str) -> None:
        super().__init__(tool_name, message)
        self.tool_name = tool_name
        self.message = message

    def __str__(self) -> str:
        return self.message


class ToolNotFound(ToolError):
    """The model called a tool that the conversation does not have."""


class ToolInputInvalid(ToolError):
    """The input does not fit the tool's schema."""


class ToolRaised(ToolError):
    """The tool's own code raised an exception."""


class ToolTimedOut(ToolError):
    """The call took longer than the tool allows."""


class ToolCancelled(ToolError):
    """The call was cancelled; the message is the cause."""


class ToolDenied(ToolError):
    """The call needed somebody's approval and did not get it; it has not run."""


class ToolOverBudget(ToolError):
    """A budget of the conversation, or of one above it, has no room for another call; it has not run."""


class ToolOutputInvalid(ToolError):
    """The tool returned something that cannot be sent to a model, or too much of it."""


class ToolCrashed(ToolError):
    """The process that ran the tool died: out of memory, killed, or a crash in native code."""


class ToolDefinitionError(ConfigurationError):
    """A function cannot be made into a tool, or a set of tools cannot be used together."""


class DoNotRespond(Exception):
    """Raised by a tool whose call needs no result: a signal to the conversation, not an error."""
