"""Servers with rate limits, as the rate gate meets them: on a clock that is told what time it is."""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol


class LimitedServer(Protocol):
    """Says of each request whether it is taken; None, or the seconds after which to ask again."""

    def ask(self, now_s: float) -> float | None: ...

    def done(self) -> None: ...


class TokenBucketServer:
    """So many a second, of which `capacity` may be saved up."""

    def __init__(self, per_second: float, capacity: float) -> None:
        self._per_second = per_second
        self._capacity = self._saved = capacity
        self._seen_s = 0.0

    def ask(self, now_s: float) -> float | None:
        self._saved = min(self._capacity, self._saved + (now_s - self._seen_s) * self._per_second)
        self._seen_s = now_s
        if self._saved >= 1:
            self._saved -= 1
            return None
        return (1 - self._saved) / self._per_second

    def done(self) -> None:
        pass


class FixedWindowServer:
    """So many in each second of the clock."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second = -1
        self._taken = 0

    def ask(self, now_s: float) -> float | None:
        if math.floor(now_s) != self._second:
            self._second, self._taken = math.floor(now_s), 0
        if self._taken < self._per_second:
            self._taken += 1
            return None
        return self._second + 1 - now_s

    def done(self) -> None:
        pass


class SlidingWindowServer:
    """So many within any second."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._taken: deque[float] = deque()

    def ask(self, now_s: float) -> float | None:
        while self._taken and self._taken[0] <= now_s - 1:
            self._taken.popleft()
        if len(self._taken) < self._per_second:
            self._taken.append(now_s)
            return None
        return self._taken[0] + 1 - now_s

    def done(self) -> None:
        pass


class AtOnceServer:
    """So many at once."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._taken = 0

    def ask(self, now_s: float) -> float | None:
        if self._taken < self._at_once:
            self._taken += 1
            return None
        return 1.0

    def done(self) -> None:
        self._taken -= 1
