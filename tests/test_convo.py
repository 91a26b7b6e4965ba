"""Convo on a real Ray: trees of actors, what they share, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.exceptions
from conftest import eventually, is_alive
from kinds import Kind

from palaver.actors import (
    Budget,
    BudgetExceeded,
    Convo,
    ConvoBusy,
    ConvoCancelled,
    ConvoClosed,
    ConvoHandle,
    ConvoInfo,
    NoopListener,
    State,
    TooManySubConvos,
)
from palaver.providers.errors import ConfigurationError, Overloaded
from palaver.providers.messages import Message, ToolUse
from palaver.providers.provider import Request, Response
from palaver.providers.scripted import Reply, Scripted
from palaver.tools import ToolCallInfo, ToolDefinitionError, current_call, tool

pytestmark = pytest.mark.usefixtures("ray_cluster")


def always(reply: Reply, **options: Any) -> Scripted:
    return Scripted(lambda _: reply, **options)


def response(*calls: ToolUse) -> Response:
    return Response(message=Message.assistant(*calls))


@tool
def pid() -> int:
    """The worker's process id."""
    return os.getpid()


@tool
async def hang(started: str) -> str:
    """Never end."""
    Path(started).touch()
    await asyncio.Event().wait()
    return "unreachable"


@tool
def unserialisable() -> object:
    """Return what no JSON can hold."""
    return object()


@tool
def huge() -> str:
    """Return 50 MB."""
    return "x" * 50_000_000


@tool
async def who_calls(info: ToolCallInfo) -> str:
    """Tell of the call."""
    assert current_call() == info
    return f"{info.tool_name} {info.tool_use_id} {info.convo_id == await info.convo.id.remote()}"


@tool
async def descend(levels: int, kind: str, info: ToolCallInfo) -> str:
    """Start two sub-conversations that descend further, and wait for them."""
    if levels == 0:
        return "bottom"
    # As any caller of a model would: the next level is told by a tool call of the model.
    subs = [await Kind(kind).sub(info.convo, tools=[descend], label=f"level {levels}") for _ in range(2)]
    call = ToolUse(id="down", name="descend", input={"levels": levels - 1, "kind": kind})
    results = await asyncio.gather(*(sub.tool_result_contents.remote(response(call)) for sub in subs))
    await asyncio.gather(*(sub.close.remote() for sub in subs))
    return " ".join(each[0].text for each in results)


async def tree_of_three(
    kind: Kind, provider: Scripted, **root_options: Any
) -> tuple[ConvoHandle, ConvoHandle, ConvoHandle]:
    root = Convo.remote(provider, label="root", **root_options)
    child = await kind.sub(root, label="child")
    return root, child, await kind.sub(child, label="grandchild")


async def process_of(convo: ConvoHandle) -> int:
    """The process of a conversation, which is the one that runs its listener."""
    return await convo.__ray_call__.remote(lambda _: os.getpid())  # type: ignore[attr-defined]


async def test_a_grandchilds_usage_is_on_all_three_ledgers_when_its_call_returns(kind: Kind) -> None:
    root, child, grandchild = await tree_of_three(kind, always("ok", cost_usd=Decimal("0.1")))
    for times in range(1, 4):
        await grandchild.send_user_text_message.remote("hi")
        usages = await asyncio.gather(*(each.cumulative_usage.remote() for each in (root, child, grandchild)))
        assert [each.responses for each in usages] == [times] * 3
        assert [each.total_cost_usd for each in usages] == [times * Decimal("0.1")] * 3
    assert [await each.depth.remote() for each in (root, child, grandchild)] == [0, 1, 2]
    await root.close.remote()


async def test_a_root_over_budget_stops_a_grandchild(kind: Kind) -> None:
    root, _, grandchild = await tree_of_three(
        kind, always("ok", cost_usd=1), budget=Budget(max_dollars=Decimal(2))
    )
    await grandchild.send_user_text_message.remote("1")
    await grandchild.send_user_text_message.remote("2")
    refusal = rf"{await root.id.remote()}.*\$2 spent, at least \$1 more .*max_dollars is \$2"
    with pytest.raises(BudgetExceeded, match=refusal):
        await grandchild.send_user_text_message.remote("3")
    await root.reset_budget.remote(Budget(max_dollars=Decimal(1)))
    await grandchild.send_user_text_message.remote("3")
    assert (await grandchild.run.remote("4")).stop == "budget"
    await root.close.remote()


async def test_a_childs_budget_does_not_stop_its_parent(kind: Kind) -> None:
    root = Convo.remote(always("ok"))
    child = await kind.sub(root, budget=Budget(max_responses=1))
    await child.run.remote("x")
    assert (await child.run.remote("y")).stop == "budget"
    assert await root.over_budget.remote() is None
    assert (await root.run.remote("z")).finished
    await root.close.remote()


async def test_tools_that_spawn_sub_conversations_four_deep_on_two_cpus_do_not_deadlock(kind: Kind) -> None:
    root = Convo.remote(Scripted([]), tools=[descend])
    call = ToolUse(id="down", name="descend", input={"levels": 4, "kind": kind.name})
    results = await asyncio.wait_for(root.tool_result_contents.remote(response(call)), 180)
    assert results[0].text == " ".join(["bottom"] * 16)
    assert (await root.cumulative_usage.remote()).tool_uses == {"descend": 31}
    await root.close.remote()


async def test_a_tool_learns_of_its_call_by_parameter_and_by_context(kind: Kind) -> None:
    convo = await kind.convo(Scripted([]), tools=[who_calls])
    results = await convo.tool_result_contents.remote(response(ToolUse(id="t1", name="who_calls")))
    assert results[0].text == "who_calls t1 True"
    await convo.close.remote()


async def test_what_a_tool_cannot_return_is_an_error_the_model_can_read(kind: Kind) -> None:
    convo = await kind.convo(Scripted([]), tools=[unserialisable, huge])
    calls = [ToolUse(id="1", name="unserialisable"), ToolUse(id="2", name="huge")]
    results = await convo.tool_result_contents.remote(response(*calls))
    assert "tool 'unserialisable' returned a object that cannot be dumped to JSON" in results[0].text
    assert "tool 'huge' returned 50000000 bytes of text; the limit is 1000000" in results[1].text
    assert all(each.is_error for each in results)
    await convo.close.remote()


async def test_cancel_stops_a_whole_tree_and_it_can_go_on(tmp_path: Path, kind: Kind) -> None:
    def play(request: Request) -> Reply:
        if request.messages[-1].text == "hang":
            return ToolUse(id="1", name="hang", input={"started": str(tmp_path / request.messages[0].text)})
        return "went on"

    root = Convo.remote(Scripted(play), tools=[hang])
    child = await kind.sub(root, tools=[hang])
    runs = [each.run.remote("hang") for each in (root, child)]
    started = tmp_path / "hang"
    assert await asyncio.to_thread(eventually, started.exists, 20)
    assert await asyncio.to_thread(eventually, lambda: _state(root) == [State.RUNNING_TOOLS] * 2, 20)
    before = time.monotonic()
    await root.cancel.remote("out of here")
    print(f"cancel of two conversations: {time.monotonic() - before:.3f} s")
    assert [(each.stop, each.detail) for each in await asyncio.gather(*runs)] == [
        ("cancelled", "out of here")
    ] * 2
    assert (await child.run.remote("go on")).text == "went on"
    sent = (await child.messages.remote())[2]
    assert [each.text for each in sent.tool_results] == ["out of here"]
    await root.close.remote()


def _state(root: ConvoHandle) -> list[State]:
    return [each.state for each in ray.get(root.tree.remote()).walk()]


async def test_two_sends_at_once_are_one_send_and_one_clear_refusal(kind: Kind) -> None:
    convo = await kind.convo(Scripted(["one"], delay_s=0.3))
    results = await asyncio.gather(convo.run.remote("a"), convo.run.remote("b"), return_exceptions=True)
    assert sorted(isinstance(each, ConvoBusy) for each in results) == [False, True]
    assert len(await convo.messages.remote()) == 2
    await convo.close.remote()


async def test_close_leaves_no_process_of_the_tree() -> None:
    tree = await tree_of_three(Kind("process"), always("ok"))
    pids = [await process_of(each) for each in tree]
    assert all(is_alive(each) for each in pids)
    await tree[0].close.remote()
    with pytest.raises(ConvoClosed, match="takes no more calls: it was closed"):
        await tree[0].run.remote("x")
    assert eventually(lambda: not any(is_alive(each) for each in pids), 10)


async def test_a_closed_sub_conversation_keeps_its_line_in_the_tree(kind: Kind) -> None:
    root, child, grandchild = await tree_of_three(kind, always("ok"))
    await grandchild.run.remote("x")
    await child.close.remote()
    lines = list((await root.tree.remote()).walk())
    assert [(each.label, each.state) for each in lines] == [
        ("root", State.IDLE),
        ("child", State.CLOSED),
        ("grandchild", State.CLOSED),
    ]
    assert [each.usage.responses for each in lines] == [1, 1, 1]
    await root.close.remote()


async def test_a_sub_conversation_ends_when_its_last_handle_is_dropped() -> None:
    root = Convo.remote(always("ok"))
    child = await root.sub_convo.remote()
    assert (await child.run.remote("x")).finished  # so that the root has its handle, too
    child_pid = await process_of(child)
    del child
    assert await asyncio.to_thread(eventually, lambda: not is_alive(child_pid), 10)
    assert (await root.run.remote("x")).finished
    await root.close.remote()


async def test_a_killed_parent_takes_its_children_along() -> None:
    _, child, grandchild = tree = await tree_of_three(Kind("process"), always("ok"))
    pids = [await process_of(each) for each in tree]
    os.kill(pids[0], signal.SIGKILL)
    assert await asyncio.to_thread(eventually, lambda: not any(is_alive(each) for each in pids), 10)
    del child, grandchild


async def test_a_killed_child_leaves_its_parent_whole() -> None:
    root, child, grandchild = await tree_of_three(Kind("process"), always("ok"))
    await child.run.remote("x")
    os.kill(await process_of(child), signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        await child.run.remote("y")
    assert (await root.cumulative_usage.remote()).responses == 1
    assert [each.state for each in (await root.tree.remote()).children] == [State.LOST]
    assert (await root.run.remote("z")).finished
    await root.close.remote()
    del grandchild


async def test_history_goes_to_a_sub_conversation_only_when_asked_for() -> None:
    root = Convo.remote(always("ok"), prompt_caching=False)
    await root.run.remote("remember this")
    plain = await root.sub_convo.remote()
    knowing = await root.sub_convo_with_history.remote(system_prompt="you know")
    assert await plain.messages.remote() == ()
    assert [each.text for each in await knowing.messages.remote()] == ["remember this", "ok"]
    await root.close.remote()


class ToFile(NoopListener):
    """Writes a line per event, and then fails."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_request(self, convo: ConvoInfo, request_id: str, message: Message) -> None:
        with self.path.open("a") as file:
            file.write(f"{os.getpid()} {convo.depth} {message.text}\n")
        raise RuntimeError("listeners may fail")


async def test_a_listener_runs_in_each_conversations_process_and_may_fail(tmp_path: Path) -> None:
    root = Convo.remote(always("ok"), listener=ToFile(tmp_path / "log"))
    child = await root.sub_convo.remote()
    assert (await root.run.remote("a")).finished
    assert (await child.run.remote("b")).finished
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [line[1:] for line in lines] == [["0", "a"], ["1", "b"]]
    assert lines[0][0] == str(await process_of(root)) != lines[1][0]
    await root.close.remote()


async def test_errors_arrive_as_what_they_are(kind: Kind) -> None:
    convo = await kind.convo(Scripted([Overloaded("busy; try later", "scripted", 529)]))
    with pytest.raises(Overloaded) as caught:
        await convo.run.remote("x")
    assert caught.value.status == 529
    await convo.close.remote()


async def test_cancel_of_a_send_raises_the_cause(kind: Kind) -> None:
    convo = await kind.convo(Scripted(["late"], delay_s=60))
    send = convo.send_user_text_message.remote("x")
    assert await asyncio.to_thread(eventually, lambda: _state(convo) == [State.REQUESTING], 10)
    await convo.cancel.remote("too slow")
    with pytest.raises(ConvoCancelled, match="too slow"):
        await send
    await convo.close.remote()


async def test_stopping_the_call_that_waits_for_a_run_stops_the_run(tmp_path: Path, kind: Kind) -> None:
    call = ToolUse(id="1", name="hang", input={"started": str(tmp_path / "started")})
    convo = await kind.convo(Scripted([call]), tools=[hang])
    run = convo.run.remote("x")
    assert await asyncio.to_thread(eventually, (tmp_path / "started").exists, 20)
    ray.cancel(run)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        await run
    assert await asyncio.to_thread(eventually, lambda: _state(convo) == [State.IDLE], 10)
    await convo.close.remote()


def test_what_cannot_work_is_refused_before_a_process_is_started() -> None:
    with pytest.raises(ToolDefinitionError, match="used more than once: 'pid'"):
        Convo.remote(Scripted([]), tools=[pid, pid])
    with pytest.raises(ConfigurationError, match="system_prompt is a int; it has to be text"):
        Convo.remote(Scripted([]), system_prompt=5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"provider is a str; pass one of palaver\.providers"):
        Convo.remote("claude")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="is no tool; make it one with @tool"):
        Convo.remote(Scripted([]), tools=[print])  # type: ignore[list-item]


async def test_a_sub_conversation_that_cannot_work_is_refused_too(kind: Kind) -> None:
    root = Convo.remote(Scripted([]))
    with pytest.raises(ToolDefinitionError, match="used more than once"):
        await kind.sub(root, tools=[pid, pid])
    with pytest.raises(ConfigurationError, match="has no option toolz; there are: system_prompt, tools"):
        await kind.sub(root, toolz=[pid])
    with pytest.raises(ConfigurationError, match="got both budget and budget_share"):
        await kind.sub(root, budget=Budget(), budget_share=0.5)
    with pytest.raises(ConfigurationError, match="budget_share is 2; use a part of what is left"):
        await kind.sub(root, budget_share=2)
    await root.close.remote()


async def test_a_sub_conversation_gets_tools_of_its_parent_by_their_names(kind: Kind) -> None:
    root = Convo.remote(Scripted([]), tools=[pid, huge, who_calls])
    child = await kind.sub(root, tools=["who_calls", hang])
    assert await root.tool_names.remote() == ("pid", "huge", "who_calls")
    assert await child.tool_names.remote() == ("who_calls", "hang")
    results = await child.tool_result_contents.remote(response(ToolUse(id="t1", name="who_calls")))
    assert results[0].text == "who_calls t1 True"
    with pytest.raises(
        ConfigurationError, match=r"no tool 'pid' to pass on; available: \['hang', 'who_calls'\]"
    ):
        await kind.sub(child, tools=["pid"])
    await root.close.remote()


async def test_several_sub_conversations_are_started_together_or_none_is() -> None:
    root = Convo.remote(always("ok"))
    children = await root.sub_convos.remote([{"label": "a"}, {"label": "b"}], at_most=2)
    with pytest.raises(TooManySubConvos, match=r"1 sub-conversations were asked for; at most 2 .* and 2 do"):
        await root.sub_convos.remote([{"label": "c"}], at_most=2)
    with pytest.raises(ConfigurationError, match="no tool 'x'"):
        await root.sub_convos.remote([{"label": "d"}, {"label": "e", "tools": ["x"]}])
    assert [each.label for each in (await root.tree.remote()).children] == ["a", "b"]
    await children[0].close.remote()
    await root.sub_convos.remote([{"label": "f"}], at_most=2)
    await root.close.remote()


async def test_ray_options_reach_the_actor() -> None:
    convo = Convo.options(name="by-name", namespace="tests").remote(always("ok"))
    await convo.id.remote()
    found: Any = ray.get_actor("by-name", namespace="tests")
    assert await found.id.remote() == await convo.id.remote()
    await convo.close.remote()
