"""Conversations as a table: what is shown at which width."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from rich.console import Console

from palaver.actors.budget import Budget
from palaver.actors.conversation_table import table
from palaver.actors.kin import Branch, State
from palaver.actors.usage import CumulativeUsage


def branch(id: str, **given: Any) -> Branch:
    usage = CumulativeUsage(
        started_at=datetime.now(UTC) - timedelta(seconds=90),
        wall_time=timedelta(seconds=90),
        responses=3,
        input_tokens=1_500,
        known_cost_usd=Decimal("0.25"),
    )
    fields = {
        "parent_id": None,
        "depth": 0,
        "label": id,
        "state": State.IDLE,
        "model": "m",
        "budget": Budget(),
    }
    return Branch(id=id, usage=usage, **{**fields, "reserved_usd": Decimal(), **given})


def drawn(lines: list[Branch], width: int | None, **given: Any) -> list[list[str]]:
    """The words of each line."""
    file = io.StringIO()
    console = Console(file=file, width=width or 10_000, highlight=False)
    console.print(table(lines, {"n1": "10.0.0.1"}, width=width, **given))
    text = file.getvalue()
    assert width is None or all(len(line) <= width for line in text.splitlines())
    return [line.split() for line in text.splitlines()]


def test_each_has_a_line_with_what_it_spent_and_does_and_where() -> None:
    lines = [
        branch("root", budget=Budget(max_dollars=5), reserved_usd=Decimal("0.50"), node_id="n1"),
        branch("child", depth=1, state=State.REQUESTING, busy_s=75.0, node_id="0123456789"),
        branch("gone", depth=1, state=State.LOST),
        branch("tool", depth=1, state=State.RUNNING_TOOLS, running_tools=("bash",), busy_s=700.0),
    ]
    head, root, child, gone, tool = drawn(lines, None)
    assert " ".join(head) == "conversation id state for turns tokens spent reserved limit age node"
    assert " ".join(root) == "root root idle 3 1.5k $0.25 $0.50 $5.00 90 s 10.0.0.1"
    assert " ".join(child) == "child child requesting 75 s slow 3 1.5k $0.25 90 s 01234567"
    assert gone[2] == "lost"
    assert tool[2:7] == ["tools:", "bash", "11", "min", "40"]
    assert "stuck" in tool


def test_what_is_less_needed_is_left_out_first_where_there_is_no_room_and_ids_stay_whole() -> None:
    lines = [branch(f"abc-def{n}", label="a name of some length", node_id="n1", busy_s=5.0) for n in range(3)]
    heads = drawn(lines, None)[0]
    assert drawn(lines, 120)[0] == heads
    seen: set[int] = set()
    for width in range(120, 49, -1):
        head, *rows = drawn(lines, width)
        left_out = [name for name in heads if name not in head]
        assert left_out == [
            name for name in heads if name in ("node", "age", "tokens", "turns", "reserved")[: len(left_out)]
        ]
        assert [f"abc-def{n}" in row for n, row in enumerate(rows)] == [True] * 3
        seen.add(len(left_out))
    assert seen == {0, 1, 2, 3, 4, 5}


def test_no_conversations_are_a_head_line() -> None:
    assert len(drawn([], 80)) == 1
