"""What conversations are to each other: a parent that answers for its descendants, and children.

The parent may be an actor or live in the same process; a conversation cannot tell.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

from palaver.actors.approvals import Desk
from palaver.actors.budget import Budget
from palaver.actors.errors import BudgetExceeded
from palaver.actors.ledger import CumulativeUsage, Entry
from palaver.actors.report import CancelReport
from palaver.providers.messages import Value


class State(StrEnum):
    """What a conversation is doing."""

    IDLE = "idle"
    REQUESTING = "requesting"
    RUNNING_TOOLS = "tools"
    WAITING = "waiting for approval"
    """Of its tool calls at least one waits for a yes; others may run."""
    CLOSED = "closed"
    LOST = "lost"
    """Its process is gone (killed, or its last handle was dropped), or does not answer."""


class Branch(Value):
    """A conversation and its sub-conversations, as they stood when asked for.

    `usage` covers the whole branch. `running_tools` are names of tools, one per call under way,
    and labels of what goes on in the background; `waiting_tools` those of them that wait for approval.
    """

    id: str
    parent_id: str | None
    depth: int
    label: str
    state: State
    model: str
    usage: CumulativeUsage
    budget: Budget
    running_tools: tuple[str, ...] = ()
    waiting_tools: tuple[str, ...] = ()
    children: tuple[Branch, ...] = ()

    def walk(self) -> Iterator[Branch]:
        """This branch and all below it, parents before children."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def cost_usd(self) -> Decimal | None:
        """What the branch cost so far; None when unknown."""
        return self.usage.total_cost_usd


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

    async def record(self, entry: Entry) -> None:
        """Count an entry here and at every ancestor; done when this returns. A repeat counts once."""
        ...

    async def over_budget(self) -> BudgetExceeded | None:
        """The budget that the parent, or an ancestor of it, has used up; None while there is none."""
        ...

    async def budget_left(self) -> Budget:
        """What is left to the parent of its own limits and of all above it, the tightest of each."""
        ...

    async def tree_tool_uses(self) -> Mapping[str, int]:
        """Calls by tool name over the whole tree."""
        ...

    async def child_closed(self, last: Branch) -> None:
        """A child has closed; `last` is how it stood."""
        ...


class Child(Protocol):
    """What a conversation needs of its children."""

    @property
    def label(self) -> str:
        """What the child is called in trees."""
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

    async def tree(self) -> Branch:
        """The child and all below it."""
        ...
