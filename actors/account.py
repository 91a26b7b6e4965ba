"""An account: what one conversation, with all below it, may spend, has spent, and has reserved.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_FLOOR, Decimal

from palaver.actors.budget import Budget
from palaver.actors.entries import AccountOpened, ResponseCharged, ToolCalled
from palaver.actors.errors import Breach, BudgetExceeded, LimitName
from palaver.actors.usage import EXACT, CumulativeUsage
from palaver.providers.usage import Usage
from palaver.providers.worst_case import WorstCase

_WITHOUT_END = 1 << 62
"""More output tokens than any limit leaves."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is kept for one request. `usd` None: its price is unknown."""

    request_id: str
    usd: Decimal | None
    tokens: int


def worst_usd(worst: WorstCase, output_tokens: int) -> Decimal | None:
    """What a request may cost with so many output tokens; None when its price is unknown."""
    if worst.input_usd is None or worst.usd_per_output_token is None:
        return None
    return EXACT.fma(worst.usd_per_output_token, Decimal(output_tokens), worst.input_usd)


class Account:
    """The books of one conversation. Sums are its own and those of all below it.

    Only the ledger changes it.
    """

    def __init__(self, opened: AccountOpened, parent: Account | None, opened_s: float) -> None:
        self.convo_id = opened.convo_id
        self.parent = parent
        self.lineage: tuple[Account, ...] = (self, *(parent.lineage if parent is not None else ()))
        """This account and those above it; the root's is last."""
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.label = opened.label
        self.model = opened.model
        self.budget = opened.budget
        self.started_at: datetime = opened.at
        self.opened_s = opened_s
        self.closed_s: float | None = None
        self.lost = False
        self.node_id: str | None = None
        self.children: list[Account] = []
        self.reservations: dict[str, Reservation] = {}
        """Its own, by request."""
        self.counted: set[str] = set()
        """Its own requests and tool calls that are accounted for: a repeat changes nothing."""
        self.spent = Usage()
        """Tokens; the money is in `known_cost_usd`."""
        self.known_cost_usd = Decimal()
        self.withheld_usd = Decimal()
        """What responses of unknown cost may have cost at most; it counts against the limit."""
        self.withheld_tokens = 0
        """What responses whose tokens were not told may have used at most; it counts against the limit."""
        self.unpriced = 0
        self.unbounded = 0
        """How many of the unpriced may have cost anything."""
        self.responses = 0
        self.tool_uses: dict[str, int] = {}
        self.tool_calls = 0
        self.sub_convos = 0
        self.reserved_usd = Decimal()
        self.reserved_tokens = 0
        self.reserved_responses = 0
        """How many requests are reserved."""
        for account in self.lineage[1:]:
            account.sub_convos += 1
        if parent is not None:
            parent.children.append(self)

    def walk(self) -> Iterator[Account]:
        """This account and all below it, parents before children."""
        yield self
        for child in self.children:
            yield from child.walk()

    # What may be spent

    @property
    def is_enforced(self) -> bool:
        """Whether its limits refuse anything."""
        return not self.budget.advisory

    def elapsed_s(self, now_s: float) -> float:
        """Seconds of wall time, until it ended."""
        return (now_s if self.closed_s is None else self.closed_s) - self.opened_s

    def time_left_s(self, now_s: float) -> float | None:
        """Seconds until its wall time is used up, 0 when it is; None without a limit."""
        if self.budget.max_wall_time is None:
            return None
        return max(0.0, self.budget.max_wall_time.total_seconds() - self.elapsed_s(now_s))

    def least_time_left_s(self, now_s: float) -> float | None:
        """The same, of this account and all above it."""
        left = [each.time_left_s(now_s) for each in self.lineage if each.is_enforced]
        return min((seconds for seconds in left if seconds is not None), default=None)

    def room(self, worst: WorstCase, *, even_reserved: bool = False) -> int:
        """How many output tokens a request may have; negative when it does not fit at all.

        `even_reserved`: if all that is reserved now came back.
        """
        budget, room = self.budget, _WITHOUT_END
        held = not even_reserved
        responses = self.responses + held * self.reserved_responses
        if budget.max_responses is not None and responses >= budget.max_responses:
            return -1
        if budget.max_total_tokens is not None:
            used = self.committed_tokens + held * self.reserved_tokens
            if used >= budget.max_total_tokens:
                return -1
            room = min(room, budget.max_total_tokens - used - worst.input_tokens)
        if budget.max_dollars is not None:
            room = min(room, self._room_for_dollars(budget.max_dollars, worst, held=held))
        return room

    def _room_for_dollars(self, limit: Decimal, worst: WorstCase, *, held: bool) -> int:
        assert worst.input_usd is not None
        assert worst.usd_per_output_token is not None
        used = self.committed_usd
        if self.unbounded or used >= limit:
            return -1
        if held:
            used = EXACT.add(used, self.reserved_usd)
        left = EXACT.subtract(EXACT.subtract(limit, used), worst.input_usd)
        if left < 0:
            return -1
        if not worst.usd_per_output_token:
            return _WITHOUT_END
        return int(EXACT.divide(left, worst.usd_per_output_token).to_integral_value(ROUND_FLOOR))

    @property
    def committed_usd(self) -> Decimal:
        """What is spent, and what may have been."""
        return EXACT.add(self.known_cost_usd, self.withheld_usd)

    @property
    def committed_tokens(self) -> int:
        """All tokens, input and output, that are used, and that may have been."""
        return self.spent.total_input_tokens + self.spent.output_tokens + self.withheld_tokens

    def refusal(self, worst: WorstCase, output_tokens: int) -> BudgetExceeded:
        """Why a request with at least so many output tokens does not fit, here."""
        budget, found = self.budget, list[Breach]()
        if budget.max_dollars is not None and worst.input_usd is not None:
            asked = worst_usd(worst, output_tokens) or Decimal()
            spent = None if self.unbounded else self.committed_usd
            if spent is None or spent >= budget.max_dollars or EXACT.add(spent, asked) > budget.max_dollars:
                found.append(Breach("max_dollars", budget.max_dollars, spent, self.reserved_usd, asked))
        counts: tuple[tuple[LimitName, int | None, int, int, int], ...] = (
            ("max_responses", budget.max_responses, self.responses, self.reserved_responses, 1),
            (
                "max_total_tokens",
                budget.max_total_tokens,
                self.committed_tokens,
                self.reserved_tokens,
                worst.input_tokens + output_tokens,
            ),
        )
        for name, limit, spent, reserved, asked in counts:
            if limit is not None and spent + asked > limit:
                found.append(Breach(name, *(Decimal(each) for each in (limit, spent, reserved, asked))))
        return BudgetExceeded(self.convo_id, found)

    def out_of_time(self, now_s: float) -> BudgetExceeded | None:
        """The refusal of anything, when the wall time is used up."""
        limit = self.budget.max_wall_time
        if limit is None or self.time_left_s(now_s):
            return None
        limit_s, actual_s = Decimal(str(limit.total_seconds())), Decimal(str(round(self.elapsed_s(now_s), 3)))
        return BudgetExceeded(self.convo_id, [Breach("max_wall_time", limit_s, actual_s)])

    # What was spent

    def usage(self, now_s: float) -> CumulativeUsage:
        """The sums so far. `tool_uses` are its own and those below."""
        return CumulativeUsage(
            started_at=self.started_at,
            wall_time=timedelta(seconds=self.elapsed_s(now_s)),
            responses=self.responses,
            input_tokens=self.spent.input_tokens,
            output_tokens=self.spent.output_tokens,
            cache_read_input_tokens=self.spent.cache_read_input_tokens,
            cache_creation_input_tokens=self.spent.cache_creation_input_tokens,
            known_cost_usd=self.known_cost_usd,
            unpriced_responses=self.unpriced,
            tool_calls=self.tool_calls,
            sub_convos=self.sub_convos,
            tool_uses=dict(self.tool_uses),
        )

    def bounded_usage(self, now_s: float) -> CumulativeUsage:
        """The usage, with what responses of unknown cost may have cost at most, where that is known, and of
        untold tokens used."""
        bounded = {
            "known_cost_usd": self.committed_usd,
            "unpriced_responses": self.unbounded,
            "input_tokens": self.spent.input_tokens + self.withheld_tokens,
        }
        return self.usage(now_s).model_copy(update=bounded)

    def left(self, now_s: float) -> Budget:
        """What is neither spent nor reserved of its own limits."""
        usage = self.bounded_usage(now_s)
        held = {
            "known_cost_usd": EXACT.add(usage.known_cost_usd, self.reserved_usd),
            "responses": usage.responses + self.reserved_responses,
            "input_tokens": usage.input_tokens + self.reserved_tokens,
        }
        return self.budget.left(usage.model_copy(update=held))

    # Changes

    def reserve(self, reservation: Reservation) -> None:
        """Keep what a request may cost, here and at all above."""
        self.reservations[reservation.request_id] = reservation
        self._hold(reservation, 1)

    def release(self, request_id: str) -> None:
        """A request has ended at no known cost."""
        self.counted.add(request_id)
        self._give_back(request_id)

    def settle(self, charge: ResponseCharged) -> None:
        """A request has ended, and was charged for."""
        self.counted.add(charge.request_id)
        kept = self._give_back(charge.request_id)
        cost = charge.usage.cost_usd
        tokens = charge.usage.model_copy(update={"cost_usd": None})
        told = charge.usage.total_input_tokens and charge.usage.output_tokens
        withheld = 0
        if kept is not None and charge.answered and not told:
            withheld = max(0, kept.tokens - tokens.total_input_tokens - tokens.output_tokens)
        for account in self.lineage:
            account.spent += tokens
            account.withheld_tokens += withheld
            account.responses += charge.answered
            if cost is not None:
                if cost:  # or a sum of nothing would have six decimals
                    account.known_cost_usd = EXACT.add(account.known_cost_usd, cost)
                continue
            account.unpriced += 1
            if kept is None or kept.usd is None:
                account.unbounded += 1
            else:
                account.withheld_usd = EXACT.add(account.withheld_usd, kept.usd)

    def count(self, call: ToolCalled) -> None:
        """A tool was called."""
        self.counted.add(call.tool_use_id)
        for account in self.lineage:
            account.tool_calls += 1
            account.tool_uses[call.tool_name] = account.tool_uses.get(call.tool_name, 0) + 1

    def close(self, at_s: float, *, lost: bool) -> None:
        """It has ended, with all below it."""
        for account in self.walk():
            if account.closed_s is None:
                account.closed_s, account.lost = at_s, lost
                for request_id in list(account.reservations):
                    account._give_back(request_id)

    def _give_back(self, request_id: str) -> Reservation | None:
        kept = self.reservations.pop(request_id, None)
        if kept is not None:
            self._hold(kept, -1)
        return kept

    def _hold(self, reservation: Reservation, sign: int) -> None:
        usd = reservation.usd or Decimal()
        for account in self.lineage:
            account.reserved_usd = EXACT.fma(usd, Decimal(sign), account.reserved_usd)
            account.reserved_tokens += sign * reservation.tokens
            account.reserved_responses += sign
