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
from datetime import UTC, datetime, timedelta

from palaver.actors.budget import Budget
from palaver.actors.errors import ConvoClosed, TooManySubConvos
from palaver.actors.kin import Branch, Child, State
from palaver.actors.ledger import Ledger
from palaver.actors.report import StoppedConvo
from palaver.tools.stopped import Stopped
from palaver.tools.toolset import Toolset

_log = logging.getLogger(__name__)

CHILD_ENDS_WITHIN_S = 10.0
"""How long a child may take to cancel or close before its process is killed. What it may have to wait for,
a tool that cannot be unwound, is gone within about three seconds."""

CHILD_ANSWERS_WITHIN_S = 2.0
"""A child that takes longer to describe itself is shown as lost."""


class Children:
    """The children of conversation `parent_id`, which is at `depth`; its `toolset` can fence them."""

    def __init__(self, parent_id: str, depth: int, toolset: Toolset) -> None:
        self._parent_id = parent_id
        self._depth = depth
        self._toolset = toolset
        self._open: dict[str, Child] = {}
        self._of_call: dict[str, list[str]] = {}
        self._last_seen: dict[str, Branch] = {}
        self._ended: list[Branch] = []

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

    def closed(self, last: Branch) -> None:
        """One has closed; `last` is how it stood."""
        if self._open.pop(last.id, None) is not None:
            self._last_seen.pop(last.id, None)
            self._ended.append(last)

    async def branches(self) -> tuple[Branch, ...]:
        """Each of them with all below it, those that have ended first."""
        children = dict(self._open)
        branches = await asyncio.gather(*(self._branch(id, each) for id, each in children.items()))
        # One that closed while it was asked is among both.
        ended = {branch.id for branch in self._ended}
        return (*self._ended, *(branch for branch in branches if branch.id not in ended))

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

    async def _branch(self, id: str, child: Child) -> Branch:
        try:
            async with asyncio.timeout(CHILD_ANSWERS_WITHIN_S):
                branch = self._last_seen[id] = await child.tree()
                return branch
        except (ConvoClosed, TimeoutError) as error:
            lost = self._lost(id, child)
            if isinstance(error, ConvoClosed):
                # It never answers again; whatever it still said of itself has arrived.
                self.closed(lost)
            return lost

    def _lost(self, id: str, child: Child) -> Branch:
        """A child that does not answer, as it was last seen."""
        seen = self._last_seen.get(id) or Branch(
            id=id,
            parent_id=self._parent_id,
            depth=self._depth + 1,
            label=child.label,
            state=State.LOST,
            model="",
            usage=Ledger().usage(datetime.now(UTC), timedelta()),
            budget=Budget(),
        )
        return seen.model_copy(update={"state": State.LOST, "running_tools": (), "waiting_tools": ()})

    async def _cancel(self, id: str, child: Child, cause: str) -> tuple[StoppedConvo, ...]:
        began, problem = time.monotonic(), ""
        try:
            async with asyncio.timeout(CHILD_ENDS_WITHIN_S):
                return (await child.cancel(cause)).conversations
        except ConvoClosed:
            if id not in self._open:
                return ()  # it has closed meanwhile
        except TimeoutError:
            problem = f"did not cancel within {CHILD_ENDS_WITHIN_S:g} s, so its process was killed"
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
            if (child := self._open.get(id)) is not None:
                self.closed(self._lost(id, child))
        return fenced
