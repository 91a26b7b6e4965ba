"""Budgets: how much a conversation and all below it may spend.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from decimal import ROUND_DOWN, Decimal, localcontext
from typing import Any, cast

from pydantic import field_validator

from palaver.actors.errors import Breach, LimitName
from palaver.actors.usage import EXACT, CumulativeUsage
from palaver.providers.errors import ConfigurationError
from palaver.providers.messages import Value

_COUNTS: Mapping[str, str] = {
    "max_responses": "responses",
    "max_total_tokens": "total_tokens",
    "max_tool_calls": "tool_calls",
    "max_sub_convos": "sub_convos",
}
"""The limits that are plain numbers, and what of a CumulativeUsage each bounds; in the order of breaches."""


_HIGHEST = 10**15
"""Whoever writes more means no limit, or made a mistake; and sums of it would be no longer exact."""


class Budget(Value):
    """Limits for a conversation with all its sub-conversations.

    None means no limit; 0 means that nothing may be spent.

    - `max_dollars`: USD, exact (a float is taken as it is written: 0.1 is one tenth).
    - `max_responses`: answers of models.
    - `max_wall_time`: a timedelta or seconds, from the start of the conversation. Requests and tool calls
      that are under way when it ends are stopped.
    - `max_total_tokens`: input, cached or not, and output.
    - `max_tool_calls`: calls of tools. Those beyond it are not run; the model is told.
    - `max_sub_convos`: sub-conversations, direct or not, that have ended or not.
    - `max_depth`: how many levels of sub-conversations there may be below; 0 for none.

    A request is sent only when the most that it can cost fits, so that no limit is ever passed. With
    `advisory` the limits refuse nothing: `over_budget()` tells when one is reached. Raises pydantic's
    ValidationError for a negative or non-finite limit.
    """

    max_dollars: Decimal | None = None
    max_responses: int | None = None
    max_wall_time: timedelta | None = None
    max_total_tokens: int | None = None
    max_tool_calls: int | None = None
    max_sub_convos: int | None = None
    max_depth: int | None = None
    advisory: bool = False

    def __init__(
        self,
        *,
        max_dollars: Decimal | float | str | None = None,
        max_responses: int | None = None,
        max_wall_time: timedelta | float | None = None,
        max_total_tokens: int | None = None,
        max_tool_calls: int | None = None,
        max_sub_convos: int | None = None,
        max_depth: int | None = None,
        advisory: bool = False,
    ) -> None:
        limits: dict[str, Any] = {
            "max_dollars": max_dollars,
            "max_responses": max_responses,
            "max_wall_time": max_wall_time,
            "max_total_tokens": max_total_tokens,
            "max_tool_calls": max_tool_calls,
            "max_sub_convos": max_sub_convos,
            "max_depth": max_depth,
            "advisory": advisory,
        }
        super().__init__(**limits)

    @field_validator("max_dollars", "max_wall_time", "max_depth", *_COUNTS, mode="before")
    @classmethod
    def _no_truth(cls, limit: object) -> object:
        if isinstance(limit, bool):
            raise ValueError(f"a limit of {limit} is no number; use None for no limit")
        return limit

    @field_validator("max_dollars", "max_wall_time", "max_depth", *_COUNTS)
    @classmethod
    def _within_reason(cls, limit: Any) -> Any:
        if limit is None:
            return None
        if isinstance(limit, Decimal) and not limit.is_finite():
            raise ValueError(f"a limit of {limit} is no number; use None for no limit")
        if limit < type(limit)(0):
            raise ValueError(f"a limit of {limit} is negative; use 0 or more, or None for no limit")
        if not isinstance(limit, timedelta) and limit > _HIGHEST:
            raise ValueError(f"a limit of {limit} is more than {_HIGHEST:.0e}; use None for no limit")
        return limit

    @property
    def limits(self) -> dict[str, Any]:
        """The limits there are, by name."""
        return {name: limit for name, limit in self if name != "advisory" and limit is not None}

    def breaches(self, usage: CumulativeUsage) -> tuple[Breach, ...]:
        """The limits that `usage` has reached: money first, then time, then counts.

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
        for name, counted in _COUNTS.items():
            limit, actual = getattr(self, name), getattr(usage, counted)
            if limit is not None and actual >= limit:
                found.append(Breach(cast("LimitName", name), Decimal(limit), Decimal(actual)))
        return tuple(found)

    def on_top_of(self, usage: CumulativeUsage) -> Budget:
        """The same limits, counted from what was used so far. `max_depth` counts nothing, and stays.

        An unknown cost counts as what of it is known.
        """
        raised = {
            name: limit + getattr(usage, _COUNTS[name])
            for name, limit in self.limits.items()
            if name in _COUNTS
        }
        if self.max_dollars is not None:
            raised["max_dollars"] = EXACT.add(self.max_dollars, usage.known_cost_usd)
        if self.max_wall_time is not None:
            raised["max_wall_time"] = self.max_wall_time + usage.wall_time
        return self.model_copy(update=raised)

    def raised_by(self, more: Budget) -> Budget:
        """Each limit raised by that of `more`. Raises ConfigurationError where there is none to raise."""
        if not more.limits or more.advisory:
            what = "is advisory" if more.advisory else "names no limit"
            raise ConfigurationError(
                f"the budget to raise limits by {what}; say by how much, such as Budget(max_dollars=1)"
            )
        own = self.limits
        unlimited = [name for name in more.limits if name not in own]
        if unlimited:
            raise ConfigurationError(
                f"{', '.join(unlimited)} cannot be raised: there is no such limit; limited: "
                f"{', '.join(own) or 'nothing'}. reset_budget() sets limits"
            )
        with localcontext(EXACT):
            return self.model_copy(update={name: own[name] + limit for name, limit in more.limits.items()})

    def left(self, usage: CumulativeUsage) -> Budget:
        """What `usage` leaves of each limit: 0 where it is reached, None where there is none.

        Of a dollar limit spending of unknown cost leaves nothing, since nothing proves the opposite.
        """
        rest: dict[str, Any] = {
            name: max(0, limit - getattr(usage, _COUNTS[name]))
            for name, limit in self.limits.items()
            if name in _COUNTS
        }
        if self.max_dollars is not None:
            cost = usage.total_cost_usd
            left = Decimal() if cost is None else EXACT.subtract(self.max_dollars, cost)
            rest["max_dollars"] = max(Decimal(), left)
        if self.max_wall_time is not None:
            rest["max_wall_time"] = max(timedelta(), self.max_wall_time - usage.wall_time)
        return self.model_copy(update=rest)

    def share(self, part: Decimal | float) -> Budget:
        """That part of each limit (0 < part <= 1; a float is taken as it is written).

        Rounded down, so that parts which sum up to 1 never come to more than the whole: dollars to 28
        digits, counts to a whole number. But of one or more, the part is at least one. `max_depth` is not
        shared out: it stays. Raises ConfigurationError for a part that is none.
        """
        part = part if isinstance(part, Decimal) else Decimal(str(part))
        if part.is_nan() or not 0 < part <= 1:
            raise ConfigurationError(
                f"budget_share is {part}; use a part of what is left, above 0 and at most 1"
            )
        with localcontext(rounding=ROUND_DOWN):
            shared: dict[str, Any] = {
                name: limit and max(1, int(limit * part))
                for name, limit in self.limits.items()
                if name in _COUNTS
            }
            if self.max_dollars is not None:
                shared["max_dollars"] = self.max_dollars * part
            if self.max_wall_time is not None:
                microseconds = self.max_wall_time // timedelta(microseconds=1)
                shared["max_wall_time"] = timedelta(microseconds=int(microseconds * part))
        return self.model_copy(update=shared)

    @classmethod
    def tightest(cls, budgets: Iterable[Budget]) -> Budget:
        """The lowest of each limit, those that are advisory left out."""
        limits: dict[str, Any] = {}
        for budget in budgets:
            if budget.advisory:
                continue
            for name, limit in budget.limits.items():
                limits[name] = min(limit, limits.get(name, limit))
        return cls(**limits)
