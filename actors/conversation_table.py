"""Conversations as a table, a line each, for `palaver ps` and `palaver top`.

Layer: actors, command line; no Ray.
"""

from __future__ import annotations

import sys
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

_GAP = 2
_LEAST_NAME, _LONGEST_NAME, _LONGEST_STATE = 16, 44, 28
_HEADS = (
    "conversation",
    "id",
    "state",
    "for",
    "turns",
    "tokens",
    "spent",
    "reserved",
    "limit",
    "age",
    "node",
)
_TO_THE_RIGHT = frozenset({"for", "turns", "tokens", "spent", "reserved", "limit", "age"})
_LESS_NEEDED = ("node", "age", "tokens", "turns", "limit", "reserved")
"""What is left out first where there is no room for all."""


def table(
    lines: Iterable[Branch],
    nodes: Mapping[str, str],
    *,
    width: int | None = None,
    indented: bool = True,
    chosen: str = "",
) -> Table:
    """A line for each, those below another indented; `chosen` is the id of one that stands out.

    `nodes` are the names of nodes by their ids. Without limits of dollars there is no column of them; what
    does not fit into `width` characters is left out, too. None is as wide as it gets.
    """
    now = datetime.now(UTC)
    shown = [(line.id, _cells(line, nodes, now, "  " * line.depth if indented else "")) for line in lines]
    heads = [head for head in _HEADS if head != "limit" or any(cells[head].plain for _, cells in shown)]
    widths = {head: max(len(head), *(len(cells[head]) for _, cells in shown), 0) for head in heads}
    widths["conversation"] = min(widths["conversation"], _LONGEST_NAME)
    widths["state"] = min(widths["state"], _LONGEST_STATE)

    def room() -> int:
        others = sum(widths[head] + _GAP for head in heads if head != "conversation")
        return (sys.maxsize if width is None else width) - others - _GAP

    for head in _LESS_NEEDED:
        if room() >= min(widths["conversation"], _LEAST_NAME):
            break
        heads = [each for each in heads if each != head]
    widths["conversation"] = min(widths["conversation"], max(1, room()))
    drawn = Table.grid(padding=(0, _GAP, 0, 0))
    for head in heads:
        side = "right" if head in _TO_THE_RIGHT else "left"
        drawn.add_column(justify=side, no_wrap=True, overflow="ellipsis", width=widths[head])
    drawn.add_row(*(Text(head, style="dim") for head in heads))
    for id, cells in shown:
        drawn.add_row(*(cells[head] for head in heads), style="reverse" if id == chosen else "")
    return drawn


def _cells(line: Branch, nodes: Mapping[str, str], now: datetime, indent: str) -> dict[str, Text]:
    node_id, limit = line.node_id or "", line.budget.max_dollars
    return {
        "conversation": Text(f"{indent}{printable(line.label) or line.model}"),
        "id": Text(line.id),
        "state": Text(state(line), style="red" if line.state is State.LOST else ""),
        "for": _busy(line.busy_s),
        "turns": Text(str(line.usage.responses)),
        "tokens": Text(tokens(line.usage.total_tokens)),
        "spent": Text(dollars(line.spent_usd)),
        "reserved": Text(dollars(line.reserved_usd) if line.reserved_usd else ""),
        "limit": Text("" if limit is None else dollars(limit)),
        "age": Text(duration(now - line.usage.started_at)),
        "node": Text(nodes.get(node_id, node_id[:8])),
    }


def _busy(seconds: float | None) -> Text:
    if seconds is None:
        return Text("")
    told = duration(timedelta(seconds=seconds))
    if seconds >= STUCK_S:
        return Text(f"{told} stuck", style="bold red")
    return Text(f"{told} slow", style="yellow") if seconds >= SLOW_S else Text(told)
