"""The treasury: where the requests of a whole tree of conversations get their money, and wait for it.

The root of a tree keeps it, so that a request is granted or refused at its conversation and every ancestor in
one step, however deep it is. It owns the line: whoever does not fit waits, and nobody overtakes at a limit
where somebody else waits.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from decimal import Decimal
from typing import Protocol

from palaver.actors.budget import Budget
from palaver.actors.budget_notice import notice
from palaver.actors.entries import AccountOpened, ResponseCharged, ToolCalled
from palaver.actors.errors import BudgetExceeded, ConvoClosed
from palaver.actors.ledger import Ask, Counted, Grant, Ledger, Wait
from palaver.actors.usage import CumulativeUsage
from palaver.providers.errors import PalaverError
from palaver.providers.messages import Value

_log = logging.getLogger(__name__)


class Statement(Value):
    """An account as it stood when it was asked for. Sums are of the conversation and all below it.

    `reserved_usd` is kept for requests under way. `ended` is "closed", or "lost" for one whose process is
    gone; None while it goes on.
    """

    convo_id: str
    parent_id: str | None
    depth: int
    label: str
    model: str
    budget: Budget
    usage: CumulativeUsage
    reserved_usd: Decimal
    ended: str | None
    node_id: str | None = None


class Holder(Protocol):
    """A conversation that holds reservations, as far as it has to be watched."""

    async def until_request_ended(self, request_id: str) -> None:
        """Return when the request has ended. Raises ConvoClosed when the conversation's process is gone."""
        ...


class Treasury(Protocol):
    """What a conversation needs of its tree's treasury. Every method may be repeated after a lost answer."""

    async def open(self, accounts: Sequence[AccountOpened]) -> None:
        """Open accounts of one parent, or none. Raises BudgetExceeded, ConvoClosed, ConvoIdTaken."""
        ...

    async def close(self, convo_id: str, *, lost: bool = False) -> None:
        """A conversation has ended, and all below it."""
        ...

    async def reserve(self, ask: Ask) -> Grant:
        """Reserve the worst case of a request, here and at every ancestor; wait while it may yet fit.

        When cancelled, `release` has to be called. Raises BudgetExceeded, UnknownPrice, ConvoClosed.
        """
        ...

    async def settle(self, charge: ResponseCharged) -> None:
        """Charge what a request did cost, here and at every ancestor; its reservation ends."""
        ...

    async def release(self, convo_id: str, request_id: str) -> None:
        """End a reservation, or the wait for one: nothing is known to have been charged."""
        ...

    async def count(self, calls: Sequence[ToolCalled]) -> Counted:
        """Count tool calls that are about to be made, as many as limits allow."""
        ...

    async def usage(self, convo_id: str) -> CumulativeUsage:
        """What a conversation and all below it have used; `tool_uses` counts over the whole tree."""
        ...

    async def over_budget(self, convo_id: str) -> BudgetExceeded | None:
        """The budget that a conversation, or the nearest ancestor, has used up; None: there is none."""
        ...

    async def left(self, convo_id: str) -> Budget:
        """What is neither spent nor reserved of a conversation's limits and of all above it."""
        ...

    async def check_time(self, convo_id: str) -> float | None:
        """Seconds of wall time left to a conversation; None without a limit.

        Raises BudgetExceeded when its time, or that of an ancestor, is used up.
        """
        ...

    async def notice(self, convo_id: str, from_part: float) -> str:
        """What is left, for the model to read, once that part of a limit is used; empty before."""
        ...

    async def reset_budget(self, convo_id: str, budget: Budget) -> None:
        """Set new limits, counted from what was used so far."""
        ...

    async def fund(self, convo_id: str, budget: Budget, *, asked_by: str) -> Budget:
        """Raise limits; the new ones. Raises UnknownConvo, ConfigurationError, ConvoClosed."""
        ...

    async def statements(self, convo_id: str, *, ended: bool = True) -> tuple[Statement, ...]:
        """The accounts of a conversation and all below it, parents before children.

        Without `ended`, those below it that have ended are left out.
        """
        ...

    async def lineage(self, convo_id: str) -> tuple[str, ...]:
        """The ids of a conversation and those above it; the root's is last. Raises UnknownConvo."""
        ...


class _Waiting:
    """A request in the line."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.granted: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        # Whoever waited for it may be gone by then.
        self.granted.add_done_callback(lambda granted: granted.cancelled() or granted.exception())


class RootTreasury:
    """The treasury of the tree whose ledger is given. One event loop uses it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._line: dict[str, _Waiting] = {}
        self._holders: dict[str, Holder] = {}
        self._unwatched: dict[str, str] = {}
        """Requests under way that are not watched, with their conversations."""
        self._watches: dict[str, asyncio.Task[None]] = {}

    def introduce(self, convo_id: str, holder: Holder, node_id: str) -> None:
        """Tell who a conversation is, so that what it holds comes back when its process is gone."""
        self._holders[convo_id] = holder
        self.ledger.account(convo_id).node_id = node_id

    async def open(self, accounts: Sequence[AccountOpened]) -> None:
        self.ledger.open(accounts)

    async def close(self, convo_id: str, *, lost: bool = False) -> None:
        self.ledger.close(convo_id, lost=lost)
        for account in self.ledger.accounts(convo_id):
            self._holders.pop(account.convo_id, None)
        self._serve()

    # Requests

    async def reserve(self, ask: Ask) -> Grant:
        waiting = self._line.get(ask.request_id)
        if waiting is None:
            waiting = _Waiting(ask)
            if self.ledger.reservation(ask.convo_id, ask.request_id) is not None:
                self._decide(waiting)  # its answer was lost
            else:
                self._line[ask.request_id] = waiting
                self._serve()
        while not waiting.granted.done():
            left_s = self.ledger.time_left_s(ask.convo_id)
            if left_s == 0:
                self._decide(waiting)  # which refuses it, whoever is before it
            else:
                await asyncio.wait({waiting.granted}, timeout=left_s)
        return waiting.granted.result()

    async def settle(self, charge: ResponseCharged) -> None:
        kept = self.ledger.reservation(charge.convo_id, charge.request_id)
        cost = charge.usage.cost_usd
        expected = None if kept is None else kept.usd
        is_new = self.ledger.settle(charge)
        if is_new and cost is not None and expected is not None and cost > expected:
            _log.warning(
                "request %s of conversation %s cost $%s and was expected to cost at most $%s; a limit may be "
                "passed. Is the provider's price right?",
                *(charge.request_id, charge.convo_id, cost, expected),
            )
        self._ended(charge.request_id)

    async def release(self, convo_id: str, request_id: str) -> None:
        self.ledger.release(convo_id, request_id)
        if waiting := self._line.get(request_id):
            self._decide(waiting)  # which refuses it now
        self._ended(request_id)

    def _ended(self, request_id: str) -> None:
        self._unwatched.pop(request_id, None)
        if watch := self._watches.pop(request_id, None):
            watch.cancel()
        self._serve()

    def _serve(self) -> None:
        """Grant whoever in the line fits; nobody passes one who waits at an account of both."""
        taken: set[str] = set()
        for waiting in list(self._line.values()):
            lineage = self.ledger.lineage(waiting.ask.convo_id)
            if lineage[-1] in taken:
                break  # everybody passes the root
            if taken.isdisjoint(lineage):
                taken.update(self._decide(waiting))
        if self._line:
            for request_id, convo_id in self._unwatched.items():
                self._watch(convo_id, request_id)
            self._unwatched.clear()

    def _decide(self, waiting: _Waiting) -> Sequence[str]:
        """Grant a request or refuse it; or the accounts at which it has to wait."""
        ask = waiting.ask
        try:
            if self.ledger.has_ended(ask.convo_id, ask.request_id):
                raise ConvoClosed(ask.convo_id, f"its request {ask.request_id} was withdrawn")
            answer = self.ledger.reserve(ask)
        except PalaverError as error:
            waiting.granted.set_exception(error)
        else:
            if isinstance(answer, Wait):
                return answer.at
            waiting.granted.set_result(answer)
            self._unwatched[ask.request_id] = ask.convo_id
        self._line.pop(ask.request_id, None)
        return ()

    def _watch(self, convo_id: str, request_id: str) -> None:
        """See to it that what a request holds comes back when its process is gone: others wait for it."""
        # One that shares the process of another above it is watched by that; the root's own need not be.
        *below, _ = self.ledger.lineage(convo_id)
        if holder := next((self._holders[each] for each in below if each in self._holders), None):
            watch = asyncio.create_task(self._until_ended(holder, convo_id, request_id))
            self._watches[request_id] = watch

    async def _until_ended(self, holder: Holder, convo_id: str, request_id: str) -> None:
        try:
            await holder.until_request_ended(request_id)
        except ConvoClosed:
            self._watches.pop(request_id, None)
            _log.warning("conversation %s is gone; what it had reserved is given back", convo_id)
            await self.close(convo_id, lost=True)

    # Tool calls

    async def count(self, calls: Sequence[ToolCalled]) -> Counted:
        return self.ledger.count(calls)

    # Questions

    async def usage(self, convo_id: str) -> CumulativeUsage:
        return self.ledger.usage(convo_id)

    async def over_budget(self, convo_id: str) -> BudgetExceeded | None:
        return self.ledger.over_budget(convo_id)

    async def left(self, convo_id: str) -> Budget:
        return self.ledger.left(convo_id)

    async def check_time(self, convo_id: str) -> float | None:
        return self.ledger.check_time(convo_id)

    async def notice(self, convo_id: str, from_part: float) -> str:
        return notice(self.ledger.limits(convo_id), from_part)

    async def lineage(self, convo_id: str) -> tuple[str, ...]:
        return self.ledger.lineage(convo_id)

    async def statements(self, convo_id: str, *, ended: bool = True) -> tuple[Statement, ...]:
        return tuple(
            Statement(
                convo_id=each.convo_id,
                parent_id=None if each.parent is None else each.parent.convo_id,
                depth=each.depth,
                label=each.label,
                model=each.model,
                budget=each.budget,
                usage=each.usage(self.ledger.now_s()),
                reserved_usd=each.reserved_usd,
                ended=None if each.closed_s is None else "lost" if each.lost else "closed",
                node_id=next((above.node_id for above in each.lineage if above.node_id), None),
            )
            for each in self.ledger.accounts(convo_id)
            if ended or each.closed_s is None or each.convo_id == convo_id
        )

    # Limits

    async def reset_budget(self, convo_id: str, budget: Budget) -> None:
        self.ledger.reset_budget(convo_id, budget)
        self._serve()

    async def fund(self, convo_id: str, budget: Budget, *, asked_by: str) -> Budget:
        raised = self.ledger.fund(convo_id, budget, asked_by=asked_by)
        self._serve()
        return raised
