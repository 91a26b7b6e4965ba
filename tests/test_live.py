"""The live view: what a tree looks like, in how many lines, and what is worth a plain line."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console

from palaver.actors.amounts import against, dollars, duration, progress, summary, tokens
from palaver.actors.budget import Budget
from palaver.actors.errors import ConvoClosed
from palaver.actors.kin import Branch, State
from palaver.actors.live import Watcher, changes, render
from palaver.actors.usage import CumulativeUsage


def usage(responses: int = 0, **fields: Any) -> CumulativeUsage:
    return CumulativeUsage(
        **{
            "started_at": datetime(2026, 11, 22, tzinfo=UTC),
            "wall_time": timedelta(seconds=12),
            "responses": responses,
            "input_tokens": 1000 * responses,
            "output_tokens": 10 * responses,
            "known_cost_usd": Decimal("0.01") * responses,
            **fields,
        }
    )


def branch(id: str, state: State = State.REQUESTING, *children: Branch, **fields: Any) -> Branch:
    return Branch(
        **{
            "id": id,
            "parent_id": None,
            "depth": 0,
            "label": "",
            "state": state,
            "model": "m",
            "usage": usage(),
            "budget": Budget(),
            "children": children,
            **fields,
        }
    )


def drawn(tree: Branch, *, width: int = 120, **options: Any) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, height=50).print(render(tree, **options))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_picture_says_who_does_what_and_what_it_took() -> None:
    child = branch(
        "ccc-cccc", State.RUNNING_TOOLS, label="a.txt", usage=usage(2), running_tools=("read", "find", "read")
    )
    root = branch(
        "rrr-rrrr",
        State.IDLE,
        child,
        usage=usage(3),
        budget=Budget(max_dollars=Decimal("0.5"), max_responses=10, max_wall_time=timedelta(seconds=60)),
    )
    heading, titles, first, second = drawn(root, progress="1 of 4 done")
    assert heading == "1 of 4 done; 3 of 10 turns, 3.0k in, 30 out, $0.03 of $0.50, 12 s of 60 s"
    assert titles.split() == ["state", "turns", "in", "out", "cost"]
    assert first.split() == ["rrr-rrrr", "waiting", "3", "3.0k", "30", "$0.03"]
    assert second.split("  ")[0] == "└─ a.txt ccc-cccc"
    assert "tools: read x2, find" in second
    assert second.endswith("$0.02")


def test_large_tree_stays_within_the_screen_and_shows_who_is_at_work_first() -> None:
    ended = [branch(f"e{n:02}", State.CLOSED, usage=usage(1)) for n in range(50)]
    at_work = [branch(f"w{n:02}") for n in range(5)]
    lines = drawn(branch("root", State.IDLE, *ended, *at_work, usage=usage(50)), max_lines=12)
    assert len(lines) == 12
    text = "\n".join(lines)
    assert all(each.id in text for each in at_work)
    assert "47 ended" in text
    assert "$0.47" in text


@pytest.mark.parametrize("max_lines", [4, 5, 8, 13, 40])
def test_no_tree_takes_more_lines_than_there_are(max_lines: int) -> None:
    def grown(id: str, depth: int) -> Branch:
        below = [grown(f"{id}{n}", depth - 1) for n in range(4)] if depth else []
        return branch(id, State.CLOSED if id.endswith("3") else State.REQUESTING, *below)

    assert len(drawn(grown("r", 3), max_lines=max_lines)) <= max_lines


def test_what_does_not_fit_is_counted_with_all_below_it() -> None:
    below = branch("b1", State.IDLE, branch("c1"), branch("c2", State.CLOSED))
    lines = drawn(branch("root", State.IDLE, below), max_lines=4)
    assert lines[-1].startswith("└─ 2 more running, 1 ended")


def test_grandchildren_are_drawn_below_their_parent() -> None:
    tree = branch("r", State.IDLE, branch("a", State.IDLE, branch("a1")), branch("b"))
    assert [line[:8].rstrip() for line in drawn(tree)[2:]] == ["r", "├─ b", "└─ a", "   └─ a1"]


def test_terminal_without_box_drawing_gets_letters() -> None:
    assert all(line.isascii() for line in drawn(branch("r", State.IDLE, branch("a")), ascii_only=True))


def test_long_and_strange_labels_neither_break_the_picture_nor_reach_the_terminal() -> None:
    tree = branch("r", State.IDLE, branch("a", label="x" * 500), branch("b", label="[red]\x1b[2J\n"))
    lines = drawn(tree, width=80)
    assert len(lines) == 5
    assert all(len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert "[red]\\x1b[2J\\n b" in text


def test_unknown_cost_is_shown_as_unknown() -> None:
    lines = drawn(branch("r", usage=usage(1, unpriced_responses=1)))
    assert lines[0].endswith("unknown cost, 12 s")
    assert lines[2].endswith("unknown cost")


def test_plain_lines_tell_each_start_and_each_end_once() -> None:
    a, b = branch("a", label="a.txt"), branch("b", label="b.txt")
    a_ended = branch("a", State.CLOSED, label="a.txt", usage=usage(1))
    first, second = branch("r", State.IDLE, a), branch("r", State.IDLE, a_ended, b)
    assert changes(None, first) == ["r: started", "a.txt a: started"]
    assert changes(first, second) == [
        "a.txt a: ended, 1 turns, 1.0k in, 10 out, $0.01, 12 s",
        "b.txt b: started",
    ]
    assert changes(second, second) == []


def test_one_that_started_and_ended_between_two_looks_gets_one_line() -> None:
    ended = branch("a", State.CLOSED, usage=usage(1))
    lines = changes(branch("r"), branch("r", State.IDLE, ended))
    assert lines == ["a: ended, 1 turns, 1.0k in, 10 out, $0.01, 12 s"]


def test_plain_lines_tell_of_tools_and_of_who_got_lost() -> None:
    before = branch("r", State.IDLE, branch("a"))
    tools = branch("r", State.RUNNING_TOOLS, branch("a", State.LOST), running_tools=("read",))
    assert changes(before, tools) == ["r: tools: read", "a: lost, its process is gone or does not answer"]
    assert changes(tools, tools) == []


async def test_watcher_misses_a_look_that_fails_and_looks_once_more_at_the_end() -> None:
    seen: list[Branch] = []
    looks = 0

    async def look() -> Branch:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise ConvoClosed("r")
        return branch(f"look-{looks}")

    watcher = Watcher(look, seen.append)
    await watcher.once()
    assert seen == []
    async with watcher:
        pass
    assert seen[-1].id == f"look-{looks}"


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (None, "unknown cost"),
        (Decimal(), "$0"),
        (Decimal("0.5"), "$0.50"),
        (Decimal("12"), "$12.00"),
        (Decimal("0.00123"), "$0.00123"),
        (Decimal("0.0000004"), "<$0.000001"),
        (Decimal("1E+3"), "$1000.00"),
    ],
)
def test_dollars_are_short_and_never_read_as_nothing(amount: Decimal | None, text: str) -> None:
    assert dollars(amount) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1.0k"), (12345, "12.3k"), (4_560_000, "4.56M")]
)
def test_tokens_are_short(count: int, text: str) -> None:
    assert tokens(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.54, "9.5 s"), (75, "75 s"), (725, "12 min 5 s"), (12_000, "3 h 20 min")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(timedelta(seconds=seconds)) == text


def test_summary_has_tokens_by_kind_cost_against_the_budget_and_tool_calls() -> None:
    used = usage(2, cache_read_input_tokens=7, cache_creation_input_tokens=3, tool_uses={"b": 1, "a": 2})
    assert summary(used, Budget(max_dollars=Decimal(1))).splitlines() == [
        "responses   2",
        "tokens      2010 in (7 of them read from the cache, 3 written to it), 20 out",
        "cost        $0.02 of $1.00",
        "wall time   12 s",
        "tool calls  a 2, b 1",
    ]


def test_summary_says_what_of_the_cost_is_known() -> None:
    text = summary(usage(2, unpriced_responses=1), Budget())
    assert "unknown (1 response without a known price or without its tokens; $0.02 for the others)" in text


def test_limits_that_are_not_there_are_not_shown() -> None:
    assert against(usage(1), Budget()) == "1 turns, 1.0k in, 10 out, $0.01, 12 s"


@pytest.mark.parametrize(
    ("done", "took_s", "spent", "told"),
    [
        (0, 5, "0", "0 of 200 done"),
        (50, 10, "0.5", "50 of 200 done, 5.0/s, $0.01 each, 30 s left"),
        (3, 60, None, "3 of 200 done, 3.0/min, 65 min 40 s left"),
        (200, 50, "4", "200 of 200 done, 4.0/s, $0.02 each"),
    ],
)
def test_progress_tells_rate_money_and_what_is_left(
    done: int, took_s: int, spent: str | None, told: str
) -> None:
    amount = None if spent is None else Decimal(spent)
    assert progress(done, 200, timedelta(seconds=took_s), amount) == told
