"""Items that several worker conversations, each a process with light ones in it, take and work off together.

It owns two invariants. An item that no conversation was begun for is never lost with the worker that had it:
another one takes it. And each item has exactly one result.

Layer: actors; Ray through the workers' handles alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeAlias

from palaver.actors.batches import Batches
from palaver.actors.children import CHILD_ENDS_WITHIN_S
from palaver.actors.conversation import Conversation
from palaver.actors.endings import ended, to_the_end
from palaver.actors.errors import ConvoCancelled, ConvoClosed, ConvoUnreachable
from palaver.actors.items import Item, ItemResult, failed
from palaver.actors.mapping import Watch, watched
from palaver.actors.replies import reply
from palaver.actors.treasury import Statement
from palaver.providers.errors import PalaverError

Handle: TypeAlias = Any
"""A `palaver.actors.ConvoHandle`, which knows this module."""

AGAIN_AFTER_S = (0.1, 0.3, 1.0, 3.0)
"""Who hands out items is asked again, this much later, when it cannot be reached for a moment."""


class Stock:
    """The items of one piece of work for so many `workers`, until each has its result."""

    def __init__(self, items: Sequence[Item], workers: int) -> None:
        self._workers = workers
        self._left = deque(items)
        self._with: dict[str, dict[str, Item]] = {}
        """By worker, and by label: what it has, and has told no result of."""
        self._answers: dict[str, tuple[int, tuple[Item, ...]]] = {}
        self._gone: set[str] = set()
        self._changed = asyncio.Event()

    @property
    def left(self) -> int:
        """How many items nobody has."""
        return len(self._left)

    async def take(self, worker: str, number: int, wanted: int) -> tuple[Item, ...]:
        """Up to `wanted` items, few of the last, so that all workers end together; none: there are no more.

        Waits while others have items that may come back. The same `number` has the same answer: the first
        one may have been lost on its way.
        """
        last, answer = self._answers.get(worker, (0, ()))
        if number == last:
            return answer
        while not self._left and any(self._with.values()) and worker not in self._gone:
            self._changed.clear()
            await self._changed.wait()
        if worker in self._gone:
            return ()
        count = min(wanted, -(-len(self._left) // (2 * self._workers)))
        taken = tuple(self._left.popleft() for _ in range(count))
        self._with.setdefault(worker, {}).update({item.label: item for item in taken})
        self._answers[worker] = (number, taken)
        return taken

    def told(self, worker: str, label: str) -> None:
        """A worker has told the result of an item."""
        self._with[worker].pop(label)
        self._changed.set()

    def leave(self, worker: str) -> list[Item]:
        """A worker takes no more: what it has told no result of. Some of it may be put back."""
        self._gone.add(worker)
        self._changed.set()
        return list(self._with.pop(worker, {}).values())

    def put_back(self, items: Sequence[Item]) -> None:
        """Others are to take these."""
        self._left.extendleft(reversed(items))
        self._changed.set()

    def take_all(self) -> list[Item]:
        """All that nobody has."""
        left = list(self._left)
        self._left.clear()
        return left


class Taken:
    """A supply of what `take` gives, asked for so many items at once: the worker's side of a Stock."""

    def __init__(
        self,
        take: Callable[[int, int], Awaitable[tuple[Item, ...]]],
        wanted: int,
        again_after_s: Sequence[float] = AGAIN_AFTER_S,
    ) -> None:
        self._take = take
        self._wanted = wanted
        self._again_after_s = again_after_s
        self._here: deque[Item] = deque()
        self._asked = 0
        self._lock = asyncio.Lock()
        self._end = asyncio.Event()

    def __aiter__(self) -> Taken:
        return self

    async def __anext__(self) -> Item:
        async with self._lock:
            if not self._here and not self._end.is_set():
                self._here.extend(await self._more())
            if self._end.is_set() or not self._here:
                self._end.set()
                raise StopAsyncIteration
            return self._here.popleft()

    async def _more(self) -> tuple[Item, ...]:
        self._asked += 1
        asking = asyncio.create_task(self._asked_for(self._asked))
        ending = asyncio.create_task(self._end.wait())
        try:
            await asyncio.wait({asking, ending}, return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else ()
        finally:
            asking.cancel()
            ending.cancel()
            await ended(asking, ending)

    async def _asked_for(self, number: int) -> tuple[Item, ...]:
        for again_after_s in self._again_after_s:
            try:
                return await self._take(number, self._wanted)
            except ConvoUnreachable:
                await asyncio.sleep(again_after_s)
        return await self._take(number, self._wanted)

    def end(self) -> None:
        """Give nothing more, not even what is here: that goes back."""
        self._end.set()


class SharedWork:
    """The items of `stock`, worked off by workers of conversation `core`.

    `start` starts so many workers with these labels, or none; `work` has one work its part off, at most so
    many at once, and gives batches of results as Ray's streaming generator does.
    """

    def __init__(
        self,
        core: Conversation,
        stock: Stock,
        start: Callable[[Sequence[str]], Awaitable[list[Handle]]],
        work: Callable[[Handle, int], Any],
    ) -> None:
        self._core = core
        self._stock = stock
        self._start = start
        self._work = work
        self._come: Batches[tuple[ItemResult, ...]] = Batches()
        self._why: PalaverError = ConvoClosed(core.id)

    async def batches(self, workers: int, concurrency: int) -> AsyncGenerator[tuple[ItemResult, ...]]:
        """The results of all items, as they come. Closing the generator closes the workers."""

        async def work() -> None:
            async with watched(self._core) as watch:
                labels = [f"worker {n + 1}" for n in range(workers)]
                handles = await self._start(labels)
                shares = [concurrency // workers + (n < concurrency % workers) for n in range(workers)]
                await asyncio.gather(
                    *(self._keep_at_work(watch, *each) for each in zip(labels, handles, shares, strict=True))
                )
                why = watch.stopped or self._why
                self._come.put(tuple(failed(item, why, "not started: ") for item in self._stock.take_all()))

        async with aclosing(self._come.while_at(work())) as all_batches:
            async for batches in all_batches:
                for batch in batches:
                    yield batch

    async def _keep_at_work(self, watch: Watch, label: str, worker: Handle, at_once: int) -> None:
        """Follow a worker, and another in its place when it dies at its work and there is more."""
        while await self._follow(watch, worker, at_once) and self._stock.left and watch.stopped is None:
            try:
                [worker] = await self._start([label])
            except PalaverError as error:
                self._why = error
                return

    async def _follow(self, watch: Watch, worker: Handle, at_once: int) -> bool:
        """Whether the worker died, and had begun something: one that cannot even begin is not replaced."""
        worker_id = ""
        told: set[str | None] = set()
        died: PalaverError | None = None
        try:
            worker_id = await reply(worker.id.remote())
            async for ref in self._work(worker, at_once):
                batch = tuple(
                    each
                    for each in await reply(ref, worker_id)
                    # Of a worker that somebody cancelled: others go on with these.
                    if watch.stopped is not None or each.convo_id is not None or not _is_of_the_worker(each)
                )
                for result in batch:
                    self._stock.told(worker_id, result.label)
                    told.add(result.convo_id)
                self._come.put(batch)
        except PalaverError as error:
            died = error
        finally:
            await to_the_end(_closed(worker))
        kept = self._stock.leave(worker_id)
        if died is None:
            self._why = ConvoCancelled(worker_id, "its worker was cancelled")
            self._stock.put_back(kept)
            return False
        self._why = died
        begun = await self._begun_at(worker_id, told)
        lost = [item for item in kept if item.label in begun]
        self._come.put(tuple(_lost(item, died, begun[item.label]) for item in lost))
        self._stock.put_back([item for item in kept if item.label not in begun])
        return bool(lost or told)

    async def _begun_at(self, worker_id: str, told: set[str | None]) -> Mapping[str, Statement]:
        """The accounts, by label, of what a worker that is gone had begun and not told the end of."""
        if not worker_id:
            return {}
        return {
            each.label: each
            for each in await self._core.treasury.statements(worker_id)
            if each.parent_id == worker_id and each.convo_id not in told
        }


def _is_of_the_worker(result: ItemResult) -> bool:
    return result.error_type in (ConvoCancelled.__name__, ConvoClosed.__name__)


def _lost(item: Item, error: PalaverError, account: Statement) -> ItemResult:
    """The result of an item whose process is gone, with what it had used."""
    return failed(item, error, convo_id=account.convo_id, usage=account.usage)


async def _closed(convo: Handle) -> None:
    with suppress(PalaverError, TimeoutError):
        async with asyncio.timeout(CHILD_ENDS_WITHIN_S):
            await reply(convo.close.remote())
