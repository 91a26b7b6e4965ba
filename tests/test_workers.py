"""Items that several workers take: none is lost with a worker, none comes twice. The core, without Ray."""

from __future__ import annotations

import asyncio

import pytest

from palaver.actors.errors import ConvoClosed, ConvoUnreachable
from palaver.actors.items import Item, as_items
from palaver.actors.workers import Stock, Taken
from palaver.providers.errors import ConfigurationError


def stock(count: int, workers: int = 2) -> Stock:
    return Stock(as_items(str(n + 1) for n in range(count)), workers)


def labels(items: tuple[Item, ...] | list[Item]) -> list[str]:
    return [each.label for each in items]


async def soon(task: asyncio.Task[tuple[Item, ...]]) -> bool:
    """Whether a task ends by itself."""
    for _ in range(5):
        await asyncio.sleep(0)
    return task.done()


async def test_workers_take_what_they_want_and_of_the_last_few_one_by_one() -> None:
    of = stock(20)
    sizes: list[int] = []
    for number in range(1, 20):
        taken = await of.take("a", number, 4)
        sizes.append(len(taken))
        for each in taken:
            of.told("a", each.label)
        if not taken:
            break
    assert sizes == [4, 4, 3, 3, 2, 1, 1, 1, 1, 0]


async def test_an_answer_that_was_lost_is_given_again() -> None:
    of = stock(20)
    first = await of.take("a", 1, 3)
    assert await of.take("a", 1, 3) == first
    assert labels(await of.take("a", 2, 3)) == ["4", "5", "6"]
    assert of.left == 14


async def test_what_one_leaves_another_that_had_waited_takes() -> None:
    of = stock(2)
    assert labels(await of.take("a", 1, 1)) == ["1"]
    assert labels(await of.take("b", 1, 1)) == ["2"]
    waiting = asyncio.create_task(of.take("b", 2, 1))
    assert not await soon(waiting)
    of.told("b", "2")
    assert not await soon(waiting)
    of.put_back(of.leave("a"))
    assert labels(await waiting) == ["1"]
    of.told("b", "1")
    assert await of.take("b", 3, 1) == ()


async def test_one_that_has_left_takes_nothing_more_not_even_what_it_left() -> None:
    of = stock(2)
    await of.take("a", 1, 1)
    await of.take("b", 1, 1)
    late = asyncio.create_task(of.take("a", 2, 1))
    assert not await soon(late)
    of.put_back(of.leave("a"))
    assert await late == ()
    assert await of.take("a", 3, 1) == ()
    assert labels(of.take_all()) == ["1"]


async def test_what_is_here_at_the_end_is_kept_back() -> None:
    async def take(number: int, wanted: int) -> tuple[Item, ...]:
        return tuple(as_items(f"item {n}" for n in range(wanted))) if number == 1 else ()

    taken = Taken(take, 3)
    assert (await anext(taken)).label == "1"
    taken.end()
    with pytest.raises(StopAsyncIteration):
        await anext(taken)


async def test_the_end_comes_also_while_items_are_asked_for() -> None:
    cancelled = asyncio.Event()

    async def take(number: int, wanted: int) -> tuple[Item, ...]:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    taken = Taken(take, 3)
    lanes = [asyncio.create_task(_next(taken)) for _ in range(3)]
    await asyncio.sleep(0)
    taken.end()
    assert await asyncio.wait_for(asyncio.gather(*lanes), 5) == [None] * 3
    assert cancelled.is_set()


async def _next(taken: Taken) -> Item | None:
    return await anext(taken, None)


async def test_who_cannot_be_reached_for_a_moment_is_asked_the_same_again() -> None:
    asked: list[int] = []

    async def take(number: int, wanted: int) -> tuple[Item, ...]:
        asked.append(number)
        if len(asked) < 3:
            raise ConvoUnreachable("abc-defg", "its node does not answer")
        return tuple(as_items(["x"]))

    assert (await anext(Taken(take, 3, again_after_s=(0, 0)))).prompt == "x"
    assert asked == [1, 1, 1]


async def test_who_is_gone_gives_nothing() -> None:
    async def take(number: int, wanted: int) -> tuple[Item, ...]:
        raise ConvoClosed("abc-defg")

    with pytest.raises(ConvoClosed):
        await anext(Taken(take, 3))


def test_two_items_of_one_label_are_refused_by_their_places() -> None:
    with pytest.raises(ConfigurationError, match="items 1 and 3 are both called '1'"):
        as_items(["a", "b", Item(label="1", prompt="c")])
