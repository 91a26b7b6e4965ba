"""What a conversation needs of its tools: to show them to a model, and to run a call.

Layer: tools; no Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from palaver.providers.messages import ToolUse
from palaver.providers.provider import ToolSpec
from palaver.tools.call import ToolCallInfo, set_current_call
from palaver.tools.errors import ToolNotFound, ToolTimedOut
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
    Raises ToolDefinitionError when two tools have the same name.
    """

    def __init__(self, tools: Iterable[Tool[..., Any]], convo_id: str = "") -> None:
        tools = list(tools)
        check_names(tools)
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
        # A task of its own, whose context ends with the call.
        task = asyncio.create_task(_call(tool, call, info, started_at))
        try:
            async with asyncio.timeout(tool.timeout_s):
                return await task
        except TimeoutError:
            assert tool.timeout_s is not None
            return Outcome(error=timed_out(tool.name, tool.timeout_s), started_at=started_at)
        except asyncio.CancelledError as error:
            if not task.cancelled() or _being_cancelled():
                raise
            return Outcome.of_error(tool.name, error, started_at)

    async def aclose(self) -> None:
        """Nothing is left to wait for."""


async def _call(tool: Tool[..., Any], call: ToolUse, info: ToolCallInfo, started_at: datetime) -> Outcome:
    set_current_call(info)
    try:
        arguments = tool.signature.bind(call.input, info)
        if tool.is_async:
            value = await tool.function(**arguments)
        else:
            value = await asyncio.to_thread(_plainly, tool.function, arguments)
        return Outcome(content=to_content(tool.name, value, tool.max_output_bytes), started_at=started_at)
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # sys.exit() in a tool ends the tool, not this process
        return Outcome.of_error(tool.name, error, started_at)


def _plainly(function: Callable[..., Any], arguments: dict[str, Any]) -> object:
    try:
        return function(**arguments)
    except StopIteration as error:
        # A future takes none, and whoever awaits it would wait for ever.
        raise RuntimeError("StopIteration") from error


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def timed_out(tool_name: str, timeout_s: float) -> ToolTimedOut:
    """The error of a call that took too long."""
    return ToolTimedOut(
        tool_name, f"tool {tool_name!r} was stopped: it took longer than its limit of {timeout_s:g} s"
    )


def not_found(name: str, available: Iterable[str]) -> ToolNotFound:
    """The error of a call of a tool that is not there."""
    return ToolNotFound(name, f"tool {name!r} not found; available: {sorted(available)}")
