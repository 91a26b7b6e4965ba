"""What a conversation needs of its tools: to show them to a model, and to run a call.

Layer: tools; no Ray.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from palaver.providers.messages import ToolUse
from palaver.providers.provider import ToolSpec
from palaver.tools.call import ToolCallInfo, set_current_call
from palaver.tools.errors import DoNotRespond, ToolError, ToolNotFound, ToolRaised, ToolTimedOut
from palaver.tools.outcome import Outcome, to_content
from palaver.tools.tool import Tool, check_names


class Toolset(Protocol):
    """The tools of one conversation."""

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """The tools as the model sees them."""
        ...

    async def run(self, call: ToolUse) -> Outcome:
        """Run a call to its end. Never raises for what the tool does.

        Cancelling the coroutine stops the tool; it then raises CancelledError, within half a second.
        """
        ...

    async def aclose(self) -> None:
        """Wait until nothing of a cancelled call is left."""
        ...


class InlineToolset:
    """Runs tools in this process: for tests of what calls tools, and where no isolation is wanted.

    A plain function runs in a thread, which nothing can stop: a cancelled call of one goes on unseen.
    """

    def __init__(self, tools: Iterable[Tool[..., Any]], convo_id: str = "") -> None:
        self._tools = {each.name: each for each in tools}
        self._convo_id = convo_id

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """The tools as the model sees them."""
        return [each.spec for each in self._tools.values()]

    async def run(self, call: ToolUse) -> Outcome:
        """Run a call to its end. Never raises for what the tool does."""
        tool = self._tools.get(call.name)
        if tool is None:
            return Outcome(error=not_found(call.name, self._tools))
        info = ToolCallInfo(tool_use_id=call.id, tool_name=call.name, convo_id=self._convo_id)
        started_at = datetime.now(UTC)
        try:
            async with asyncio.timeout(tool.timeout_s):
                value = await asyncio.create_task(_call(tool, call, info))
            return Outcome(content=to_content(tool.name, value, tool.max_output_bytes), started_at=started_at)
        except Exception as error:
            return failure(tool, error, started_at)

    async def aclose(self) -> None:
        """Nothing is left to wait for."""


async def _call(tool: Tool[..., Any], call: ToolUse, info: ToolCallInfo) -> object:
    arguments = tool.signature.bind(call.input, info)
    set_current_call(info)
    if inspect.iscoroutinefunction(tool.function):
        return await tool.function(**arguments)
    return await asyncio.to_thread(tool.function, **arguments)


def failure(tool: Tool[..., Any], error: BaseException, started_at: datetime) -> Outcome:
    """How a call ended that raised `error`."""
    match error:
        case DoNotRespond():
            return Outcome(respond=False, started_at=started_at)
        case ToolError():
            return Outcome(error=error, started_at=started_at)
        case TimeoutError() if tool.timeout_s is not None:
            return Outcome(error=timed_out(tool), started_at=started_at)
        case _:
            text = f"tool {tool.name!r} raised {type(error).__name__}: {error}"
            return Outcome(error=ToolRaised(tool.name, text), started_at=started_at)


def timed_out(tool: Tool[..., Any]) -> ToolTimedOut:
    """The error of a call that took too long."""
    return ToolTimedOut(
        tool.name, f"tool {tool.name!r} was stopped: it took longer than its limit of {tool.timeout_s:g} s"
    )


def not_found(name: str, available: Iterable[str]) -> ToolNotFound:
    """The error of a call of a tool that is not there."""
    return ToolNotFound(name, f"tool {name!r} not found; available: {sorted(available)}")
