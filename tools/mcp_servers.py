"""The MCP servers of a conversation: each in a host, a Ray actor that keeps its session open between calls.

The actor belongs to the conversation's, and ends with it. A call is a call of the actor, stopped by
`ray.cancel` alone; other calls and the server go on. A server that died is started again, once: until the
conversation is cancelled, which ends its servers, and counts anew.

Layer: tools; with `task` the one that knows Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray import cloudpickle
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from palaver.providers.provider import new_request_id
from palaver.tools.errors import ToolCancelled, ToolCrashed, ToolDefinitionError
from palaver.tools.limits import ToolLimits
from palaver.tools.mcp import McpTool
from palaver.tools.mcp_host import Answer, McpHost, Order
from palaver.tools.mcp_server import McpServer
from palaver.tools.outcome import Outcome
from palaver.tools.stopped import Stopped
from palaver.tools.toolset import EndedJob, timed_out
from palaver.tools.workspace import Workspace

STARTS = 2
"""How often a server is started in a conversation until a cancel: one that dies is started again once."""

_CALLS_AT_ONCE = 1_000_000
"""Ray's default for async actors is 1,000; a cancel would queue behind them."""

_STOPPED_WITHIN_S = 1.5
"""When the host of a cancelled call that has not ended is killed."""

_ENDED_WITHIN_S = 4.0
"""How long a host may take to end its server: more than the session's own limits come to."""

_BORN_WITHIN_S = 10.0
"""The same for a host whose process may just be starting."""

_LATE_S = 3.0
"""How long after a call's limit its host is given up on."""


def packed_approval(label: str, needed: Callable[[dict[str, Any]], bool]) -> bytes:
    """A function as it travels to a host. Raises ToolDefinitionError."""
    try:
        return cast("bytes", cast("Any", cloudpickle).dumps(needed))
    except Exception as error:  # whatever the user's objects raise when they are pickled
        raise ToolDefinitionError(
            f"needs_approval of MCP server {label!r} cannot be sent to the process that asks it: {error}"
        ) from error


_host_class = cast("Any", ray).remote(
    num_cpus=0, max_restarts=0, max_task_retries=0, max_concurrency=_CALLS_AT_ONCE
)(McpHost)


class McpServers:
    """The servers of one conversation, each with its host, by what they are.

    `kill` ends a host and all it has started by its title, on whatever node it is.
    """

    def __init__(
        self, lineage: Sequence[str], workspace: Workspace | None, kill: Callable[[str], Awaitable[Stopped]]
    ) -> None:
        self._lineage = tuple(lineage)
        self._workspace = workspace
        self._kill = kill
        self._servers: dict[McpServer, _Server] = {}

    async def run(
        self, tool: McpTool, tool_input: Mapping[str, Any], limits: ToolLimits, approved: bool
    ) -> Outcome:
        """Run a call to its end. Never raises for what the server does.

        Cancelling the coroutine stops the call, and no other: it then returns an outcome that was `stopped`.
        """
        if tool.approval is True and not approved:
            return Outcome(asks_approval=True)
        order = Order(
            tool.name, tool.wire_name, dict(tool_input), limits, False if approved else tool.approval
        )
        server = self._servers.get(tool.server)
        if server is None:
            server = self._servers[tool.server] = _Server(tool.server, self._start, self._kill)
        return await server.run(order, safe=tool.repeatable or tool.retries > 0)

    async def end(self) -> Sequence[EndedJob]:
        """End all that run. Returns once nothing of them is left; the next call starts a server anew."""
        servers, self._servers = self._servers, {}
        ended = await asyncio.gather(*(each.end() for each in servers.values()))
        return [each for each in ended if each is not None]

    def _start(self, server: McpServer, title: str) -> Any:
        place, options = self._workspace, dict[str, Any]()
        if server.in_workspace and place is not None and place.node_id is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
        else:
            own = cast("Any", ray.get_runtime_context()).get_node_id()
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(own, soft=True)
        path = place.path if place is not None else None
        return _host_class.options(**options).remote(server, title, self._lineage, path)


@dataclass(slots=True)
class _Life:
    """One start of a server: its host, and what came of the start (None, or why it failed).

    One that `hangs` is killed without being asked to end.
    """

    title: str
    host: Any
    started: asyncio.Task[str | None]
    burial: asyncio.Task[Stopped] | None = None
    hangs: bool = False


@dataclass(slots=True)
class _Server:
    """A server of a conversation over its lives."""

    server: McpServer
    start: Callable[[McpServer, str], Any]
    kill: Callable[[str], Awaitable[Stopped]]
    life: _Life | None = None
    deaths: list[str] = field(default_factory=list[str])
    ended: bool = False

    async def run(self, order: Order, *, safe: bool) -> Outcome:
        """Run a call; again, when the server was lost and it is `safe` to."""
        answer = Answer()
        for _ in range(STARTS):
            if self.ended:
                return _cancelled(order, Stopped())
            if len(self.deaths) >= STARTS:
                break
            life = self.life or self._begin()
            try:
                problem = await asyncio.shield(life.started)
            except asyncio.CancelledError:
                return _cancelled(order, Stopped())
            if problem is not None:
                if await self._buried(life, problem) is None:
                    return _cancelled(order, Stopped())
                text = f"the MCP server {self.server.label!r} of tool {order.tool_name!r} {problem}"
                return Outcome(error=ToolCrashed(order.tool_name, text))
            answer = await self._ask(life, order)
            if answer.outcome is not None:
                return answer.outcome
            if answer.over and await self._buried(life, answer.lost) is None:
                return _cancelled(order, Stopped())
            if not (safe or answer.untouched):
                break
        return Outcome(error=ToolCrashed(order.tool_name, self._lost(order, answer)))

    async def end(self) -> EndedJob | None:
        """End the server, when it runs."""
        self.ended, life = True, self.life
        if life is None:
            return None
        stopped = await asyncio.shield(self._bury(life, "it was ended"))
        return EndedJob(life.title.rpartition(" ")[2], f"mcp server {self.server.label}", stopped)

    def _begin(self) -> _Life:
        title = f"mcp server {self.server.label} {new_request_id()}"
        host = self.start(self.server, title)
        self.life = _Life(title, host, asyncio.create_task(_started(host)))
        return self.life

    async def _ask(self, life: _Life, order: Order) -> Answer:
        ref = life.host.call.remote(order)
        done: asyncio.Future[Answer] = _future(ref)
        limit_s = order.limits.seconds
        try:
            await asyncio.wait({done}, timeout=None if limit_s is None else limit_s + _LATE_S)
        except asyncio.CancelledError:
            return Answer(await self._stop(life, order, ref, done))
        if not done.done():
            # Not even its timeout: the host itself hangs.
            life.hangs = True
            stopped = await self._buried(life, "its host did not answer any more")
            late = timed_out(order.tool_name, limit_s or 0)
            return Answer(Outcome(error=late, stopped=stopped or Stopped()))
        try:
            return done.result()
        except RayActorError:
            return Answer(lost="its host process was killed", over=True)
        except RayError as error:
            return Answer(
                Outcome(error=ToolCrashed(order.tool_name, f"tool {order.tool_name!r} failed: {error}"))
            )

    async def _stop(self, life: _Life, order: Order, ref: Any, done: asyncio.Future[Answer]) -> Outcome:
        """Stop one call. Where the host does not do that in time, it is ended with all its calls."""
        stopping = time.monotonic()
        cast("Any", ray).cancel(ref)
        await asyncio.wait({done}, timeout=_STOPPED_WITHIN_S)
        stopped = Stopped()
        if not done.done() or isinstance(done.exception(), RayActorError):
            life.hangs = True
            stopped = await self._bury(life, "its host did not answer a cancel")
        return _cancelled(order, stopped.model_copy(update={"took_s": time.monotonic() - stopping}))

    def _bury(self, life: _Life, how: str) -> asyncio.Task[Stopped]:
        """End a life, once; when the server is one that we start, it counts."""
        if life.burial is None:
            if self.life is life:
                self.life = None
            if self.server.command:
                self.deaths.append(how)
            life.burial = asyncio.create_task(self._end(life))
        return life.burial

    async def _buried(self, life: _Life, how: str) -> Stopped | None:
        """End a life, and see it through; None when the call that waits was cancelled meanwhile."""
        burial = self._bury(life, how)
        try:
            return await asyncio.shield(burial)
        except asyncio.CancelledError:
            await asyncio.wait({burial})
            return None

    async def _end(self, life: _Life) -> Stopped:
        ending = time.monotonic()
        done: asyncio.Future[Stopped] = _future(life.host.end.remote())
        if not life.hangs:
            await asyncio.wait({done}, timeout=_ENDED_WITHIN_S if life.started.done() else _BORN_WITHIN_S)
        ended = done.done() and done.exception() is None
        stopped = done.result() if ended else await self.kill(life.title)
        cast("Any", ray).kill(life.host)
        return stopped.model_copy(update={"took_s": time.monotonic() - ending})

    def _lost(self, order: Order, answer: Answer) -> str:
        label, name = self.server.label, order.tool_name
        if not answer.lost:
            return (
                f"tool {name!r} cannot be called: its MCP server {label!r} failed {len(self.deaths)} times "
                f"in this conversation, and is not started again. How it ended last: {self.deaths[-1]}"
            )
        effect = (
            "It did not get the call" if answer.untouched else "Whether the call had an effect is not known"
        )
        if len(self.deaths) >= STARTS:
            then = "The server has failed before, and is not started again"
        elif not answer.over:
            then = "Its session goes on"
        else:
            then = "The next call starts it again" if self.server.command else "The next call connects again"
        lost = f"the MCP server {label!r} was lost during the call of tool {name!r}: {answer.lost}"
        return f"{lost}\n{effect}. {then}."


async def _started(host: Any) -> str | None:
    try:
        return cast("str | None", await host.start.remote())
    except RayActorError as error:
        return f"cannot be started: its host process died ({type(error).__name__})"
    except RayError as error:
        return f"cannot be started: {error}"


def _future(ref: Any) -> asyncio.Future[Any]:
    """The result of a call of an actor. Nobody need look at it."""
    future: asyncio.Future[Any] = asyncio.wrap_future(ref.future())
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _cancelled(order: Order, stopped: Stopped) -> Outcome:
    error = ToolCancelled(order.tool_name, f"tool {order.tool_name!r} was cancelled")
    return Outcome(error=error, stopped=stopped)
