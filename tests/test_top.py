"""`palaver top` on a real terminal, over conversations that another process has."""

from __future__ import annotations

import asyncio
import os
import re
from decimal import Decimal
from typing import Any

import pytest
from test_cli import PALAVER, Terminal

from palaver.actors import Budget, Convo, results
from palaver.actors.cluster import Cluster
from palaver.providers import Scripted

pytestmark = pytest.mark.ray


async def off_the_loop(work: Any, *given: Any) -> Any:
    return await asyncio.to_thread(work, *given)


async def test_two_hundred_are_seen_and_one_is_cancelled_funded_and_read(ray_cluster: Cluster) -> None:
    root = Convo.remote(
        Scripted(["late"], delay_s=100, cost_usd=1), label="many", budget=Budget(max_dollars=500)
    )

    async def work() -> list[str]:
        items = [f"item {n}" for n in range(200)]
        mapped = results(root.map.remote(items, concurrency=200))
        return [each.result.stop async for each in mapped if each.result is not None]

    working = asyncio.create_task(work())
    while (tree := await root.tree.remote()).reserved_usd != 200:
        await asyncio.sleep(0.05)
    await _watched(ray_cluster, "many", tree.children[0].id, working)
    assert (await root.budget_left.remote()).max_dollars == Decimal("303.50")  # one gave its dollar back
    await root.cancel.remote("enough")
    assert await working == ["cancelled"] * 200
    await root.close.remote()


async def _watched(cluster: Cluster, label: str, child_id: str, working: asyncio.Task[Any]) -> None:
    environment = {**os.environ, "TERM": "xterm"}
    terminal = Terminal([PALAVER, "top", "--address", cluster.address], environment, columns=80)
    await off_the_loop(terminal.wait_for, "201 conversations, 200 busy")
    await off_the_loop(terminal.wait_for, label)
    await off_the_loop(terminal.wait_for, f"{child_id}  requesting")  # whole, on so narrow a terminal too
    terminal.type("f")
    await off_the_loop(terminal.wait_for, "how many dollars more for ")
    terminal.type("2.50\r")
    await off_the_loop(terminal.wait_for, "at most $502.50")
    terminal.type("\x1b[B")
    terminal.type("c")
    await off_the_loop(terminal.wait_for, "and all below it? y/n")
    terminal.type("y")
    await off_the_loop(terminal.wait_for, "stopped 1 conversation, 1 request")
    await off_the_loop(terminal.wait_for, "200 conversations, 199 busy")
    terminal.type("\x1b[B\r")
    await off_the_loop(terminal.wait_for, "== user, not answered yet ==")
    terminal.type("q")
    await off_the_loop(terminal.wait_for, "up/down choose")
    terminal.type("s")
    terminal.type("q")
    assert await off_the_loop(terminal.end) == 0
    assert not re.search(r"Traceback|Error", terminal.text)
    assert not working.done()
