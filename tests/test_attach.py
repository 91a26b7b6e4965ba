"""`palaver ps`, `cancel`, `fund` and `show`, of conversations that another process has."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from kinds import Kind

from palaver.actors import Budget, Convo, ConvoHandle, State, UnknownConvo
from palaver.actors.cluster import Cluster
from palaver.providers import Scripted, ToolUse

pytestmark = pytest.mark.ray

PALAVER = str(Path(sys.executable).with_name("palaver"))


async def palaver(cluster: Cluster, *words: str) -> tuple[int, str, str]:
    """What the command says: its exit code, stdout and stderr."""
    command = [PALAVER, *words, "--address", cluster.address]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


async def until(root: ConvoHandle, state: State) -> None:
    while state not in {line.state for line in (await root.tree.remote()).walk()}:
        await asyncio.sleep(0.02)


async def test_ps_lists_trees_of_both_kinds_and_show_tells_what_was_said(ray_cluster: Cluster) -> None:
    script = [ToolUse(id="t1", name="look", input={"at": "it"}), "seen"]
    root = Convo.remote(Scripted(script, cost_usd=Decimal("0.25")), label="the root")
    light = await root.light_sub_convo.remote(label="a light one")
    process = await light.sub_convo.remote(label="one with a process")
    await process.run.remote("look there")
    closed = await root.light_sub_convo.remote(label="an ended one")
    await closed.close.remote()
    code, out, _ = await palaver(ray_cluster, "ps", "--json")
    lines: dict[str, Any] = {each["label"]: each for each in json.loads(out)}
    assert code == 0
    assert "an ended one" not in lines
    assert [lines[name]["depth"] for name in ("the root", "a light one", "one with a process")] == [0, 1, 2]
    assert lines["the root"]["spent_usd"] == lines["one with a process"]["spent_usd"] == "0.50"
    _, out, _ = await palaver(ray_cluster, "ps", "--all")
    table = [line.split() for line in out.splitlines()]
    heads = ["conversation", "id", "state", "for", "turns", "tokens", "spent", "reserved", "age", "node"]
    assert table[0] == heads
    assert any(line[:3] == ["an", "ended", "one"] and line[4] == "ended" for line in table)
    code, out, _ = await palaver(ray_cluster, "show", await process.id.remote())
    assert code == 0
    assert out.splitlines()[:5] == [
        "== user ==",
        "look there",
        "",
        "== assistant ==",
        '[calls look t1] {"at": "it"}',
    ]
    assert out.endswith("== assistant ==\nseen\n")
    _, out, _ = await palaver(ray_cluster, "show", await process.id.remote(), "--json")
    assert [each["role"] for each in json.loads(out)] == ["user", "assistant"] * 2
    await root.close.remote()


async def test_cancel_stops_one_branch(kind: Kind, ray_cluster: Cluster) -> None:
    root = Convo.remote(Scripted(["late"], delay_s=60))
    child = await kind.sub(root, label="child")
    run = child.run.remote("x")
    await until(root, State.REQUESTING)
    code, out, _ = await palaver(ray_cluster, "cancel", await child.id.remote(), "--cause", "too slow")
    assert (code, out.startswith("stopped 1 conversation, 1 request")) == (0, True)
    result = await run
    assert (result.stop, result.detail) == ("cancelled", "too slow")
    await root.close.remote()


async def test_fund_lets_one_go_on_that_waits(kind: Kind, ray_cluster: Cluster) -> None:
    root = Convo.remote(Scripted(["ok"] * 2, cost_usd=1), budget=Budget(max_dollars=5))
    child = await kind.sub(root, budget=Budget(max_dollars=1))
    await child.run.remote("x")
    assert (await child.run.remote("y")).stop == "budget"
    code, out, _ = await palaver(ray_cluster, "fund", await child.id.remote(), "--dollars", "1.50", "--json")
    assert (code, json.loads(out)) == (0, {"max_dollars": "2.50", "advisory": False})
    assert (await child.run.remote("z")).finished
    await root.close.remote()


async def test_what_is_not_there_is_told(ray_cluster: Cluster) -> None:
    root = Convo.remote(Scripted(["ok"]))
    closed = await root.light_sub_convo.remote()
    closed_id = await closed.id.remote()
    await closed.close.remote()
    for command in ("show", "cancel"):
        code, _, told = await palaver(ray_cluster, command, "abc-defg")
        assert (code, told) == (
            2,
            "palaver: error: no conversation 'abc-defg' on this cluster; `palaver ps` lists them\n",
        )
    code, _, told = await palaver(ray_cluster, "show", closed_id)
    assert (code, f"conversation {closed_id} takes no more calls: it was closed" in told) == (2, True)
    code, _, told = await palaver(ray_cluster, "fund", closed_id)
    assert (code, "say what to raise: --dollars" in told) == (2, True)
    with pytest.raises(UnknownConvo):
        await root.find.remote("abc-defg")
    await root.close.remote()


async def test_a_cluster_that_does_not_answer_is_told() -> None:
    nobody = Cluster("127.0.0.1:1", owned=False)
    code, _, told = await palaver(nobody, "ps")
    assert (code, "nothing listens at Ray address '127.0.0.1:1'" in told) == (2, True)
