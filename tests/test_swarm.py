"""Swarms: many items over one root, what happens to one when another fails, and that nothing stays open."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from palaver.actors.budget import Budget
from palaver.actors.cluster import Cluster
from palaver.actors.convo import Convo, ConvoHandle
from palaver.actors.kin import State
from palaver.actors.result import RunResult
from palaver.actors.swarm import Item, ItemResult, swarm
from palaver.actors.usage import CumulativeUsage
from palaver.providers.errors import ConfigurationError, RateLimited
from palaver.providers.provider import Request
from palaver.providers.scripted import Reply, Scripted

both = pytest.mark.parametrize("light", [False, True], ids=["process", "light"])
"""Items with processes of their own, and light ones."""


class Noting(Scripted):
    """Answers with the prompt, and notes in a file when requests begin and end.

    "fail" raises RateLimited, "die" ends the process, "hang" never returns.
    """

    def __init__(self, notes: Path, *, delay_s: float = 0.0, **options: Any) -> None:
        super().__init__(_echo, **options)
        self._notes = notes
        self._pause_s = delay_s

    async def generate(self, request: Request) -> Any:
        self._note("+")
        await asyncio.sleep(self._pause_s)
        if "hang" in request.messages[-1].text:
            await asyncio.sleep(3600)
        if "die" in request.messages[-1].text:
            os._exit(1)
        response = await super().generate(request)
        self._note("-")
        return response

    def _note(self, sign: str) -> None:
        with self._notes.open("a") as file:
            file.write(sign)


def _echo(request: Request) -> Reply:
    text = request.messages[-1].text
    return RateLimited("slow down") if "fail" in text else f"{request.system}{text}"


def items(*prompts: str) -> list[Item]:
    return [Item(label=f"label of {prompt}", prompt=prompt) for prompt in prompts]


@asynccontextmanager
async def rooted(provider: Scripted, **options: Any) -> AsyncIterator[ConvoHandle]:
    root = Convo.remote(provider, **options)
    try:
        yield root
    finally:
        await root.close.remote()


async def all_ended(root: ConvoHandle, count: int, within_s: float = 20.0) -> None:
    """Wait until the root has `count` children and all of them are closed."""
    deadline = time.monotonic() + within_s
    while True:
        children = (await root.tree.remote()).children
        if len(children) == count and all(child.state is State.CLOSED for child in children):
            return
        assert time.monotonic() < deadline, children
        await asyncio.sleep(0.02)


async def at_work(root: ConvoHandle, count: int, within_s: float = 20.0) -> None:
    """Wait until `count` children are waiting for the model."""
    deadline = time.monotonic() + within_s
    while True:
        children = (await root.tree.remote()).children
        if sum(child.state is State.REQUESTING for child in children) == count:
            return
        assert time.monotonic() < deadline, children
        await asyncio.sleep(0.02)


@both
async def test_every_item_gets_its_answer_and_no_more_than_asked_for_run_at_once(
    light: bool, ray_cluster: Cluster, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    async with rooted(Noting(notes, delay_s=0.2, cost_usd=1)) as root:
        prompts = [f"p{n}" for n in range(5)]
        results = [
            each
            async for each in swarm(
                root, items(*prompts), concurrency=2, light=light, system_prompt="s:", max_tokens=9
            )
        ]
        assert sorted(each.label for each in results) == [f"label of {prompt}" for prompt in prompts]
        assert sorted(each.text for each in results) == [f"s:{prompt}" for prompt in prompts]
        assert all(each.finished and each.reason == "" for each in results)
        assert all(each.usage is not None and each.usage.responses == 1 for each in results)
        tree = await root.tree.remote()
        assert {each.convo_id for each in results} == {child.id for child in tree.children}
        assert {child.state for child in tree.children} == {State.CLOSED}
        assert tree.usage.total_cost_usd == Decimal(5)
    running, most = 0, 0
    for sign in notes.read_text():
        running += 1 if sign == "+" else -1
        most = max(most, running)
    assert most <= 2


async def test_provider_error_and_dead_process_are_results_and_harm_no_other(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    async with rooted(Noting(tmp_path / "notes")) as root:
        results = {
            each.label.removeprefix("label of "): each
            async for each in swarm(root, items("fail", "die", "fine"), concurrency=1)
        }
    assert results["fine"].text == "fine"
    failed, died = results["fail"], results["die"]
    assert (failed.finished, failed.error, failed.error_type) == (False, "slow down", "RateLimited")
    assert failed.convo_id is not None
    assert failed.usage is not None
    assert (died.result, died.error_type) == (None, "ConvoClosed")
    assert "its process is gone" in died.reason


@both
async def test_over_budget_the_rest_is_told_so_without_a_process(
    light: bool, ray_cluster: Cluster, tmp_path: Path
) -> None:
    async with rooted(Noting(tmp_path / "notes"), budget=Budget(max_responses=1)) as root:
        first, *rest = [each async for each in swarm(root, items("a", "b", "c"), concurrency=1, light=light)]
        assert first.finished
        assert [(each.convo_id, each.error_type) for each in rest] == [(None, "BudgetExceeded")] * 2
        assert "max_responses is 1" in rest[0].reason
        assert rest[0].reason.startswith("not started: ")
        assert len((await root.tree.remote()).children) == 1


@both
async def test_cancel_of_the_root_stops_what_runs_and_starts_nothing_more(
    light: bool, ray_cluster: Cluster, tmp_path: Path
) -> None:
    async with rooted(Noting(tmp_path / "notes")) as root:

        async def collected() -> list[ItemResult]:
            return [
                each
                async for each in swarm(
                    root, items(*(f"hang {n}" for n in range(6))), concurrency=2, light=light
                )
            ]

        collecting = asyncio.create_task(collected())
        await at_work(root, 2)
        await root.cancel.remote("enough")
        results = await asyncio.wait_for(collecting, 20)
        assert len(results) == 6
        started = [each for each in results if each.convo_id is not None]
        assert [each.reason for each in started] == ["stopped (cancelled): enough"] * 2
        rest = [each for each in results if each.convo_id is None]
        assert {each.error_type for each in rest} == {"ConvoCancelled"}
        assert all("enough" in each.reason for each in rest)
        await all_ended(root, len((await root.tree.remote()).children))


@both
async def test_root_that_is_closed_leaves_a_result_for_every_item(
    light: bool, ray_cluster: Cluster, tmp_path: Path
) -> None:
    root = Convo.remote(Noting(tmp_path / "notes"))
    await root.close.remote()
    results = [each async for each in swarm(root, items("a", "b"), concurrency=1, light=light)]
    assert [(each.convo_id, each.error_type) for each in results] == [(None, "ConvoClosed")] * 2


@both
async def test_a_root_that_is_killed_leaves_a_result_for_every_item(
    light: bool, ray_cluster: Cluster, tmp_path: Path
) -> None:
    root = Convo.remote(Noting(tmp_path / "notes"))

    async def collected() -> list[ItemResult]:
        work = items("hang", "hang 2", "a", "b")
        return [each async for each in swarm(root, work, concurrency=2, light=light, retries=1)]

    collecting = asyncio.create_task(collected())
    await at_work(root, 2)
    os.kill(await root.__ray_call__.remote(lambda _: os.getpid()), signal.SIGKILL)  # type: ignore[attr-defined]
    results = await asyncio.wait_for(collecting, 30)
    assert sorted(each.label for each in results) == sorted(
        f"label of {name}" for name in ("hang", "hang 2", "a", "b")
    )
    assert {each.error_type for each in results} == {"ConvoClosed"}


@both
async def test_consumer_that_stops_listening_leaves_nothing_open(
    light: bool, ray_cluster: Cluster, tmp_path: Path
) -> None:
    async with rooted(Noting(tmp_path / "notes")) as root:
        async with aclosing(
            swarm(root, items("a", "hang", "hang 2", "b"), concurrency=3, light=light)
        ) as results:
            async for each in results:
                assert each.text == "a"
                break
        await all_ended(root, len((await root.tree.remote()).children))


@both
async def test_consumer_that_is_cancelled_leaves_nothing_open(
    light: bool, ray_cluster: Cluster, tmp_path: Path
) -> None:
    async with rooted(Noting(tmp_path / "notes")) as root:

        async def consume() -> None:
            async for _ in swarm(root, items("hang", "hang 2", "hang 3"), concurrency=2, light=light):
                pass

        consuming = asyncio.create_task(consume())
        await at_work(root, 2)
        consuming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consuming
        await all_ended(root, 2)


async def test_concurrency_below_one_is_refused_before_anything_is_asked() -> None:
    nobody: Any = None
    with pytest.raises(ConfigurationError, match="concurrency is 0; use 1 or more"):
        _ = [each async for each in swarm(nobody, [], concurrency=0)]


def test_result_says_why_it_is_not_finished() -> None:
    from datetime import UTC, datetime, timedelta

    usage = CumulativeUsage(started_at=datetime.now(UTC), wall_time=timedelta())
    cut = RunResult(convo_id="c", stop="max_tokens", text="half", message=None, responses=1, usage=usage)
    result = ItemResult(label="a", convo_id="c", result=cut)
    assert (result.finished, result.text, result.reason) == (False, "half", "stopped (max_tokens)")
    assert ItemResult(label="a", error="broken", error_type="X").reason == "broken"


# Run again


class Dying(Scripted):
    """Its first process to be asked for "die" ends; and "busy" fails once for each item."""

    def __init__(self, notes: Path) -> None:
        super().__init__(_echo, cost_usd=Decimal("0.1"))
        self._notes = notes

    async def generate(self, request: Request) -> Any:
        text = request.messages[-1].text
        response = await super().generate(request)
        if "die" in text and self._is_first("died"):
            await asyncio.sleep(0.3)
            os._exit(1)
        if "busy" in text and self._is_first(text):
            raise RateLimited("slow down", "scripted", 429, usage=response.usage)
        return response

    def _is_first(self, name: str) -> bool:
        try:
            (self._notes / name.replace(" ", "_")).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@pytest.mark.parametrize("options", [{}, {"light": True, "workers": 2}], ids=["process", "light"])
async def test_what_a_dead_process_left_is_run_again_and_all_is_counted_once(
    options: Any, ray_cluster: Cluster, tmp_path: Path
) -> None:
    names = [f"item {n}" for n in range(8)] + ["die"]
    async with rooted(Dying(tmp_path)) as root:
        found = [each async for each in swarm(root, items(*names), concurrency=4, retries=1, **options)]
        assert sorted(each.label for each in found) == sorted(f"label of {name}" for name in names)
        assert all(each.finished for each in found), [each.reason for each in found]
        used = [each.usage for each in found if each.usage is not None]
        total = await root.cumulative_usage.remote()
        assert sum(each.responses for each in used) == total.responses
        assert sum((each.known_cost_usd for each in used), Decimal()) == total.known_cost_usd
        assert total.known_cost_usd >= Decimal("0.9")


@both
async def test_without_retries_a_failure_is_the_result(
    light: bool, ray_cluster: Cluster, tmp_path: Path
) -> None:
    async with rooted(Noting(tmp_path / "notes")) as root:
        [result] = [each async for each in swarm(root, items("fail"), concurrency=1, light=light)]
        assert result.error_type == "RateLimited"
        [again] = [each async for each in swarm(root, items("fail"), concurrency=1, light=light, retries=2)]
        assert again.error_type == "RateLimited"
    assert (tmp_path / "notes").read_text() == "+" * 4


async def test_workers_are_for_light_items() -> None:
    nobody: Any = None
    with pytest.raises(ConfigurationError, match=r"workers is 2; they are for light items \(light=True\)"):
        _ = [each async for each in swarm(nobody, [], concurrency=1, workers=2)]


@both
async def test_results_are_lines_in_a_folder_that_another_swarm_goes_on_with(
    light: bool, ray_cluster: Cluster, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    async with rooted(Scripted(_echo, cost_usd=Decimal("0.5"))) as root:
        work = items("a", "fail", "c")
        first = [each async for each in swarm(root, work, concurrency=2, light=light, out=out)]
        assert [each.label for each in first if not each.finished] == ["label of fail"]
        lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        assert [line["item"] for line in lines] == [each.label for each in first]
        assert [line["usage"]["cost_usd"] for line in lines if line["finished"]] == ["0.5", "0.5"]
        with pytest.raises(ConfigurationError, match=r"has 3 results already; --resume \(resume=True\)"):
            _ = [each async for each in swarm(root, work, concurrency=2, light=light, out=out)]
        again = swarm(root, work, concurrency=2, light=light, out=out, resume=True)
        assert [each.label async for each in again] == ["label of fail"]
        other = swarm(root, work, concurrency=2, light=light, out=out, resume=True, max_tokens=9)
        with pytest.raises(ConfigurationError, match="max_tokens changed since the results in"):
            _ = [each async for each in other]
        more = [*work, *items("d")]
        new = swarm(root, more, concurrency=2, light=light, out=out, resume=True)
        assert sorted([each.label async for each in new]) == ["label of d", "label of fail"]


@both
async def test_what_no_item_can_be_run_with_is_raised_and_is_no_result(
    light: bool, ray_cluster: Cluster, tmp_path: Path
) -> None:
    async with rooted(Noting(tmp_path / "notes")) as root:
        wrong: list[tuple[Any, str]] = [
            ({"tools": ["nope"]}, "no tool 'nope' to pass on"),
            ({"outt": 1}, "no option outt; there are: system_prompt"),
        ]
        for options, told in wrong:
            with pytest.raises(ConfigurationError, match=told):
                _ = [each async for each in swarm(root, items("a"), concurrency=1, light=light, **options)]
        await all_ended(root, 0)


async def test_resume_needs_a_folder() -> None:
    nobody: Any = None
    with pytest.raises(ConfigurationError, match="name it with out"):
        _ = [each async for each in swarm(nobody, [], concurrency=1, resume=True)]
