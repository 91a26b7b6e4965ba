"""What a conversation needs of its tools: to show them to a model, and to run a call.

Layer: tools; no Ray.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol, cast

from palaver.providers.messages import ToolUse
from palaver.providers.provider import ToolSpec, new_request_id
from palaver.tools.call import ToolCallInfo, set_current_call
from palaver.tools.errors import ToolDefinitionError, ToolNotFound, ToolTimedOut
from palaver.tools.limits import ToolLimits
from palaver.tools.outcome import Outcome
from palaver.tools.stopped import Stopped
from palaver.tools.tool import NeedsApproval, Tool, check_names


class Toolset(Protocol):
    """The tools of one conversation."""

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """The tools as the model sees them."""
        ...

    async def run(self, call: ToolUse, *, approved: bool = False) -> Outcome:
        """Run a call to its end. Never raises for what the tool does.

        Cancelling the coroutine stops the tool. It does not raise then: it returns an outcome that was
        `stopped`, once nothing of the call is left on any node. A call that needs a yes has not run when
        it comes back with `asks_approval`; `approved` says that it has one.
        """
        ...

    @property
    def jobs(self) -> Mapping[str, str]:
        """What goes on in the background: a label by the job's id."""
        ...

    async def end_jobs(self, cause: str) -> Sequence[EndedJob]:
        """Stop everything that goes on in the background. Returns once nothing of it is left."""
        ...

    async def fence(self, convo_ids: Sequence[str]) -> Stopped:
        """End, on every node, what runs for conversations whose processes are gone, and for those below.

        Returns once nothing of it is left; from then on nothing can be started for them.
        """
        ...

    async def aclose(self) -> None:
        """Stop what goes on in the background, and give back what is held."""
        ...


class EndedJob(NamedTuple):
    """A background job that was stopped."""

    id: str
    label: str
    stopped: Stopped


class InlineToolset:
    """Runs tools in this process: for tests of what calls tools, and where no isolation is wanted.

    A plain function runs in a thread, which nothing can stop: a cancelled call of one goes on unseen.
    Raises ToolDefinitionError when two tools have the same name.
    """

    def __init__(
        self,
        tools: Iterable[Tool[..., Any]],
        convo_id: str = "",
        *,
        workspace: str | None = None,
        limits: ToolLimits | None = None,
    ) -> None:
        tools = list(tools)
        wrong = [each for each in tools if not isinstance(cast("object", each), Tool)]
        if wrong:
            raise ToolDefinitionError(
                f"{wrong[0]!r} is no tool that can run in this process; tools of MCP servers run in a Convo"
            )
        check_names(tools)
        self._tools = {each.name: each for each in tools}
        self._convo_id = convo_id
        self._workspace = workspace
        self._limits = limits or ToolLimits()
        self._state: dict[str, Any] = {}
        self._jobs: dict[str, tuple[str, asyncio.Task[Outcome]]] = {}

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """The tools as the model sees them."""
        return [each.spec for each in self._tools.values()]

    async def run(self, call: ToolUse, *, approved: bool = False) -> Outcome:
        """Run a call to its end. Never raises for what the tool does."""
        tool = self._tools.get(call.name)
        if tool is None:
            return Outcome(error=not_found(call.name, self._tools))
        outcome = await self._call(tool, call.input, call.id, approved)
        merge_state(self._state, outcome)
        for job in outcome.jobs:
            job_id = new_request_id()
            running = asyncio.create_task(self._call(job.tool, job.input, job_id, approved=True))
            self._jobs[job_id] = (job.label, running)
            running.add_done_callback(lambda _, job_id=job_id: self._jobs.pop(job_id, None))
        return outcome

    async def _call(
        self, tool: Tool[..., Any], tool_input: Mapping[str, Any], id: str, approved: bool
    ) -> Outcome:
        state = copy.deepcopy(self._state)
        info = ToolCallInfo(id, tool.name, self._convo_id, workspace=self._workspace, state=state)
        limits = tool.limits.or_else(self._limits)
        started_at = datetime.now(UTC)
        # A task of its own, whose context ends with the call.
        task = asyncio.create_task(_call(tool, tool_input, info, limits, started_at, approved))
        try:
            async with asyncio.timeout(limits.seconds):
                return await task
        except TimeoutError:
            assert limits.seconds is not None
            return Outcome(error=timed_out(tool.name, limits.seconds), started_at=started_at)
        except asyncio.CancelledError as error:
            outcome = Outcome.of_error(tool.name, error, started_at)
            return replace(outcome, stopped=Stopped()) if _being_cancelled() else outcome

    @property
    def jobs(self) -> Mapping[str, str]:
        """What goes on in the background: a label by the job's id."""
        return {id: label for id, (label, _) in self._jobs.items()}

    async def end_jobs(self, cause: str) -> Sequence[EndedJob]:
        """Stop everything that goes on in the background."""
        jobs = dict(self._jobs)
        for _, task in jobs.values():
            task.cancel()
        if jobs:
            await asyncio.wait([task for _, task in jobs.values()])
        return [EndedJob(id, label, Stopped()) for id, (label, _) in jobs.items()]

    async def fence(self, convo_ids: Sequence[str]) -> Stopped:
        """Nothing: what runs in this process ends with it."""
        return Stopped()

    async def aclose(self) -> None:
        """Stop what goes on in the background."""
        await self.end_jobs("closed")


async def _call(
    tool: Tool[..., Any],
    tool_input: Mapping[str, Any],
    info: ToolCallInfo,
    limits: ToolLimits,
    started_at: datetime,
    approved: bool,
) -> Outcome:
    set_current_call(info)
    before = copy.deepcopy(info.state)
    try:
        arguments = tool.signature.bind(tool_input, info)
        if not approved and asks_approval(tool, tool_input):
            return Outcome(asks_approval=True, started_at=started_at)
        if tool.is_async:
            value = await tool.function(**arguments)
        else:
            value = await asyncio.to_thread(_plainly, tool.function, arguments)
        return Outcome.of_value(info, value, before, limits, started_at)
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # sys.exit() in a tool ends the tool, not this process
        return Outcome.of_error(tool.name, error, started_at)


class HasApproval(Protocol):
    """Anything of which it is known whether its calls need a yes."""

    @property
    def needs_approval(self) -> NeedsApproval:
        """Always, never, or what a function says of the input."""
        ...


def asks_approval(tool: HasApproval, tool_input: Mapping[str, Any]) -> bool:
    """Whether a call of `tool` with this input, which fits its schema, needs a yes."""
    if isinstance(tool.needs_approval, bool):
        return tool.needs_approval
    try:
        return bool(tool.needs_approval(copy.deepcopy(dict(tool_input))))
    except Exception:  # what cannot be judged is not let through
        return True


def merge_state(state: dict[str, Any], outcome: Outcome) -> None:
    """Take over what a call changed in the conversation's state."""
    for key, value in outcome.state.items():
        if value is None:
            state.pop(key, None)
        else:
            state[key] = value


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
