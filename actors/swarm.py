"""A swarm: one sub-conversation per item, several at a time, each of them closed again.

It owns two invariants. Whatever it starts it closes, also when its consumer stops listening or is
cancelled. And one item's failure is that item's result: it harms no other.

Layer: actors; one of the modules that know Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from palaver.actors.convo import AnyTool, ConvoHandle
from palaver.actors.endings import ended, to_the_end
from palaver.actors.errors import ConvoCancelled, ConvoClosed, ConvoUnreachable
from palaver.actors.feed import ConvoEvent, RunEnded
from palaver.actors.items import Item, ItemResult, at_once, check_concurrency, failed
from palaver.actors.replies import events, reply
from palaver.actors.result import RunResult
from palaver.actors.usage import CumulativeUsage
from palaver.providers.errors import PalaverError
from palaver.tools.task import pack
from palaver.tools.tool import Tool

T = TypeVar("T")

CLOSED_WITHIN_S = 10.0
"""How long closing a conversation may take before its process is killed. What a cancel may have to wait
for, a tool that cannot be unwound, is gone within about three seconds (`palaver.tools.supervisor`)."""

_ANSWERS_WITHIN_S = 5.0
"""How long a conversation that failed may take to say what it spent."""


async def over(
    root: ConvoHandle,
    items: Iterable[Item],
    *,
    concurrency: int,
    tools: Sequence[AnyTool] = (),
    system_prompt: str = "",
    max_tokens: int | None = None,
) -> AsyncGenerator[ItemResult]:
    """Run each item in a sub-conversation of `root`, at most `concurrency` at once.

    Results come as they are complete, one per item whatever happens: what fails is told in the result.
    When `root` is over its budget, cancelled or gone, the items that are left get a result that says so,
    and no process. Iterate to the end, or under `contextlib.aclosing`: leaving early closes what runs.
    Raises ConfigurationError for a concurrency below 1.
    """
    check_concurrency(concurrency)
    swarm = _Swarm(
        root,
        system_prompt=system_prompt,
        # Once, and not anew for every item.
        tools=[pack(each) if isinstance(each, Tool) else each for each in tools],
        max_tokens=max_tokens,
    )
    watch = asyncio.create_task(swarm.watch())
    try:
        async with aclosing(at_once(items, swarm.result_of, concurrency)) as results:
            async for result in results:
                yield result
    finally:
        watch.cancel()
        await ended(watch)


class _Swarm:
    """Starts, runs and closes the sub-conversations of `root`."""

    def __init__(self, root: ConvoHandle, **sub_convo_options: Any) -> None:
        self._root = root
        self._options = sub_convo_options
        self._open: set[ConvoHandle] = set()
        self._cancelled: PalaverError | None = None

    async def watch(self) -> None:
        """Wait until the root is cancelled or gone; then start nothing more, and end what runs.

        The root's own cancel stops what runs, too, but not a run that was asked for before it and
        arrives after it.
        """
        waiting = self._root.until_cancelled.remote()
        try:
            root_id = await reply(self._root.id.remote())
            self._cancelled = ConvoCancelled(root_id, await reply(waiting))
        except PalaverError as error:
            self._cancelled = error
        except asyncio.CancelledError:
            # The root would wait for it for as long as it lives.
            with suppress(RayError):
                ray.cancel(waiting)  # pyright: ignore[reportUnknownMemberType]
            raise
        await asyncio.gather(*(self._end(each) for each in self._open))

    async def _end(self, child: ConvoHandle) -> None:
        """Close a child whose root is cancelled or gone. The cause first, or its run would tell another."""
        if isinstance(self._cancelled, ConvoCancelled):
            with suppress(PalaverError, TimeoutError):
                async with asyncio.timeout(CLOSED_WITHIN_S):
                    await reply(child.cancel.remote(self._cancelled.cause))
        await close(child)

    async def result_of(self, item: Item) -> ItemResult:
        """Run one item. Never raises for what happens to it."""
        try:
            child = await self._start(item)
        except Exception as error:
            return failed(item, error, "not started: ")
        try:
            result = await ask(child, item)
        finally:
            await to_the_end(close(child))
            self._open.discard(child)
        if result.result is None and self._cancelled is not None and result.error_type == "ConvoClosed":
            # It was ended because of the cancel.
            error = self._cancelled
            result = result.model_copy(update={"error": str(error), "error_type": type(error).__name__})
        return result

    async def _start(self, item: Item) -> ConvoHandle:
        """The sub-conversation for an item; raises PalaverError when there is to be none."""
        self._refuse_if_cancelled()
        over_budget = await reply(self._root.over_budget.remote())
        if over_budget is not None and over_budget.stops_requests:
            raise over_budget
        starting = asyncio.create_task(reply(self._root.sub_convo.remote(label=item.label, **self._options)))
        try:
            child = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await ended(starting)
            if not starting.cancelled() and starting.exception() is None:
                await close(starting.result())
            raise
        self._open.add(child)
        try:
            self._refuse_if_cancelled()
        except PalaverError:
            self._open.discard(child)
            await to_the_end(close(child))
            raise
        return child

    def _refuse_if_cancelled(self) -> None:
        if self._cancelled is not None:
            raise self._cancelled


async def ask(convo: ConvoHandle, item: Item, tell: Callable[[ConvoEvent], None] | None = None) -> ItemResult:
    """Run one item in a conversation that is there already. Never raises for what comes of it.

    `tell` is told what happens meanwhile, as it happens; what it raises ends the run, and is raised.
    """
    asking = asyncio.create_task(reply(convo.id.remote()))
    try:
        if tell is None:
            result = await reply(convo.run.remote(item.prompt))
        else:
            result = await _followed(convo, item, tell)
        return ItemResult(label=item.label, convo_id=result.convo_id, result=result, usage=result.usage)
    except OSError:
        raise
    except Exception as error:  # also those of a provider that somebody wrote
        return await _failed_at_work(convo, item, error, asking)
    finally:
        asking.cancel()


async def _followed(convo: ConvoHandle, item: Item, tell: Callable[[ConvoEvent], None]) -> RunResult[Any]:
    async with aclosing(events(convo.stream.remote(item.prompt))) as told:
        async for event in told:
            if isinstance(event, RunEnded):
                return event.result
            tell(event)
    raise ConvoUnreachable(item.label, "its run ended without a result")


async def _failed_at_work(
    convo: ConvoHandle, item: Item, error: Exception, asking: asyncio.Task[str]
) -> ItemResult:
    usage: CumulativeUsage | None = None
    convo_id: str | None = None
    with suppress(PalaverError, TimeoutError):
        async with asyncio.timeout(_ANSWERS_WITHIN_S):
            convo_id = await asking
            usage = await reply(convo.cumulative_usage.remote())
    if isinstance(error, ConvoClosed) and convo_id is not None:
        error = ConvoClosed(convo_id, error.reason)
    return failed(item, error, convo_id=convo_id, usage=usage)


async def close(convo: ConvoHandle) -> None:
    """Close a conversation, or kill its process when that takes too long. Harmless when it is gone."""
    with suppress(PalaverError):
        try:
            async with asyncio.timeout(CLOSED_WITHIN_S):
                await reply(convo.close.remote())
        except TimeoutError:
            ray.kill(convo)  # pyright: ignore[reportArgumentType, reportUnknownMemberType]
