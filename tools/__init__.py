"""Tools: functions a model can call, each call a Ray task."""

from palaver.tools.call import ToolCallInfo, current_call
from palaver.tools.errors import (
    DoNotRespond,
    ToolCancelled,
    ToolCrashed,
    ToolDefinitionError,
    ToolError,
    ToolInputInvalid,
    ToolNotFound,
    ToolOutputInvalid,
    ToolRaised,
    ToolTimedOut,
)
from palaver.tools.tool import Resources, Tool, tool

__all__ = [
    "DoNotRespond",
    "Resources",
    "Tool",
    "ToolCallInfo",
    "ToolCancelled",
    "ToolCrashed",
    "ToolDefinitionError",
    "ToolError",
    "ToolInputInvalid",
    "ToolNotFound",
    "ToolOutputInvalid",
    "ToolRaised",
    "ToolTimedOut",
    "current_call",
    "tool",
]
