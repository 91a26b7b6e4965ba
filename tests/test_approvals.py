"""Approvals: calls that wait for a yes, and what yes, no, an edit, a cancel and an end make of them."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import eventually, is_alive
from kinds import Kind

from palaver.actors import Convo, ConvoHandle, reply
from palaver.actors.approvals import ApprovalRequest, Approved, Denied, RootDesk, as_json
from palaver.actors.conversation import Conversation
from palaver.actors.errors import AmbiguousToolCall, ConvoClosed, UnknownToolCall
from palaver.actors.kin import State
from palaver.actors.listener import ConvoInfo, Listener, NoopListener
from palaver.actors.live import changes, state
from palaver.actors.settings import Settings
from palaver.providers.errors import ConfigurationError, PalaverError
from palaver.providers.messages import Message, ToolResult, ToolUse
from palaver.providers.provider import Request, Response
from palaver.providers.scripted import Scripted
from palaver.tools import DoNotRespond, Tool, ToolDenied, tool
from palaver.tools.task import pack
from palaver.tools.toolset import InlineToolset

WITHIN_S = 10.0


@tool(needs_approval=True)
async def deploy(host: str, copies: int = 1) -> str:
    """Deploy."""
    return f"deployed {copies} to {host}"


@tool(needs_approval=lambda tool_input: tool_input["path"].startswith("/"))
async def remove(path: str) -> str:
    """Remove a file."""
    return f"removed {path}"


def kaput(tool_input: dict[str, Any]) -> bool:
    raise RuntimeError("cannot tell")


@tool(needs_approval=kaput)
async def puzzle() -> str:
    """Do what nobody can judge."""
    return "solved"


@tool(needs_approval=True, timeout_s=0.05)
async def quick() -> str:
    """Be quick."""
    return "done"


@tool(needs_approval=True)
async def fail() -> None:
    """Fail."""
    raise RuntimeError("kaput")


@tool(needs_approval=True)
async def silent() -> None:
    """Want no answer."""
    raise DoNotRespond


@tool
async def echo(text: str) -> str:
    """Give the text back."""
    return text


def call(id: str, name: str, **tool_input: Any) -> ToolUse:
    return ToolUse(id=id, name=name, input=tool_input)


def response(*calls: ToolUse) -> Response:
    return Response(message=Message.assistant(*calls))


def convo(*tools: Tool[..., Any], listener: Listener | None = None, label: str = "") -> Conversation:
    toolset = InlineToolset(tools or (deploy, remove, puzzle, quick, fail, silent, echo))
    return Conversation(Scripted([]), toolset, Settings(label=label), listener=listener)


def calling(conversation: Conversation, *calls: ToolUse) -> asyncio.Task[list[ToolResult]]:
    return asyncio.create_task(conversation.tool_result_contents(response(*calls)))


async def needed(conversation: Conversation, *seen: ApprovalRequest) -> ApprovalRequest:
    """The next request, alone."""
    ids = [each.id for each in seen]
    [request] = await conversation.approvals.until_needed(ids, timeout_s=WITHIN_S)
    return request


async def settles(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not await condition():
            await asyncio.sleep(0.01)


# Decisions


async def test_call_runs_once_it_is_approved() -> None:
    root = convo(label="root")
    results = calling(root, call("t1", "deploy", host="a"))
    request = await needed(root)
    assert (request.tool_use_id, request.tool_name, request.input) == ("t1", "deploy", {"host": "a"})
    assert (request.convo_id, request.convo_label, request.depth) == (root.id, "root", 0)
    assert not results.done()
    await root.approvals.approve("t1")
    [result] = await results
    assert (result.text, result.is_error) == ("deployed 1 to a", False)
    assert result.started_at is not None
    assert result.started_at >= request.asked_at
    assert await root.approvals.pending() == ()


async def test_denial_is_a_result_that_tells_the_model_the_reason() -> None:
    root = convo()
    results = calling(root, call("t1", "deploy", host="a"), call("t2", "deploy", host="b"))
    await root.approvals.until_needed()
    await root.approvals.deny("t1", "not on a Friday")
    await settles(lambda: _count(root, 1))
    await root.approvals.deny("t2", " ")
    first, second = await results
    assert first.is_error
    assert first.text == (
        "tool 'deploy' needs approval, and this call was denied; it has not run. "
        "Do not repeat it as it was. The reason given: not on a Friday"
    )
    assert "No reason was given." in second.text
    assert (first.started_at, second.started_at) == (None, None)


async def _count(conversation: Conversation, count: int) -> bool:
    return len(await conversation.approvals.pending()) == count


async def test_edited_input_is_what_runs_and_the_model_is_told_in_the_result_alone() -> None:
    root = Conversation(
        Scripted([call("t1", "deploy", host="prod"), "ok"]), InlineToolset([deploy]), Settings()
    )
    run = asyncio.create_task(root.run("go"))
    await needed(root)
    await root.approvals.approve("t1", input={"host": "prüf", "copies": 2})
    assert (await run).text == "ok"
    _, said, answered, _ = root.transcript.messages
    assert said.tool_uses[0].input == {"host": "prod"}
    [result] = answered.tool_results
    assert result.text == (
        '[The call was approved with an edited input, and ran with: {"host": "prüf", "copies": 2}]\n'
        "deployed 2 to prüf"
    )


async def test_edited_input_that_does_not_fit_the_schema_is_refused_by_the_tool() -> None:
    root = convo()
    results = calling(root, call("t1", "deploy", host="a"))
    await needed(root)
    await root.approvals.approve("t1", input={"hosts": ["a"]})
    [result] = await results
    assert result.is_error
    note, _, refusal = result.text.partition("\n")
    assert note.endswith('ran with: {"hosts": ["a"]}]')
    assert "host" in refusal
    assert "deployed" not in result.text


async def test_input_edited_to_what_it_was_needs_no_note() -> None:
    root = convo()
    results = calling(root, call("t1", "deploy", host="a"))
    await needed(root)
    await root.approvals.approve("t1", input={"host": "a"})
    assert [each.text for each in await results] == ["deployed 1 to a"]


@pytest.mark.parametrize("edited", [["a"], {"host": {1, 2}}, {"host": float("nan")}])
async def test_edited_input_that_is_no_json_object_is_refused_and_the_call_waits_on(edited: Any) -> None:
    root = convo()
    results = calling(root, call("t1", "deploy", host="a"))
    await needed(root)
    with pytest.raises(ConfigurationError, match="an edited input"):
        await root.approvals.approve("t1", input=edited)
    await root.approvals.approve("t1")
    assert [each.text for each in await results] == ["deployed 1 to a"]


async def test_edited_call_that_fails_or_wants_no_answer_ends_as_it_would() -> None:
    root = convo()
    results = calling(root, call("t1", "fail"), call("t2", "silent"))
    await root.approvals.until_needed()
    await root.approvals.approve("t1", input={})
    await settles(lambda: _count(root, 1))
    await root.approvals.approve("t2")
    [result] = await results
    assert (result.tool_use_id, result.is_error) == ("t1", True)
    assert "kaput" in result.text


async def test_predicate_decides_by_the_input_and_is_not_asked_of_an_edited_one() -> None:
    root = convo()
    results = calling(root, call("t1", "remove", path="a"), call("t2", "remove", path="/a"))
    request = await needed(root)
    assert request.tool_use_id == "t2"
    await root.approvals.approve("t2", input={"path": "/b"})
    first, second = await results
    assert first.text == "removed a"
    assert second.text.endswith("\nremoved /b")


async def test_predicate_that_raises_asks() -> None:
    root = convo()
    results = calling(root, call("t1", "puzzle"))
    assert (await needed(root)).tool_name == "puzzle"
    await root.approvals.approve("t1")
    assert [each.text for each in await results] == ["solved"]


async def test_input_that_does_not_fit_bothers_nobody() -> None:
    root = convo()
    [result] = await asyncio.wait_for(calling(root, call("t1", "deploy", hosts="a")), WITHIN_S)
    assert result.is_error
    assert await root.approvals.pending() == ()


async def test_timeout_counts_from_the_start_of_the_run() -> None:
    root = convo()
    results = calling(root, call("t1", "quick"))
    await needed(root)
    await asyncio.sleep(0.1)
    await root.approvals.approve("t1")
    assert [each.text for each in await results] == ["done"]


async def test_calls_wait_each_for_itself_and_results_keep_their_order() -> None:
    root = convo()
    calls = [call("t1", "deploy", host="a"), call("t2", "echo", text="hi"), call("t3", "deploy", host="b")]
    results = calling(root, *calls)
    await settles(lambda: _count(root, 2))
    await settles(lambda: _running(root, "deploy", "deploy"))
    assert [each.tool_use_id for each in await root.approvals.pending()] == ["t1", "t3"]
    await root.approvals.approve("t3")
    await settles(lambda: _running(root, "deploy"))
    await root.approvals.deny("t1", "no")
    assert [each.tool_use_id for each in await results] == ["t1", "t2", "t3"]
    assert [each.is_error for each in await results] == [True, False, False]


async def _running(conversation: Conversation, *names: str) -> bool:
    return (await conversation.tree()).running_tools == names


# Which call


async def test_unknown_call_is_an_error_that_names_those_that_wait() -> None:
    root = convo()
    results = calling(root, call("t1", "deploy", host="a"))
    await needed(root)
    with pytest.raises(UnknownToolCall, match=rf"no waiting tool call 't9'; waiting: \['t1 of {root.id}'\]"):
        await root.approvals.approve("t9")
    with pytest.raises(UnknownToolCall, match="conversation abc-defg has no waiting tool call 't1'"):
        await root.approvals.deny("t1", "", convo_id="abc-defg")
    await root.approvals.approve("t1")
    with pytest.raises(UnknownToolCall, match=r"no waiting tool call 't1'; waiting: \[\]"):
        await root.approvals.approve("t1")
    await results


async def test_child_asks_at_the_root_and_who_is_asked_there_is_told_whose_call_it_is() -> None:
    root = convo()
    child = await root.sub_conversation(InlineToolset([deploy]), Settings(label="child"))
    grandchild = await child.sub_conversation(InlineToolset([deploy]))
    other = await root.sub_conversation(InlineToolset([deploy]))
    runs = [calling(each, call("t1", "deploy", host=each.id)) for each in (root, grandchild, other)]
    await settles(lambda: _count(root, 3))
    of_child = await child.approvals.pending()
    assert [(each.convo_id, each.depth) for each in of_child] == [(grandchild.id, 2)]
    assert of_child[0].lineage == (root.id, child.id, grandchild.id)
    with pytest.raises(AmbiguousToolCall, match=rf"waits for approval in 3 conversations, .*{other.id}"):
        await root.approvals.approve("t1")
    with pytest.raises(UnknownToolCall):
        await child.approvals.approve("t1", convo_id=other.id)
    await child.approvals.approve("t1")
    assert [each.text for each in await runs[1]] == [f"deployed 1 to {grandchild.id}"]
    await root.approvals.deny("t1", "", convo_id=other.id)
    assert (await runs[2])[0].is_error
    await root.approvals.approve("t1")
    assert not (await runs[0])[0].is_error


async def test_wait_for_requests_tells_of_each_once_and_misses_none() -> None:
    root = convo()
    child = await root.sub_conversation(InlineToolset([deploy]))
    of_child = asyncio.create_task(child.approvals.until_needed())
    assert await root.approvals.until_needed(timeout_s=0) == ()
    first_run = calling(root, call("t1", "deploy", host="a"))
    first = await needed(root)
    assert await root.approvals.until_needed([first.id], timeout_s=0.01) == ()
    second_run = calling(child, call("t1", "deploy", host="b"))
    second = await needed(root, first)
    assert second.convo_id == child.id
    # Asked for anew from the start, it tells of both; the child's own was not woken by the root's.
    assert await root.approvals.until_needed() == (first, second)
    assert await of_child == (second,)
    await root.approvals.deny("t1", "", convo_id=root.id)
    await child.approvals.deny("t1", "")
    await asyncio.gather(first_run, second_run)


# Ends


async def test_cancelled_call_does_not_wait_any_more() -> None:
    root = convo()
    results = calling(root, call("t1", "deploy", host="a"))
    await needed(root)
    stopped = await root.cancel_tool_use("t1", "changed my mind")
    assert (stopped.tool_use_id, stopped.problem) == ("t1", "")
    assert await root.approvals.pending() == ()
    assert [(each.text, each.is_error) for each in await results] == [("changed my mind", True)]


async def test_cancel_and_close_of_a_parent_take_the_requests_of_its_children_back() -> None:
    root = convo()
    for end in ("cancel", "close"):
        child = await root.sub_conversation(InlineToolset([deploy]))
        results = calling(child, call("t1", "deploy", host="a"))
        request = await needed(root)
        await (child.cancel("stop") if end == "cancel" else child.close())
        assert await root.approvals.pending() == ()
        with pytest.raises(PalaverError, match=child.id):
            await results
        assert not await root.desk.decide(request.id, Approved())


async def test_end_of_the_root_ends_who_waits_for_requests_and_refuses_new_ones() -> None:
    root = convo()
    waiting = asyncio.create_task(root.approvals.until_needed())
    results = calling(root, call("t1", "deploy", host="a"))
    await waiting
    waiting = asyncio.create_task(root.approvals.until_needed([each.id for each in waiting.result()]))
    await asyncio.sleep(0)
    await root.close()
    with pytest.raises(ConvoClosed):
        await asyncio.wait_for(waiting, WITHIN_S)
    with pytest.raises(ConvoClosed):
        await root.approvals.pending()
    with pytest.raises(PalaverError):
        await results
    request = root.approvals.request(call("t2", "deploy", host="a"))
    late = await root.approvals.decision_on(request)
    assert isinstance(late, Denied)
    assert late.reason.startswith("nobody could be asked: conversation")


async def test_request_that_is_withdrawn_ends_and_withdrawing_it_again_is_harmless() -> None:
    desk = RootDesk("abc-defg")
    request = convo().approvals.request(call("t1", "deploy", host="a"))
    waiting = asyncio.create_task(desk.decision_on(request))
    assert await desk.until_asked((), WITHIN_S) == (request,)
    await desk.withdraw(request.id)
    await desk.withdraw(request.id)
    assert await desk.pending() == ()
    assert isinstance(await waiting, Denied)


async def test_desk_that_closes_tells_so_whoever_still_waits_at_it() -> None:
    desk = RootDesk("abc-defg")
    waiting = asyncio.create_task(desk.decision_on(convo().approvals.request(call("t1", "deploy", host="a"))))
    await desk.until_asked((), WITHIN_S)
    desk.close()
    with pytest.raises(ConvoClosed, match="abc-defg"):
        await asyncio.wait_for(waiting, WITHIN_S)


# Who is told


class Recorder(NoopListener):
    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def on_tool_call(self, convo: ConvoInfo, call: ToolUse) -> None:
        self.told.append(("call", call.id))

    async def on_approval_needed(self, convo: ConvoInfo, request: ApprovalRequest) -> None:
        self.told.append(("needed", (convo.id, request.tool_use_id)))

    def on_approval_decided(
        self, convo: ConvoInfo, request: ApprovalRequest, decision: Approved | Denied
    ) -> None:
        self.told.append(("decided", decision))

    def on_tool_result(
        self, convo: ConvoInfo, call: ToolUse, result: ToolResult, error: PalaverError | None
    ) -> None:
        self.told.append(("result", type(error).__name__))


async def test_listener_is_told_in_order() -> None:
    listener = Recorder()
    root = convo(listener=listener)
    results = calling(root, call("t1", "deploy", host="a"))
    await needed(root)
    await root.approvals.deny("t1", "no")
    await results
    cancelled = calling(root, call("t2", "deploy", host="a"))
    await needed(root)
    await root.cancel_tool_use("t2", "stop")
    await cancelled
    assert listener.told == [
        ("call", "t1"),
        ("needed", (root.id, "t1")),
        ("decided", Denied(reason="no")),
        ("result", "ToolDenied"),
        ("call", "t2"),
        ("needed", (root.id, "t2")),
        ("result", "ToolCancelled"),
    ]


async def test_listener_that_was_written_before_there_were_approvals_harms_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Old:
        def on_tool_call(self, convo: ConvoInfo, call: ToolUse) -> None: ...

        def on_tool_result(
            self, convo: ConvoInfo, call: ToolUse, result: ToolResult, error: PalaverError | None
        ) -> None: ...

    root = convo(listener=cast("Listener", Old()))
    results = calling(root, call("t1", "deploy", host="a"))
    await needed(root)
    await root.approvals.approve("t1")
    assert [each.text for each in await results] == ["deployed 1 to a"]
    assert caplog.records == []


async def test_tree_shows_who_waits_for_approval_and_for_what() -> None:
    root = convo(deploy, quick, label="root")
    results = calling(root, call("t1", "deploy", host="a"), call("t2", "quick"))
    before = await root.tree()
    await settles(lambda: _count(root, 2))
    branch = await root.tree()
    assert branch.state is State.WAITING
    assert branch.waiting_tools == branch.running_tools == ("deploy", "quick")
    assert state(branch) == "waiting for approval: deploy, quick"
    assert changes(before, branch) == [f"root {root.id}: waiting for approval: deploy, quick"]
    await root.approvals.deny("t1", "")
    await root.approvals.deny("t2", "")
    await results
    assert (await root.tree()).state is State.IDLE


def test_requests_decisions_and_errors_travel() -> None:
    request = convo().approvals.request(call("t1", "deploy", host="a"))
    assert ApprovalRequest.model_validate_json(request.model_dump_json()) == request
    for value in (
        request,
        Approved(input={"a": 1}),
        Denied(reason="no"),
        AmbiguousToolCall("t1", ["a", "b"]),
    ):
        copy = pickle.loads(pickle.dumps(value))
        assert (type(copy), str(copy)) == (type(value), str(value))
    assert isinstance(pickle.loads(pickle.dumps(ToolDenied("deploy", "no"))), ToolDenied)


def test_input_that_has_no_utf_8_is_spelled_in_ascii() -> None:
    assert as_json({"a": "ü"}) == '{"a": "ü"}'
    assert as_json({"a": "ü\ud800"}) == '{"a": "\\u00fc\\ud800"}'


def test_packed_tool_says_whether_its_calls_need_approval() -> None:
    assert [pack(each).approval for each in (deploy, remove, echo)] == ["always", "maybe", "never"]


# On Ray


@tool(needs_approval=True, num_cpus=1000)
async def greedy() -> str:
    """Ask for what no node has."""
    return "unreachable"


@tool(needs_approval=True, max_per_node=1)
async def hang(started: str) -> str:
    """Never end, alone on its node."""
    Path(started).touch()
    await asyncio.Event().wait()
    return "unreachable"


async def pending_at(handle: ConvoHandle, *seen: str) -> Sequence[ApprovalRequest]:
    return await reply(handle.until_approval_needed.remote(seen, timeout_s=60))


async def test_call_of_a_child_actor_is_answered_at_the_root(kind: Kind) -> None:
    root = Convo.remote(Scripted([]), tools=[deploy, remove], label="root")
    child = await kind.sub(root, tools=[deploy, remove], label="child")
    results = child.tool_result_contents.remote(
        response(
            call("t1", "deploy", host="a"),
            call("t2", "remove", path="/x"),
            call("t3", "remove", path="x"),
            call("t4", "deploy", hosts="a"),
        )
    )
    seen: dict[str, ApprovalRequest] = {}
    while len(seen) < 2:
        new = await pending_at(root, *(each.id for each in seen.values()))
        seen |= {each.tool_use_id: each for each in new}
    assert sorted(seen) == ["t1", "t2"]
    assert (seen["t1"].convo_label, seen["t1"].depth) == ("child", 1)
    assert [each.state for each in (await root.tree.remote()).walk()] == [State.IDLE, State.WAITING]
    with pytest.raises(UnknownToolCall, match="'t1 of "):
        await reply(root.approve.remote("t9"))
    await root.approve.remote("t1", input={"host": "b"})
    # Through the child's own handle just so.
    assert [each.tool_use_id for each in await child.pending_approvals.remote()] == ["t2"]
    await child.deny.remote("t2", "keep it")
    first, second, third, fourth = await results
    assert first.text.endswith("\ndeployed 1 to b")
    assert "keep it" in second.text
    assert third.text == "removed x"
    assert fourth.is_error
    assert await root.pending_approvals.remote() == ()
    await root.close.remote()


@pytest.mark.usefixtures("ray_cluster")
async def test_cancelled_and_killed_children_leave_no_request_at_the_root() -> None:
    root = Convo.remote(Scripted([]), label="root")
    child = await root.sub_convo.remote(tools=[deploy])
    pid = await child.__ray_call__.remote(lambda _: os.getpid())  # type: ignore[attr-defined]
    cancelled = child.tool_result_contents.remote(response(call("t1", "deploy", host="a")))
    await pending_at(root)
    await root.cancel.remote("stop")
    assert await root.pending_approvals.remote() == ()
    with pytest.raises(PalaverError, match="stop"):
        await reply(cancelled)
    lost = child.tool_result_contents.remote(response(call("t2", "deploy", host="a")))
    [request] = await pending_at(root)
    assert request.tool_use_id == "t2"
    os.kill(pid, signal.SIGKILL)
    await settles(lambda: _none_at(root))
    with pytest.raises(ConvoClosed):
        await reply(lost)
    await root.close.remote()


async def _none_at(handle: ConvoHandle) -> bool:
    return await handle.pending_approvals.remote() == ()


async def test_asking_takes_neither_resources_nor_places(kind: Kind, tmp_path: Path) -> None:
    root = Convo.remote(Scripted([]), tools=[hang])
    child = await kind.sub(root, tools=[hang, greedy])
    runs = [root.tool_result_contents.remote(response(call("t1", "hang", started=str(tmp_path / "1"))))]
    [first] = await pending_at(root)
    await root.approve.remote("t1")
    await settles(lambda: asyncio.to_thread((tmp_path / "1").exists))
    calls = [call("t2", "hang", started=str(tmp_path / "2")), call("t3", "greedy")]
    runs.append(child.tool_result_contents.remote(response(*calls)))
    seen = {first.id}
    while len(seen) < 3:
        seen |= {each.id for each in await pending_at(root, *seen)}
    assert {each.tool_use_id for each in await root.pending_approvals.remote()} == {"t2", "t3"}
    await root.cancel.remote("enough")
    for run in runs:
        with pytest.raises(PalaverError, match="enough"):
            await reply(run)
    await root.close.remote()


@pytest.mark.usefixtures("ray_cluster")
async def test_child_nobody_holds_any_more_gets_its_answer_and_ends() -> None:
    def play(request: Request) -> ToolUse | str:
        return call("t1", "deploy", host="a") if len(request.messages) == 1 else "done"

    root = Convo.remote(Scripted(play), label="root")
    child = await root.sub_convo.remote(tools=[deploy])
    pid = await child.__ray_call__.remote(lambda _: os.getpid())  # type: ignore[attr-defined]
    run = child.run.remote("go")
    del child
    [request] = await pending_at(root)
    await root.approve.remote(request.tool_use_id)
    assert (await reply(run)).text == "done"
    del run
    assert await asyncio.to_thread(eventually, lambda: not is_alive(pid), 20)
    await root.close.remote()
