"""The treasury: a line in which nobody overtakes, nobody is forgotten, and the dead hold nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from test_ledger import ask, charge, opened, tree
from wire_fakes import FakeClock

from palaver.actors.budget import Budget
from palaver.actors.errors import BudgetExceeded, ConvoClosed
from palaver.actors.ledger import Grant
from palaver.actors.treasury import RootTreasury


def treasury(*accounts: Any, clock: FakeClock | None = None) -> RootTreasury:
    return RootTreasury(tree(*accounts, clock=clock))


def reserving(at: RootTreasury, convo_id: str, request_id: str, **case: Any) -> asyncio.Task[Grant]:
    return asyncio.create_task(at.reserve(ask(convo_id, request_id, **case)))


async def settle_down() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def ended(*tasks: asyncio.Task[Any]) -> AsyncIterator[None]:
    """Leave no task behind."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_nobody_overtakes_who_waits_at_the_same_limit() -> None:
    bank = treasury(opened("a", max_dollars=1), opened("b", "a"))
    await bank.reserve(ask("a", "1", usd="0.5"))
    large = reserving(bank, "a", "2", usd="0.8")
    small = reserving(bank, "b", "3", usd="0.1")
    async with ended(large, small):
        await settle_down()
        assert (large.done(), small.done()) == (False, False)
        await bank.settle(charge("a", "1", "0.1"))
        await settle_down()
        assert (large.done(), small.done()) == (True, True)


async def test_who_waits_at_a_branchs_limit_holds_up_no_other_branch() -> None:
    bank = treasury(opened("a", max_dollars=10), opened("b", "a", max_dollars="0.1"), opened("c", "a"))
    await bank.reserve(ask("b", "1"))
    waiting = reserving(bank, "b", "2")
    async with ended(waiting):
        await settle_down()
        assert isinstance(await bank.reserve(ask("c", "3", usd="5")), Grant)
        assert not waiting.done()


async def test_who_waits_in_vain_is_refused_when_the_last_reservation_has_ended() -> None:
    bank = treasury(opened("a", max_responses=1))
    await bank.reserve(ask("a", "1"))
    waiting = reserving(bank, "a", "2")
    await settle_down()
    await bank.settle(charge("a", "1"))
    with pytest.raises(BudgetExceeded, match="1 responses received, at least 1 more asked for"):
        await waiting


async def test_a_wait_that_is_withdrawn_leaves_no_hole() -> None:
    bank = treasury(opened("a", max_dollars=1))
    await bank.reserve(ask("a", "1", usd="0.9"))
    large, small = reserving(bank, "a", "2", usd="0.9"), reserving(bank, "a", "3", usd="0.1")
    async with ended(large, small):
        await settle_down()
        await bank.release("a", "2")
        await settle_down()
        assert small.done()
        with pytest.raises(ConvoClosed, match="its request 2 was withdrawn"):
            await large


async def test_an_ask_that_comes_after_its_withdrawal_is_refused() -> None:
    bank = treasury(opened("a"))
    await bank.release("a", "1")
    with pytest.raises(ConvoClosed, match="its request 1 was withdrawn"):
        await bank.reserve(ask("a", "1"))


async def test_a_repeat_of_an_ask_waits_for_the_same_grant() -> None:
    bank = treasury(opened("a", max_dollars=1))
    await bank.reserve(ask("a", "1", usd="0.9"))
    both = [reserving(bank, "a", "2", usd="0.9") for _ in range(2)]
    async with ended(*both):
        await settle_down()
        await bank.release("a", "1")
        assert await asyncio.gather(*both) == [Grant(None, None)] * 2
        assert await bank.reserve(ask("a", "2", usd="0.9")) == Grant(None, None)
        assert bank.ledger.left("a").max_dollars == Decimal("0.1")


async def test_a_cost_above_the_worst_case_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    bank = treasury(opened("a", max_dollars=1))
    await bank.reserve(ask("a", "1", usd="0.1"))
    await bank.settle(charge("a", "1", "0.2"))
    assert "request 1 of conversation a cost $0.2 and was expected to cost at most $0.1" in caplog.text
    assert (await bank.usage("a")).total_cost_usd == Decimal("0.2")


async def test_a_fund_lets_fifty_who_wait_go_on() -> None:
    bank = treasury(opened("a"), opened("b", "a", max_responses=1))
    await bank.reserve(ask("b", "0"))
    waiting = [reserving(bank, "b", str(number)) for number in range(1, 51)]
    async with ended(*waiting):
        await settle_down()
        assert not any(each.done() for each in waiting)
        assert await bank.fund("b", Budget(max_responses=30), asked_by="a") == Budget(max_responses=31)
        await settle_down()
        assert [each.done() for each in waiting] == [True] * 30 + [False] * 20
        await bank.reset_budget("b", Budget(max_responses=100))
        assert len(await asyncio.gather(*waiting)) == 50


async def test_a_wait_ends_when_the_time_is_used_up_and_not_before_it_was_raised() -> None:
    clock = FakeClock()
    bank = treasury(opened("a", max_dollars=1, max_wall_time=0.02), clock=clock)
    await bank.reserve(ask("a", "1", usd="0.9"))
    waiting = reserving(bank, "a", "2", usd="0.9")
    await settle_down()
    await bank.fund("a", Budget(max_wall_time=0.03), asked_by="a")
    clock.time_s = 0.04
    await asyncio.wait({waiting}, timeout=0.03)
    assert not waiting.done()
    clock.time_s = 0.05
    with pytest.raises(BudgetExceeded, match=r"max_wall_time is 0\.05 s"):
        await waiting


class Mortal:
    """A conversation that can be killed, and that ends its requests."""

    def __init__(self) -> None:
        self.dead = asyncio.Event()
        self.asked: list[str] = []

    async def until_request_ended(self, request_id: str) -> None:
        self.asked.append(request_id)
        await self.dead.wait()
        raise ConvoClosed("b", "its process is gone")


async def test_what_a_killed_process_held_is_given_to_who_waits() -> None:
    bank, mortal = treasury(opened("a", max_dollars=1), opened("b", "a"), opened("c", "a")), Mortal()
    bank.introduce("b", mortal, "node")
    await bank.reserve(ask("b", "1", usd="0.9"))
    assert mortal.asked == []
    waiting = reserving(bank, "c", "2", usd="0.9")
    async with ended(waiting):
        await settle_down()
        assert mortal.asked == ["1"]
        mortal.dead.set()
        assert isinstance(await waiting, Grant)
    assert [(each.convo_id, each.ended, each.node_id) for each in await bank.statements("a")] == [
        ("a", None, None),
        ("b", "lost", "node"),
        ("c", None, None),
    ]


async def test_a_process_that_was_killed_while_it_waited_holds_nothing_once_others_wait() -> None:
    bank, mortal = treasury(opened("a", max_dollars=1), opened("b", "a")), Mortal()
    bank.introduce("b", mortal, "node")
    await bank.reserve(ask("a", "1", usd="0.9"))
    of_the_dead = reserving(bank, "b", "2", usd="0.9")
    await settle_down()
    mortal.dead.set()
    await bank.settle(charge("a", "1", "0"))
    waiting = reserving(bank, "a", "3", usd="0.9")
    async with ended(of_the_dead, waiting):
        assert isinstance(await waiting, Grant)


async def test_a_request_that_ended_is_watched_no_more() -> None:
    bank, mortal = treasury(opened("a", max_dollars=1), opened("b", "a")), Mortal()
    bank.introduce("b", mortal, "node")
    await bank.reserve(ask("b", "1", usd="0.9"))
    waiting = reserving(bank, "a", "2", usd="0.9")
    await settle_down()
    await bank.settle(charge("b", "1", "0.1"))
    await waiting
    mortal.dead.set()
    await settle_down()
    assert (await bank.statements("b"))[0].ended is None
