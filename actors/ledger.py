"""The ledger of a tree of conversations: what each may spend, has spent, and has reserved.

It owns three invariants. What is spent for good and what is reserved never pass a limit together, of any
conversation that a request is made within, as long as a request costs no more than its worst case. An entry
counts once, however often it arrives: an answer lost on its way makes a conversation send it again. And sums
are exact.

It changes by numbered events alone, so that whoever replays the events has the ledger. It decides at once,
and knows nothing of waiting: that is the treasury's.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from palaver.actors.account import Account, Reservation, worst_usd
from palaver.actors.budget import Budget
from palaver.actors.entries import (
    AccountClosed,
    AccountOpened,
    BudgetSet,
    Entry,
    LedgerEvent,
    Released,
    Reserved,
    ResponseCharged,
    ToolCalled,
)
from palaver.actors.errors import (
    Breach,
    BudgetExceeded,
    ConvoClosed,
    ConvoIdTaken,
    UnknownConvo,
    UnknownPrice,
)
from palaver.actors.usage import CumulativeUsage
from palaver.providers.retry import Clock
from palaver.providers.worst_case import WorstCase

DEFAULT_OUTPUT_TOKENS = 8_192
"""What bounds an answer when nothing else does, and a limit of dollars or tokens has to be kept."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that a conversation wants to send."""

    convo_id: str
    request_id: str
    worst: WorstCase
    model: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """A request may be sent, with an answer of `max_tokens` at most; None leaves that as it was asked.

    `time_left_s` is how long it may take; None for as long as it likes.
    """

    max_tokens: int | None
    time_left_s: float | None


@dataclass(frozen=True, slots=True)
class Wait:
    """A request does not fit yet. What is reserved may come back, of the conversations `at`."""

    at: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """Of the tool calls asked for, the first `allowed` may run; `over` says why not the others.

    `time_left_s` is how long they may take; None for as long as they like.
    """

    allowed: int
    over: BudgetExceeded | None
    time_left_s: float | None


class Ledger:
    """All accounts of a tree. `on_event` sees every change after it was made."""

    def __init__(
        self, clock: Clock | None = None, on_event: Callable[[LedgerEvent], None] | None = None
    ) -> None:
        self.seq = 0
        self._clock = clock or Clock()
        self._on_event = on_event
        self._accounts: dict[str, Account] = {}

    # Accounts

    def account(self, convo_id: str, *, below: str | None = None) -> Account:
        """The account of a conversation. Raises UnknownConvo, also when it is not at or below `below`."""
        account = self._accounts.get(convo_id)
        if account is None or (below is not None and all(each.convo_id != below for each in account.lineage)):
            raise UnknownConvo(convo_id, below or "the root")
        return account

    def open(self, accounts: Sequence[AccountOpened]) -> None:
        """Open accounts of one parent, or none. Again, it changes nothing.

        Raises BudgetExceeded, ConvoClosed, UnknownConvo, and ConvoIdTaken when another has the id.
        """
        new = [each for each in accounts if not self._is_open(each)]
        parent_id = new[0].parent_id if new else None
        if parent_id is not None:
            self._refuse_children(self._open_account(parent_id), len(new))
        for each in new:
            self._record(each)

    def _is_open(self, opened: AccountOpened) -> bool:
        account = self._accounts.get(opened.convo_id)
        if account is None:
            return False
        parent_id = None if account.parent is None else account.parent.convo_id
        if (parent_id, account.label, account.started_at) != (opened.parent_id, opened.label, opened.at):
            raise ConvoIdTaken(opened.convo_id)
        return True

    def _refuse_children(self, parent: Account, asked: int) -> None:
        for account in parent.lineage:
            if not account.is_enforced:
                continue
            budget, depth = account.budget, parent.depth + 1 - account.depth
            found: list[Breach] = []
            if budget.max_sub_convos is not None and account.sub_convos + asked > budget.max_sub_convos:
                limit, spent = Decimal(budget.max_sub_convos), Decimal(account.sub_convos)
                found.append(Breach("max_sub_convos", limit, spent, asked=Decimal(asked)))
            if budget.max_depth is not None and depth > budget.max_depth:
                below = Decimal(depth - 1)
                found.append(Breach("max_depth", Decimal(budget.max_depth), below, asked=Decimal(depth)))
            if found:
                raise BudgetExceeded(account.convo_id, found)

    def close(self, convo_id: str, *, lost: bool = False) -> None:
        """A conversation has ended, and all below it: what they had reserved comes back."""
        if self.account(convo_id).closed_s is None:
            self._record(AccountClosed(convo_id=convo_id, lost=lost, at=self._clock.now()))

    def reset_budget(self, convo_id: str, budget: Budget) -> None:
        """Give a conversation other limits, counted from what was used so far."""
        account = self._open_account(convo_id)
        on_top = budget.on_top_of(account.bounded_usage(self.now_s()))
        self._record(BudgetSet(convo_id=convo_id, budget=on_top))

    def fund(self, convo_id: str, budget: Budget, *, asked_by: str) -> Budget:
        """Raise the limits of a conversation at or below another; the new ones. Raises UnknownConvo."""
        self.account(convo_id, below=asked_by)
        raised = self._open_account(convo_id).budget.raised_by(budget)
        self._record(BudgetSet(convo_id=convo_id, budget=raised))
        return raised

    # Requests

    def reserve(self, ask: Ask) -> Grant | Wait:
        """Reserve the worst case of a request at its conversation and all above it, or at none.

        Where it does not fit, the answer is to wait while what is reserved for others may come back, or a
        grant of as many output tokens as fit, if these are of use. Raises BudgetExceeded when it will not
        fit, and UnknownPrice. A repeat of an ask that was granted is granted again.
        """
        account = self._open_account(ask.convo_id)
        worst, now_s = ask.worst, self.now_s()
        limiting = [each for each in account.lineage if each.is_enforced]
        self.check_time(ask.convo_id)
        for each in limiting:
            if each.budget.max_dollars is not None and worst.input_usd is None:
                raise UnknownPrice(ask.model or account.model, each.convo_id)
        asked = worst.output_tokens or DEFAULT_OUTPUT_TOKENS
        least = min(worst.min_output_tokens, asked)
        output = asked
        if ask.request_id not in account.reservations:
            room = [each.room(worst) for each in limiting]
            for each, now in zip(limiting, room, strict=True):
                if now < least and each.room(worst, even_reserved=True) < least:
                    raise each.refusal(worst, least)
            short = [each for each, now in zip(limiting, room, strict=True) if now < asked]
            if short and all(each.reserved_responses for each in short):
                return Wait(tuple(each.convo_id for each in short))
            output = min([asked, *room])
            if output < least:
                return Wait(
                    tuple(each.convo_id for each, now in zip(limiting, room, strict=True) if now < least)
                )
            self._record(
                Reserved(
                    convo_id=ask.convo_id,
                    request_id=ask.request_id,
                    usd=worst_usd(worst, output),
                    tokens=worst.input_tokens + output,
                )
            )
        else:
            output = account.reservations[ask.request_id].tokens - worst.input_tokens
        bounded = output < asked or (worst.output_tokens is None and _bounds_output(limiting, worst))
        return Grant(output if bounded else None, account.least_time_left_s(now_s))

    def settle(self, charge: ResponseCharged) -> bool:
        """Charge what a request did cost; its reservation ends. False for a repeat, which changes nothing."""
        return self._record_once(charge, charge.request_id)

    def release(self, convo_id: str, request_id: str) -> bool:
        """End a reservation: nothing is known to have been charged. False when the request has ended."""
        return self._record_once(Released(convo_id=convo_id, request_id=request_id), request_id)

    def reservation(self, convo_id: str, request_id: str) -> Reservation | None:
        """What is reserved for a request; None when nothing is."""
        return self.account(convo_id).reservations.get(request_id)

    def has_ended(self, convo_id: str, request_id: str) -> bool:
        """Whether a request was settled or released."""
        return request_id in self.account(convo_id).counted

    # Tool calls

    def count(self, calls: Sequence[ToolCalled]) -> Counted:
        """Count calls of one conversation that are about to be made, as many as limits allow."""
        if not calls:
            return Counted(0, None, None)
        account = self._open_account(calls[0].convo_id)
        new = [call for call in calls if call.tool_use_id not in account.counted]
        over: BudgetExceeded | None = None
        allowed = len(new)
        for each in account.lineage:
            limit = each.budget.max_tool_calls
            if limit is not None and each.is_enforced and limit - each.tool_calls < allowed:
                allowed = max(0, limit - each.tool_calls)
                asked = Decimal(len(new))
                breach = Breach("max_tool_calls", Decimal(limit), Decimal(each.tool_calls), asked=asked)
                over = BudgetExceeded(each.convo_id, [breach])
        for call in new[:allowed]:
            self._record_once(call, call.tool_use_id)
        return Counted(len(calls) - len(new) + allowed, over, self.time_left_s(account.convo_id))

    # Questions

    def usage(self, convo_id: str) -> CumulativeUsage:
        """What a conversation and all below it have used; `tool_uses` counts over the whole tree."""
        account = self.account(convo_id)
        usage = account.usage(self.now_s())
        return usage.model_copy(update={"tool_uses": dict(account.lineage[-1].tool_uses)})

    def over_budget(self, convo_id: str) -> BudgetExceeded | None:
        """The first budget that is used up, from the conversation's own up to the root's; None without."""
        now_s = self.now_s()
        for account in self.account(convo_id).lineage:
            if breaches := account.budget.breaches(account.bounded_usage(now_s)):
                return BudgetExceeded(account.convo_id, breaches)
        return None

    def left(self, convo_id: str) -> Budget:
        """What is neither spent nor reserved of a conversation's limits and of all above it, the tightest."""
        now_s = self.now_s()
        return Budget.tightest(each.left(now_s) for each in self.account(convo_id).lineage)

    def check_time(self, convo_id: str) -> float | None:
        """Seconds of wall time left to a conversation; None without a limit. Raises BudgetExceeded at 0."""
        now_s = self.now_s()
        for account in self.account(convo_id).lineage:
            over = account.out_of_time(now_s) if account.is_enforced else None
            if over is not None:
                raise over
        return self.time_left_s(convo_id)

    def time_left_s(self, convo_id: str) -> float | None:
        """Seconds of wall time left to a conversation, 0 when it is used up; None without a limit."""
        return self.account(convo_id).least_time_left_s(self.now_s())

    def limits(self, convo_id: str) -> list[tuple[Budget, Budget]]:
        """The budgets that hold for a conversation, its own first, each with what is left of it."""
        now_s = self.now_s()
        return [
            (each.budget, each.left(now_s)) for each in self.account(convo_id).lineage if each.is_enforced
        ]

    def lineage(self, convo_id: str) -> tuple[str, ...]:
        """The ids of a conversation and those above it; the root's is last."""
        return tuple(each.convo_id for each in self.account(convo_id).lineage)

    def now_s(self) -> float:
        """Seconds on the clock that accounts are kept by."""
        return self._clock.monotonic_s()

    def accounts(self, convo_id: str) -> Iterable[Account]:
        """The accounts of a conversation and all below it, parents before children."""
        return self.account(convo_id).walk()

    # Changes

    def apply(self, event: LedgerEvent) -> None:
        """Make the change an event describes. Raises ValueError when events are missing before it."""
        if event.seq != self.seq + 1:
            raise ValueError(f"ledger event {event.seq} does not follow event {self.seq}")
        self.seq = event.seq
        match event.entry:
            case AccountOpened() as opened:
                parent = None if opened.parent_id is None else self.account(opened.parent_id)
                self._accounts[opened.convo_id] = Account(opened, parent, self._moment_s(opened.at))
            case Reserved(convo_id=convo_id, request_id=request_id, usd=usd, tokens=tokens):
                self.account(convo_id).reserve(Reservation(request_id, usd, tokens))
            case Released(convo_id=convo_id, request_id=request_id):
                self.account(convo_id).release(request_id)
            case ResponseCharged(convo_id=convo_id) as charge:
                self.account(convo_id).settle(charge)
            case ToolCalled(convo_id=convo_id) as call:
                self.account(convo_id).count(call)
            case BudgetSet(convo_id=convo_id, budget=budget):
                self.account(convo_id).budget = budget
            case AccountClosed(convo_id=convo_id, lost=lost, at=at):
                self.account(convo_id).close(self._moment_s(at), lost=lost)

    def _open_account(self, convo_id: str) -> Account:
        account = self.account(convo_id)
        if account.closed_s is not None:
            raise ConvoClosed(convo_id, "its process is gone" if account.lost else "it was closed")
        return account

    def _record_once(self, entry: Released | ResponseCharged | ToolCalled, key: str) -> bool:
        if key in self.account(entry.convo_id).counted:
            return False
        self._record(entry)
        return True

    def _record(self, entry: Entry) -> None:
        event = LedgerEvent.model_construct(seq=self.seq + 1, entry=entry)  # an entry is valid already
        self.apply(event)
        if self._on_event is not None:
            self._on_event(event)

    def _moment_s(self, at: datetime) -> float:
        """When that was, on the monotonic clock."""
        return self._clock.monotonic_s() - (self._clock.now() - at).total_seconds()


def _bounds_output(limiting: Iterable[Account], worst: WorstCase) -> bool:
    """Whether some limit depends on how long the answer gets."""
    return any(
        each.budget.max_total_tokens is not None
        or (each.budget.max_dollars is not None and worst.usd_per_output_token)
        for each in limiting
    )
