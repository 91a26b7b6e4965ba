"""The Ray task that every tool call is, and the one module of this layer that knows Ray.

A cancelled call is stopped with `ray.cancel`, which the worker sees as SIGINT (see `supervisor`). Only
where the tool holds the interpreter lock nothing sees it, and `ray.cancel(force=True)` neither, which
then waits for that lock itself (Ray 2.60). Such a worker is killed by its process id, late enough that
one which can be reused by now cannot be hit.

Layer: tools.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import psutil
import ray
import ray.cloudpickle
from ray.exceptions import (
    OutOfMemoryError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    TaskUnschedulableError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from palaver.providers.messages import ToolUse
from palaver.providers.provider import ToolSpec, new_request_id
from palaver.tools.call import ToolCallInfo
from palaver.tools.errors import ToolCancelled, ToolCrashed, ToolError
from palaver.tools.outcome import Outcome
from palaver.tools.supervisor import UNWIND_S, Supervisor
from palaver.tools.tool import Resources, Tool
from palaver.tools.toolset import not_found

CANCELLED_WITHIN_S = 0.25
"""How long a cancelled call is waited for. What is left of it after that ends out of sight."""

_KILL_AFTER_S = 2 * UNWIND_S
"""When the worker of a cancelled call that has not ended by itself is killed."""

_INLINE_CODE_BYTES = 100_000
"""Larger code goes to the object store once, rather than with every call."""


@dataclass(frozen=True, slots=True)
class PackedTool:
    """A tool whose function is still pickled: what a process holds that passes it on and never runs it."""

    spec: ToolSpec
    resources: Resources
    timeout_s: float | None
    code: bytes = field(repr=False)

    def unpack(self) -> Tool[..., Any]:
        """The tool itself. Imports what its function needs; raises what that raises."""
        return _unpack(self.code)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function directly, as with a Tool."""
        return self.unpack()(*args, **kwargs)

    def __reduce__(self) -> tuple[object, ...]:
        return PackedTool, (self.spec, self.resources, self.timeout_s, self.code)


def pack(tool: Tool[..., Any] | PackedTool) -> PackedTool:
    """A tool as it travels: by its module and name where it has those, else with its code."""
    if isinstance(tool, PackedTool):
        return tool
    name = _importable_name(tool)
    content = name if name is not None else (tool.function, tool.options())
    return PackedTool(tool.spec, tool.resources, tool.timeout_s, ray.cloudpickle.dumps(content))


def _importable_name(tool: Tool[..., Any]) -> tuple[str, str] | None:
    module_name: str = getattr(tool.function, "__module__", "")
    attribute: str = getattr(tool.function, "__qualname__", "")
    module = sys.modules.get(module_name)
    if module_name == "__main__" or getattr(module, attribute, None) is not tool:
        return None
    return module_name, attribute


@lru_cache(maxsize=256)
def _unpack(code: bytes) -> Tool[..., Any]:
    first, second = cast("tuple[Any, Any]", ray.cloudpickle.loads(code))
    if isinstance(first, str):
        __import__(first)
        return cast("Tool[..., Any]", getattr(sys.modules[first], second))
    return Tool(first, **second)


@ray.remote(num_cpus=0, max_retries=0)
def run_tool(tool: PackedTool, tool_input: Mapping[str, Any], info: ToolCallInfo) -> Outcome:
    """One tool call. Its worker is reused by the next call, unless the call could not be stopped."""
    return Supervisor(tool.unpack(), tool_input, info).run()


class RayToolset:
    """Runs each call as a Ray task of its own."""

    def __init__(self, tools: Iterable[PackedTool], convo_id: str, convo: object) -> None:
        self._tools = {each.spec.name: each for each in tools}
        self._convo_id = convo_id
        self._convo = convo
        self._shipped: dict[str, Any] = {}
        self._leftovers: set[asyncio.Task[None]] = set()

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """The tools as the model sees them."""
        return [each.spec for each in self._tools.values()]

    async def run(self, call: ToolUse) -> Outcome:
        """Run a call to its end. Never raises for what the tool does.

        Cancelling the coroutine stops the tool; it then raises CancelledError, within half a second.
        """
        tool = self._tools.get(call.name)
        if tool is None:
            return Outcome(error=not_found(call.name, self._tools))
        info = ToolCallInfo(call.id, call.name, self._convo_id, self._convo)
        # Ray makes the task's name the title of the worker's process for as long as it runs.
        title = f"tool {call.name} {new_request_id()}"
        ref = self._submit(tool, title, call, info)
        done = asyncio.wrap_future(cast("Any", ref).future())
        try:
            return cast(Outcome, await asyncio.shield(done))
        except asyncio.CancelledError:
            ray.cancel(ref)
            await self._stopped(title, done)
            raise
        except RayError as error:
            return Outcome(error=_edge(tool.spec.name, error))

    async def aclose(self) -> None:
        """Wait until nothing of a cancelled call is left."""
        if self._leftovers:
            await asyncio.wait(self._leftovers)

    def _submit(self, tool: PackedTool, title: str, call: ToolUse, info: ToolCallInfo) -> Any:
        name = tool.spec.name
        if name not in self._shipped:
            asked = tool.resources
            options: dict[str, Any] = {
                "num_cpus": asked.num_cpus,
                "num_gpus": asked.num_gpus,
                "memory": asked.memory or None,
                "resources": dict(asked.resources) or None,
                "label_selector": dict(asked.label_selector) or None,
            }
            given = {key: value for key, value in options.items() if value is not None}
            shipped = ray.put(tool) if len(tool.code) > _INLINE_CODE_BYTES else tool
            self._shipped[name] = (given, shipped)
        options, shipped = self._shipped[name]
        return cast("Any", run_tool).options(name=title, **options).remote(shipped, call.input, info)

    async def _stopped(self, title: str, done: asyncio.Future[Any]) -> None:
        """Wait for a cancelled call to end; what takes longer is left to a task of its own."""
        ended, _ = await asyncio.wait({done}, timeout=CANCELLED_WITHIN_S)
        if ended:
            done.exception()
            return
        leftover = asyncio.create_task(_kill_later(title, done))
        self._leftovers.add(leftover)
        leftover.add_done_callback(self._leftovers.discard)


async def _kill_later(title: str, done: asyncio.Future[Any]) -> None:
    ended, _ = await asyncio.wait({done}, timeout=_KILL_AFTER_S)
    if not ended:
        kills = [asyncio.wrap_future(ref.future()) for ref in await asyncio.to_thread(_kill_everywhere, title)]
        # Bounded: Ray does not promise that a cancelled task's reference ever resolves.
        ended, _ = await asyncio.wait({done, *kills}, timeout=_KILL_AFTER_S)
    if done in ended:
        done.exception()


def _kill_everywhere(title: str) -> list[Any]:
    """Kill the worker that runs the task of that name, on whichever node it is. One reference per node."""
    return [
        cast("Any", kill_worker)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(title)
        for node in ray.nodes()
        if node["Alive"]
    ]


@ray.remote(num_cpus=0, max_retries=0)
def kill_worker(title: str) -> int:
    """Kill the worker on this node that runs the task named `title`; how many there were (0 or 1)."""
    killed = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.cmdline()[:1] == [f"ray::{title}"]:
                process.kill()
                killed += 1
    return killed


def _edge(tool_name: str, error: RayError) -> ToolError:
    """Ray's exception as one of ours."""
    match error:
        case TaskCancelledError():
            return ToolCancelled(tool_name, f"tool {tool_name!r} was cancelled")
        case OutOfMemoryError():
            return ToolCrashed(
                tool_name,
                f"the process of tool {tool_name!r} was killed because its node ran out of memory; "
                "ask it for less, or give the tool more with @tool(memory=...)",
            )
        case TaskUnschedulableError():
            return ToolCrashed(tool_name, f"tool {tool_name!r} cannot be placed on any node: {error}")
        case RayTaskError():
            return ToolCrashed(
                tool_name,
                f"tool {tool_name!r} could not be loaded where it was to run: "
                f"{type(error.cause).__name__}: {error.cause}. What it needs has to be installed on every node.",
            )
        case _:
            return ToolCrashed(
                tool_name,
                f"the process of tool {tool_name!r} died ({type(error).__name__}): it was killed, crashed in "
                "native code, or did not stop at its time limit",
            )
