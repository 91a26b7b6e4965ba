"""The relatives of a conversation that are actors themselves. Ray's exceptions end here.

Layer: actors; one of the modules that know Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayActorError

from palaver.actors.approvals import ApprovalRequest, Approved, Denied
from palaver.actors.endings import to_the_end
from palaver.actors.errors import ConvoClosed, ConvoUnreachable
from palaver.actors.kin import Activity
from palaver.actors.remote_treasury import RemoteTreasury
from palaver.actors.replies import reply
from palaver.actors.report import CancelReport

R = TypeVar("R")

_AGAIN_AFTER_S = 1.0
"""How long after a relative could not be reached it is asked again."""

_WITHDRAWN_WITHIN_S = 2.0
"""How long a cancel may wait for the root to take back a request for approval."""


class Remote:
    """A relative that is another actor, by its handle (a `palaver.actors.ConvoHandle`)."""

    def __init__(self, id: str, handle: Any, label: str = "") -> None:
        self.id = id
        self.label = label
        self.handle = handle
        self.is_starting = False

    def kill(self) -> None:
        cast("Any", ray).kill(self.handle)

    async def weaken(self) -> None:
        """Once the actor runs, hold it no longer: it is to end when nobody else holds it."""
        self.is_starting = True
        try:
            self.handle = await self.handle.own_handle.remote()
        except RayActorError:
            return
        finally:
            self.is_starting = False

    async def child_closed(self, convo_id: str) -> None:
        await self._ask(self.handle.child_closed.remote(convo_id))

    async def until_request_ended(self, request_id: str) -> None:
        while True:
            try:
                return await self._ask(self.handle.until_request_ended.remote(request_id))
            except ConvoUnreachable:
                await asyncio.sleep(_AGAIN_AFTER_S)

    async def until_settled(self, request_id: str) -> None:
        await self._ask(self.handle.until_settled.remote(request_id))

    # A root as the desk of its tree

    async def decision_on(self, request: ApprovalRequest) -> Approved | Denied:
        asker = cast("Any", ray.get_runtime_context()).current_actor
        try:
            return await self._ask(self.handle.decision_on.remote(request, asker))
        except asyncio.CancelledError:
            # The root's own wait goes on; a cancel is not to end before the request is gone.
            await to_the_end(self._withdrawn(request.id))
            raise

    async def _withdrawn(self, request_id: str) -> None:
        with suppress(ConvoClosed, TimeoutError):
            async with asyncio.timeout(_WITHDRAWN_WITHIN_S):
                await self.withdraw(request_id)

    async def withdraw(self, request_id: str) -> None:
        await self._ask(self.handle.withdraw.remote(request_id))

    async def pending(self) -> tuple[ApprovalRequest, ...]:
        return await self._ask(self.handle.pending_approvals.remote())

    async def decide(self, request_id: str, decision: Approved | Denied) -> bool:
        return await self._ask(self.handle.decide.remote(request_id, decision))

    async def until_asked(self, seen: Collection[str], timeout_s: float) -> tuple[ApprovalRequest, ...]:
        asking = self.handle.until_approval_needed.remote(tuple(seen), timeout_s=timeout_s)
        return await self._ask(asking)

    # A child

    async def cancel(self, cause: str) -> CancelReport:
        return await self._ask(self.handle.cancel.remote(cause))

    async def close(self) -> None:
        await self._ask(self.handle.close.remote())

    async def activity(self) -> Activity:
        return await self._ask(self.handle.activity.remote())

    async def _ask(self, ref: ray.ObjectRef[R]) -> R:
        return await reply(ref, self.id)


class Ancestors:
    """The parent of a conversation, with all of its own. What the root keeps for its tree is asked of it."""

    def __init__(self, nearest_first: tuple[Remote, ...] = ()) -> None:
        self._nearest_first = nearest_first
        self._treasury: RemoteTreasury | None = None

    def __len__(self) -> int:
        return len(self._nearest_first)

    @property
    def parent_id(self) -> str:
        return self._nearest_first[0].id

    @property
    def lineage(self) -> tuple[str, ...]:
        return tuple(each.id for each in reversed(self._nearest_first))

    @property
    def desk(self) -> Remote:
        return self._nearest_first[-1]

    @property
    def treasury(self) -> RemoteTreasury:
        if self._treasury is None:
            root = self._nearest_first[-1]
            self._treasury = RemoteTreasury(root.id, root.handle)
        return self._treasury

    def and_below(self, parent: Remote) -> Ancestors:
        """The ancestors of a child of `parent`, whose own these are."""
        return Ancestors((parent, *self._nearest_first))

    async def child_closed(self, convo_id: str) -> None:
        await self._nearest_first[0].child_closed(convo_id)
