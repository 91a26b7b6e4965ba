"""The ledger: what a conversation and all below it have used.

It owns one invariant: an entry counts once, however often it arrives. Entries go up from child to
parent, and an answer lost on the way makes a child send its entry again.

It changes by numbered events alone, so that whoever replays the events has the ledger.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from palaver.providers.messages import Value
from palaver.providers.usage import Usage

_HARDLY_ANY_HOURS = 1e-6
_MICRODOLLAR = Decimal("0.000001")


class ResponseCharged(Value):
    """A response was paid for, or a request that failed and cost all the same."""

    type: Literal["response_charged"] = "response_charged"
    convo_id: str
    request_id: str
    usage: Usage
    answered: bool = True
    """False for a request that failed: it costs, but is no response."""

    @property
    def key(self) -> str:
        """What makes this entry the same as a repeat of it."""
        return self.request_id


class ToolCalled(Value):
    """A tool was called."""

    type: Literal["tool_called"] = "tool_called"
    convo_id: str
    tool_use_id: str
    tool_name: str

    @property
    def key(self) -> str:
        """What makes this entry the same as a repeat of it."""
        return f"{self.convo_id}/{self.tool_use_id}"


Entry: TypeAlias = Annotated[ResponseCharged | ToolCalled, Field(discriminator="type")]


class LedgerEvent(Value):
    """One change of a ledger. `seq` counts from 1 without gaps."""

    seq: int
    entry: Entry


class CumulativeUsage(Value):
    """Usage of a conversation and all its sub-conversations, as it stood when it was asked for.

    `input_tokens` leaves out cached input, which has its own two fields. `tool_uses` counts calls by
    tool name over the whole tree that the conversation is part of.
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
    """How many responses had no known price."""
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
    def dollars_per_hour(self) -> Decimal | None:
        """USD per hour of wall time, to the millionth; None for an unknown cost, 0 for too short a time."""
        cost = self.total_cost_usd
        hours = self.wall_time / timedelta(hours=1)
        if cost is None:
            return None
        if hours < _HARDLY_ANY_HOURS:
            return Decimal()
        return (cost / Decimal(str(hours))).quantize(_MICRODOLLAR)

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
            "tool_uses": dict(self.tool_uses),
        }


def _plain(amount: Decimal | None) -> str | None:
    return None if amount is None else str(amount)


class Ledger:
    """Adds up entries, each once. `on_event` sees every change after it was made."""

    def __init__(self, on_event: Callable[[LedgerEvent], None] | None = None) -> None:
        self.seq = 0
        self._on_event = on_event
        self._keys: set[str] = set()
        self._total = Usage(cost_usd=Decimal())
        self._responses = 0
        self._unpriced = 0
        self._tool_uses: dict[str, int] = {}

    def record(self, entry: Entry) -> bool:
        """Count an entry. False when it was counted before, and nothing changed."""
        if entry.key in self._keys:
            return False
        event = LedgerEvent(seq=self.seq + 1, entry=entry)
        self.apply(event)
        if self._on_event is not None:
            self._on_event(event)
        return True

    def apply(self, event: LedgerEvent) -> None:
        """Make the change an event describes. Raises ValueError when events are missing before it."""
        if event.seq != self.seq + 1:
            raise ValueError(f"ledger event {event.seq} does not follow event {self.seq}")
        self.seq = event.seq
        entry = event.entry
        self._keys.add(entry.key)
        match entry:
            case ResponseCharged():
                known = entry.usage.cost_usd
                priced = (
                    entry.usage
                    if known is not None
                    else entry.usage.model_copy(update={"cost_usd": Decimal()})
                )
                self._total += priced
                self._responses += entry.answered
                self._unpriced += known is None
            case ToolCalled():
                self._tool_uses[entry.tool_name] = self._tool_uses.get(entry.tool_name, 0) + 1

    @property
    def tool_uses(self) -> dict[str, int]:
        """Calls by tool name, of this conversation and all below it."""
        return dict(self._tool_uses)

    def usage(self, started_at: datetime, wall_time: timedelta) -> CumulativeUsage:
        """The sums so far."""
        return CumulativeUsage(
            started_at=started_at,
            wall_time=wall_time,
            responses=self._responses,
            input_tokens=self._total.input_tokens,
            output_tokens=self._total.output_tokens,
            cache_read_input_tokens=self._total.cache_read_input_tokens,
            cache_creation_input_tokens=self._total.cache_creation_input_tokens,
            known_cost_usd=self._total.cost_usd or Decimal(),
            unpriced_responses=self._unpriced,
            tool_uses=self.tool_uses,
        )
