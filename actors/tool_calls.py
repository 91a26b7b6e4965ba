"""The tool calls of a conversation: run at once, stopped one by one or together, each answered once.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from palaver.actors.approvals import Approvals, Denied, denial, edit_note
from palaver.actors.endings import all_to_the_end, to_the_end
from palaver.actors.entries import ToolCalled
from palaver.actors.errors import BudgetExceeded, UnknownToolCall
from palaver.actors.ledger import Counted
from palaver.actors.listener import GuardedListener
from palaver.actors.report import StoppedCall
from palaver.actors.transcript import Transcript
from palaver.actors.treasury import Treasury
from palaver.providers.messages import Text, ToolResult, ToolUse
from palaver.tools.errors import ToolCancelled, ToolDenied, ToolInputInvalid, ToolOverBudget
from palaver.tools.outcome import Outcome
from palaver.tools.stopped import Stopped
from palaver.tools.toolset import Toolset

USER_CANCELLED = "the user cancelled this tool call"
"""The result of a call that was never started, because the user did not want it."""


@dataclass(slots=True)
class _RunningCall:
    name: str
    task: asyncio.Task[Outcome]
    ended: asyncio.Event
    cause: str | None = None
    stopping: float = 0.0
    began_s: float = field(default_factory=time.monotonic)

    def stop(self, cause: str) -> None:
        """Stop it. Once: a second cancel would interrupt the clean-up of the first."""
        if self.cause is None:
            self.cause, self.stopping = cause, time.monotonic()
            self.task.cancel()

    def outcome(self) -> Outcome:
        """How it ended. One that was asked to stop is cancelled, whatever it still returned."""
        if self.cause is not None:
            return Outcome(error=ToolCancelled(self.name, self.cause), stopped=self._stopped())
        return self.task.result()

    def _stopped(self) -> Stopped:
        ended = self.task.result().stopped if not self.task.cancelled() else None
        return ended or Stopped()


class ToolCalls:
    """Runs the calls of one conversation.

    Those that need a yes wait for it in `approvals`; the others do not wait for them. `treasury` counts
    calls before they run, and refuses those that are too many; `ended` is told of each as it ends, and its
    result waits for it.
    """

    def __init__(
        self,
        convo_id: str,
        toolset: Toolset,
        transcript: Transcript,
        listener: GuardedListener,
        approvals: Approvals,
        treasury: Treasury,
        ended: Callable[[str], Coroutine[Any, Any, None]],
    ) -> None:
        self._convo_id = convo_id
        self._toolset = toolset
        self._transcript = transcript
        self._listener = listener
        self._approvals = approvals
        self._treasury = treasury
        self._ended = ended
        self._running: dict[str, _RunningCall] = {}
        self.refused: BudgetExceeded | None = None
        """Why none of the calls of the last response was run; None when some were."""

    @property
    def running(self) -> dict[str, str]:
        """The calls under way: the tool's name by the call's id."""
        return {id: call.name for id, call in self._running.items()}

    @property
    def began_s(self) -> float | None:
        """When the oldest of them began, on the monotonic clock; None when there is none."""
        return min((call.began_s for call in self._running.values()), default=None)

    async def run(self, calls: Iterable[ToolUse]) -> list[ToolResult]:
        """Run all at once; their results in the order of the calls. One that wants no answer has none.

        Each result is also kept in the transcript until it is sent. When cancelled, stops all, and raises
        once all have their results. Those that no budget has room for are not run, and those that run
        when the time is used up are stopped: their results say so.
        """
        calls = list(calls)
        if not calls:
            return []
        counting = asyncio.create_task(self._count(calls))
        watch = asyncio.create_task(self._stop_in_time(counting))
        try:
            results = await all_to_the_end(
                self._run(call, index, counting) for index, call in enumerate(calls)
            )
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        counted = await counting
        self.refused = None if counted.allowed else counted.over
        return [result for result in results if result is not None]

    async def refuse(self, calls: Iterable[ToolUse]) -> list[ToolResult]:
        """Run none; a result for each says that the user cancelled it."""
        calls = list(calls)
        await self._count(calls)
        return [Outcome(error=ToolCancelled(call.name, USER_CANCELLED)).to_result(call.id) for call in calls]

    async def _count(self, calls: Sequence[ToolUse]) -> Counted:
        return await self._treasury.count(
            [ToolCalled(convo_id=self._convo_id, tool_use_id=call.id, tool_name=call.name) for call in calls]
        )

    async def _stop_in_time(self, counting: asyncio.Task[Counted]) -> None:
        """Stop all calls when the time of a budget is used up; it may be raised until then."""
        left_s = (await asyncio.shield(counting)).time_left_s
        try:
            while left_s is not None:
                await asyncio.sleep(left_s)
                left_s = await self._treasury.check_time(self._convo_id)
        except BudgetExceeded as over:
            for running in self._running.values():
                running.stop(str(over))

    async def stop(self, tool_use_id: str, cause: str) -> StoppedCall:
        """Stop one call; its result is an error with the cause. Raises UnknownToolCall."""
        running = self._running.get(tool_use_id)
        if running is None:
            raise UnknownToolCall(self._convo_id, tool_use_id, "running", list(self._running))
        return await self._stopped(tool_use_id, running, cause)

    async def stop_all(self, cause: str) -> tuple[StoppedCall, ...]:
        """Stop all calls, and what goes on in the background; whoever runs the calls gets their results."""
        began = time.monotonic()
        running = dict(self._running)
        stopped = [self._stopped(id, each, cause) for id, each in running.items()]
        calls = await asyncio.gather(*stopped)
        jobs = [
            StoppedCall(
                tool_use_id=job.id,
                tool_name=job.label,
                took_s=time.monotonic() - began,
                processes=job.stopped.processes,
                in_background=True,
                problem=job.stopped.problem,
            )
            for job in await self._toolset.end_jobs(cause)
        ]
        return (*calls, *jobs)

    async def _stopped(self, id: str, running: _RunningCall, cause: str) -> StoppedCall:
        running.stop(cause)
        await running.ended.wait()
        stopped = running.outcome().stopped or Stopped()
        return StoppedCall(
            tool_use_id=id,
            tool_name=running.name,
            took_s=time.monotonic() - running.stopping,
            processes=stopped.processes,
            problem=stopped.problem,
        )

    async def _run(self, call: ToolUse, index: int, counting: asyncio.Task[Counted]) -> ToolResult | None:
        task = asyncio.create_task(self._outcome(call, index, counting))
        running = self._running[call.id] = _RunningCall(call.name, task, asyncio.Event())
        try:
            return await self._result_of(call, running)
        finally:
            running.ended.set()

    async def _result_of(self, call: ToolUse, running: _RunningCall) -> ToolResult | None:
        interruption: asyncio.CancelledError | None = None
        try:
            await asyncio.wait({running.task})
        except asyncio.CancelledError as error:
            interruption = error
            running.stop("the call that ran it was cancelled")
            await asyncio.wait({running.task})
        del self._running[call.id]
        outcome = running.outcome()
        try:
            await to_the_end(self._ended(call.id))
        except asyncio.CancelledError as error:
            interruption = error
        result = outcome.to_result(call.id) if outcome.respond else None
        if result is not None:
            self._transcript.keep_result(result)
            await to_the_end(self._listener.on_tool_result(call, result, outcome.error))
        if interruption is not None:
            raise interruption
        return result

    async def _outcome(self, call: ToolUse, index: int, counting: asyncio.Task[Counted]) -> Outcome:
        counted = await asyncio.shield(counting)
        await self._listener.on_tool_call(call)
        if index >= counted.allowed:
            text = f"the tool {call.name!r} was not called: {counted.over}"
            return Outcome(error=ToolOverBudget(call.name, text))
        if call.malformed_input is not None:
            text = (
                f"the input of tool {call.name!r} was no JSON object; it was not called. "
                "Call it again with a JSON object that fits its schema."
            )
            return Outcome(error=ToolInputInvalid(call.name, text))
        outcome = await self._toolset.run(call)
        return await self._decided(call) if outcome.asks_approval else outcome

    async def _decided(self, call: ToolUse) -> Outcome:
        """Wait for somebody's decision on a call, and run it if that is a yes.

        What the model called stays in the transcript as it was; that somebody edited the input it reads in
        the result.
        """
        request = self._approvals.request(call)
        await self._listener.on_approval_needed(request)
        decision = await self._approvals.decision_on(request)
        await self._listener.on_approval_decided(request, decision)
        if isinstance(decision, Denied):
            return Outcome(error=ToolDenied(call.name, denial(call.name, decision.reason)))
        if decision.input is None or decision.input == call.input:
            return await self._toolset.run(call, approved=True)
        edited = call.model_copy(update={"input": decision.input})
        return _noted(await self._toolset.run(edited, approved=True), edit_note(decision.input))


def _noted(outcome: Outcome, note: str) -> Outcome:
    """An outcome whose result begins with a note."""
    if outcome.error is not None:
        error = outcome.error
        return replace(outcome, error=type(error)(error.tool_name, f"{note}\n{error}"))
    return replace(outcome, content=(Text(text=note), *outcome.content))
