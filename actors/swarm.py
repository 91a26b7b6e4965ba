"""A swarm: one sub-conversation per item, several at a time, each of them closed again.

It owns two invariants. Whatever it starts it closes, also when its consumer stops listening or is
cancelled. And one item's failure is that item's result: it harms no other.

Layer: actors; one of the modules that know Ray.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack, cast

import ray
from ray.exceptions import RayError

from palaver.actors.budget import Budget
from palaver.actors.convo import AnyTool, ConvoHandle
from palaver.actors.endings import ended, to_the_end
from palaver.actors.errors import ConvoCancelled, ConvoClosed, ConvoUnreachable
from palaver.actors.feed import ConvoEvent, RunEnded
from palaver.actors.items import All, Item, ItemResult, as_items, at_once, check_concurrency, failed
from palaver.actors.options import check_known
from palaver.actors.replies import events, reply, results
from palaver.actors.result import RunResult
from palaver.actors.results_file import ResultsFile
from palaver.actors.typed_output import OutputType
from palaver.actors.usage import CumulativeUsage
from palaver.providers.errors import (
    ConfigurationError,
    Overloaded,
    PalaverError,
    RateLimited,
    StreamBroken,
    TransportFailed,
)
from palaver.providers.http_errors import AnswerLost, IncompleteAnswer, MalformedCall
from palaver.tools.task import pack
from palaver.tools.tool import Tool

T = TypeVar("T")

CLOSED_WITHIN_S = 10.0
"""How long closing a conversation may take before its process is killed. What a cancel may have to wait
for, a tool that cannot be unwound, is gone within about three seconds (`palaver.tools.supervisor`)."""

_ANSWERS_WITHIN_S = 5.0
"""How long a conversation that failed may take to say what it spent."""


class SwarmOptions(TypedDict, total=False):
    """What sub-conversations of a swarm are given, as in `Convo.sub_convo`; the budget is each item's own.

    `output_type` and `output_retries` are as in `Convo.run`.
    """

    system_prompt: str
    tools: Sequence[AnyTool | str]
    budget: Budget | None
    tool_use_only: bool
    max_tokens: int | None
    actor_options: Mapping[str, Any] | None
    output_type: Any
    output_retries: int


async def swarm(
    root: ConvoHandle,
    items: Iterable[Item | str],
    *,
    concurrency: int,
    light: bool = False,
    workers: int = 0,
    retries: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    **options: Unpack[SwarmOptions],
) -> AsyncGenerator[ItemResult]:
    """Run each item in a sub-conversation of `root`, at most `concurrency` at once.

    Results come as they are complete, one per item whatever happens: what fails is told in the result. Each
    sub-conversation has a process of its own, or with `light` shares that of `root`, or those of `workers`
    others (see `Convo.map`). An item whose process died, or whose provider failed for the moment, is run
    again up to `retries` times, in another sub-conversation; its usage is that of all of them.

    With `out`, a folder, each result is added to `results.jsonl` in it before it is given here: a line of
    JSON, with usage. With `resume` the items that have a finished result there are left out, so that who was
    stopped goes on where it was; those that had not finished are run again.

    When `root` is over its budget, cancelled or gone, the items that are left get a result that says so,
    and no process. Iterate to the end, or under `contextlib.aclosing`: leaving early closes what runs.
    Raises ConfigurationError for what no item could be run with, such as a concurrency below 1, workers of
    items that are not light, a tool that there is not, or two items of one label; and for a folder that
    another run writes to, that has results already without `resume`, or those of another model, prompt or
    the like.
    """
    check_concurrency(concurrency)
    if workers and not light:
        raise ConfigurationError(f"workers is {workers}; they are for light items (light=True)")
    check_known("swarm", options, SwarmOptions)
    if resume and out is None:
        raise ConfigurationError("resume goes on with the results of a folder; name it with out")
    given = dict(options)
    # Once, and not anew for every item.
    given["tools"] = [pack(each) if isinstance(each, Tool) else each for each in options.get("tools", ())]
    work = as_items(items)
    file = None if out is None else ResultsFile(Path(out), await _depends_on(root, options), resume=resume)
    try:
        if file is not None:
            work = file.missing(work)
        prompts = {item.label: item.prompt for item in work}
        at_work = (
            _mapped(root, work, concurrency, workers, retries, given)
            if light
            else _by_processes(root, work, concurrency, retries, given)
        )
        async with aclosing(at_work) as results_:
            async for result in results_:
                if file is not None:
                    file.add(result, prompts[result.label])
                yield result
    finally:
        if file is not None:
            file.close()


async def _depends_on(root: ConvoHandle, options: SwarmOptions) -> dict[str, object]:
    """What results depend on, beside their items."""
    output_type = options.get("output_type")
    tools = options.get("tools", ())
    return {
        "model": (await reply(root.tree.remote(ended=False))).model,
        "system": options.get("system_prompt", ""),
        "tools": sorted(each if isinstance(each, str) else each.spec.name for each in tools),
        "output": None if output_type is None else OutputType(output_type).json_schema,
        "max_tokens": options.get("max_tokens"),
    }


async def _by_processes(
    root: ConvoHandle, items: Sequence[Item], concurrency: int, retries: int, options: dict[str, Any]
) -> AsyncGenerator[ItemResult]:
    asked = {name: options.pop(name) for name in ("output_type", "output_retries") if name in options}
    at_work = _Swarm(root, options, asked)

    async def result_of(item: Item) -> ItemResult:
        result = await at_work.result_of(item)
        for _ in range(retries):
            if not may_try_again(result):
                break
            result = _together(result, await at_work.result_of(item))
        return result

    watch = asyncio.create_task(at_work.watch())
    try:
        async with aclosing(at_once(All(items), result_of, min(concurrency, len(items)))) as results_:
            async for result in results_:
                yield result
    finally:
        watch.cancel()
        await ended(watch)


async def _mapped(
    root: ConvoHandle,
    items: Sequence[Item],
    concurrency: int,
    workers: int,
    retries: int,
    options: dict[str, Any],
) -> AsyncGenerator[ItemResult]:
    """Light ones: those that may be tried again are, once all others are done."""
    before: dict[str, ItemResult] = {}
    left = items
    for tries_left in range(retries, -1, -1):
        by_label = {item.label: item for item in left}
        again: list[Item] = []
        try:
            root_id = await reply(root.id.remote())
            mapped = root.map.remote(left, concurrency=concurrency, workers=workers, **cast("Any", options))
            async with aclosing(results(mapped, root_id)) as mapped_results:
                async for new in mapped_results:
                    item = by_label.pop(new.label)
                    result = _together(before.pop(item.label, None), new)
                    if tries_left and may_try_again(result):
                        before[item.label] = result
                        again.append(item)
                    else:
                        yield result
        except (ConvoCancelled, ConvoClosed) as error:
            for item in [*by_label.values(), *again]:
                yield _together(before.pop(item.label, None), failed(item, error))
            return
        left = again
        if not left:
            return


def may_try_again(result: ItemResult) -> bool:
    """Whether an item may end otherwise when it is run again.

    It may when its process died, or its provider failed for the moment.
    """
    return result.error_type in _PASSES


def _together(earlier: ItemResult | None, later: ItemResult) -> ItemResult:
    """The later of two tries at an item, with the usage of both."""
    if earlier is None or earlier.usage is None:
        return later
    usage = earlier.usage if later.usage is None else earlier.usage + later.usage
    return later.model_copy(update={"usage": usage})


_PASSES = frozenset(
    each.__name__
    for each in (
        ConvoClosed,
        ConvoUnreachable,
        RateLimited,
        Overloaded,
        TransportFailed,
        AnswerLost,
        IncompleteAnswer,
        MalformedCall,
        StreamBroken,
    )
)


class _Swarm:
    """Starts, runs and closes the sub-conversations of `root`."""

    def __init__(self, root: ConvoHandle, options: dict[str, Any], asked: dict[str, Any]) -> None:
        self._root = root
        self._options = options
        self._asked = asked
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
        except ConfigurationError:
            raise  # it is every item's
        except Exception as error:
            return failed(item, error, "not started: ")
        try:
            result = await ask(child, item, root=self._root, **self._asked)
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


async def ask(
    convo: ConvoHandle,
    item: Item,
    tell: Callable[[ConvoEvent], None] | None = None,
    *,
    root: ConvoHandle | None = None,
    **asked: Any,
) -> ItemResult:
    """Run one item in a conversation that is there already. Never raises for what comes of it.

    `tell` is told what happens meanwhile, as it happens; what it raises ends the run, and is raised. `root`,
    of its tree, knows what one used whose process is gone. `asked` is as in `Convo.run`.
    """
    asking = asyncio.create_task(reply(convo.id.remote()))
    try:
        if tell is None:
            result = await reply(convo.run.remote(item.prompt, **asked))
        else:
            result = await _followed(convo, item, tell)
        return ItemResult(label=item.label, convo_id=result.convo_id, result=result, usage=result.usage)
    except OSError:
        raise
    except Exception as error:  # also those of a provider that somebody wrote
        return await _failed_at_work(convo, item, error, asking, root)
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
    convo: ConvoHandle,
    item: Item,
    error: Exception,
    asking: asyncio.Task[str],
    root: ConvoHandle | None,
) -> ItemResult:
    usage: CumulativeUsage | None = None
    convo_id: str | None = None
    with suppress(PalaverError, TimeoutError):
        async with asyncio.timeout(_ANSWERS_WITHIN_S):
            convo_id = await asking
            usage = await reply(
                convo.cumulative_usage.remote()
                if root is None or not isinstance(error, ConvoClosed)
                else root.usage_of.remote(convo_id)
            )
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
