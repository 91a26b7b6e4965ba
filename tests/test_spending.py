"""Budgets of trees of real processes: exact however many spend at once, and whoever is killed."""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal

import pytest
from kinds import Kind
from spenders import spend

from palaver.actors import Budget, BudgetExceeded, Convo, State, UnknownConvo, UnknownPrice, reply
from palaver.actors.cluster import Cluster
from palaver.providers.messages import ToolUse
from palaver.providers.provider import Request
from palaver.providers.scripted import Reply, Scripted
from palaver.tools import ToolCallInfo, tool

CHILDREN = 20
"""200 take a minute to start; `bench/spend.py` has them."""

LIMIT = Decimal("0.12")


async def test_many_that_spend_at_once_use_a_budget_up_and_never_pass_it(kind: Kind) -> None:
    spent = await spend(CHILDREN, Budget(max_dollars=LIMIT), kind=kind)
    assert LIMIT * Decimal("0.95") <= spent.usd <= LIMIT
    assert spent.over == CHILDREN
    assert spent.answers == spent.tree.usage.responses
    assert spent.tree.reserved_usd == 0
    assert sum(child.usage.known_cost_usd for child in spent.tree.children) == spent.usd


async def test_what_killed_processes_had_reserved_is_spent_by_the_others(ray_cluster: Cluster) -> None:
    spent = await spend(CHILDREN, Budget(max_dollars=LIMIT), kind=Kind("process"), kills=4)
    assert LIMIT * Decimal("0.9") <= spent.usd <= LIMIT
    assert (spent.killed, spent.over) == (4, CHILDREN - 4)
    lost = [child for child in spent.tree.children if child.state is State.LOST]
    assert len(lost) == 4
    assert all(child.node_id is not None for child in spent.tree.children)
    assert spent.tree.reserved_usd == 0


@tool
def sleep_long(info: ToolCallInfo) -> str:
    """Sleep for a minute."""
    time.sleep(60)
    return "late"


def call_a_tool(request: Request) -> Reply:
    return ToolUse(id=request.id, name="sleep_long")


async def test_a_deadline_of_three_seconds_on_the_root_stops_a_grandchilds_request_and_tool(
    kind: Kind,
) -> None:
    root = Convo.remote(Scripted(call_a_tool, delay_s=0.01), budget=Budget(max_wall_time=3))
    slow_root = Convo.remote(Scripted(["late"], delay_s=60), budget=Budget(max_wall_time=3))
    try:
        child = await kind.sub(root)
        at_tool = await kind.sub(child, tools=[sleep_long])
        slow_child = await kind.sub(slow_root)
        at_request = await kind.sub(slow_child, budget=Budget(max_wall_time=600))
        runs = [asyncio.create_task(reply(each.run.remote("go"))) for each in (at_tool, at_request)]
        ended = await asyncio.wait_for(asyncio.gather(*runs), 20)
        for result, root_of_it in zip(ended, (root, slow_root), strict=True):
            assert result.stop == "budget"
            assert result.detail is not None
            assert f"conversation {await reply(root_of_it.id.remote())} is over its budget" in result.detail
            wall_time_s = (await reply(root_of_it.cumulative_usage.remote())).wall_time.total_seconds()
            assert 3 <= wall_time_s < 8
        assert [each.running_tools for each in (await reply(root.tree.remote())).walk()] == [()] * 3
    finally:
        await asyncio.gather(*(reply(each.close.remote()) for each in (root, slow_root)))


async def test_a_root_funds_its_grandchild_while_that_waits(kind: Kind) -> None:
    root = Convo.remote(Scripted(lambda _: "ok", delay_s=2, cost_usd=1))
    try:
        child = await kind.sub(root, budget=Budget(max_dollars="1.5"))
        grandchild = await kind.sub(child, label="grandchild")
        child_id = await reply(child.id.remote())
        first = asyncio.create_task(reply(child.send_user_text_message.remote("x")))
        waiting = asyncio.create_task(reply(grandchild.send_user_text_message.remote("x")))
        async with asyncio.timeout(20):
            while State.HELD not in [each.state for each in (await reply(root.tree.remote())).walk()]:
                assert not (first.done() and waiting.done())
                await asyncio.sleep(0.01)
        assert await reply(root.fund.remote(child_id, Budget(max_dollars=1))) == Budget(max_dollars="2.5")
        await asyncio.gather(first, waiting)
        with pytest.raises(UnknownConvo):
            await reply(child.fund.remote("nob-ody0", Budget(max_dollars=1)))
        with pytest.raises(BudgetExceeded, match="max_dollars is") as refused:
            await reply(grandchild.send_user_text_message.remote("x"))
        assert refused.value.convo_id == child_id
        assert (await reply(root.tree.remote())).children[0].children[0].label == "grandchild"
    finally:
        await reply(root.close.remote())


def test_a_dollar_limit_on_a_model_without_a_price_is_refused_before_a_process_is_started() -> None:
    with pytest.raises(UnknownPrice, match="'mystery' is not known"):
        Convo.remote(Scripted(["x"], cost_usd=None, model="mystery"), budget=Budget(max_dollars=1))
