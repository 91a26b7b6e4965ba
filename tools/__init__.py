"""Tools: functions a model can call, each call a Ray task, and the tools of MCP servers."""

from palaver.tools.call import ToolCallInfo, current_call
from palaver.tools.errors import (
    DoNotRespond,
    ToolCancelled,
    ToolCrashed,
    ToolDefinitionError,
    ToolDenied,
    ToolError,
    ToolInputInvalid,
    ToolNotFound,
    ToolOutputInvalid,
    ToolOverBudget,
    ToolRaised,
    ToolTimedOut,
)
from palaver.tools.limits import ToolLimits
from palaver.tools.mcp import McpTool, mcp_tools
from palaver.tools.stopped import EndedProcess, Stopped
from palaver.tools.tool import Resources, Tool, tool
from palaver.tools.workspace import Workspace

__all__ = [
    "DoNotRespond",
    "EndedProcess",
    "McpTool",
    "Resources",
    "Stopped",
    "Tool",
    "ToolCallInfo",
    "ToolCancelled",
    "ToolCrashed",
    "ToolDefinitionError",
    "ToolDenied",
    "ToolError",
    "ToolInputInvalid",
    "ToolLimits",
    "ToolNotFound",
    "ToolOutputInvalid",
    "ToolOverBudget",
    "ToolRaised",
    "ToolTimedOut",
    "Workspace",
    "current_call",
    "mcp_tools",
    "tool",
]
