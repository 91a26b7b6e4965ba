"""The live view of a tree of conversations: a picture on a terminal, plain lines elsewhere.

The picture and the lines are pure functions of `Branch`; `Watcher` asks for one again and again.

Layer: actors, command line; no Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from decimal import Decimal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from palaver.actors.amounts import against, dollars, tokens
from palaver.actors.budget import Budget
from palaver.actors.kin import Branch, State
from palaver.actors.screen import printable
from palaver.providers.errors import PalaverError

POLL_EVERY_S = 0.25
_POLL_SHARE = 0.2
"""A tree that takes long to describe itself is asked less often, so that this part of the time goes into
it at most."""
_TREE_WITHIN_S = 10.0

_LABEL_CHARACTERS = 48

_ORDER = {
    State.WAITING: 0,
    State.RUNNING_TOOLS: 1,
    State.REQUESTING: 1,
    State.HELD: 1,
    State.STARTING: 1,
    State.IDLE: 2,
    State.LOST: 3,
    State.CLOSED: 4,
}
_STYLES = {
    State.WAITING: "bold magenta",
    State.RUNNING_TOOLS: "yellow",
    State.REQUESTING: "cyan",
    State.HELD: "magenta",
    State.STARTING: "",
    State.IDLE: "",
    State.LOST: "red",
    State.CLOSED: "dim",
}
_GUIDES = ("├─ ", "└─ ", "│  ", "   ")
_ASCII_GUIDES = ("|- ", "`- ", "|  ", "   ")


# The picture


def render(
    root: Branch, *, progress: str = "", max_lines: int = 40, ascii_only: bool = False
) -> RenderableType:
    """A tree as a picture of at most `max_lines` lines (4 or more).

    `progress` is told first. Those at work come before the others; what does not fit is folded into a count.
    """
    heading = against(root.usage, root.budget, root.reserved_usd)
    if progress:
        heading = f"{progress}; {heading}"
    shown = _selection(root, max_lines - 2)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=None)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for _ in range(4):
        table.add_column(justify="right", no_wrap=True)
    table.add_row(*(Text(name, style="dim") for name in ("", "state", "turns", "in", "out", "cost")))
    guides = _ASCII_GUIDES if ascii_only else _GUIDES
    _add(table, root, shown, before="", below="", guides=guides)
    return Group(Text(heading, style="bold", no_wrap=True, overflow="ellipsis"), table)


def _add(
    table: Table, branch: Branch, shown: frozenset[str], *, before: str, below: str, guides: Sequence[str]
) -> None:
    """Add the rows of a branch; `before` stands before its own name, `below` before those of its children."""
    style = _STYLES[branch.state]
    who = Text(before, style="dim")
    who.append(name(branch), style="dim" if branch.state is State.CLOSED else "bold")
    usage = branch.usage
    table.add_row(
        who,
        Text(state(branch), style=style),
        str(usage.responses),
        tokens(usage.total_input_tokens),
        tokens(usage.output_tokens),
        dollars(usage.total_cost_usd),
    )
    children = [child for child in _sorted(branch.children) if child.id in shown]
    hidden = [child for child in branch.children if child.id not in shown]
    branch_guide, last_guide, pass_guide, empty_guide = guides
    for index, child in enumerate(children):
        is_last = index == len(children) - 1 and not hidden
        _add(
            table,
            child,
            shown,
            before=below + (last_guide if is_last else branch_guide),
            below=below + (empty_guide if is_last else pass_guide),
            guides=guides,
        )
    if hidden:
        table.add_row(Text(below + last_guide, style="dim").append(_fold_name(hidden)), *_fold_sums(hidden))


def _fold_name(hidden: Sequence[Branch]) -> str:
    counts = Counter(_is_over(branch) for child in hidden for branch in child.walk())
    parts = [
        f"{counts[False]} more running" * bool(counts[False]),
        f"{counts[True]} ended" * bool(counts[True]),
    ]
    return ", ".join(part for part in parts if part)


def _fold_sums(hidden: Sequence[Branch]) -> list[str]:
    usages = [child.usage for child in hidden]
    costs = [usage.total_cost_usd for usage in usages]
    known = [cost for cost in costs if cost is not None]
    return [
        "",
        str(sum(usage.responses for usage in usages)),
        tokens(sum(usage.total_input_tokens for usage in usages)),
        tokens(sum(usage.output_tokens for usage in usages)),
        dollars(sum(known, Decimal()) if len(known) == len(costs) else None),
    ]


def _selection(root: Branch, max_rows: int) -> frozenset[str]:
    """The ids to show, so that they and the folds take `max_rows` rows at most.

    Parents before children, those at work before those that have ended.
    """
    level: list[Branch] = [root]
    candidates: list[Branch] = []
    while level:
        candidates += level
        level = [child for branch in level for child in _sorted(branch.children)]
    candidates.sort(key=_is_over)
    for count in range(min(len(candidates), max(1, max_rows)), 1, -1):
        shown = candidates[:count]
        ids = {branch.id for branch in shown}
        folds = sum(any(child.id not in ids for child in branch.children) for branch in shown)
        if count + folds <= max_rows:
            return frozenset(ids)
    return frozenset({root.id})


def _sorted(branches: Iterable[Branch]) -> list[Branch]:
    return sorted(branches, key=lambda branch: _ORDER[branch.state])


def _is_over(branch: Branch) -> bool:
    return branch.state in (State.CLOSED, State.LOST)


def name(branch: Branch) -> str:
    """What to call a conversation: its label and its id."""
    label = printable(branch.label)
    if len(label) > _LABEL_CHARACTERS:
        half = _LABEL_CHARACTERS // 2 - 1
        label = f"{label[:half]}..{label[-half:]}"
    return f"{label} {branch.id}" if label else branch.id


def state(branch: Branch) -> str:
    """What a conversation does: "requesting", "tools: read_file x2, search"."""
    if branch.state is State.WAITING:
        return f"{branch.state}: {_counted(branch.waiting_tools)}"
    if branch.state is State.RUNNING_TOOLS:
        return "tools: " + _counted(branch.running_tools)
    if branch.state is State.IDLE and any(not _is_over(child) for child in branch.children):
        return "waiting"
    return "ended" if branch.state is State.CLOSED else str(branch.state)


def _counted(names: Iterable[str]) -> str:
    counts: Mapping[str, int] = Counter(names)
    return ", ".join(name if count == 1 else f"{name} x{count}" for name, count in counts.items())


# Plain lines


def changes(before: Branch | None, after: Branch) -> list[str]:
    """What is worth a line between two looks at a tree: who started, called tools, ended or got lost."""
    known = {} if before is None else {branch.id: branch for branch in before.walk()}
    lines: list[str] = []
    for branch in after.walk():
        old = known.get(branch.id)
        if branch.state is State.CLOSED:
            if old is None or old.state is not State.CLOSED:
                lines.append(f"{name(branch)}: ended, {against(branch.usage, Budget())}")
            continue
        if branch.state is State.LOST:
            if old is None or old.state is not State.LOST:
                lines.append(f"{name(branch)}: lost, its process is gone or does not answer")
            continue
        if old is None:
            lines.append(f"{name(branch)}: started")
        called = (branch.running_tools, branch.waiting_tools)
        if branch.running_tools and (old is None or (old.running_tools, old.waiting_tools) != called):
            lines.append(f"{name(branch)}: {state(branch)}")
    return lines


# Looking


class Watcher:
    """Looks at a tree about four times a second and passes on what it sees, until stopped.

    `look` gives the tree; a PalaverError or a late answer is one look missed.
    """

    def __init__(self, look: Callable[[], Awaitable[Branch]], show: Callable[[Branch], None]) -> None:
        self._look = look
        self._show = show
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watcher:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        """Stop, after one last look: whoever ended meanwhile was not seen yet."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})
        if error_type is None:
            await self.once()

    async def once(self) -> None:
        """Look once."""
        try:
            async with asyncio.timeout(_TREE_WITHIN_S):
                branch = await self._look()
        except (PalaverError, TimeoutError):
            return
        self._show(branch)

    async def _watch(self) -> None:
        while True:
            started = time.monotonic()
            await self.once()
            took_s = time.monotonic() - started
            await asyncio.sleep(max(POLL_EVERY_S - took_s, took_s / _POLL_SHARE - took_s, 0.05))
