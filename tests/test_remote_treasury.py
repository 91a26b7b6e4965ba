"""The treasury of another process: what is asked at once goes together, and each has its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from test_ledger import ask, charge, opened, tree

from palaver.actors.budget import Budget
from palaver.actors.errors import BudgetExceeded, ConvoUnreachable, UnknownConvo
from palaver.actors.remote_treasury import Answer, Call, RemoteTreasury, answers_to
from palaver.actors.treasury import RootTreasury

BELOW = [opened(f"c{n}", "root") for n in range(50)]


class Root:
    """Answers as the actor does, and keeps what it was asked together."""

    def __init__(self, treasury: RootTreasury) -> None:
        self.treasury = treasury
        self.asked: list[list[str]] = []
        self.waited: list[str] = []
        self.unreachable = 0
        self.at_treasury = SimpleNamespace(remote=self._at_treasury)
        self.waited_at_treasury = SimpleNamespace(remote=self._waited)

    def _at_treasury(self, calls: Sequence[Call]) -> Coroutine[Any, Any, list[Answer | None]]:
        self.asked.append([call.method for call in calls])
        return self._answers(calls)

    async def _answers(self, calls: Sequence[Call]) -> list[Answer | None]:
        await asyncio.sleep(0)  # on its way
        if self.unreachable:
            self.unreachable -= 1
            raise ConvoUnreachable("root", "its node does not answer")
        return await answers_to(calls, self.treasury)

    def _waited(self, call: Call) -> Coroutine[Any, Any, Any]:
        self.waited.append(call.method)
        return call.made_at(self.treasury)


class Known(RemoteTreasury):
    """One that the root knows already."""

    def __init__(self, root: Root) -> None:
        super().__init__("root", root)
        self._introduced = True


def root_of(**limits: Any) -> Root:
    return Root(RootTreasury(tree(opened("root", None, **limits), *BELOW)))


async def test_what_is_asked_while_an_answer_is_on_its_way_goes_together_in_its_order() -> None:
    root = root_of()
    remote = Known(root)

    async def spend(n: int) -> None:
        await remote.reserve(ask(f"c{n}", f"r{n}", usd="1"))
        await remote.settle(charge(f"c{n}", f"r{n}", "0.5"))
        await remote.close(f"c{n}")

    await asyncio.gather(*(spend(n) for n in range(50)))
    assert root.asked == [["reserve"] * 50, ["settle"] * 50, ["close"] * 50]
    assert (await remote.usage("root")).total_cost_usd == Decimal(25)
    assert root.waited == []


async def test_each_has_its_own_error() -> None:
    root = root_of(max_dollars=Decimal(1))
    remote = Known(root)
    reserved, unknown, refused = await asyncio.gather(
        remote.reserve(ask("c1", "r1", usd="1")),
        remote.usage("nobody"),
        remote.reserve(ask("c2", "r2", usd="2")),
        return_exceptions=True,
    )
    assert not isinstance(reserved, BaseException)
    assert isinstance(unknown, UnknownConvo)
    assert isinstance(refused, BudgetExceeded)
    assert len(root.asked) == 1


async def test_one_that_waits_for_money_holds_up_no_other_and_gets_it() -> None:
    root = root_of(max_dollars=Decimal(1))
    remote = Known(root)
    await remote.reserve(ask("c1", "r1", usd="1"))
    waiting = asyncio.create_task(remote.reserve(ask("c2", "r2", usd="1")))
    usage = await remote.usage("root")
    assert usage.responses == 0
    while not root.waited:
        await asyncio.sleep(0)
    assert not waiting.done()
    await remote.settle(charge("c1", "r1", "0"))
    await waiting
    assert root.waited == ["reserve"]
    assert root.treasury.ledger.reservation("c2", "r2") is not None


async def test_what_nobody_waits_for_any_more_is_not_sent() -> None:
    root = root_of()
    remote = Known(root)
    first = asyncio.create_task(remote.usage("root"))
    await asyncio.sleep(0)
    given_up = asyncio.create_task(remote.left("root"))
    await asyncio.sleep(0)
    given_up.cancel()
    await first
    await asyncio.sleep(0)
    assert [method for each in root.asked for method in each] == ["usage"]
    assert (await remote.usage("c1")).responses == 0


async def test_a_root_that_cannot_be_reached_is_asked_again_and_then_said() -> None:
    root = root_of()
    remote = Known(root)
    root.unreachable = 1
    await remote.reserve(ask("c1", "r1", usd="1"))
    root.unreachable = 1
    with pytest.raises(ConvoUnreachable):  # a fund that was asked for twice would be two
        await remote.fund("c1", Budget(max_dollars=1), asked_by="c1")
    assert [method for each in root.asked for method in each] == ["reserve", "reserve", "fund"]
