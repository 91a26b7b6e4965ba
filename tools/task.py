"""The Ray task that every tool call is, and the one module of this layer that knows Ray.

A cancelled call is stopped with `ray.cancel`, which the worker sees as SIGINT (see `supervisor`). Only
where the tool holds the interpreter lock nothing sees it, and `ray.cancel(force=True)` neither, which
then waits for that lock itself (Ray 2.60). Such a worker is killed by its process id, late enough that
one which can be reused by now cannot be hit. What a dead worker's call left behind is found by a mark
in its environment.

Layer: tools.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import psutil
import ray
from ray import cloudpickle
from ray.exceptions import (
    OutOfMemoryError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from palaver.providers.messages import ToolUse
from palaver.providers.provider import ToolSpec, new_request_id
from palaver.tools.call import ToolCallInfo
from palaver.tools.descendants import end_all
from palaver.tools.errors import ToolCancelled, ToolCrashed, ToolDefinitionError, ToolError
from palaver.tools.outcome import Outcome
from palaver.tools.placement import shortfall
from palaver.tools.supervisor import UNWIND_S, Supervisor
from palaver.tools.tool import Resources, Tool
from palaver.tools.toolset import not_found, timed_out

logger = logging.getLogger(__name__)

CANCELLED_WITHIN_S = 0.25
"""How long a cancelled call is waited for. What is left of it after that ends out of sight."""

_KILL_AFTER_S = 2 * UNWIND_S
"""When the worker of a cancelled call that has not ended by itself is killed."""

_UNPLACED_AFTER_S = 1.0
"""When it is looked up whether a call that asks for resources can run anywhere."""

_INLINE_CODE_BYTES = 100_000
"""Larger code goes to the object store once, rather than with every call."""

_MARK = "PALAVER_TOOL_CALL"
"""The environment variable by which processes are found that a call started, even from elsewhere."""


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
    """A tool as it travels: by its module and name where it has those, else with its code.

    Raises ToolDefinitionError for code that cannot be pickled, or resources that Ray does not know.
    """
    if isinstance(tool, PackedTool):
        return tool
    try:
        cast("Any", run_tool).options(**_ray_options(tool.resources))
    except (TypeError, ValueError, OverflowError) as error:
        raise ToolDefinitionError(f"tool {tool.name!r} asks for what Ray does not take: {error}") from error
    packing = _packing.set(True)
    try:
        code = cast("bytes", cast("Any", cloudpickle).dumps(tool))
    except Exception as error:  # whatever the user's objects raise when they are pickled
        raise ToolDefinitionError(
            f"tool {tool.name!r} cannot be sent to the process that runs it: {error}. Make what cannot be "
            "pickled (a connection, a lock, an open file) inside the function, or put the tool in a module "
            "that is installed on every node."
        ) from error
    finally:
        _packing.reset(packing)
    return PackedTool(tool.spec, tool.resources, tool.timeout_s, code)


_packing: ContextVar[bool] = ContextVar("palaver_packing", default=False)


def reduce_tool(tool: Tool[..., Any]) -> tuple[object, ...]:
    """How a Tool is pickled: packed, or in the code of a packed tool (itself included) as it is."""
    if not _packing.get():
        return pack(tool).__reduce__()
    module, name = getattr(tool.function, "__module__", ""), getattr(tool.function, "__qualname__", "")
    if module != "__main__" and getattr(sys.modules.get(module), name, None) is tool:
        return _imported, (module, name)
    # In two steps, because a function that knows itself by its name holds its own Tool.
    return Tool.__new__, (Tool,), tool.__getstate__()


def _imported(module: str, name: str) -> Tool[..., Any]:
    __import__(module)
    return cast("Tool[..., Any]", getattr(sys.modules[module], name))


@lru_cache(maxsize=256)
def _unpack(code: bytes) -> Tool[..., Any]:
    return cast("Tool[..., Any]", cast("Any", cloudpickle).loads(code))


@ray.remote(num_cpus=0, max_retries=0)
def run_tool(code: bytes, title: str, tool_input: Mapping[str, Any], info: ToolCallInfo) -> Outcome:
    """One call of a packed tool. Its worker goes on to the next, unless the call could not be stopped."""
    os.environ[_MARK] = title
    try:
        return Supervisor(_unpack(code), tool_input, info).run()
    finally:
        os.environ.pop(_MARK, None)


class RayToolset:
    """Runs each call as a Ray task of its own."""

    def __init__(self, tools: Iterable[PackedTool], convo_id: str, convo: object) -> None:
        self._tools = {each.spec.name: each for each in tools}
        self._convo_id = convo_id
        self._convo = convo
        self._shipped: dict[str, Any] = {}
        self._looked_up: set[str] = set()
        self._background: set[asyncio.Task[None]] = set()

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """The tools as the model sees them."""
        return [each.spec for each in self._tools.values()]

    async def run(self, call: ToolUse) -> Outcome:
        """Run a call to its end. Never raises for what the tool does.

        Cancelling the coroutine stops the tool; it then raises CancelledError, within half a second. A
        call that asks for resources waits for them; when no node has them, a warning is logged.
        """
        tool = self._tools.get(call.name)
        if tool is None:
            return Outcome(error=not_found(call.name, self._tools))
        # Ray makes the task's name the title of the worker's process for as long as it runs.
        title = f"tool {call.name} {new_request_id()}"
        started = time.monotonic()
        try:
            ref = self._submit(tool, title, call)
        except (RayError, ValueError) as error:
            return Outcome(error=ToolCrashed(call.name, f"tool {call.name!r} could not be started: {error}"))
        done: asyncio.Future[Outcome] = asyncio.wrap_future(ref.future())
        if tool.resources != Resources() and call.name not in self._looked_up:
            self._looked_up.add(call.name)
            self._in_background(_warn_if_unplaceable(tool, done))
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            cast("Any", ray).cancel(ref)
            self._in_background(_kill_later(title, done))
            await asyncio.wait({done}, timeout=CANCELLED_WITHIN_S)
            raise
        except (TaskCancelledError, RayTaskError, TaskUnschedulableError) as error:
            return Outcome(error=_edge(call.name, error))
        except RayError as error:
            # The worker is gone, without having ended what the call started.
            self._in_background(_kill_everywhere(title))
            late = tool.timeout_s is not None and time.monotonic() - started >= tool.timeout_s
            if late and isinstance(error, WorkerCrashedError):
                return Outcome(error=timed_out(call.name, tool.timeout_s or 0))
            return Outcome(error=_edge(call.name, error))

    async def aclose(self) -> None:
        """Wait until nothing of a cancelled call is left."""
        if self._background:
            await asyncio.wait(self._background)

    def _submit(self, tool: PackedTool, title: str, call: ToolUse) -> Any:
        name = tool.spec.name
        if name not in self._shipped:
            large = len(tool.code) > _INLINE_CODE_BYTES
            self._shipped[name] = cast("Any", ray).put(tool.code) if large else tool.code
        info = ToolCallInfo(call.id, name, self._convo_id, self._convo)
        task = cast("Any", run_tool).options(name=title, **_ray_options(tool.resources))
        return task.remote(self._shipped[name], title, call.input, info)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _ray_options(asked: Resources) -> dict[str, Any]:
    options: dict[str, Any] = {
        "num_cpus": asked.num_cpus,
        "num_gpus": asked.num_gpus,
        "memory": asked.memory or None,
        "resources": dict(asked.resources) or None,
        "label_selector": dict(asked.label_selector) or None,
    }
    return {key: value for key, value in options.items() if value is not None}


async def _warn_if_unplaceable(tool: PackedTool, done: asyncio.Future[Any]) -> None:
    """Say so when a call that asks for resources waits for what the cluster does not have."""
    await asyncio.wait({done}, timeout=_UNPLACED_AFTER_S)
    if not done.done():
        nodes = cast("list[dict[str, Any]]", await asyncio.to_thread(ray.nodes))
        reason = shortfall(tool.resources, nodes)
        if reason is not None:
            logger.warning("tool %r waits: %s. It runs when such a node joins.", tool.spec.name, reason)


async def _kill_later(title: str, done: asyncio.Future[Any]) -> None:
    """Kill the worker of a cancelled call if it does not end by itself."""
    await asyncio.wait({done}, timeout=_KILL_AFTER_S)
    if not done.done():
        await _kill_everywhere(title)
        await asyncio.wait({done}, timeout=_KILL_AFTER_S)
    if done.done():
        done.exception()


async def _kill_everywhere(title: str) -> None:
    """Kill what is left of a call, on whichever node it is."""
    kills = [asyncio.wrap_future(ref.future()) for ref in await asyncio.to_thread(_submit_kills, title)]
    # Bounded: Ray does not promise that the reference of a task on a lost node ever resolves.
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*kills, return_exceptions=True), _KILL_AFTER_S)


def _submit_kills(title: str) -> list[Any]:
    return [
        cast("Any", kill_call)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(title)
        for node in cast("list[dict[str, Any]]", ray.nodes())
        if node["Alive"]
    ]


@ray.remote(num_cpus=0, max_retries=0)
def kill_call(title: str) -> None:
    """Kill the worker on this node that runs the task named `title`, and what that call started."""

    def is_of_call(process: psutil.Process) -> bool:
        return process.cmdline()[:1] == [f"ray::{title}"] or process.environ().get(_MARK) == title

    end_all(is_of_call)


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
            cause = cast("Any", error).cause
            return ToolCrashed(
                tool_name,
                f"tool {tool_name!r} could not be loaded where it was to run: {type(cause).__name__}: "
                f"{cause}. What it needs has to be installed on every node.",
            )
        case _:
            return ToolCrashed(
                tool_name,
                f"the process of tool {tool_name!r} died ({type(error).__name__}): it was killed, or "
                "crashed in native code",
            )
