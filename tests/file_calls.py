"""Calls of the file tools, as a model makes them and reads their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palaver.providers.messages import ToolResult, ToolUse
from palaver.tools.files import FILE_TOOLS
from palaver.tools.toolset import InlineToolset


class Calls:
    """The file tools in a workspace."""

    def __init__(self, workspace: Path | None) -> None:
        self._toolset = InlineToolset(FILE_TOOLS, workspace=None if workspace is None else str(workspace))

    async def result(self, tool: str, **tool_input: Any) -> ToolResult:
        """The result of a call."""
        outcome = await self._toolset.run(ToolUse(id="call-1", name=tool, input=tool_input))
        return outcome.to_result("call-1")

    async def text(self, tool: str, **tool_input: Any) -> str:
        """The text of a call that goes well."""
        result = await self.result(tool, **tool_input)
        assert not result.is_error, result.text
        return result.text

    async def refusal(self, tool: str, **tool_input: Any) -> str:
        """The text of a call that fails."""
        result = await self.result(tool, **tool_input)
        assert result.is_error, result.text
        return result.text
