"""The sub-conversations of one conversation: taken on, shown, cancelled and closed together with it.

It owns the invariant that a child counts as ended only when it has said so itself, or when whatever ran for
it, and for those below it, was ended from outside.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence

from palaver.actors.errors import ConvoClosed, ConvoUnreachable, TooManySubConvos
from palaver.actors.kin import Activity, Child, State
from palaver.actors.report import StoppedConvo
from palaver.actors.treasury import Treasury
from palaver.tools.stopped import Stopped
from palaver.tools.toolset import Toolset

_log = logging.getLogger(__name__)

CHILD_ENDS_WITHIN_S = 10.0
"""How long a child may take to cancel or close before its process is killed. What it may have to wait for,
a tool that cannot be unwound, is gone within about three seconds."""

CHILD_ANSWERS_WITHIN_S = 2.0
"""A child that takes longer to describe itself is shown as lost, or as starting while it does. One that has
not started in that time is not waited for when all is to stop."""


class Children:
    """The children of conversation `parent_id`.

    Its `toolset` can fence them; `treasury` has their accounts.
    """

    def __init__(self, parent_id: str, toolset: Toolset, treasury: Treasury) -> None:
        self._parent_id = parent_id
        self._toolset = toolset
        self._treasury = treasury
        self._open: dict[str, Child] = {}
        self._of_call: dict[str, list[str]] = {}

    def add(self, id: str, child: Child, within_call: str | None) -> None:
        """Take one on; one within a tool call ends with that call (`close_those_of`)."""
        self._open[id] = child
        if within_call is not None:
            self._of_call.setdefault(within_call, []).append(id)

    def refuse_too_many(self, asked: int, at_most: int, calls: Iterable[str] | None) -> None:
        """Raise TooManySubConvos when with `asked` more there would be more than `at_most` open ones.

        With `calls`, ids of tool calls, those count that these have started, else all.
        """
        started = set(self._open)
        if calls is not None:
            started &= {id for call in calls for id in self._of_call.get(call, ())}
        if len(started) + asked > at_most:
            raise TooManySubConvos(self._parent_id, asked, len(started), at_most)

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def get(self, convo_id: str) -> Child | None:
        """The open one of that id; None when there is none."""
        return self._open.get(convo_id)

    def closed(self, convo_id: str) -> None:
        """One has closed, or its process is gone."""
        self._open.pop(convo_id, None)

    async def activities(self) -> tuple[Activity, ...]:
        """What each of them, with all below it, is doing; those that have ended left out."""
        children = dict(self._open)
        activities = await asyncio.gather(*(self._activity(id, each) for id, each in children.items()))
        return tuple(each for each in activities if each is not None)

    async def cancel(self, cause: str) -> tuple[tuple[StoppedConvo, ...], Stopped]:
        """Cancel all: what was stopped in them and below, and what had to be ended from outside."""
        children = dict(self._open)
        below = await asyncio.gather(*(self._cancel(id, each, cause) for id, each in children.items()))
        stopped = tuple(convo for each in below for convo in each)
        gone = [convo.id for convo in stopped if convo.gone and convo.id in children]
        return stopped, await self._fence(gone)

    async def close(self) -> None:
        """Close all; those that do not close themselves are killed."""
        await self._close_all(dict(self._open))

    async def close_those_of(self, tool_use_id: str) -> None:
        """Close what a tool call has started, now that it has ended."""
        started = self._of_call.pop(tool_use_id, ())
        await self._close_all({id: self._open[id] for id in started if id in self._open})

    async def _activity(self, id: str, child: Child) -> Activity | None:
        try:
            async with asyncio.timeout(CHILD_ANSWERS_WITHIN_S):
                return await child.activity()
        except (TimeoutError, ConvoUnreachable):
            return Activity(id=id, state=State.STARTING if child.is_starting else State.LOST)
        except ConvoClosed:
            await self._lost(id)  # it never answers again
            return None

    async def _lost(self, id: str) -> None:
        """A child's process is gone."""
        if id in self._open:
            self.closed(id)
            await self._treasury.close(id, lost=True)

    async def _cancel(self, id: str, child: Child, cause: str) -> tuple[StoppedConvo, ...]:
        began, problem = time.monotonic(), ""
        within_s = CHILD_ANSWERS_WITHIN_S if child.is_starting else CHILD_ENDS_WITHIN_S
        try:
            async with asyncio.timeout(within_s):
                return (await child.cancel(cause)).conversations
        except ConvoUnreachable as error:
            problem = f"{error.reason}, so its process was killed"
        except ConvoClosed:
            if id not in self._open:
                return ()  # it has closed meanwhile
        except TimeoutError:
            problem = (
                f"had not started within {within_s:g} s, so it never will"
                if child.is_starting
                else f"did not cancel within {within_s:g} s, so its process was killed"
            )
        except Exception as error:
            _log.exception("conversation %s: cancel failed", id)
            problem = f"cancel failed with {type(error).__name__}: {error}; its process was killed"
        if problem:
            child.kill()
        took_s = time.monotonic() - began
        return (StoppedConvo(id=id, label=child.label, took_s=took_s, gone=True, problem=problem),)

    async def _close_all(self, children: Mapping[str, Child]) -> None:
        were_closed = await asyncio.gather(*(self._close(id, each) for id, each in children.items()))
        await self._fence([id for id, closed in zip(children, were_closed, strict=True) if not closed])

    async def _close(self, id: str, child: Child) -> bool:
        """Whether a child has closed itself; otherwise its process is gone."""
        try:
            async with asyncio.timeout(CHILD_ENDS_WITHIN_S):
                await child.close()
                return True
        except ConvoUnreachable as error:
            _log.warning("%s Killing it", error)
        except ConvoClosed:
            return id not in self._open
        except TimeoutError:
            _log.warning("conversation %s did not close within %g s; killing it", id, CHILD_ENDS_WITHIN_S)
        except Exception:
            _log.exception("conversation %s: close failed; killing it", id)
        child.kill()
        return False

    async def _fence(self, gone: Sequence[str]) -> Stopped:
        """End what ran for children whose processes are gone, and for all below these."""
        if not gone:
            return Stopped()
        fenced = await self._toolset.fence(gone)
        for id in gone:
            await self._lost(id)
        return fenced
