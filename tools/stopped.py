"""What it took to stop a tool call.

Layer: tools; no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence

from palaver.providers.messages import Value


class EndedProcess(Value):
    """A process that a stopped call had started, or its worker, which had to be ended.

    `killed` is whether it took SIGKILL; otherwise it ended by itself after SIGTERM.
    """

    pid: int
    name: str
    node: str
    killed: bool


class Stopped(Value):
    """How a call was stopped. `took_s` is from the order to stop until nothing of it was left.

    `complete` is False when that could not be seen to its end, and `problem` then tells why. `ran_s` is
    how long the call had run, where that is known.
    """

    took_s: float = 0.0
    processes: tuple[EndedProcess, ...] = ()
    complete: bool = True
    problem: str = ""
    ran_s: float | None = None

    @classmethod
    def of_all(cls, parts: Sequence[Stopped]) -> Stopped:
        """What several parts come to."""
        return cls(
            took_s=max((part.took_s for part in parts), default=0.0),
            processes=tuple(process for part in parts for process in part.processes),
            complete=all(part.complete for part in parts),
            problem="; ".join(part.problem for part in parts if part.problem),
            ran_s=max((part.ran_s for part in parts if part.ran_s is not None), default=None),
        )
