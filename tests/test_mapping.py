"""Light sub-conversations, one per item: the core, without Ray."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from decimal import Decimal
from typing import Any

from palaver.actors.budget import Budget
from palaver.actors.conversation import Conversation
from palaver.actors.items import All, Item, ItemResult, as_items
from palaver.actors.kin import State
from palaver.actors.mapping import LightWork
from palaver.actors.settings import Settings
from palaver.providers import Message, Overloaded, Request, Response, Scripted
from palaver.tools.toolset import InlineToolset


class Counted(Scripted):
    """Counts how many requests are under way, and the most there were."""

    now = 0
    most = 0

    async def generate(self, request: Request) -> Response:
        Counted.now += 1
        Counted.most = max(Counted.most, Counted.now)
        try:
            await asyncio.sleep(0)
            return await super().generate(request)
        finally:
            Counted.now -= 1


def root(provider: Any, **settings: Any) -> Conversation:
    return Conversation(provider, InlineToolset(()), Settings(label="root", **settings))


def work(core: Conversation) -> LightWork:
    async def begin(item: Item) -> Conversation:
        return await core.sub_conversation(InlineToolset(()), Settings(label=item.label))

    return LightWork(core, begin, {})


async def all_of(core: Conversation, items: list[Item], concurrency: int = 10) -> list[ItemResult]:
    return [each async for batch in work(core).batches(All(items), concurrency) for each in batch]


async def test_each_item_has_one_result_and_a_line_and_no_more_than_asked_for_run_at_once() -> None:
    Counted.most = 0
    core = root(Counted(lambda request: f"about {request.messages[0].text}", cost_usd=Decimal("0.01")))
    results = await all_of(core, as_items(f"item {n}" for n in range(50)), 7)
    assert {each.label: each.text for each in results} == {str(n + 1): f"about item {n}" for n in range(50)}
    assert Counted.most == 7
    usage = await core.cumulative_usage()
    assert (usage.responses, usage.total_cost_usd) == (50, Decimal("0.50"))
    assert sum(each.usage.responses for each in results if each.usage) == 50
    lines = list((await core.tree()).walk())
    assert [line.state for line in lines] == [State.IDLE] + [State.CLOSED] * 50
    assert len({each.convo_id for each in results} | {core.id}) == 51
    await core.close()


async def test_each_plays_the_script_from_its_beginning() -> None:
    core = root(Scripted(["only"]))
    assert [each.text for each in await all_of(core, as_items(["a", "b", "c"]))] == ["only"] * 3
    await core.close()


async def test_one_that_fails_is_its_own_result() -> None:
    def play(request: Request) -> Any:
        return Overloaded("busy", "scripted", 529) if request.messages[0].text == "2" else "ok"

    core = root(Scripted(play))
    results = {each.label: each for each in await all_of(core, as_items("123"))}
    assert [results[label].finished for label in "123"] == [True, False, True]
    assert (results["2"].error_type, results["2"].error) == ("Overloaded", "busy")
    assert results["2"].convo_id is not None
    await core.close()


async def test_a_budget_is_used_up_exactly_and_the_rest_is_told_so() -> None:
    core = root(Scripted(["ok"], cost_usd=Decimal("0.1")), budget=Budget(max_dollars=Decimal("0.5")))
    results = await all_of(core, as_items(str(n) for n in range(20)), 4)
    assert len(results) == 20
    assert sum(each.finished for each in results) == 5
    assert (await core.cumulative_usage()).total_cost_usd == Decimal("0.5")
    assert all("max_dollars" in each.reason for each in results if not each.finished)
    await core.close()


async def test_a_cancel_stops_what_runs_and_starts_nothing_more() -> None:
    core = root(Scripted(["late"], delay_s=60))
    asking = asyncio.create_task(all_of(core, as_items(str(n) for n in range(30)), 5))
    while len(list((await core.tree()).walk())) < 6:
        await asyncio.sleep(0)
    await core.cancel("enough")
    results = await asyncio.wait_for(asking, 5)
    stopped = [each for each in results if each.result is not None]
    assert [(each.result.stop, each.result.detail) for each in stopped if each.result] == [
        ("cancelled", "enough")
    ] * 5
    rest = [each for each in results if each.result is None]
    assert len(rest) == 25
    assert all(each.error_type == "ConvoCancelled" and "enough" in each.reason for each in rest)
    assert all(each.convo_id is None for each in rest)
    await core.close()


async def test_one_that_is_closed_leaves_a_result_for_every_item() -> None:
    core = root(Scripted(["late"], delay_s=60))
    asking = asyncio.create_task(all_of(core, as_items(str(n) for n in range(10)), 5))
    while len(list((await core.tree()).walk())) < 6:
        await asyncio.sleep(0)
    await core.close()
    results = await asyncio.wait_for(asking, 5)
    assert len(results) == 10
    assert not any(each.finished for each in results)


async def test_who_stops_listening_leaves_nothing_open() -> None:
    def play(request: Request) -> Any:
        return "ok"

    core = root(Scripted(play, delay_s=0.001))
    async with aclosing(work(core).batches(All(as_items(str(n) for n in range(1_000))), 10)) as batches:
        async for _ in batches:
            break
    lines = list((await core.tree()).walk())[1:]
    assert len(lines) < 1_000
    assert {line.state for line in lines} == {State.CLOSED}
    assert (await core.run("and on")).text == "ok"
    await core.close()


def test_a_text_is_an_item_that_is_called_by_its_place() -> None:
    assert as_items(["a", Item(label="x", prompt="b")]) == [
        Item(label="1", prompt="a"),
        Item(label="x", prompt="b"),
    ]


async def test_a_message_is_kept_of_each() -> None:
    seen: list[tuple[Message, ...]] = []

    def play(request: Request) -> str:
        seen.append(request.messages)
        return "ok"

    core = root(Scripted(play))
    await all_of(core, as_items(["a", "b"]), 1)
    assert [[each.text for each in messages] for messages in seen] == [["a"], ["b"]]
    await core.close()
