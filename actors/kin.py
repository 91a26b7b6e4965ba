"""What conversations are to each other: a parent that answers for its descendants, and children.

The parent may be an actor or live in the same process; a conversation cannot tell.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

from palaver.actors.approvals import Desk
from palaver.actors.budget import Budget
from palaver.actors.report import CancelReport
from palaver.actors.treasury import Statement, Treasury
from palaver.actors.usage import CumulativeUsage
from palaver.providers.messages import Value


class State(StrEnum):
    """What a conversation is doing."""

    STARTING = "starting"
    """Its process has not answered for the first time yet."""
    IDLE = "idle"
    REQUESTING = "requesting"
    RUNNING_TOOLS = "tools"
    WAITING = "waiting for approval"
    """Of its tool calls at least one waits for a yes; others may run."""
    CLOSED = "closed"
    HELD = "waiting for budget"
    """Its request does not fit its budgets until others have ended."""
    LOST = "lost"
    """Its process is gone (killed, or its last handle was dropped), or does not answer."""


class Branch(Value):
    """A conversation and its sub-conversations, as they stood when asked for.

    `usage` covers the whole branch, and so does `reserved_usd`, which is kept for requests under way.
    `running_tools` are names of tools, one per call under way, and labels of what goes on in the
    background; `waiting_tools` those of them that wait for approval. `node_id` is the Ray node it runs on,
    or ran on; None where that was never told. `busy_s` is for how many seconds its request, or the oldest of
    its tool calls, has been under way; None when nothing is. Those that have ended keep their line.
    """

    id: str
    parent_id: str | None
    depth: int
    label: str
    state: State
    model: str
    usage: CumulativeUsage
    budget: Budget
    reserved_usd: Decimal = Decimal()
    node_id: str | None = None
    running_tools: tuple[str, ...] = ()
    waiting_tools: tuple[str, ...] = ()
    busy_s: float | None = None
    children: tuple[Branch, ...] = ()

    def walk(self) -> Iterator[Branch]:
        """This branch and all below it, parents before children."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def spent_usd(self) -> Decimal | None:
        """What the branch cost so far; None when unknown."""
        return self.usage.total_cost_usd


class Activity(Value):
    """What a conversation and those below it are doing, as they say themselves."""

    id: str
    state: State
    running_tools: tuple[str, ...] = ()
    waiting_tools: tuple[str, ...] = ()
    busy_s: float | None = None
    children: tuple[Activity, ...] = ()

    def walk(self) -> Iterator[Activity]:
        """This one and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


class Parent(Protocol):
    """What a conversation needs of its parent."""

    @property
    def lineage(self) -> tuple[str, ...]:
        """The ids of the conversations from the root down to the parent."""
        ...

    @property
    def desk(self) -> Desk:
        """The root's desk, where tool calls of the whole tree wait for approval."""
        ...

    @property
    def treasury(self) -> Treasury:
        """The root's treasury, where what the whole tree spends is granted and counted."""
        ...

    async def child_closed(self, convo_id: str) -> None:
        """A child has closed."""
        ...


class Child(Protocol):
    """What a conversation needs of its children."""

    @property
    def label(self) -> str:
        """What the child is called in trees."""
        ...

    @property
    def is_starting(self) -> bool:
        """Whether its process has not answered for the first time yet."""
        ...

    def kill(self) -> None:
        """End the child's process, which did not close in time."""
        ...

    async def cancel(self, cause: str) -> CancelReport:
        """Stop what the child and all below it are doing. Raises ConvoClosed."""
        ...

    async def close(self) -> None:
        """End the child and all below it."""
        ...

    async def activity(self) -> Activity:
        """What the child and all below it are doing."""
        ...


def branch_of(statements: Sequence[Statement], activity: Activity) -> Branch:
    """The branch whose accounts these are, parents before children, with what is done in it."""
    doing = {each.id: each for each in activity.walk()}
    states: dict[str | None, State] = {}
    for each in statements:
        if each.ended is not None:
            states[each.convo_id] = State(each.ended)
        elif each.convo_id in doing:
            states[each.convo_id] = doing[each.convo_id].state
        else:
            # Below one that does not answer; or begun after those at work were asked.
            states[each.convo_id] = State.LOST if states.get(each.parent_id) is State.LOST else State.IDLE
    youngest_first: defaultdict[str | None, list[Branch]] = defaultdict(list)
    for each in reversed(statements):
        at_work = doing.get(each.convo_id) if each.ended is None else None
        branch = Branch(
            id=each.convo_id,
            parent_id=each.parent_id,
            depth=each.depth,
            label=each.label,
            state=states[each.convo_id],
            model=each.model,
            usage=each.usage,
            budget=each.budget,
            reserved_usd=each.reserved_usd,
            node_id=each.node_id,
            running_tools=at_work.running_tools if at_work else (),
            waiting_tools=at_work.waiting_tools if at_work else (),
            busy_s=at_work.busy_s if at_work else None,
            children=tuple(reversed(youngest_first[each.convo_id])),
        )
        youngest_first[each.parent_id].append(branch)
    return youngest_first[statements[0].parent_id][0]
