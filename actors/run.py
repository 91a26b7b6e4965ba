"""`palaver run`: one prompt, or one prompt over many files, from the start to the last line printed.

Layer: actors, command line; Ray through `swarm` and `convo` alone.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import timedelta
from typing import TextIO

from palaver.actors.amounts import progress, summary
from palaver.actors.attendant import Attendant
from palaver.actors.feed import ConvoEvent, Responded, ToolStarted
from palaver.actors.items import Item, ItemResult
from palaver.actors.kin import Branch
from palaver.actors.live import Watcher, changes, render
from palaver.actors.replies import reply
from palaver.actors.results_file import ResultsFile, line_of, record
from palaver.actors.screen import Screen
from palaver.actors.session import Session
from palaver.actors.swarm import ask, swarm
from palaver.actors.swarm_file import SwarmSetup
from palaver.providers.errors import PalaverError
from palaver.providers.stream import TextDelta

CANCEL_WITHIN_S = 15.0
"""How long a cancelled tree may take to come to rest before it is taken down as it is."""

PROGRESS_EVERY_S = 10.0
"""How often a swarm's progress is told where there is no terminal to draw on."""

TOLD_OF_A_SWARM = 10
"""So many of a swarm's items that do not finish have a line of their own; the others are counted."""

_USAGE_WITHIN_S = 5.0


def run(
    session: Session,
    prompt: str,
    items: Sequence[Item] | None,
    *,
    concurrency: int,
    out: TextIO | None,
    yes: bool = False,
) -> int:
    """Run it; `yes` approves every tool call that needs it.

    The exit code: 0 when all finished, 1 when not, 128 + signal when interrupted.
    """
    setup = session.setup
    write: Callable[[ItemResult], None] | None = None
    if out is not None:
        write = functools.partial(_write, out, items is not None)
    if items is None:
        return session.run(_Run(session, prompt=prompt, write=write, yes=yes).go())
    results = swarm(
        session.root,
        items,
        concurrency=concurrency,
        tools=setup.tools,
        system_prompt=setup.system_prompt,
        max_tokens=setup.max_tokens,
    )
    return session.run(_Run(session, results=results, total=len(items), write=write, yes=yes).go())


def run_swarm(
    session: Session, swarm_setup: SwarmSetup, file: ResultsFile, items: Sequence[Item], *, yes: bool
) -> int:
    """Run the items of a swarm that are not done yet; results go to the file. The exit code is as in run."""
    given, setup = swarm_setup.file, session.setup
    prompts = {item.label: item.prompt for item in items}

    def write(result: ItemResult) -> None:
        file.add(result, prompts[result.label])

    results = swarm(
        session.root,
        items,
        concurrency=given.concurrency,
        light=given.placement.kind == "light",
        workers=given.placement.workers,
        retries=given.retries,
        tools=setup.tools,
        system_prompt=setup.system_prompt,
        max_tokens=setup.max_tokens,
        budget=given.item_budget.budget,
        actor_options=swarm_setup.actor_options
        if given.placement.kind == "process" or given.placement.workers
        else None,
        output_type=swarm_setup.output_type,
        output_retries=given.output_retries,
    )
    work = _Run(session, results=results, total=len(items), write=write, yes=yes, shows_answers=False)
    return session.run(work.go())


class _Run:
    """One prompt, or the `results` of so many items in `total`."""

    def __init__(
        self,
        session: Session,
        *,
        prompt: str = "",
        results: AsyncGenerator[ItemResult] | None = None,
        total: int | None = None,
        write: Callable[[ItemResult], None] | None = None,
        shows_answers: bool = True,
        yes: bool,
    ) -> None:
        self._session = session
        self._screen = session.screen
        self._prompt = prompt
        self._all = results
        self._total = total
        self._write = write
        self._shows_answers = shows_answers
        self._began_s = time.monotonic()
        self._done = self._finished = 0
        self._unbegun: Counter[str] = Counter()
        self._unfinished: Counter[str] = Counter()
        """Why so many were not begun, and in what way others that were did not finish."""
        self._attendant = Attendant(session.root, session.screen, yes=yes)
        self._shown = self._told = ""
        """What of an answer was shown as it came, and of the last whole one."""
        self._cancelling: asyncio.Task[None] | None = None
        self._at_rest = asyncio.Event()

    async def go(self) -> int:
        session, root = self._session, self._session.root
        main = asyncio.current_task()
        assert main is not None
        with session.interrupts.told(lambda: self._cancel(main)):
            try:
                async with self._view(), self._attendant:
                    if self._all is None:
                        # Who reads a file or a pipe wants the answer, not what was said on the way to it.
                        tell = self._tell if self._screen.out_is_terminal else None
                        if tell is not None:
                            self._attendant.follow()
                        self._take(await ask(root, Item(label="", prompt=self._prompt), tell))
                    else:
                        async with aclosing(self._all) as results:
                            async for result in results:
                                self._take(result)
            except asyncio.CancelledError:
                if session.interrupts.received is None:
                    raise
                self._screen.note("palaver: what did not stop in time is being ended")
            except OSError:
                # Nobody can be given the results any more, but what they cost can be told.
                await self._conclude()
                raise
            self._at_rest.set()
            await self._conclude()
        if session.interrupts.received is not None:
            return 128 + session.interrupts.received
        expected = 1 if self._total is None else self._total
        return 0 if self._finished == expected else 1

    def _tell(self, event: ConvoEvent) -> None:
        """Show the text as it comes."""
        if isinstance(event, TextDelta):
            self._screen.part(event.text)
            self._shown += event.text
        elif isinstance(event, Responded):
            self._screen.end_parts()
            self._told, self._shown = self._shown, ""
        elif isinstance(event, ToolStarted):
            self._attendant.shown(event.call.id)

    def _take(self, result: ItemResult) -> None:
        """Tell of a result the moment it is there."""
        self._screen.end_parts()
        self._done += 1
        self._finished += result.finished
        if self._write is not None:
            self._write(result)
        if self._shows_answers and result.text and result.text != self._told:
            self._screen.answer(result.text if self._total is None else section(result))
        if not result.finished and result.convo_id is None:
            self._unbegun[result.reason.removeprefix("not started: ")] += 1
        elif not result.finished:
            if self._shows_answers or self._unfinished.total() < TOLD_OF_A_SWARM:
                self._screen.note(f"{result.label or 'the run'}: not finished: {result.reason}")
            self._unfinished[_kind(result)] += 1

    def _cancel(self, main: asyncio.Task[object]) -> None:
        if self._cancelling is None:
            self._attendant.stop()
            self._screen.note("palaver: interrupted; stopping (once more to stop at once)")
            self._cancelling = asyncio.create_task(self._cancel_tree(main))

    async def _cancel_tree(self, main: asyncio.Task[object]) -> None:
        with suppress(PalaverError, TimeoutError):
            async with asyncio.timeout(CANCEL_WITHIN_S):
                report = await reply(self._session.root.cancel.remote("interrupted"))
                self._screen.note(f"palaver: {report}")
                # All results are on their way now.
                await self._at_rest.wait()
        if not self._at_rest.is_set():
            main.cancel()

    async def _conclude(self) -> None:
        """Say what was not done, what was done, and what all of it took."""
        for reason, count in self._unbegun.items():
            what = "not finished" if self._total is None else f"{count} without a result"
            self._screen.note(f"{what}: {reason}")
        if self._unfinished.total() > TOLD_OF_A_SWARM and not self._shows_answers:
            for kind, count in self._unfinished.items():
                self._screen.note(f"{count} not finished: {kind}")
        if self._total is not None:
            self._screen.note(f"{self._finished} of {self._total} finished")
        root: Branch | None = None
        with suppress(PalaverError, TimeoutError):
            async with asyncio.timeout(_USAGE_WITHIN_S):
                # With its budget, which somebody may have raised meanwhile.
                root = await reply(self._session.root.tree.remote(ended=False))
        self._screen.note(
            "what was spent is not known: the process of the root conversation is gone"
            if root is None
            else summary(root.usage, root.budget)
        )

    @asynccontextmanager
    async def _view(self) -> AsyncGenerator[None]:
        """The live tree, or plain lines, while the block runs."""
        root, screen = self._session.root, self._screen
        # Of a swarm thousands may have ended.
        look = functools.partial(root.tree.remote, ended=self._shows_answers)
        if screen.live:
            with screen.picture():
                async with Watcher(lambda: reply(look()), self._draw):
                    yield
        else:
            lines = Lines(screen) if self._shows_answers else Progress(screen, self._progress)
            async with Watcher(lambda: reply(look()), lines):
                yield

    def _draw(self, branch: Branch) -> None:
        told, screen = self._progress(branch), self._screen
        screen.show(render(branch, progress=told, max_lines=screen.lines, ascii_only=screen.ascii_only))

    def _progress(self, branch: Branch) -> str:
        if self._total is None:
            return ""
        took = timedelta(seconds=time.monotonic() - self._began_s)
        return progress(self._done, self._total, took, branch.spent_usd)


def _kind(result: ItemResult) -> str:
    """What kept an item from its end, in a word."""
    return f"stopped ({result.result.stop})" if result.result is not None else str(result.error_type)


class Lines:
    """Writes a line for whatever is worth one since the last look."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._seen: Branch | None = None

    def __call__(self, branch: Branch) -> None:
        for line in changes(self._seen, branch):
            self._screen.note(line)
        self._seen = branch


def _write(out: TextIO, with_file: bool, result: ItemResult) -> None:
    try:
        out.write(line_of(record(result, name="file", with_name=with_file)))
        out.flush()
    except OSError as error:
        with suppress(OSError):
            out.close()  # or what is buffered fails once more when it is closed later
        raise OSError(error.errno, f"results cannot be written: {error.strerror}", out.name) from error


class Progress:
    """Writes now and then how far a swarm is."""

    def __init__(self, screen: Screen, told: Callable[[Branch], str]) -> None:
        self._screen = screen
        self._told = told
        self._last, self._last_s = "", time.monotonic()

    def __call__(self, branch: Branch) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s < PROGRESS_EVERY_S:
            return
        self._last_s = now_s
        if (told := self._told(branch)) != self._last:
            self._last = told
            self._screen.note(told)


def section(result: ItemResult) -> str:
    """One file's answer, with a heading, for people to read."""
    return f"== {result.label} ==\n{result.text}\n"
