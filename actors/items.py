"""Pieces of work for many conversations: what each is, what came of it, and several at once.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Protocol

from palaver.actors.endings import ended
from palaver.actors.result import RunResult
from palaver.actors.usage import CumulativeUsage
from palaver.providers.errors import ConfigurationError, PalaverError
from palaver.providers.messages import Value


class Item(Value):
    """One piece of work: what to call it, and what to say."""

    label: str
    prompt: str


def as_items(items: Iterable[Item | str]) -> list[Item]:
    """Items; a text is one that is called by its place, from 1 on.

    Raises ConfigurationError for two of one label, which their results could not be told apart by.
    """
    work = [
        Item(label=str(n), prompt=each) if isinstance(each, str) else each for n, each in enumerate(items, 1)
    ]
    places: dict[str, int] = {}
    for n, item in enumerate(work, 1):
        if (other := places.setdefault(item.label, n)) != n:
            raise ConfigurationError(
                f"items {other} and {n} are both called {item.label!r}; give each a label of its own, which "
                "its result is told apart by"
            )
    return work


class Supply(Protocol):
    """Items that somebody takes one by one, several at once."""

    def __aiter__(self) -> Supply: ...

    async def __anext__(self) -> Item:
        """The next; raises StopAsyncIteration when there are no more."""
        ...

    def end(self) -> None:
        """Whoever takes them is stopped."""
        ...


class All:
    """A supply of items that are all there already. Who is stopped takes the rest too, to say so of each."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)

    def __aiter__(self) -> All:
        return self

    async def __anext__(self) -> Item:
        for item in self._items:
            return item
        raise StopAsyncIteration

    def end(self) -> None:
        pass


class ItemResult(Value):
    """What came of one item.

    Either `result`, the run, which may have been stopped by a limit; or `error`, why there is none, and
    `error_type`, the name of its class. `convo_id` is None when no process was started for it. `usage`
    is what it used, with all below it; None when that is nothing, or nobody could be asked.
    """

    label: str
    convo_id: str | None = None
    result: RunResult | None = None
    error: str | None = None
    error_type: str | None = None
    usage: CumulativeUsage | None = None

    @property
    def finished(self) -> bool:
        """Whether the run came to a proper end."""
        return self.result is not None and self.result.finished

    @property
    def text(self) -> str:
        """What the model answered; empty when it did not."""
        return self.result.text if self.result is not None else ""

    @property
    def reason(self) -> str:
        """Why it is not finished; empty when it is."""
        if self.result is None:
            return self.error or "no result"
        if self.result.finished:
            return ""
        return f"stopped ({self.result.stop})" + (f": {self.result.detail}" if self.result.detail else "")


def failed(
    item: Item,
    error: Exception,
    before: str = "",
    *,
    convo_id: str | None = None,
    usage: CumulativeUsage | None = None,
) -> ItemResult:
    """The result of an item whose run raised `error`, told after `before`."""
    told = str(error) if isinstance(error, PalaverError) else f"{type(error).__name__}: {error}"
    return ItemResult(
        label=item.label,
        convo_id=convo_id,
        error=before + told,
        error_type=type(error).__name__,
        usage=usage,
    )


def check_concurrency(concurrency: int) -> None:
    """Raise ConfigurationError for a number of items at once below 1."""
    if concurrency < 1:
        raise ConfigurationError(f"concurrency is {concurrency}; use 1 or more")


async def at_once(
    items: Supply, result_of: Callable[[Item], Awaitable[ItemResult]], concurrency: int
) -> AsyncGenerator[ItemResult]:
    """The results of all items as they come, of at most `concurrency` at once.

    `result_of` never raises for what happens to an item. Iterate to the end, or under
    `contextlib.aclosing`: leaving early cancels what runs. Raises what the supply raises.
    """
    results: asyncio.Queue[ItemResult | BaseException | None] = asyncio.Queue()

    async def work() -> None:
        # The results are fetched when somebody wants them; the next item does not wait for that.
        try:
            async for item in items:
                results.put_nowait(await result_of(item))
        except Exception as error:  # of the supply: everything else is a result
            results.put_nowait(error)
        finally:
            results.put_nowait(None)

    workers = [asyncio.create_task(work()) for _ in range(concurrency)]
    try:
        at_work = concurrency
        while at_work:
            match await results.get():
                case None:
                    at_work -= 1
                case ItemResult() as result:
                    yield result
                case error:
                    raise error
    finally:
        for task in workers:
            task.cancel()
        await ended(*workers)
