"""Who answers at the command line when tool calls need approval: the person, `--yes`, or nobody.

Layer: actors, command line; Ray through `convo` alone.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any, cast

from palaver.actors import keyboard
from palaver.actors.approvals import ApprovalRequest, Approved, Denied, as_json
from palaver.actors.convo import ConvoHandle
from palaver.actors.errors import UnknownToolCall
from palaver.actors.replies import reply
from palaver.actors.screen import Screen, printable
from palaver.providers.errors import PalaverError

NOBODY = "nobody is there to approve it"

_SHOWN_CHARACTERS = 2000
_SHOWN_LINES = 20
_NOTE_CHARACTERS = 200
_LABEL_CHARACTERS = 60
_SHOWN_WITHIN_S = 2.0
"""How long a question waits for what comes before it on the screen."""
_LOOK_AGAIN_S = 10.0
_LOOK_EVERY_S = 0.25


class Attendant:
    """Answers the requests for approval of a tree, one after the other, while the block runs.

    With `yes` each gets a yes. Otherwise the person at the terminal is asked; where there is none, each
    gets a no. What was decided without a person is noted.
    """

    def __init__(self, root: ConvoHandle, screen: Screen, *, yes: bool) -> None:
        self._root = root
        self._screen = screen
        self._yes = yes
        self._shown: dict[str, asyncio.Event] | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Attendant:
        self._task = asyncio.create_task(self._attend())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self.stop()
        await asyncio.wait({self._task})

    def stop(self) -> None:
        """Answer no more, and take a question away that waits on the terminal."""
        # Once: a second cancel would interrupt the clean-up of the first.
        if self._task is not None and not self._task.cancelling():
            self._task.cancel()

    def follow(self) -> None:
        """From now on the root's calls are shown as they start, and none is asked for before it was shown."""
        self._shown = {}

    def shown(self, tool_use_id: str) -> None:
        """A call of the root was shown."""
        if self._shown is not None:
            self._shown.setdefault(tool_use_id, asyncio.Event()).set()

    async def _attend(self) -> None:
        seen: set[str] = set()
        with suppress(PalaverError):  # the root is gone, which others tell
            while True:
                waiting = self._root.until_approval_needed.remote(tuple(seen), timeout_s=_LOOK_AGAIN_S)
                for request in await reply(waiting):
                    seen.add(request.id)
                    await self._answer(request)

    async def _answer(self, request: ApprovalRequest) -> None:
        if self._shown is not None and request.depth == 0:
            with suppress(TimeoutError):
                shown = self._shown.setdefault(request.tool_use_id, asyncio.Event())
                await asyncio.wait_for(shown.wait(), _SHOWN_WITHIN_S)
        if self._yes:
            self._screen.note(f"approved, because of --yes: {_brief(request)}")
            await self._decide(request, Approved())
        elif not self._screen.can_ask:
            self._screen.note(f"denied, because {NOBODY} (--yes approves): {_brief(request)}")
            await self._decide(request, Denied(reason=NOBODY))
        elif (decision := await self._persons(request)) is not None:
            await self._decide(request, decision)

    async def _decide(self, request: ApprovalRequest, decision: Approved | Denied) -> None:
        id, convo_id = request.tool_use_id, request.convo_id
        with suppress(UnknownToolCall):  # somebody else was faster, or it was cancelled
            match decision:
                case Approved(input=edited):
                    await reply(self._root.approve.remote(id, convo_id=convo_id, input=edited))
                case Denied(reason=reason):
                    await reply(self._root.deny.remote(id, reason, convo_id=convo_id))

    async def _persons(self, request: ApprovalRequest) -> Approved | Denied | None:
        """What the person says; None when the call did not wait for that."""
        with self._screen.asking():
            asking = asyncio.create_task(Question(self._screen, request).ask())
            gone = asyncio.create_task(self._until_gone(request))
            try:
                await asyncio.wait({asking, gone}, return_when=asyncio.FIRST_COMPLETED)
                if asking.done():
                    return asking.result()
                self._screen.say("\n(it does not wait for approval any more)")
                return None
            finally:
                if not asking.done() and not gone.done():
                    self._screen.say("")  # the line with the question
                for task in (asking, gone):
                    task.cancel()
                await asyncio.wait({asking, gone})

    async def _until_gone(self, request: ApprovalRequest) -> None:
        with suppress(PalaverError):
            while True:
                await asyncio.sleep(_LOOK_EVERY_S)
                pending = await reply(self._root.pending_approvals.remote())
                if request.id not in {each.id for each in pending}:
                    return


class Question:
    """One question to the person at the terminal: whether a tool call may run."""

    def __init__(self, screen: Screen, request: ApprovalRequest) -> None:
        self._screen = screen
        self._request = request
        self._input = as_json(request.input, indent=2)

    async def ask(self) -> Approved | Denied:
        """Ask until there is an answer. The end of what is typed is a no."""
        say, shown = self._screen.say, _bounded(self._input)
        say(f"{_who(self._request)} needs approval for tool {self._request.tool_name}:\n{shown}")
        cut = shown != self._input
        keyboard.forget_typed()
        draft = self._input
        while True:
            say(f"[y]es / [n]o / [e]dit{' / [s]how all' if cut else ''}? ", end="")
            match await keyboard.read_line():
                case None:
                    say("")
                    return Denied()
                case "y" | "Y" | "yes":
                    return Approved()
                case "n" | "N" | "no":
                    say("reason, for the model (may be empty): ", end="")
                    return Denied(reason=await keyboard.read_line() or "")
                case "s" | "S" | "show" if cut:
                    say(self._input)
                case "e" | "E" | "edit":
                    draft, edited = await self._edited(draft)
                    if edited is not None:
                        return Approved(input=edited)
                case _:
                    pass

    async def _edited(self, draft: str) -> tuple[str, dict[str, Any] | None]:
        """What the person made of a text, and the input it is; None to ask anew."""
        command = keyboard.editor()
        while True:
            try:
                if command is None:
                    self._screen.say("input, as one line of JSON (empty: back): ", end="")
                    draft = await keyboard.read_line() or ""
                    if not draft.strip():
                        return self._input, None
                else:
                    draft = await keyboard.edit(draft, command)
                return draft, _parsed(draft)
            except (OSError, ValueError) as error:
                self._screen.say(f"that was no input: {error}")
                if command is not None:
                    return draft, None


def _parsed(text: str) -> dict[str, Any]:
    """The JSON object in a text. Raises ValueError."""
    if len(text.encode(errors="replace")) >= keyboard.MAX_LINE_BYTES and keyboard.editor() is None:
        raise ValueError(
            f"a terminal takes lines of up to {keyboard.MAX_LINE_BYTES} bytes; set EDITOR to edit more"
        )
    value: object = json.loads(text, parse_constant=_refuse)
    if not isinstance(value, dict):
        raise ValueError('it has to be a JSON object, like {"name": "value"}')
    return cast("dict[str, Any]", value)


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def _who(request: ApprovalRequest) -> str:
    """The conversation that asks. Its label is not to look like anything else on the screen."""
    who = f"{printable(request.convo_label)[:_LABEL_CHARACTERS]} {request.convo_id}".strip()
    return who if request.depth == 0 else f"{who} ({request.depth} below the root)"


def _bounded(text: str) -> str:
    """A text as far as it fits a screen, with what is left out told."""
    shown = "\n".join(text.splitlines()[:_SHOWN_LINES])[:_SHOWN_CHARACTERS]
    left_out = len(text) - len(shown)
    return f"{shown}\n[{left_out} more characters]" if left_out else text


def _brief(request: ApprovalRequest) -> str:
    call = f"{request.tool_name}({as_json(request.input)})"
    if len(call) > _NOTE_CHARACTERS:
        call = f"{call[: _NOTE_CHARACTERS - 3]}..."
    return f"{call} of {_who(request)}"
