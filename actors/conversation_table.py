"""Conversations as a table, a line each, for `palaver ps` and `palaver top`.

Layer: actors, command line; no Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from rich.table import Table
from rich.text import Text

from palaver.actors.amounts import dollars, duration, tokens
from palaver.actors.kin import Branch, State
from palaver.actors.live import state
from palaver.actors.screen import printable

SLOW_S, STUCK_S = 60.0, 600.0
"""A request or tool call that takes longer is shown as slow, and as stuck."""

_LEFT = ("conversation", "id", "state")
_RIGHT = ("for", "turns", "tokens", "spent", "reserved", "limit", "age")


def table(
    lines: Iterable[Branch], nodes: Mapping[str, str], *, indented: bool = True, chosen: str = ""
) -> Table:
    """A line for each, those below another indented; `chosen` is the id of one that stands out.

    `nodes` are the names of nodes by their ids. Without limits of dollars there is no column of them.
    """
    shown = list(lines)
    has_limits = any(line.budget.max_dollars is not None for line in shown)
    right = [name for name in _RIGHT if name != "limit" or has_limits]
    drawn = Table.grid(padding=(0, 2, 0, 0))
    drawn.add_column(no_wrap=True, overflow="ellipsis", max_width=44)
    for _ in _LEFT[1:]:
        drawn.add_column(no_wrap=True, overflow="ellipsis")
    for _ in right:
        drawn.add_column(justify="right", no_wrap=True)
    drawn.add_column(no_wrap=True, overflow="ellipsis")
    drawn.add_row(*(Text(name, style="dim") for name in (*_LEFT, *right, "node")))
    now = datetime.now(UTC)
    for line in shown:
        limit = line.budget.max_dollars
        cells = {
            "for": _busy(line.busy_s),
            "turns": Text(str(line.usage.responses)),
            "tokens": Text(tokens(line.usage.total_tokens)),
            "spent": Text(dollars(line.spent_usd)),
            "reserved": Text(dollars(line.reserved_usd) if line.reserved_usd else ""),
            "limit": Text("" if limit is None else dollars(limit)),
            "age": Text(duration(now - line.usage.started_at)),
        }
        drawn.add_row(
            Text(f"{'  ' * line.depth if indented else ''}{printable(line.label) or line.model}"),
            line.id,
            Text(state(line), style="red" if line.state is State.LOST else ""),
            *(cells[name] for name in right),
            nodes.get(line.node_id or "", (line.node_id or "")[:8]),
            style="reverse" if line.id == chosen else "",
        )
    return drawn


def _busy(seconds: float | None) -> Text:
    if seconds is None:
        return Text("")
    told = duration(timedelta(seconds=seconds))
    if seconds >= STUCK_S:
        return Text(f"{told} stuck", style="bold red")
    return Text(f"{told} slow", style="yellow") if seconds >= SLOW_S else Text(told)
