"""Budgets: how much a conversation and all below it may spend.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from decimal import ROUND_DOWN, Decimal, localcontext
from typing import Any

from pydantic import field_validator

from palaver.actors.errors import Breach
from palaver.actors.ledger import CumulativeUsage
from palaver.providers.errors import ConfigurationError
from palaver.providers.messages import Value


class Budget(Value):
    """Limits for a conversation with all its sub-conversations.

    None means no limit; 0 means that nothing may be spent. `max_dollars` is USD, exact (a float is
    taken as it is written: 0.1 is one tenth). `max_wall_time` takes a timedelta or seconds and counts
    from the start of the conversation. Raises pydantic's ValidationError for a negative or non-finite
    limit.
    """

    max_dollars: Decimal | None = None
    max_responses: int | None = None
    max_wall_time: timedelta | None = None

    def __init__(
        self,
        *,
        max_dollars: Decimal | float | str | None = None,
        max_responses: int | None = None,
        max_wall_time: timedelta | float | None = None,
    ) -> None:
        limits: dict[str, Any] = {
            "max_dollars": max_dollars,
            "max_responses": max_responses,
            "max_wall_time": max_wall_time,
        }
        super().__init__(**limits)

    @field_validator("max_dollars", "max_responses", "max_wall_time")
    @classmethod
    def _not_negative(cls, limit: Any) -> Any:
        if limit is None:
            return None
        if isinstance(limit, Decimal) and not limit.is_finite():
            raise ValueError(f"a limit of {limit} is no number; use None for no limit")
        if limit < type(limit)(0):
            raise ValueError(f"a limit of {limit} is negative; use 0 or more, or None for no limit")
        return limit

    def breaches(self, usage: CumulativeUsage) -> tuple[Breach, ...]:
        """The limits that `usage` has reached: money first, then time, then responses.

        Spending of unknown cost breaches any dollar limit, since nothing proves that it is kept.
        """
        found: list[Breach] = []
        if self.max_dollars is not None:
            cost = usage.total_cost_usd
            if cost is None or cost >= self.max_dollars:
                found.append(Breach("max_dollars", self.max_dollars, cost))
        if self.max_wall_time is not None and usage.wall_time >= self.max_wall_time:
            limit_s, actual_s = self.max_wall_time.total_seconds(), usage.wall_time.total_seconds()
            found.append(Breach("max_wall_time", Decimal(str(limit_s)), Decimal(str(actual_s))))
        if self.max_responses is not None and usage.responses >= self.max_responses:
            found.append(Breach("max_responses", Decimal(self.max_responses), Decimal(usage.responses)))
        return tuple(found)

    def on_top_of(self, usage: CumulativeUsage) -> Budget:
        """The same limits, counted from what was used so far.

        An unknown cost counts as what of it is known.
        """
        return Budget(
            max_dollars=None if self.max_dollars is None else self.max_dollars + usage.known_cost_usd,
            max_responses=None if self.max_responses is None else self.max_responses + usage.responses,
            max_wall_time=None if self.max_wall_time is None else self.max_wall_time + usage.wall_time,
        )

    def left(self, usage: CumulativeUsage) -> Budget:
        """What `usage` leaves of each limit: 0 where it is reached, None where there is none.

        Of a dollar limit spending of unknown cost leaves nothing, since nothing proves the opposite.
        """
        cost = usage.total_cost_usd
        dollars = None if self.max_dollars is None else Decimal()
        if self.max_dollars is not None and cost is not None:
            dollars = max(Decimal(), self.max_dollars - cost)
        responses = None if self.max_responses is None else max(0, self.max_responses - usage.responses)
        wall_time = None
        if self.max_wall_time is not None:
            wall_time = max(timedelta(), self.max_wall_time - usage.wall_time)
        return Budget(max_dollars=dollars, max_responses=responses, max_wall_time=wall_time)

    def share(self, part: Decimal | float) -> Budget:
        """That part of each limit (0 < part <= 1; a float is taken as it is written).

        Rounded down, so that parts which sum up to 1 never come to more than the whole: dollars to 28
        digits, responses to a whole number. But of one response or more, the part is at least one. Raises
        ConfigurationError for a part that is none.
        """
        part = part if isinstance(part, Decimal) else Decimal(str(part))
        if part.is_nan() or not 0 < part <= 1:
            raise ConfigurationError(
                f"budget_share is {part}; use a part of what is left, above 0 and at most 1"
            )
        with localcontext(rounding=ROUND_DOWN):
            dollars = None if self.max_dollars is None else self.max_dollars * part
            responses = self.max_responses
            if responses:
                responses = max(1, int(responses * part))
            wall_time = self.max_wall_time
            if wall_time is not None:
                microseconds = wall_time // timedelta(microseconds=1)
                wall_time = timedelta(microseconds=int(microseconds * part))
        return Budget(max_dollars=dollars, max_responses=responses, max_wall_time=wall_time)

    @classmethod
    def tightest(cls, budgets: Iterable[Budget]) -> Budget:
        """The lowest of each limit."""
        budgets = list(budgets)
        dollars = [each.max_dollars for each in budgets if each.max_dollars is not None]
        responses = [each.max_responses for each in budgets if each.max_responses is not None]
        wall_times = [each.max_wall_time for each in budgets if each.max_wall_time is not None]
        return cls(
            max_dollars=min(dollars, default=None),
            max_responses=min(responses, default=None),
            max_wall_time=min(wall_times, default=None),
        )
