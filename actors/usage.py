"""What a conversation and all below it have used.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Context, Decimal
from typing import Any

from pydantic import Field

from palaver.providers.messages import Value

EXACT = Context(prec=100)
"""Wide enough that no sum of money is ever rounded, whatever the caller's decimal context is."""

_HARDLY_ANY_HOURS = 1e-6
_MICRODOLLAR = Decimal("0.000001")


class CumulativeUsage(Value):
    """Usage of a conversation and all its sub-conversations, as it stood when it was asked for.

    `input_tokens` leaves out cached input, which has its own two fields. `tool_uses` counts calls by
    tool name over the whole tree that the conversation is part of; `tool_calls` and `sub_convos` count
    those of the conversation and all below it.
    """

    started_at: datetime
    wall_time: timedelta
    responses: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    known_cost_usd: Decimal = Decimal()
    """The sum of all costs that are known."""
    unpriced_responses: int = 0
    """How many responses had no known cost."""
    tool_calls: int = 0
    sub_convos: int = 0
    tool_uses: Mapping[str, int] = Field(default_factory=dict)

    @property
    def total_cost_usd(self) -> Decimal | None:
        """What all of it cost. None when the price of any response is unknown."""
        return None if self.unpriced_responses else self.known_cost_usd

    @property
    def total_input_tokens(self) -> int:
        """All input tokens, cached or not."""
        return self.input_tokens + self.cache_read_input_tokens + self.cache_creation_input_tokens

    @property
    def total_tokens(self) -> int:
        """All tokens, input and output."""
        return self.total_input_tokens + self.output_tokens

    @property
    def dollars_per_hour(self) -> Decimal | None:
        """USD per hour of wall time, to the millionth; None for an unknown cost, 0 for too short a time."""
        cost = self.total_cost_usd
        hours = self.wall_time / timedelta(hours=1)
        if cost is None:
            return None
        if hours < _HARDLY_ANY_HOURS:
            return Decimal()
        return (cost / Decimal(str(hours))).quantize(_MICRODOLLAR)

    def __add__(self, other: CumulativeUsage) -> CumulativeUsage:
        """What two conversations used together, from the beginning of the first on."""
        summed = {
            name: getattr(self, name) + getattr(other, name)
            for name in (
                "wall_time",
                "responses",
                "input_tokens",
                "output_tokens",
                "cache_read_input_tokens",
                "cache_creation_input_tokens",
                "unpriced_responses",
                "tool_calls",
                "sub_convos",
            )
        }
        return CumulativeUsage(
            started_at=min(self.started_at, other.started_at),
            known_cost_usd=EXACT.add(self.known_cost_usd, other.known_cost_usd),
            tool_uses=dict(Counter(self.tool_uses) + Counter(other.tool_uses)),
            **summed,
        )

    def log_view(self) -> dict[str, Any]:
        """The usage as plain values for a structured log record."""
        return {
            "wall_time_s": self.wall_time.total_seconds(),
            "responses": self.responses,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cache_read_input_tokens": self.cache_read_input_tokens,
            "cache_creation_input_tokens": self.cache_creation_input_tokens,
            "total_cost_usd": _plain(self.total_cost_usd),
            "dollars_per_hour": _plain(self.dollars_per_hour),
            "tool_calls": self.tool_calls,
            "sub_convos": self.sub_convos,
            "tool_uses": dict(self.tool_uses),
        }


def _plain(amount: Decimal | None) -> str | None:
    return None if amount is None else str(amount)
