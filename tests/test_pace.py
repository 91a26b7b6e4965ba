"""Tool calls on their way at once: few while they are quick, all while they take their time."""

from __future__ import annotations

import asyncio
import time

import pytest

from palaver.tools.pace import Pace


async def call(pace: Pace, work: asyncio.Event | None = None) -> None:
    await pace.enter()
    try:
        if work is None:
            await asyncio.sleep(0)
        else:
            await work.wait()
    finally:
        pace.leave()


async def test_quick_calls_go_through_few_slots() -> None:
    pace, most = Pace(4), 0

    async def one() -> None:
        nonlocal most
        await pace.enter()
        most = max(most, pace.under_way)
        await asyncio.sleep(0)
        pace.leave()

    await asyncio.gather(*(one() for _ in range(500)))
    assert most == 4
    assert pace.under_way == 0


async def test_calls_that_take_their_time_all_run_at_once() -> None:
    pace, go = Pace(2, stalled_after_s=0.001), asyncio.Event()
    calls = [asyncio.create_task(call(pace, go)) for _ in range(100)]
    began = time.monotonic()
    while pace.under_way < 100:
        await asyncio.sleep(0)
    assert time.monotonic() - began < 1
    go.set()
    await asyncio.gather(*calls)
    # Afterwards they are few again.
    again = asyncio.Event()
    calls = [asyncio.create_task(call(pace, again)) for _ in range(10)]
    await asyncio.sleep(0)
    assert pace.under_way == 2
    again.set()
    await asyncio.gather(*calls)


async def test_they_go_in_the_order_in_which_they_came() -> None:
    pace, order = Pace(1), list[int]()

    async def one(n: int) -> None:
        await pace.enter()
        order.append(n)
        await asyncio.sleep(0)
        pace.leave()

    await asyncio.gather(*(one(n) for n in range(20)))
    assert order == list(range(20))


@pytest.mark.parametrize("let_go", [False, True])
async def test_one_that_is_cancelled_gives_its_place_to_the_next(let_go: bool) -> None:
    pace = Pace(1, stalled_after_s=60)
    await pace.enter()
    waiting = [asyncio.create_task(pace.enter()) for _ in range(2)]
    await asyncio.sleep(0)
    if let_go:
        pace.leave()  # the first may go, and is cancelled before it hears of it
    waiting[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    if not let_go:
        pace.leave()
    await asyncio.wait_for(waiting[1], 1)
    assert pace.under_way == 1
    pace.leave()
    assert pace.under_way == 0
