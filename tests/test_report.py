from __future__ import annotations

from collections.abc import Sequence

from test_conversation import adopt

from palaver.actors.conversation import Conversation
from palaver.actors.errors import ConvoClosed
from palaver.actors.kin import Activity, State
from palaver.actors.report import CancelReport, StoppedCall, StoppedConvo
from palaver.providers.scripted import Scripted
from palaver.tools.stopped import EndedProcess, Stopped
from palaver.tools.toolset import InlineToolset


def process(pid: int, *, killed: bool = True) -> EndedProcess:
    return EndedProcess(pid=pid, name="sleep", node="here", killed=killed)


def test_a_report_says_what_was_stopped_and_what_had_to_be_killed() -> None:
    call = StoppedCall(tool_use_id="1", tool_name="bash", took_s=0.2, processes=(process(1), process(2)))
    report = CancelReport(
        cause="enough",
        took_s=0.31,
        conversations=(
            StoppedConvo(id="a", label="", took_s=0.3, request_id="r", processes=(process(3, killed=False),)),
            StoppedConvo(id="b", label="", took_s=0.2, tool_calls=(call,)),
        ),
    )
    assert str(report) == (
        "stopped 2 conversations, 1 request, 1 tool call in 0.3 s; 2 processes had to be killed"
    )
    assert (report.requests, report.tool_calls, report.fenced) == (("r",), (call,), True)
    assert [each.pid for each in report.processes] == [3, 1, 2]


def test_a_report_of_nothing_is_fenced() -> None:
    report = CancelReport(cause="x", took_s=0, conversations=())
    assert str(report) == "stopped 0 conversations, 0 requests, 0 tool calls in 0.0 s"
    assert report.fenced


def test_what_could_not_be_seen_to_its_end_is_told() -> None:
    call = StoppedCall(tool_use_id="1", tool_name="bash", took_s=0.2, problem="a node did not answer")
    report = CancelReport(
        cause="x", took_s=1, conversations=(StoppedConvo(id="a", label="", took_s=1, tool_calls=(call,)),)
    )
    assert not report.fenced
    assert report.problems == ("a: a node did not answer",)
    assert str(report).endswith("in 1.0 s; a: a node did not answer")


class Fencing(InlineToolset):
    """Notes whom it was asked to fence, and finds a process of theirs."""

    def __init__(self) -> None:
        super().__init__(())
        self.fenced: list[str] = []

    async def fence(self, convo_ids: Sequence[str]) -> Stopped:
        self.fenced += convo_ids
        return Stopped(processes=(process(7),))


class Dead:
    """A child whose process is gone."""

    label = "dead"
    is_starting = False

    def kill(self) -> None:
        raise AssertionError("it is dead already")

    async def activity(self) -> Activity:
        raise ConvoClosed("dea-d000", "its process is gone")

    async def cancel(self, cause: str) -> CancelReport:
        raise ConvoClosed("dea-d000", "its process is gone")

    async def close(self) -> None:
        raise ConvoClosed("dea-d000", "its process is gone")


async def test_what_ran_for_a_child_whose_process_is_gone_is_ended_and_told_once() -> None:
    toolset = Fencing()
    root = Conversation(Scripted([]), toolset)
    await adopt(root, "dea-d000", Dead())
    report = await root.cancel("enough")
    assert [(each.id, each.gone) for each in report.conversations] == [(root.id, False), ("dea-d000", True)]
    assert [each.pid for each in report.processes] == [7]
    assert [each.state for each in (await root.tree()).children] == [State.LOST]
    await root.cancel("again")
    await root.close()
    assert toolset.fenced == ["dea-d000"]


async def test_closing_ends_what_ran_for_a_child_whose_process_is_gone() -> None:
    toolset = Fencing()
    root = Conversation(Scripted([]), toolset)
    await adopt(root, "dea-d000", Dead())
    await root.close()
    assert toolset.fenced == ["dea-d000"]
