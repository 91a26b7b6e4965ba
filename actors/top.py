"""`palaver top`: all conversations of a cluster, watched from another process, and the means to stop one.

Layer: actors, command line; Ray through `attach` and `cluster` alone.
"""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Awaitable, Generator, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from palaver.actors import inputs
from palaver.actors.amounts import dollars
from palaver.actors.attach import at_its_root, find, roots, said, tree_of
from palaver.actors.budget import Budget
from palaver.actors.cluster import cluster
from palaver.actors.conversation_table import STUCK_S, table
from palaver.actors.kin import Branch, State
from palaver.actors.nodes import node_names
from palaver.actors.replies import reply
from palaver.actors.screen import Screen, printable
from palaver.providers.errors import ConfigurationError, PalaverError

LOOK_EVERY_S = 1.0

_KEYS = {b"\x1b[A": "up", b"\x1b[B": "down", b"k": "up", b"j": "down", b"\r": "show", b"\n": "show"}
_HINT = "up/down choose   c cancel   f fund   enter messages   s sort by time   q end"


def top(screen: Screen, address: str) -> int:
    """Watch until somebody ends it. The exit code is 0. Raises ConfigurationError without a terminal."""
    if not screen.out_is_terminal or not sys.stdin.isatty():
        raise ConfigurationError("palaver top needs a terminal; palaver ps --json tells programs the same")
    with cluster(address, log_to_driver=False), screen.quiet():
        asyncio.run(_Top(screen, address).run())
    return 0


class _Top:
    def __init__(self, screen: Screen, address: str) -> None:
        self._screen = screen
        self._address = address
        self._trees: list[Branch] = []
        self._said: list[str] = []
        self._nodes: dict[str, str] = {}
        self._chosen = ""
        self._by_time = False
        self._question = ""
        self._typed = ""
        self._told = ""
        self._page: list[str] | None = None
        self._offset = 0
        self._keys: asyncio.Queue[str] = asyncio.Queue()

    async def run(self) -> None:
        """Draw what is seen, and do what the keys say, until `q`."""
        loop = asyncio.get_running_loop()
        looking = asyncio.create_task(self._look())
        console = self._screen.out_console
        with _each_key() as file, Live(console=console, screen=True, auto_refresh=False) as live:
            loop.add_reader(file, self._read, file)
            try:
                while True:
                    live.update(self._picture(), refresh=True)
                    try:
                        async with asyncio.timeout(LOOK_EVERY_S / 2):
                            key = await self._keys.get()
                    except TimeoutError:
                        continue
                    if key in ("q", "\x03", "\x04") and not self._question and self._page is None:
                        return
                    await self._act(key)
            finally:
                loop.remove_reader(file)
                looking.cancel()

    async def _look(self) -> None:
        while True:
            with suppress(PalaverError):
                found = await asyncio.gather(*(tree_of(id, root, False) for id, root in roots().items()))
                self._trees = [each for each in found if isinstance(each, Branch)]
                self._nodes = await asyncio.to_thread(node_names)
                self._said = [each for each in found if isinstance(each, str)]
            await asyncio.sleep(LOOK_EVERY_S)

    def _read(self, file: int) -> None:
        given = os.read(file, 64)
        while given:
            for code, name in _KEYS.items():
                if given.startswith(code) and (len(code) > 1 or not self._question):
                    self._keys.put_nowait(name)
                    given = given[len(code) :]
                    break
            else:
                self._keys.put_nowait(given[:1].decode("latin-1"))
                given = given[1:]

    # What is seen

    @property
    def _lines(self) -> list[Branch]:
        lines = [line for tree in self._trees for line in tree.walk()]
        if self._by_time:
            lines.sort(key=lambda line: -(line.busy_s or 0.0))
        return lines

    def _picture(self) -> RenderableType:
        height = max(4, self._screen.out_console.size.height)
        if self._page is not None:
            shown = self._page[self._offset : self._offset + height - 2]
            return Group(Text("\n".join(shown)), Text("up/down turn   q back", style="dim"))
        lines = self._lines
        ids = [line.id for line in lines]
        if self._chosen not in ids:
            self._chosen = ids[0] if ids else ""
        at = ids.index(self._chosen) if ids else 0
        rows = height - 6
        first = max(0, min(at - rows // 2, len(lines) - rows))
        foot = self._question + self._typed if self._question else self._told or _HINT
        return Group(
            Text(self._heading(lines), style="bold", no_wrap=True, overflow="ellipsis"),
            table(
                lines[first : first + rows],
                self._nodes,
                width=self._screen.out_console.size.width,
                indented=not self._by_time,
                chosen=self._chosen,
            ),
            Text("\n".join(self._said), style="red"),
            Text(foot, style="dim" if foot == _HINT else "", no_wrap=True, overflow="ellipsis"),
        )

    def _heading(self, lines: Sequence[Branch]) -> str:
        busy = sum(line.busy_s is not None for line in lines)
        stuck = sum((line.busy_s or 0) >= STUCK_S for line in lines)
        lost = sum(line.state is State.LOST for line in lines)
        trees = f"{len(self._trees)} tree{'' if len(self._trees) == 1 else 's'}"
        told = [f"{trees} at {self._address}", f"{len(lines)} conversations", f"{busy} busy"]
        told += [f"{count} {what}" for count, what in ((stuck, "stuck"), (lost, "lost")) if count]
        spent = [tree.spent_usd for tree in self._trees]
        known = [each for each in spent if each is not None]
        told.append(f"spent {dollars(sum(known, Decimal()) if len(known) == len(spent) else None)}")
        if reserved := sum(tree.reserved_usd for tree in self._trees):
            told.append(f"reserved {dollars(reserved)}")
        return ", ".join(told)

    # What is done

    async def _act(self, key: str) -> None:
        if self._page is not None:
            self._turn(key)
        elif self._question:
            await self._type(key)
        elif key in ("up", "down"):
            ids = [line.id for line in self._lines]
            if self._chosen in ids:
                step = -1 if key == "up" else 1
                self._chosen = ids[max(0, min(len(ids) - 1, ids.index(self._chosen) + step))]
            self._told = ""
        elif key == "s":
            self._by_time = not self._by_time
        elif key == "show" and self._chosen:
            await self._tell(self._show())
        elif key == "c" and self._chosen:
            self._question, self._typed = f"cancel {self._chosen} and all below it? y/n ", ""
        elif key == "f" and self._chosen:
            self._question, self._typed = f"how many dollars more for {self._chosen}? ", ""

    def _turn(self, key: str) -> None:
        assert self._page is not None
        if key in ("q", "\x1b", "\x03"):
            self._page = None
        elif key in ("up", "down"):
            step = (-1 if key == "up" else 1) * max(1, self._screen.out_console.size.height // 2)
            self._offset = max(0, min(len(self._page) - 1, self._offset + step))

    async def _type(self, key: str) -> None:
        is_cancel = self._question.startswith("cancel")
        if key in ("\x1b", "\x03") or (is_cancel and key != "y"):
            self._question = ""
        elif is_cancel:
            self._question = ""
            await self._tell(self._cancel())
        elif key in ("\r", "\n", "show"):
            self._question = ""
            await self._tell(self._fund(self._typed))
        elif key == "\x7f":
            self._typed = self._typed[:-1]
        elif key.isprintable():
            self._typed += key

    async def _tell(self, work: Awaitable[str]) -> None:
        try:
            self._told = await work
        except PalaverError as error:
            self._told = str(error)

    async def _cancel(self) -> str:
        convo = await find(self._chosen)
        return str(await reply(convo.cancel.remote("cancelled in palaver top"), self._chosen))

    async def _fund(self, amount: str) -> str:
        convo_id, budget = self._chosen, inputs.budget(amount, named="")
        raised = await at_its_root(convo_id, lambda root: reply(root.fund.remote(convo_id, budget), convo_id))
        return f"{convo_id}: at most {_limit(raised)}"

    async def _show(self) -> str:
        convo = await find(self._chosen)
        text = str(await said(convo, self._chosen))
        width = max(20, self._screen.out_console.size.width)
        self._page = [
            line[start : start + width]
            for line in printable(text, keep="\n").split("\n")
            for start in range(0, max(1, len(line)), width)
        ]
        self._offset = 0
        return ""


def _limit(budget: Budget) -> str:
    return "no limit of dollars" if budget.max_dollars is None else dollars(budget.max_dollars)


@contextmanager
def _each_key() -> Generator[int]:
    """The keyboard, key by key and unseen, as a file to read from."""
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    try:
        tty.setcbreak(file)
        yield file
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)
