"""Many light sub-conversations of one conversation: one per item, several at once, each of them closed again.

It owns two invariants. Whatever it starts it closes, also when its consumer stops listening or is
cancelled. And one item's failure is that item's result: it harms no other.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from palaver.actors.batches import Batches
from palaver.actors.conversation import Conversation
from palaver.actors.endings import ended, to_the_end
from palaver.actors.errors import ConvoCancelled, ConvoClosed
from palaver.actors.items import Item, ItemResult, at_once, failed
from palaver.actors.result import RunResult
from palaver.providers.errors import PalaverError

AT_ONCE = 200
"""How many items run at once, unless somebody says otherwise."""


class LightWork:
    """The work of conversation `core`.

    `begin` starts a sub-conversation in this process, and adopts it; `ask` runs an item in one.
    """

    def __init__(
        self,
        core: Conversation,
        begin: Callable[[Item], Awaitable[Conversation]],
        ask: Callable[[Conversation, Item], Awaitable[RunResult]],
    ) -> None:
        self._core = core
        self._begin = begin
        self._ask = ask
        self._stopped: PalaverError | None = None

    async def batches(
        self, items: Sequence[Item], concurrency: int
    ) -> AsyncGenerator[tuple[ItemResult, ...]]:
        """The results of all items, as they come, in batches.

        When the conversation is cancelled, closed, or over its budget, the items that are left get a result
        that says so. Closing the generator closes what runs.
        """
        come: Batches[ItemResult] = Batches()

        async def work() -> None:
            watch = asyncio.create_task(self._watch())
            await asyncio.sleep(0)  # it is to see every cancel from now on
            try:
                at_work = at_once(items, self._result_of, min(concurrency, len(items)))
                async with aclosing(at_work) as results:
                    async for result in results:
                        come.put(result)
            finally:
                watch.cancel()
                await ended(watch)

        async with aclosing(come.while_at(work())) as batches:
            async for batch in batches:
                yield batch

    async def _watch(self) -> None:
        """Start nothing more once the conversation was cancelled, although it may go on afterwards."""
        try:
            self._stopped = ConvoCancelled(self._core.id, await self._core.until_cancelled())
        except ConvoClosed as closed:
            self._stopped = closed

    async def _result_of(self, item: Item) -> ItemResult:
        try:
            if self._stopped is not None:
                raise self._stopped
            over = await self._core.over_budget()
            if over is not None and over.stops_requests:
                raise over
            child = await self._begin(item)
        except Exception as error:
            return failed(item, error, "not started: ")
        try:
            result = await self._ask(child, item)
            return ItemResult(label=item.label, convo_id=child.id, result=result, usage=result.usage)
        except Exception as error:  # also those of a provider that somebody wrote
            usage = await child.cumulative_usage()
            return failed(item, error, convo_id=child.id, usage=usage)
        finally:
            await to_the_end(child.close())
