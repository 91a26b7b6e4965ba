"""`palaver chat`: a conversation in the terminal.

The prompt is read outside the event loop, so that Ctrl-C there ends the chat and nothing else; while
the model answers, Ctrl-C cancels the answer.

Layer: actors, command line; Ray through `swarm` and `convo` alone.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Generator
from contextlib import aclosing, contextmanager, suppress
from typing import TypeVar

from rich.text import Text

from palaver.actors.amounts import summary
from palaver.actors.attendant import Attendant
from palaver.actors.context import Compaction
from palaver.actors.errors import ConvoClosed
from palaver.actors.feed import Compacted, ConvoEvent, Responded, Retrying, RunEnded, ToolEnded, ToolStarted
from palaver.actors.interrupts import Interrupted
from palaver.actors.replies import events, reply
from palaver.actors.result import RunResult
from palaver.actors.screen import printable
from palaver.actors.session import Session
from palaver.providers.errors import PalaverError
from palaver.providers.messages import Image, ToolResult, ToolUse
from palaver.providers.messages import Text as MessageText
from palaver.providers.provider import Response, StopReason
from palaver.providers.stream import TextDelta

T = TypeVar("T")

PROMPT = "> "

HELP = """\
/usage   what was used so far
/compact go on from a summary of the conversation, which the model writes
/budget  grant the limits given at the start once more
/help    this list
/quit    end, like Ctrl-D or Ctrl-C here; Ctrl-C during an answer cancels the answer alone"""

_BRIEF_CHARACTERS = 200
_USAGE_WITHIN_S = 5.0


def chat(session: Session, *, yes: bool = False) -> int:
    """Talk until the person has enough. `yes` approves every tool call that needs it.

    The exit code: 0, 1 when the conversation was lost, 128 + signal when that ended it.
    """
    screen = session.screen
    if screen.live:
        with suppress(ImportError):
            import readline  # noqa: F401 - gives input() line editing  # pyright: ignore[reportUnusedImport]
        screen.note("/help lists the commands; Ctrl-D ends.")
    code = 0
    try:
        while session.interrupts.received is None and (line := _read(session)) is not None:
            match line.strip():
                case "":
                    continue
                case "/quit" | "/exit":
                    break
                case "/help":
                    screen.note(HELP)
                case "/usage":
                    _tell_usage(session)
                case "/compact":
                    session.run(_Answer(session, yes=yes).compacted())
                case "/budget":
                    session.run(reply(session.root.reset_budget.remote(session.setup.budget)))
                    screen.note("the limits count anew from here")
                case command if command.startswith("/"):
                    screen.note(f"there is no command {command.split()[0]!r}\n{HELP}")
                case _:
                    session.run(_Answer(session, yes=yes).to(line))
    except ConvoClosed as error:
        screen.note(f"palaver: error: {error}")
        code = 1
    _tell_usage(session)
    return code if session.interrupts.received is None else 128 + session.interrupts.received


def _read(session: Session) -> str | None:
    """The next line; None at the end of the input or for Ctrl-C."""
    try:
        return input(PROMPT)
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        session.screen.note(f"that was no UTF-8 text: {error.reason} at byte {error.start}")
        return ""
    except Interrupted as interrupted:
        session.screen.note("")
        if session.screen.live and interrupted.signal_number == signal.SIGINT:
            session.interrupts.forget()
        return None


def _tell_usage(session: Session) -> None:
    try:
        now = session.run(_bounded(reply(session.root.tree.remote())))
    except (PalaverError, TimeoutError):
        session.screen.note("what was spent is not known: the conversation's process is gone")
    else:
        session.screen.note(summary(now.usage, now.budget))


async def _bounded(work: Awaitable[T]) -> T:
    async with asyncio.timeout(_USAGE_WITHIN_S):
        return await work


class _Answer:
    """One answer of the model, with all the tool calls on its way."""

    def __init__(self, session: Session, *, yes: bool) -> None:
        self._root = session.root
        self._screen = session.screen
        self._interrupts = session.interrupts
        self._attendant = Attendant(session.root, session.screen, yes=yes)
        self._attendant.follow()
        self._running: dict[str, str] = {}
        """The tools of the calls under way."""
        self._cancelling: asyncio.Task[None] | None = None

    async def to(self, text: str) -> None:
        """Send a text and show what comes, until the model ends its turn. Raises ConvoClosed."""
        await self._until_done(self._follow(text))

    async def compacted(self) -> None:
        """Let the model write a summary, and go on from that. Raises ConvoClosed."""
        await self._until_done(self._compact())

    async def _until_done(self, work: Awaitable[None]) -> None:
        with self._interrupts.told(self._cancel):
            try:
                with self._busy():
                    async with self._attendant:
                        await work
            except ConvoClosed:
                raise
            except PalaverError as error:
                self._screen.note(f"error: {error}")
            if self._cancelling is not None:
                await self._cancelling
        if self._interrupts.received == signal.SIGINT:
            self._interrupts.forget()

    async def _follow(self, text: str) -> None:
        async with aclosing(events(self._root.stream.remote(text))) as told:
            async for event in told:
                self._show(event)

    async def _compact(self) -> None:
        compaction = await reply(self._root.compact.remote())
        self._screen.note(brief_compaction(compaction))
        self._screen.note(compaction.summary)

    def _show(self, event: ConvoEvent) -> None:
        screen = self._screen
        match event:
            case TextDelta():
                screen.part(event.text)
            case Responded():
                screen.end_parts()
                for call in event.response.message.tool_uses:
                    screen.note(brief_call(call))
                self._show_stop(event.response)
                self._running = {call.id: call.name for call in event.response.message.tool_uses}
            case Retrying():
                screen.note(f"(trying again in {event.wait_s:.0f} s: {event.reason})")
            case Compacted():
                screen.note(brief_compaction(event.compaction))
            case ToolStarted():
                self._attendant.shown(event.call.id)
            case ToolEnded():
                screen.note(f"  {'failed: ' if event.result.is_error else ''}{brief(event.result)}")
                self._running.pop(event.call.id, None)
            case RunEnded(result=RunResult(stop="budget", detail=detail)):
                screen.note(f"{detail}. /budget grants as much again, /quit ends.")
            case RunEnded(result=RunResult(stop="cancelled")):
                screen.end_parts()
                screen.note("(cancelled)")
            case _:
                pass
        waits_for = ", ".join(self._running.values())
        screen.show(Text(printable(f"tools: {waits_for}" if waits_for else "..."), style="dim"))

    def _show_stop(self, response: Response) -> None:
        if response.stop_reason not in (StopReason.END_TURN, StopReason.TOOL_USE, StopReason.STOP_SEQUENCE):
            self._screen.note(f"(stopped: {response.stop_reason})")
        elif not response.message.content:
            self._screen.note("(no answer)")

    def _cancel(self) -> None:
        if self._cancelling is None:
            self._attendant.stop()
            self._cancelling = asyncio.create_task(self._cancel_answer())

    async def _cancel_answer(self) -> None:
        with suppress(PalaverError):
            report = await reply(self._root.cancel.remote("interrupted"))
            self._screen.note(f"({report})")

    @contextmanager
    def _busy(self) -> Generator[None]:
        """What it waits for, in the terminal's last line, while no text comes."""
        try:
            if not self._screen.live:
                yield
                return
            with self._screen.picture():
                self._screen.show(Text("...", style="dim"))
                yield
        finally:
            self._screen.end_parts()


def brief_call(call: ToolUse) -> str:
    """A tool call in one line."""
    return _short(f"{call.name}({json.dumps(dict(call.input), ensure_ascii=False)})")


def brief_compaction(compaction: Compaction) -> str:
    """A compaction in one line."""
    return f"({compaction.messages} messages became a summary of {len(compaction.summary.split())} words)"


def brief(result: ToolResult) -> str:
    """A tool's result in one line."""
    parts = [part.text if isinstance(part, MessageText) else f"[{_kind(part)}]" for part in result.content]
    return _short(" ".join(" ".join(parts).split()) or "(nothing)")


def _kind(part: object) -> str:
    return part.media_type if isinstance(part, Image) else type(part).__name__


def _short(text: str) -> str:
    return text if len(text) <= _BRIEF_CHARACTERS else f"{text[: _BRIEF_CHARACTERS - 3]}..."
