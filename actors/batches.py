"""What comes one by one, handed on in batches: the first at once, the others gathered for a moment.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

from palaver.actors.endings import ended

T = TypeVar("T")

BATCHED_S = 0.04
"""How long what comes is gathered: a piece of its own on its way through Ray costs about a millisecond."""


class Batches(Generic[T]):
    """What has come, until somebody takes it."""

    def __init__(self) -> None:
        self._come: list[T] = []
        self._some = asyncio.Event()
        self._ended = asyncio.Event()

    def put(self, thing: T) -> None:
        """Add one; it is joined to the one before it where `joined` says so."""
        joined = self.joined(self._come[-1], thing) if self._come else None
        if joined is None:
            self._come.append(thing)
        else:
            self._come[-1] = joined
        self._some.set()

    def joined(self, last: T, new: T) -> T | None:
        """What two that come one after the other are together; None: they stay two."""
        return None

    def end(self) -> None:
        """Nothing more comes."""
        self._ended.set()
        self._some.set()

    async def batches(self) -> AsyncGenerator[tuple[T, ...]]:
        """All that comes, until the end."""
        while True:
            await self._some.wait()
            self._some.clear()
            if self._come:
                batch, self._come = tuple(self._come), []
                yield batch
            if self._ended.is_set():
                if not self._come:
                    return
                self._some.set()
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), BATCHED_S)

    async def while_at(self, work: Coroutine[Any, Any, None]) -> AsyncGenerator[tuple[T, ...]]:
        """All that comes of `work`, until its end. Raises what that raises; closing this stops it."""
        working = asyncio.create_task(work)
        working.add_done_callback(lambda _: self.end())
        try:
            async for batch in self.batches():
                yield batch
            await working
        finally:
            working.cancel()
            await ended(working)
