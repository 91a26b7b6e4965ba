"""`delegate`: its logic with a handle that is a fake, and on a real Ray what only Ray can show."""

from __future__ import annotations

import asyncio
import json
import math
import os
import pickle
import signal
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually, is_alive

from palaver.actors import Budget, Convo, ConvoHandle, ConvoInfo, NoopListener, State
from palaver.actors.conversation import Conversation
from palaver.actors.errors import BudgetExceeded, TooManySubConvos, UnknownToolCall
from palaver.actors.result import RunResult, RunStop
from palaver.actors.usage import CumulativeUsage
from palaver.providers.errors import Overloaded
from palaver.providers.messages import Message, Text, ToolUse
from palaver.providers.provider import Request
from palaver.providers.scripted import Reply, Scripted
from palaver.tools import Resources, ToolCallInfo, ToolDefinitionError, ToolError, ToolInputInvalid, tool
from palaver.tools.delegate import DelegatedTask, delegate, delegate_tool
from palaver.tools.toolset import InlineToolset

# A conversation's handle, faked


def used(responses: int = 0, dollars: str = "0", unpriced: int = 0) -> CumulativeUsage:
    return CumulativeUsage(
        started_at=datetime.now(UTC),
        wall_time=timedelta(),
        responses=responses,
        known_cost_usd=Decimal(dollars),
        unpriced_responses=unpriced,
    )


def ended(
    text: str, stop: RunStop = "end_turn", detail: str | None = None, usage: CumulativeUsage | None = None
) -> RunResult:
    return RunResult(
        convo_id="abc-defg",
        stop=stop,
        text=text,
        message=None,
        responses=1,
        usage=usage or used(1, "0.01"),
        detail=detail,
    )


@dataclass
class Method:
    """A method of a handle."""

    remote: Callable[..., Awaitable[Any]]


Work = Callable[[str], Awaitable[RunResult]]


@dataclass
class FakeDelegate:
    """A sub-conversation whose run is `work`."""

    work: Work
    closed: bool = False

    def __post_init__(self) -> None:
        self.run = Method(self.work)
        self.cumulative_usage = Method(self._usage)
        self.close = Method(self._close)

    async def _usage(self) -> CumulativeUsage:
        return used(3, "0.5")

    async def _close(self) -> None:
        self.closed = True


@dataclass
class FakeConvo:
    """A conversation whose delegates all do `work`."""

    work: Work
    at_depth: int = 0
    names: tuple[str, ...] = ("delegate", "read_file", "bash")
    refusal: Exception | None = None
    options: list[dict[str, Any]] = field(default_factory=list)
    at_most: int | None = None
    delegates: list[FakeDelegate] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.depth = Method(self._depth)
        self.tool_names = Method(self._names)
        self.sub_convos = Method(self._start)

    async def _depth(self) -> int:
        return self.at_depth

    async def _names(self) -> tuple[str, ...]:
        return self.names

    async def _start(self, options: list[dict[str, Any]], *, at_most: int) -> Sequence[FakeDelegate]:
        if self.refusal is not None:
            raise self.refusal
        self.options, self.at_most = options, at_most
        self.delegates = [FakeDelegate(self.work) for _ in options]
        return self.delegates


async def echo(task: str) -> RunResult:
    return ended(f"did {task}")


async def call(convo: FakeConvo | None, *tasks: dict[str, Any], tool: Any = delegate) -> list[str]:
    """The texts of what the tool returns, called as a model calls it."""
    info = ToolCallInfo("call-1", tool.name, "abc-defg", convo)
    value = await tool.function(**tool.signature.bind({"tasks": list(tasks)}, info))
    assert all(isinstance(each, Text) for each in value)
    return [each.text for each in value]


async def test_each_task_has_its_answer_in_order_with_how_it_ended_and_what_it_used() -> None:
    convo = FakeConvo(echo)
    texts = await call(convo, {"task": "a", "label": "first"}, {"task": "b", "label": "second"})
    assert texts == [
        "[1 of 2] first: end_turn; used: 1 responses, $0.01\ndid a",
        "[2 of 2] second: end_turn; used: 1 responses, $0.01\ndid b",
    ]
    assert [each.closed for each in convo.delegates] == [True, True]


async def test_all_delegates_work_at_once() -> None:
    together = asyncio.Barrier(3)

    async def meet(task: str) -> RunResult:
        await together.wait()
        return await echo(task)

    async with asyncio.timeout(5):
        assert len(await call(FakeConvo(meet), *({"task": str(i)} for i in range(3)))) == 3


async def test_a_delegate_is_told_its_task_alone_and_belongs_to_the_call() -> None:
    convo = FakeConvo(echo)
    await call(
        convo, {"task": "a", "tools": ["bash"], "budget_share": 0.25}, {"task": "b " * 50, "tools": []}
    )
    first, second = convo.options
    assert (first["tools"], first["budget_share"], first["label"]) == (["bash"], 0.25, "a")
    assert (second["tools"], second["budget_share"]) == ([], None)
    assert len(second["label"]) == 60
    assert second["label"].startswith("b b b")
    assert [each["within_call"] for each in convo.options] == ["call-1"] * 2
    assert "Nobody can answer questions" in first["system_prompt"]
    assert convo.at_most == 8


@pytest.mark.parametrize(
    ("depth", "inherited"), [(1, ["delegate", "read_file", "bash"]), (2, ["read_file", "bash"])]
)
async def test_delegates_get_all_tools_and_the_lowest_cannot_delegate(
    depth: int, inherited: list[str]
) -> None:
    convo = FakeConvo(echo, at_depth=depth)
    await call(convo, {"task": "a"})
    assert convo.options[0]["tools"] == inherited


async def test_a_delegate_that_fails_is_one_items_error_and_harms_no_other() -> None:
    async def work(task: str) -> RunResult:
        if task == "bad":
            raise Overloaded("no capacity; try later", "scripted", 529)
        return await echo(task)

    convo = FakeConvo(work)
    texts = await call(convo, {"task": "bad"}, {"task": "good"})
    assert texts == [
        "[1 of 2] bad: error; used: 3 responses, $0.5\nOverloaded: no capacity; try later",
        "[2 of 2] good: end_turn; used: 1 responses, $0.01\ndid good",
    ]
    assert all(each.closed for each in convo.delegates)


async def test_the_call_fails_when_every_delegate_failed() -> None:
    async def work(task: str) -> RunResult:
        raise Overloaded(f"no {task}")

    with pytest.raises(ToolError, match=r"every delegate failed\n\n\[1 of 2\] a: .*\n.*no a\n\n\[2 of 2\] b"):
        await call(FakeConvo(work), {"task": "a"}, {"task": "b"})


async def test_a_delegate_stopped_by_a_limit_says_so_and_keeps_what_it_has() -> None:
    async def work(task: str) -> RunResult:
        return ended("half of it", "budget", "over its budget: $1 spent", used(2, unpriced=1))

    assert await call(FakeConvo(work), {"task": "a"}) == [
        "[1 of 1] a: stopped before it had finished (budget): over its budget: $1 spent; used: 2 responses, "
        "unknown cost\nhalf of it"
    ]


async def test_a_delegate_that_cannot_be_closed_or_asked_any_more_keeps_its_answer() -> None:
    async def gone(*_: object) -> None:
        raise ToolError("delegate", "its process is gone")

    async def work(task: str) -> RunResult:
        for each in convo.delegates:
            each.close = each.cumulative_usage = Method(gone)
        if task == "bad":
            await gone()
        return await echo(task)

    convo = FakeConvo(work)
    bad, good = await call(convo, {"task": "bad"}, {"task": "good"})
    assert bad == "[1 of 2] bad: error; used: unknown\nToolError: its process is gone"
    assert good.endswith("did good")


async def test_below_the_deepest_level_a_call_is_refused_and_nothing_is_started() -> None:
    convo = FakeConvo(echo, at_depth=3)
    with pytest.raises(ToolError, match=r"at depth 3, .* depth 3 at most .* Do the tasks yourself"):
        await call(convo, {"task": "a"})
    assert convo.delegates == []


async def test_more_tasks_than_may_run_at_once_are_refused_and_nothing_is_started() -> None:
    convo = FakeConvo(echo)
    two = delegate_tool(max_fan_out=2)
    with pytest.raises(ToolError, match=r"3 tasks were given, and at most 2 .* again with the rest"):
        await call(convo, *({"task": str(i)} for i in range(3)), tool=two)
    assert convo.delegates == []
    assert len(await call(convo, *({"task": str(i)} for i in range(2)), tool=two)) == 2


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (TooManySubConvos("abc-defg", 2, 7, 8), "at most 8 .* and 7 do. Ask for fewer, or wait"),
        (BudgetExceeded("abc-defg", Budget(max_responses=1).breaches(used(1))), "max_responses is 1"),
        (UnknownToolCall("abc-defg", "call-1", "running", []), "no running tool call"),
    ],
)
async def test_what_the_conversation_refuses_the_model_can_read(refusal: Exception, said: str) -> None:
    with pytest.raises(ToolError, match=f"(?s)no delegate was started: .*{said}"):
        await call(FakeConvo(echo, refusal=refusal), {"task": "a"}, {"task": "b"})


async def test_tools_that_the_conversation_has_not_are_refused_with_those_it_has() -> None:
    convo = FakeConvo(echo)
    with pytest.raises(ToolInputInvalid) as caught:
        await call(convo, {"task": "a"}, {"task": "b", "tools": ["bash", "bsah"]})
    assert str(caught.value) == (
        "no delegate was started: tasks.1.tools: you have no tool 'bsah'. Your tools: delegate, read_file, "
        "bash. Correct the names and call again."
    )
    assert convo.delegates == []


async def test_long_answers_are_cut_in_the_middle_each_to_an_equal_part() -> None:
    async def work(task: str) -> RunResult:
        return ended("short" if task == "1" else f"begin {'ü' * 5_000} end")

    small = delegate_tool(max_output_bytes=1_001)
    texts = await call(FakeConvo(work), *({"task": str(i)} for i in range(3)), tool=small)
    assert texts[1].endswith("\nshort")
    for text in (texts[0], texts[2]):
        assert 300 < len(text.encode()) <= 333
        assert "\nbegin ü" in text
        assert "bytes left out]" in text
        assert text.endswith("ü end")


@pytest.mark.parametrize(
    "tasks",
    [
        [],
        [{"task": ""}],
        [{"task": "a", "budget_share": 0}],
        [{"task": "a", "budget_share": 1.5}],
        [{"task": "a", "lable": "x"}],
    ],
)
async def test_input_that_does_not_fit_is_refused(tasks: list[dict[str, Any]]) -> None:
    with pytest.raises(ToolInputInvalid):
        await call(FakeConvo(echo), *tasks)


async def test_a_conversation_inside_another_program_has_no_delegates_and_its_model_reads_why() -> None:
    asks = ToolUse(id="1", name="delegate", input={"tasks": [{"task": "a"}]})
    provider = Scripted([asks, "then I do it myself"])
    assert (await Conversation(provider, InlineToolset([delegate])).run("go")).finished
    (result,) = provider.requests[1].messages[-1].tool_results
    assert result.is_error
    assert "no delegate was started" in result.text
    assert "Do the tasks yourself" in result.text


def test_the_model_is_told_the_limits_and_what_each_field_is_for() -> None:
    tight = delegate_tool(name="ask_others", max_depth=2, max_fan_out=5)
    assert tight.name == "ask_others"
    assert "At most 5 tasks at once" in tight.spec.description
    assert "2 levels deep" in tight.spec.description
    schema = json.dumps(tight.spec.input_schema)
    assert set(DelegatedTask.model_fields) == {"task", "label", "tools", "budget_share"}
    for name in DelegatedTask.model_fields:
        assert f'"{name}": {{' in schema
    assert schema.count('"description"') >= 6


def test_a_waiting_call_holds_no_cpu_and_has_no_timeout_but_its_own() -> None:
    assert delegate.resources == Resources()
    assert delegate.limits.timeout_s == math.inf
    assert delegate_tool(timeout_s=60).limits.timeout_s == 60


@pytest.mark.parametrize("limit", ["max_depth", "max_fan_out"])
def test_a_limit_below_one_is_refused_by_name(limit: str) -> None:
    with pytest.raises(ToolDefinitionError, match=f"{limit} of tool 'delegate' is 0; use 1 or more"):
        delegate_tool(**{limit: 0})  # type: ignore[arg-type]


def test_the_tool_travels_as_a_few_values() -> None:
    packed = pickle.loads(pickle.dumps(delegate_tool(max_fan_out=3)))
    assert packed.unpack().function == delegate_tool(max_fan_out=3).function
    assert len(packed.code) < 5_000


# On Ray


@tool
async def meet(mine: str, theirs: str) -> str:
    """Wait for somebody else."""
    Path(mine).touch()
    async with asyncio.timeout(60):
        while not Path(theirs).exists():
            await asyncio.sleep(0.02)
    return "met"


@tool
def nothing() -> str:
    """Do nothing."""
    return "nothing"


@tool
async def kill_its_conversation(info: ToolCallInfo) -> None:
    """Kill the process of the conversation that calls."""
    os.kill(await info.convo.__ray_call__.remote(lambda _: os.getpid()), signal.SIGKILL)


@tool
def sleep_with_child(pids: str) -> str:
    """Sleep in a process that leaves the session."""
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (Path(pids) / str(child.pid)).touch()
    child.wait()
    return "woke up"


def delegates(*tasks: dict[str, Any], id: str = "d", tool: str = "delegate") -> ToolUse:
    return ToolUse(id=id, name=tool, input={"tasks": list(tasks)})


def play(request: Request) -> Reply:
    """Do as the first message says, a JSON list: make its calls, then tell what came of them."""
    last = request.messages[-1]
    if last.tool_results:
        return "\n".join(each.text for each in last.tool_results)
    return [ToolUse.model_validate(each) for each in json.loads(last.text)]


def script(*calls: ToolUse) -> str:
    """The instructions to make these calls, for `play`."""
    return json.dumps([each.model_dump(mode="json") for each in calls])


def play_again_and_again(request: Request) -> Reply:
    """The root delegates to one that delegates, with half of what is left, to one that never ends."""
    if request.messages[-1].tool_results and request.messages[0].text != "loop":
        return request.messages[-1].tool_results[0].text
    match request.messages[0].text:
        case "root":
            return delegates({"task": "middle"})
        case "middle":
            return delegates({"task": "loop", "budget_share": 0.5})
        case _:
            return ToolUse(id=f"n{len(request.messages)}", name="nothing")


class Labels(NoopListener):
    """Notes who sends a request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_request(self, convo: ConvoInfo, request_id: str, message: Message) -> None:
        (self.folder / f"{convo.depth} {convo.label}").touch()


@pytest.mark.usefixtures("ray_cluster")
async def test_delegates_work_at_once_and_what_they_use_is_the_roots_use(tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    root = Convo.remote(
        Scripted(play, cost_usd=Decimal("0.1")), tools=[delegate, meet], listener=Labels(tmp_path)
    )
    tasks = [
        {
            "task": script(ToolUse(id="m", name="meet", input={"mine": mine, "theirs": theirs})),
            "label": label,
        }
        for label, mine, theirs in (("left", a, b), ("right", b, a))
    ]
    result = await root.run.remote(script(delegates(*tasks)))
    (answer,) = (await root.messages.remote())[-2].tool_results
    assert not answer.is_error
    assert [part.text for part in answer.content if isinstance(part, Text)] == [
        "[1 of 2] left: end_turn; used: 2 responses, $0.2\nmet",
        "[2 of 2] right: end_turn; used: 2 responses, $0.2\nmet",
    ]
    assert (result.usage.responses, result.usage.total_cost_usd) == (6, Decimal("0.6"))
    assert result.usage.tool_uses == {"delegate": 1, "meet": 2}
    tree = await root.tree.remote()
    assert {(each.label, each.state) for each in tree.children} == {
        ("left", State.CLOSED),
        ("right", State.CLOSED),
    }
    assert {"1 left", "1 right"} <= {each.name for each in tmp_path.iterdir()}
    await root.close.remote()


@pytest.mark.usefixtures("ray_cluster")
async def test_a_share_is_of_what_is_left_to_the_root_and_holds() -> None:
    root = Convo.remote(
        Scripted(play_again_and_again, cost_usd=Decimal("0.1")),
        tools=[delegate, nothing],
        budget=Budget(max_dollars=1, max_responses=100),
    )
    result = await root.run.remote("root")
    # The root and the middle one had one answer each when the share was taken: half of $0.80.
    assert "[1 of 1] loop: stopped before it had finished (budget)" in result.text
    assert "$0.4 spent, at least $0.1 more for the request, max_dollars is $0.4" in result.text
    middle, loop = list((await root.tree.remote()).walk())[1:]
    assert middle.budget == Budget()
    assert loop.budget == Budget(max_dollars=Decimal("0.4"), max_responses=49)
    assert loop.usage.responses == 4
    assert result.usage.total_cost_usd == Decimal("0.8")
    await root.close.remote()


@pytest.mark.usefixtures("ray_cluster")
async def test_what_is_refused_the_model_reads_in_its_next_request(tmp_path: Path) -> None:
    record = tmp_path / "requests"
    narrow = delegate_tool(max_depth=1, max_fan_out=1)
    root = Convo.remote(Scripted(play, record_to=record), tools=[narrow])
    too_deep = script(delegates({"task": "x"}))
    await root.run.remote(script(delegates({"task": "x"}, {"task": "y"})))
    result = await root.run.remote(script(delegates({"task": too_deep, "tools": ["delegate"]})))
    read = [
        each.text
        for line in record.read_text().splitlines()
        for each in Request.model_validate_json(line).messages[-1].tool_results
        if each.is_error
    ]
    assert len(read) == 2
    assert "2 tasks were given, and at most 1 delegates may run at once" in read[0]
    assert "this conversation is at depth 1" in read[1]
    assert "at depth 1" in result.text
    assert len((await root.tree.remote()).children) == 1
    await root.close.remote()


async def running(convo: ConvoHandle) -> list[str]:
    return list((await convo.tree.remote()).running_tools)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.02)


@pytest.mark.usefixtures("ray_cluster")
async def test_two_calls_at_once_share_one_fan_out(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    task = script(ToolUse(id="m", name="meet", input={"mine": str(mine), "theirs": str(theirs)}))
    root = Convo.remote(Scripted(play), tools=[delegate_tool(max_fan_out=3), meet])
    calls = [delegates({"task": task}, {"task": task}, id=id) for id in ("one", "two")]
    run = root.run.remote(script(*calls))

    async def one_is_left() -> bool:
        return mine.exists() and len(await running(root)) == 1

    await until(one_is_left)
    theirs.touch()
    await run
    results = (await root.messages.remote())[-2].tool_results
    (refused,) = [each for each in results if each.is_error]
    assert "2 sub-conversations were asked for; at most 3" in refused.text
    assert "and 2 do" in refused.text
    assert len((await root.tree.remote()).children) == 2
    await root.close.remote()


@pytest.mark.usefixtures("ray_cluster")
async def test_a_delegate_whose_process_dies_is_one_items_error() -> None:
    root = Convo.remote(Scripted(play), tools=[delegate, kill_its_conversation, nothing])
    tasks = [{"task": script(ToolUse(id="1", name=each.name))} for each in (kill_its_conversation, nothing)]
    await root.run.remote(script(delegates(*tasks)))
    (answer,) = (await root.messages.remote())[-2].tool_results
    assert not answer.is_error
    died, whole = [part.text for part in answer.content if isinstance(part, Text)]
    assert "error; used: unknown\nToolCrashed: the conversation's process is gone" in died
    assert whole.endswith("\nnothing")
    await root.close.remote()


@pytest.mark.usefixtures("ray_cluster")
async def test_cancelling_the_call_ends_delegates_three_deep_and_all_that_they_run(tmp_path: Path) -> None:
    lowest = {"task": script(ToolUse(id="s", name="sleep_with_child", input={"pids": str(tmp_path)}))}
    middle = {"task": script(delegates(lowest, lowest))}
    root = Convo.remote(Scripted(play), tools=[delegate, sleep_with_child])
    run = root.run.remote(script(delegates({"task": script(delegates(middle))}, id="top")))
    assert await asyncio.to_thread(eventually, lambda: len(list(tmp_path.iterdir())) == 2, 60)
    assert [each.depth for each in (await root.tree.remote()).walk()] == [0, 1, 2, 3, 3]

    stopped = await root.cancel_tool_use.remote("top", "changed my mind")
    print(f"the call was stopped in {stopped.took_s:.2f} s")
    assert not [each.name for each in tmp_path.iterdir() if is_alive(int(each.name))]
    after = list((await root.tree.remote()).walk())
    assert [each.state for each in after[1:]] == [State.CLOSED] * 4
    assert not [each.running_tools for each in after[1:] if each.running_tools]

    assert (await run).finished
    (answer,) = (await root.messages.remote())[-2].tool_results
    assert (answer.is_error, answer.text) == (True, "changed my mind")
    await root.close.remote()
