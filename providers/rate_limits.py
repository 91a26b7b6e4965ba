"""Rate limits of a provider: what the user knows of them, what answers tell, and who keeps them.

Layer: providers; imports the value base alone. The gate itself is elsewhere: providers know its protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from pydantic import PositiveFloat, PositiveInt

from palaver.providers.messages import Value


class RateLimits(Value):
    """What a provider allows one key to ask of one model. None is not known: it is learned from refusals."""

    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None
    max_concurrent: PositiveInt | None = None


@dataclass(frozen=True, slots=True)
class Lane:
    """All requests that share a limit: one provider, key and model. `name` holds a hash of the key."""

    name: str
    limits: RateLimits


class Outcome(StrEnum):
    """How one try of a request ended, as far as limits are concerned."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """429: too many requests or tokens."""
    OVERLOADED = "overloaded"
    """529, 503: the provider is out of capacity."""
    FAILED = "failed"
    """Anything else: it tells nothing of limits."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a try has told.

    For `hold_s` nobody should ask again. `tokens` are those it used; None is unknown.
    """

    outcome: Outcome
    hold_s: float = 0.0
    tokens: int | None = None


class Gate(Protocol):
    """Who lets requests through, so that all who share a limit keep it together."""

    async def enter(self, lane: Lane, tokens: int, *, again: bool) -> str:
        """Wait until a request of about so many tokens may be sent; its ticket.

        `again` is for one that was refused and comes back: it waits before all others. When cancelled, the
        place is given up.
        """
        ...

    def leave(self, ticket: str, told: Told) -> None:
        """The try has ended. Does not wait, and never fails."""
        ...


@runtime_checkable
class TakesGate(Protocol):
    """What a provider has besides when its requests can go through a gate."""

    def through(self, gate: Gate | None) -> None:
        """Send all requests through `gate` from now on; None for none. It does not travel in pickles."""
        ...
