"""Light sub-conversations on a real Ray: `map`, and what only a process can show."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually, is_alive
from pydantic import BaseModel

from palaver.actors import Budget, Convo, ConvoHandle, Item, ItemResult, State, results
from palaver.providers import ConfigurationError, Message, Request, Scripted, ToolUse
from palaver.providers.scripted import Reply
from palaver.tools import ToolCallInfo, tool

pytestmark = pytest.mark.usefixtures("ray_cluster")


@tool
async def who(info: ToolCallInfo) -> str:
    """Tell of the call."""
    return f"{await info.convo.id.remote()} {info.convo_id} {await info.convo.depth.remote()}"


class Sum(BaseModel):
    total: int


async def process_of(convo: ConvoHandle) -> int:
    return await convo.__ray_call__.remote(lambda _: os.getpid())  # type: ignore[attr-defined]


def calls_then_ends(request: Request) -> Reply:
    if len(request.messages) == 1:
        return ToolUse(id="1", name="who")
    return request.messages[-1].tool_results[0].text


async def test_each_item_calls_tools_as_tasks_that_reach_its_own_conversation() -> None:
    root = Convo.remote(Scripted(calls_then_ends, cost_usd=Decimal("0.01")))
    mapped = [each async for each in results(root.map.remote(["a", "b", "c"], tools=[who]))]
    assert sorted(each.label for each in mapped) == ["1", "2", "3"]
    for each in mapped:
        assert each.text == f"{each.convo_id} {each.convo_id} 1"
    usage = await root.cumulative_usage.remote()
    assert (usage.responses, usage.tool_calls, usage.total_cost_usd) == (6, 3, Decimal("0.06"))
    lines = list((await root.tree.remote()).walk())
    assert [line.state for line in lines] == [State.IDLE] + [State.CLOSED] * 3
    assert len({line.node_id for line in lines}) == 1
    await root.close.remote()


@pytest.mark.parametrize("workers", [0, 1])
async def test_items_have_the_tools_that_are_passed_on_by_name_and_a_share_of_the_budget(
    workers: int,
) -> None:
    root = Convo.remote(
        Scripted(calls_then_ends, cost_usd=Decimal("0.1")), tools=[who], budget=Budget(max_dollars=2)
    )
    mapped = await _all(root.map.remote(["a"], tools=["who"], budget_share=0.5, workers=workers))
    assert mapped[0].text.startswith(f"{mapped[0].convo_id} ")
    lines = {line.label: line for line in (await root.tree.remote()).walk()}
    assert lines["1"].budget == Budget(max_dollars=1)
    await root.close.remote()


async def test_answers_of_a_type_and_budgets_for_each() -> None:
    root = Convo.remote(Scripted(['{"total": 3}'], output_by="schema", cost_usd=1))
    mapped = [each async for each in results(root.map.remote(["1 + 2"] * 3, output_type=Sum))]
    assert [each.result.output for each in mapped if each.result] == [Sum(total=3)] * 3
    few = [each async for each in results(root.map.remote(["x"] * 3, budget=Budget(max_responses=0)))]
    assert [each.result.stop for each in few if each.result] == ["budget"] * 3
    await root.close.remote()


async def test_workers_share_the_items_out_under_one_budget() -> None:
    root = Convo.remote(Scripted(["ok"], cost_usd=Decimal("0.1")), budget=Budget(max_dollars=Decimal(2)))
    items = [Item(label=f"item {n}", prompt="x") for n in range(30)]
    mapped = [each async for each in results(root.map.remote(items, workers=2, concurrency=6))]
    assert sorted(each.label for each in mapped) == sorted(each.label for each in items)
    assert sum(each.finished for each in mapped) == 20
    assert (await root.cumulative_usage.remote()).total_cost_usd == Decimal(2)
    tree = await root.tree.remote()
    assert [(line.label, line.state) for line in tree.children] == [
        ("worker 1", State.CLOSED),
        ("worker 2", State.CLOSED),
    ]
    assert sum(len(worker.children) for worker in tree.children) >= 20
    await root.close.remote()


class Held(Scripted):
    """Notes its process, and answers once the file "go" is there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(["ok"])
        self._folder = folder

    async def generate(self, request: Request) -> Any:
        (self._folder / str(os.getpid())).touch()
        while not (self._folder / "go").exists():
            await asyncio.sleep(0.02)
        return await super().generate(request)


async def test_a_worker_that_is_killed_leaves_a_result_for_each_of_its_items(tmp_path: Path) -> None:
    root = Convo.remote(Held(tmp_path))
    items = [str(n) for n in range(10)]
    asking = asyncio.create_task(_all(root.map.remote(items, workers=2, concurrency=10)))
    while [line.state for line in (await root.tree.remote()).walk()].count(State.REQUESTING) < 10:
        await asyncio.sleep(0.02)
    os.kill(int(min(path.name for path in tmp_path.iterdir())), signal.SIGKILL)
    (tmp_path / "go").touch()
    mapped = await asyncio.wait_for(asking, 20)
    assert sorted(each.label for each in mapped) == sorted(str(n + 1) for n in range(10))
    assert sum(each.finished for each in mapped) == 5
    lost = [each for each in mapped if not each.finished]
    assert {each.error_type for each in lost} == {"ConvoClosed"}
    tree = await root.tree.remote()
    assert sorted(line.state for line in tree.children) == [State.CLOSED, State.LOST]
    await root.close.remote()


async def test_what_a_killed_worker_had_not_begun_others_do_and_another_takes_its_place(
    tmp_path: Path,
) -> None:
    def play(_: Request) -> str:
        (tmp_path / str(os.getpid())).touch()
        return "ok"

    root = Convo.remote(Scripted(play, delay_s=0.5))
    asking = asyncio.create_task(_all(root.map.remote([str(n) for n in range(60)], workers=2, concurrency=6)))
    assert await asyncio.to_thread(eventually, lambda: len(list(tmp_path.iterdir())) == 2, 20)
    os.kill(int(min(path.name for path in tmp_path.iterdir())), signal.SIGKILL)
    mapped = await asyncio.wait_for(asking, 60)
    assert sorted(each.label for each in mapped) == sorted(str(n + 1) for n in range(60))
    lost = [each for each in mapped if not each.finished]
    assert 1 <= len(lost) <= 3
    assert all(each.error_type == "ConvoClosed" and each.convo_id is not None for each in lost)
    assert len(list(tmp_path.iterdir())) == 3
    tree = await root.tree.remote()
    assert sorted((line.label, line.state) for line in tree.children) in (
        [("worker 1", State.CLOSED), ("worker 1", State.LOST), ("worker 2", State.CLOSED)],
        [("worker 1", State.CLOSED), ("worker 2", State.CLOSED), ("worker 2", State.LOST)],
    )
    await root.close.remote()


async def test_of_a_worker_that_is_cancelled_the_others_take_what_it_had_not_begun() -> None:
    root = Convo.remote(Scripted(["ok"], delay_s=0.5))
    asking = asyncio.create_task(_all(root.map.remote([str(n) for n in range(30)], workers=2, concurrency=6)))
    while sum(len(line.children) for line in (await root.tree.remote()).children) < 6:
        await asyncio.sleep(0.02)
    worker = (await root.tree.remote()).children[0]
    await (await root.find.remote(worker.id)).cancel.remote("enough of this one")
    mapped = await asyncio.wait_for(asking, 60)
    assert sorted(each.label for each in mapped) == sorted(str(n + 1) for n in range(30))
    stopped = [each.result.stop for each in mapped if each.result and not each.finished]
    assert stopped == ["cancelled"] * len(stopped)
    assert 1 <= len(stopped) <= 3
    assert sum(each.finished for each in mapped) == 30 - len(stopped)
    await root.close.remote()


async def _all(batches: Any) -> list[ItemResult]:
    return [each async for each in results(batches)]


async def test_who_stops_listening_stops_the_work() -> None:
    root = Convo.remote(Scripted(["ok"], delay_s=0.05))
    async with aclosing(results(root.map.remote([str(n) for n in range(1_000)], concurrency=5))) as mapped:
        async for _ in mapped:
            break
    lines = list((await root.tree.remote()).walk())
    assert len(lines) < 1_000
    assert {line.state for line in lines[1:]} == {State.CLOSED}
    await root.close.remote()


async def test_a_light_one_maps_too_and_has_children_of_both_kinds() -> None:
    root = Convo.remote(Scripted(["ok"]))
    light = await root.light_sub_convo.remote(label="light")
    assert [each.text async for each in results(light.map.remote(["a", "b"]))] == ["ok", "ok"]
    child = await light.sub_convo.remote(label="process")
    grandchild = await child.light_sub_convo.remote(label="light of it")
    assert (await grandchild.run.remote("x")).finished
    lines = [(line.depth, line.label, line.state) for line in (await root.tree.remote()).walk()]
    assert lines == [
        (0, "", State.IDLE),
        (1, "light", State.IDLE),
        (2, "1", State.CLOSED),
        (2, "2", State.CLOSED),
        (2, "process", State.IDLE),
        (3, "light of it", State.IDLE),
    ]
    process = await process_of(child)
    await light.close.remote()
    assert await asyncio.to_thread(eventually, lambda: not is_alive(process), 10)
    await root.close.remote()


async def test_the_death_of_a_process_is_that_of_its_light_ones_and_of_no_other() -> None:
    root = Convo.remote(Scripted(["late"], delay_s=60, cost_usd=1), budget=Budget(max_dollars=2))
    child = await root.sub_convo.remote(label="child")
    light = await child.light_sub_convo.remote(label="light")
    run = light.run.remote("x")
    while (await root.tree.remote()).reserved_usd != 1:
        await asyncio.sleep(0.05)
    os.kill(await process_of(child), signal.SIGKILL)
    with pytest.raises(Exception, match=r"died|gone|closed"):
        await run
    tree = await root.tree.remote()
    assert [line.state for line in tree.walk()] == [State.IDLE, State.LOST, State.LOST]
    # What it had reserved came back.
    assert tree.reserved_usd == 0
    await root.close.remote()


async def test_what_cannot_work_is_refused_before_anything_runs() -> None:
    root = Convo.remote(Scripted(["ok"]))
    with pytest.raises(ConfigurationError, match="concurrency is 0; use 1 or more"):
        await anext(results(root.map.remote(["a"], concurrency=0)))
    with pytest.raises(ConfigurationError, match="actor_options need workers"):
        await anext(results(root.map.remote(["a"], actor_options={"num_cpus": 1})))
    with pytest.raises(ConfigurationError, match="leave actor_options out"):
        await root.light_sub_convo.remote(actor_options={"num_cpus": 1})
    for workers in (0, 2):
        with pytest.raises(ConfigurationError, match="no tool 'x' to pass on"):
            await anext(results(root.map.remote(["a"], tools=["x"], workers=workers)))
    assert (await root.tree.remote()).children == ()
    await root.close.remote()


async def test_messages_of_a_light_one_are_its_own() -> None:
    root = Convo.remote(Scripted(["ok"]))
    await root.run.remote("root's")
    light = await root.light_sub_convo.remote()
    await light.run.remote("light's")
    assert [each.text for each in await light.messages.remote()] == ["light's", "ok"]
    assert await root.messages.remote() == (Message.user("root's"), Message.assistant("ok"))
    await root.close.remote()
