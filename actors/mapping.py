"""Many light sub-conversations of one conversation: one per item, several at once, each of them closed again.

It owns two invariants. Whatever it starts it closes, also when its consumer stops listening or is
cancelled. And one item's failure is that item's result: it harms no other.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

from palaver.actors.batches import Batches
from palaver.actors.conversation import Conversation
from palaver.actors.endings import ended, to_the_end
from palaver.actors.errors import ConvoCancelled, ConvoClosed
from palaver.actors.items import Item, ItemResult, Supply, at_once, failed
from palaver.actors.result import RunResult
from palaver.providers.errors import PalaverError

AT_ONCE = 200
"""How many items run at once, unless somebody says otherwise."""


class Watch:
    """Whether a conversation was cancelled or closed since somebody began to watch; `stopped` says why."""

    stopped: PalaverError | None = None


@asynccontextmanager
async def watched(
    core: Conversation, when_stopped: Callable[[], None] = lambda: None
) -> AsyncGenerator[Watch]:
    """Watch a conversation while the block runs: after a cancel it may go on, but not what was stopped."""
    watch = Watch()

    async def look() -> None:
        try:
            watch.stopped = ConvoCancelled(core.id, await core.until_cancelled())
        except ConvoClosed as closed:
            watch.stopped = closed
        when_stopped()

    looking = asyncio.create_task(look())
    await asyncio.sleep(0)  # it is to see every cancel from now on
    try:
        yield watch
    finally:
        looking.cancel()
        await ended(looking)


class LightWork:
    """The work of conversation `core`.

    `begin` starts a sub-conversation in this process, and adopts it; `asked` is as in `Conversation.run`.
    """

    def __init__(
        self,
        core: Conversation,
        begin: Callable[[Item], Awaitable[Conversation]],
        asked: Mapping[str, Any],
    ) -> None:
        self._core = core
        self._begin = begin
        self._asked = asked

    async def batches(self, items: Supply, concurrency: int) -> AsyncGenerator[tuple[ItemResult, ...]]:
        """The results of all items, as they come, in batches.

        When the conversation is cancelled, closed, or over its budget, the items that are left get a result
        that says so. Closing the generator closes what runs.
        """
        come: Batches[ItemResult] = Batches()

        async def work() -> None:
            async with (
                watched(self._core, items.end) as watch,
                aclosing(at_once(items, lambda item: self._result_of(item, watch), concurrency)) as results,
            ):
                async for result in results:
                    come.put(result)

        async with aclosing(come.while_at(work())) as batches:
            async for batch in batches:
                yield batch

    async def _result_of(self, item: Item, watch: Watch) -> ItemResult:
        try:
            if watch.stopped is not None:
                raise watch.stopped
            over = await self._core.over_budget()
            if over is not None and over.stops_requests:
                raise over
            child = await self._begin(item)
        except Exception as error:
            return failed(item, error, "not started: ")
        try:
            result: RunResult[Any] = await child.run(item.prompt, **self._asked)
            return ItemResult(label=item.label, convo_id=child.id, result=result, usage=result.usage)
        except Exception as error:  # also those of a provider that somebody wrote
            usage = await child.cumulative_usage()
            return failed(item, error, convo_id=child.id, usage=usage)
        finally:
            await to_the_end(child.close())
