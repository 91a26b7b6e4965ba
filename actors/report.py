"""What a cancel has stopped, and what it took: the proof that nothing is left.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

from palaver.providers.messages import Value
from palaver.tools.stopped import EndedProcess


class StoppedCall(Value):
    """A tool call that was stopped. `took_s` is until nothing of it was left, on any node.

    `in_background` is for a job a call had started; `tool_use_id` is then the job's id. `processes` are
    those that had to be ended. `problem` tells what could not be seen to its end; empty when nothing.
    """

    tool_use_id: str
    tool_name: str
    took_s: float
    processes: tuple[EndedProcess, ...] = ()
    in_background: bool = False
    problem: str = ""


class StoppedConvo(Value):
    """A conversation that was stopped: its request in flight (None: there was none) and its tool calls.

    `gone` is whether its process had ended without being closed, or had to be killed; what ran for it, and
    for those below it, was then ended from outside, and `processes` are those that had to be.
    """

    id: str
    label: str
    took_s: float
    request_id: str | None = None
    tool_calls: tuple[StoppedCall, ...] = ()
    gone: bool = False
    processes: tuple[EndedProcess, ...] = ()
    problem: str = ""


class CancelReport(Value):
    """What a cancel has stopped, in the conversation and all below it; parents before children.

    When it is there, none of them sends a request any more and no process of their tools lives, but for
    what `problems` tell of.
    """

    cause: str
    took_s: float
    conversations: tuple[StoppedConvo, ...]

    @property
    def requests(self) -> tuple[str, ...]:
        """The ids of the requests that were stopped."""
        return tuple(convo.request_id for convo in self.conversations if convo.request_id is not None)

    @property
    def tool_calls(self) -> tuple[StoppedCall, ...]:
        """All tool calls that were stopped."""
        return tuple(call for convo in self.conversations for call in convo.tool_calls)

    @property
    def processes(self) -> tuple[EndedProcess, ...]:
        """All processes that had to be ended."""
        return tuple(
            process
            for convo in self.conversations
            for process in (*convo.processes, *(each for call in convo.tool_calls for each in call.processes))
        )

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be seen to its end."""
        return tuple(
            f"{convo.id}: {problem}"
            for convo in self.conversations
            for problem in (convo.problem, *(call.problem for call in convo.tool_calls))
            if problem
        )

    @property
    def fenced(self) -> bool:
        """Whether all of it was seen to its end."""
        return not self.problems

    def __str__(self) -> str:
        counts = [
            _count(len(self.conversations), "conversation"),
            _count(len(self.requests), "request"),
            _count(len(self.tool_calls), "tool call"),
        ]
        killed = sum(process.killed for process in self.processes)
        told = f"stopped {', '.join(counts)} in {self.took_s:.1f} s"
        if killed:
            told += f"; {_count(killed, 'process', 'processes')} had to be killed"
        return "; ".join((told, *self.problems))


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
