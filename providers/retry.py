"""When a failed request is sent again, and the clock that decides it.

Layer: providers; imports the value base and the errors.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeAlias, runtime_checkable

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from palaver.providers.errors import ProviderError
from palaver.providers.messages import Value


class RetryPolicy(Value):
    """When a failed request is sent again. Waits grow from `first_wait_s`, doubled and jittered."""

    max_attempts: PositiveInt = 6
    """Tries in all; 1 means no retry."""
    max_total_s: NonNegativeFloat = 300.0
    """No further try begins when it would begin later than this after the first."""
    first_wait_s: PositiveFloat = 0.5
    max_wait_s: PositiveFloat = 60.0
    """Longest single wait, also when the server asks for more."""
    max_charged_retries: NonNegativeInt = 2
    """Retries after tries that the provider charged, or may have, although their answer was of no use."""
    retry_lost_answers: bool = False
    """Whether to send again what may have been answered and charged already."""

    def wait_s(self, attempts: int, asked_s: float | None, jitter: float) -> float:
        """Seconds to wait after `attempts` tries failed.

        `asked_s` is what the server asked for, None when it did not; `jitter` a number from 0 to 1.
        """
        if asked_s is not None:
            return min(asked_s + self.first_wait_s * jitter, self.max_wait_s)
        return min(self.first_wait_s * 2.0 ** (attempts - 1), self.max_wait_s) * (1 + jitter) / 2


@dataclass(frozen=True, slots=True)
class Retry:
    """A try that failed and is made again.

    `attempt` is how many there were, and `wait_s` the seconds until the next: 0 where the rate gate holds it.
    """

    error: ProviderError
    attempt: int
    wait_s: float


TellRetry: TypeAlias = Callable[[Retry], Awaitable[None]]


@runtime_checkable
class TellsRetries(Protocol):
    """What a provider has besides when it tries again by itself, and tells of it."""

    def telling(self, request_id: str, tell: TellRetry) -> AbstractContextManager[None]:
        """While the block runs, `tell` hears of each retry of that request before it is waited for."""
        ...


class Clock:
    """Time, as the retries see it. A test passes its own."""

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start that never go back."""
        return time.monotonic()

    def now(self) -> datetime:
        """The date and time, in UTC."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Wait; cancelling ends the wait at once."""
        await asyncio.sleep(seconds)

    def jitter(self) -> float:
        """A random number from 0 to 1, so that a swarm does not retry in step."""
        return random.random()
