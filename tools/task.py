"""The Ray task that every tool call is; but for those of MCP servers, which `mcp_servers` makes.

A cancelled call is stopped with `ray.cancel`, which the worker sees as SIGINT (see `supervisor`). Only
where the tool holds the interpreter lock nothing sees it, and `ray.cancel(force=True)` neither, which
then waits for that lock itself (Ray 2.60). The guardian of its node kills such a worker (see `guardian`),
and ends what a call has started whose worker died. A call has ended when that has, on every node.

Layer: tools.
"""

from __future__ import annotations

import asyncio
import copyreg
import dataclasses
import logging
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias, cast, overload
from weakref import WeakKeyDictionary

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
from palaver.tools import guarded
from palaver.tools.call import Job, ToolCallInfo
from palaver.tools.errors import ToolCancelled, ToolCrashed, ToolDefinitionError, ToolError
from palaver.tools.limits import ToolLimits
from palaver.tools.mcp import McpTool
from palaver.tools.mcp_servers import McpServers
from palaver.tools.outcome import Outcome
from palaver.tools.pace import Pace
from palaver.tools.placement import shortfall
from palaver.tools.stopped import Stopped
from palaver.tools.supervisor import UNWIND_S, Supervisor
from palaver.tools.tool import Approval, Resources, Tool, approval_of
from palaver.tools.toolset import EndedJob, merge_state, not_found, timed_out
from palaver.tools.workspace import Workspace


# What marks "no default" in a dataclass is known by its identity, which a class pickled by value (one that is
# defined in a script) would lose, and no schema could be made of it.
def _by_name(name: str) -> None:
    def reduced(_: object) -> str:
        return name

    copyreg.pickle(cast("type[object]", type(getattr(dataclasses, name))), reduced)


for _name in ("MISSING", "KW_ONLY", "_HAS_DEFAULT_FACTORY"):
    _by_name(_name)

logger = logging.getLogger(__name__)

_KILL_AFTER_S = 1.5 * UNWIND_S
"""When the worker of a cancelled call that has not ended by itself is killed."""

_ENDED_WITHIN_S = 10.0
"""How long killing may take on a node, which may have to start a process for it first."""

_UNPLACED_AFTER_S = 1.0
"""When it is looked up whether a call that asks for resources can run anywhere."""

_INLINE_CODE_BYTES = 100_000
"""Larger code goes to the object store once, rather than with every call."""


@dataclass(frozen=True, slots=True)
class PackedTool:
    """A tool whose function is still pickled: what a process holds that passes it on and never runs it."""

    spec: ToolSpec
    resources: Resources
    limits: ToolLimits
    retries: int
    in_workspace: bool
    approval: Approval
    code: bytes = field(repr=False)

    def unpack(self) -> Tool[..., Any]:
        """The tool itself. Imports what its function needs; raises what that raises."""
        return _unpack(self.code)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function directly, as with a Tool."""
        return self.unpack()(*args, **kwargs)

    def __reduce__(self) -> tuple[object, ...]:
        return PackedTool, tuple(getattr(self, each) for each in PackedTool.__slots__)


AnyPacked: TypeAlias = PackedTool | McpTool
"""A tool as a conversation holds it."""


@overload
def pack(tool: Tool[..., Any] | PackedTool) -> PackedTool: ...


@overload
def pack(tool: Tool[..., Any] | AnyPacked) -> AnyPacked: ...


def pack(tool: Tool[..., Any] | AnyPacked) -> AnyPacked:
    """A tool as it travels: by its module and name where it has those, else with its code.

    Raises ToolDefinitionError for code that cannot be pickled, or resources that Ray does not know.
    """
    if isinstance(tool, AnyPacked):
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
    return PackedTool(
        tool.spec,
        tool.resources,
        tool.limits,
        tool.retries,
        tool.in_workspace,
        approval_of(tool),
        code,
    )


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


class _Order(NamedTuple):
    """How a call is to be run, beside its input."""

    title: str
    limits: ToolLimits
    approved: bool
    lineage: tuple[str, ...]


@ray.remote(num_cpus=0, max_retries=0)
def run_tool(code: bytes, order: _Order, tool_input: Mapping[str, Any], info: ToolCallInfo) -> Outcome:
    """One call of a packed tool. Its worker goes on to the next, unless the call could not be stopped."""
    tool = _unpack(code)
    with guarded.guarded(order.title, order.lineage):
        return Supervisor(tool, tool_input, info, order.limits, approved=order.approved).run()


class RayToolset:
    """Runs each call as a Ray task of its own, or as one of the actor that holds its MCP server.

    `lineage` are the ids of the conversation it is for and of those above it, the root first; `limits`
    hold for tools that have none of their own. Raises ConfigurationError for a tool that works in a
    workspace when there is none.
    """

    def __init__(
        self,
        tools: Iterable[AnyPacked],
        lineage: Sequence[str],
        convo: object,
        *,
        workspace: Workspace | None = None,
        limits: ToolLimits | None = None,
    ) -> None:
        self._tools = {each.spec.name: each for each in tools}
        self._lineage = tuple(lineage)
        self._convo = convo
        self._workspace = workspace
        self._limits = limits or ToolLimits()
        self._mcp = McpServers(self._lineage, workspace, lambda title: _on_every_node(_Ask("kill", (title,))))
        self._state: dict[str, Any] = {}
        self._jobs: dict[str, _RunningJob] = {}
        self._shipped: dict[bytes, Any] = {}
        self._looked_up: set[str] = set()
        self._background: set[asyncio.Task[None]] = set()

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """The tools as the model sees them."""
        return [each.spec for each in self._tools.values()]

    @property
    def tools(self) -> Mapping[str, AnyPacked]:
        """The tools by name."""
        return self._tools

    async def run(self, call: ToolUse, *, approved: bool = False) -> Outcome:
        """Run a call to its end. Never raises for what the tool does.

        Cancelling the coroutine stops the tool; it then returns an outcome that was `stopped`, once
        nothing of the call is left on any node. A call that asks for resources waits for them; when no
        node has them, a warning is logged.
        """
        tool = self._tools.get(call.name)
        if tool is None:
            return Outcome(error=not_found(call.name, self._tools))
        outcome = await self._run(tool, call.input, call.id, approved)
        merge_state(self._state, outcome)
        for job in outcome.jobs:
            self._start(job)
        return outcome

    @property
    def jobs(self) -> Mapping[str, str]:
        """What goes on in the background: a label by the job's id."""
        return {id: job.label for id, job in self._jobs.items()}

    async def end_jobs(self, cause: str) -> Sequence[EndedJob]:
        """Stop everything that goes on in the background, MCP servers too.

        Returns once nothing of it is left.
        """
        jobs = dict(self._jobs)
        for job in jobs.values():
            job.stop()
        if jobs:
            await asyncio.wait([job.task for job in jobs.values()])
        ended = [EndedJob(id, job.label, job.stopped) for id, job in jobs.items()]
        return [*ended, *await self._mcp.end()]

    async def fence(self, convo_ids: Sequence[str]) -> Stopped:
        """End, on every node, what runs for conversations whose processes are gone, and for those below."""
        return await _on_every_node(_Ask("fence", tuple(convo_ids)))

    async def aclose(self) -> None:
        """Stop what goes on in the background."""
        await self.end_jobs("closed")
        if self._background:
            await asyncio.wait(self._background)

    def _start(self, job: Job) -> None:
        id = new_request_id()
        task = asyncio.create_task(self._run(pack(job.tool), job.input, id, approved=True))
        self._jobs[id] = _RunningJob(job.label, task)
        task.add_done_callback(lambda _: self._jobs.pop(id, None))

    async def _run(self, tool: AnyPacked, tool_input: Mapping[str, Any], id: str, approved: bool) -> Outcome:
        """Run a call, and again when its process died and the tool says that this is safe."""
        if isinstance(tool, McpTool):
            limits = tool.limits.or_else(self._limits)
            return await self._mcp.run(tool, tool_input, limits, approved)
        for _ in range(tool.retries):
            outcome, died = await self._run_once(tool, tool_input, id, approved)
            if not died:
                return outcome
        return (await self._run_once(tool, tool_input, id, approved))[0]

    async def _run_once(
        self, tool: PackedTool, tool_input: Mapping[str, Any], id: str, approved: bool
    ) -> tuple[Outcome, bool]:
        """How a call ended, and whether it ended because its process died.

        One that asks for resources is Ray's to place; any other goes at the pace of this process.
        """
        if tool.resources != Resources():
            return await self._sent(tool, tool_input, id, approved)
        pace = _pace()
        try:
            await pace.enter()
        except asyncio.CancelledError:
            name = tool.spec.name
            return Outcome(
                error=ToolCancelled(name, f"tool {name!r} was cancelled"), stopped=Stopped()
            ), False
        try:
            return await self._sent(tool, tool_input, id, approved)
        finally:
            pace.leave()

    async def _sent(
        self, tool: PackedTool, tool_input: Mapping[str, Any], id: str, approved: bool
    ) -> tuple[Outcome, bool]:
        name = tool.spec.name
        limits = tool.limits.or_else(self._limits)
        # Even when the answer is known: a person is asked only of what fits the schema, and that the worker
        # checks. Asking takes nothing but that; the call itself will have what the tool asks for.
        only_asks = tool.approval == "always" and not approved
        resources = Resources() if only_asks else tool.resources
        # Ray makes the task's name the title of the worker's process for as long as it runs.
        order = _Order(f"tool {name} {new_request_id()}", limits, approved, self._lineage)
        try:
            ref = self._submit(tool, order, tool_input, id, resources)
        except (RayError, ValueError) as error:
            crash = ToolCrashed(name, f"tool {name!r} could not be started: {error}")
            return Outcome(error=crash), False
        done: asyncio.Future[Outcome] = asyncio.wrap_future(ref.future())
        # Of a call that was stopped nobody may want to know any more how it failed.
        done.add_done_callback(lambda done: done.cancelled() or done.exception())
        if resources != Resources() and name not in self._looked_up:
            self._looked_up.add(name)
            warning = asyncio.create_task(_warn_if_unplaceable(tool, done))
            self._background.add(warning)
            warning.add_done_callback(self._background.discard)
        try:
            return await asyncio.shield(done), False
        except asyncio.CancelledError:
            stopping = time.monotonic()
            stopped = await _stop(ref, order.title, done)
            stopped = stopped.model_copy(update={"took_s": time.monotonic() - stopping})
            return Outcome(error=ToolCancelled(name, f"tool {name!r} was cancelled"), stopped=stopped), False
        except (TaskCancelledError, RayTaskError, TaskUnschedulableError) as error:
            return Outcome(error=_edge(name, error)), False
        except RayError as error:
            return await self._died(name, order, error)

    async def _died(self, name: str, order: _Order, error: RayError) -> tuple[Outcome, bool]:
        """The worker is gone, and may not have ended what the call started."""
        dying = time.monotonic()
        stopped = await _on_every_node(_Ask("kill", (order.title,)))
        stopped = stopped.model_copy(update={"took_s": time.monotonic() - dying})
        limit_s = order.limits.seconds
        late = limit_s is not None and stopped.ran_s is not None and stopped.ran_s >= limit_s
        if late and isinstance(error, WorkerCrashedError):
            return Outcome(error=timed_out(name, limit_s or 0), stopped=stopped), False
        return Outcome(error=_edge(name, error), stopped=stopped), True

    def _submit(
        self, tool: PackedTool, order: _Order, tool_input: Mapping[str, Any], id: str, resources: Resources
    ) -> Any:
        code: Any = tool.code
        if len(code) > _INLINE_CODE_BYTES:
            if code not in self._shipped:
                self._shipped[code] = cast("Any", ray).put(code)
            code = self._shipped[code]
        workspace = self._workspace
        info = ToolCallInfo(
            id,
            tool.spec.name,
            self._lineage[-1],
            self._convo,
            workspace.path if workspace is not None else None,
            self._state,
        )
        options = _ray_options(resources)
        if tool.in_workspace and workspace is not None and workspace.node_id is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(workspace.node_id, soft=False)
        return (
            cast("Any", run_tool).options(name=order.title, **options).remote(code, order, tool_input, info)
        )


_paces: WeakKeyDictionary[asyncio.AbstractEventLoop, Pace] = WeakKeyDictionary()


def _pace() -> Pace:
    """The pace of the running event loop's calls: four for each CPU of the cluster, and eight at least."""
    loop = asyncio.get_running_loop()
    if loop not in _paces:
        cpus = int(cast("Any", ray).cluster_resources().get("CPU", 1))
        _paces[loop] = Pace(max(8, 4 * cpus))
    return _paces[loop]


class _RunningJob:
    """A call in the background."""

    def __init__(self, label: str, task: asyncio.Task[Outcome]) -> None:
        self.label = label
        self.task = task
        self._stopping = False

    def stop(self) -> None:
        """Stop it. Once: a second cancel would interrupt the first."""
        if not self._stopping:
            self._stopping = True
            self.task.cancel()

    @property
    def stopped(self) -> Stopped:
        """What it took to stop it, once it has ended. It may have been stopped before it began."""
        return (None if self.task.cancelled() else self.task.result().stopped) or Stopped()


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


async def _stop(ref: Any, title: str, done: asyncio.Future[Outcome]) -> Stopped:
    """Stop a call, and see to it that nothing of it is left."""
    cast("Any", ray).cancel(ref)
    await asyncio.wait({done}, timeout=_KILL_AFTER_S)
    killed: Stopped | None = None
    if not done.done():
        killed = await _on_every_node(_Ask("kill", (title,)))
        if killed.processes:
            return killed  # Ray may take its time to notice
        await asyncio.wait({done}, timeout=_ENDED_WITHIN_S)
    if not done.done():
        return Stopped(complete=False, problem="Ray does not tell whether the call has ended")
    if done.exception() is None:
        return done.result().stopped or Stopped()
    # It never began, or its worker died: Ray says TaskCancelledError of both.
    return killed or await _on_every_node(_Ask("kill", (title,)))


class _Ask(NamedTuple):
    """What the guardian of each node is asked: to kill a call by its title, or to fence conversations."""

    do: Literal["kill", "fence"]
    what: tuple[str, ...]

    async def here(self) -> Stopped:
        """Ask that of this node's."""
        return await (guarded.fence(self.what) if self.do == "fence" else guarded.kill_call(self.what[0]))


async def _on_every_node(ask: _Ask) -> Stopped:
    """Ask all guardians at once: this node's directly, the others through a task on their nodes."""
    try:
        elsewhere = await asyncio.to_thread(_nodes_elsewhere)
    except RayError as error:
        here = await ask.here()
        return Stopped.of_all(
            [here, Stopped(complete=False, problem=f"Ray does not list its nodes: {error}")]
        )
    refs = [
        cast("Any", ask_guardian)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
        .remote(ask)
        for node_id in elsewhere
    ]
    others = [asyncio.wrap_future(ref.future()) for ref in refs]
    answers = [await ask.here()]
    if others:
        # Bounded: Ray does not promise that the reference of a task on a lost node ever resolves.
        answered, silent = await asyncio.wait(others, timeout=_ENDED_WITHIN_S)
        answers += [each.result() for each in answered if each.exception() is None]
        if silent:
            answers.append(Stopped(complete=False, problem=f"{len(silent)} nodes did not answer"))
    return Stopped.of_all(answers)


def _nodes_elsewhere() -> list[str]:
    own = cast("Any", ray.get_runtime_context()).get_node_id()
    nodes = cast("list[dict[str, Any]]", ray.nodes())
    return [node["NodeID"] for node in nodes if node["Alive"] and node["NodeID"] != own]


@ray.remote(num_cpus=0, max_retries=0)
def ask_guardian(ask: _Ask) -> Stopped:
    """Ask the guardian of the node this runs on."""
    return asyncio.run(ask.here())


async def reply(ref: Any, tool_name: str) -> Any:
    """Await what a conversation answers to a tool: `await reply(info.convo.id.remote(), info.tool_name)`.

    Raises what the conversation raised, as it raised it, and ToolCrashed when its process is gone.
    """
    try:
        return await ref
    except RayTaskError as error:
        raise error.cause from None
    except OutOfMemoryError as error:
        text = "the conversation's process was killed because its node ran out of memory"
        raise ToolCrashed(tool_name, text) from error
    except RayError as error:
        text = f"the conversation's process is gone ({type(error).__name__}): it was killed, or it crashed"
        raise ToolCrashed(tool_name, text) from error


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
