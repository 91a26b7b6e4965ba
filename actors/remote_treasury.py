"""The treasury of a tree whose root is another actor.

Layer: actors; one of the modules that know Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import ray

from palaver.actors.budget import Budget
from palaver.actors.entries import AccountOpened, ResponseCharged, ToolCalled
from palaver.actors.errors import BudgetExceeded, ConvoUnreachable
from palaver.actors.ledger import Ask, Counted, Grant
from palaver.actors.replies import reply
from palaver.actors.treasury import Statement
from palaver.actors.usage import CumulativeUsage

_AGAIN_AFTER_S = (0.1, 0.3, 1.0, 3.0)
"""A root that cannot be reached for a moment is asked again, this much later. To be asked twice changes
nothing but a fund."""


class RemoteTreasury:
    """Asks the root, conversation `root_id`, by its handle (a `palaver.actors.ConvoHandle`)."""

    def __init__(self, root_id: str, root: Any) -> None:
        self._root_id = root_id
        self._root = root
        self._introduced = False

    async def open(self, accounts: Sequence[AccountOpened]) -> None:
        await self._ask("open", tuple(accounts))

    async def close(self, convo_id: str, *, lost: bool = False) -> None:
        await self._ask("close", convo_id, lost=lost)

    async def reserve(self, ask: Ask) -> Grant:
        if not self._introduced:
            context = cast("Any", ray.get_runtime_context())
            await self._introduce(ask.convo_id, context.current_actor, context.get_node_id())
            self._introduced = True
        return await self._ask("reserve", ask)

    async def _introduce(self, convo_id: str, convo: Any, node_id: str) -> None:
        await reply(self._root.introduce.remote(convo_id, convo, node_id), self._root_id)

    async def settle(self, charge: ResponseCharged) -> None:
        await self._ask("settle", charge)

    async def release(self, convo_id: str, request_id: str) -> None:
        await self._ask("release", convo_id, request_id)

    async def count(self, calls: Sequence[ToolCalled]) -> Counted:
        return await self._ask("count", tuple(calls))

    async def usage(self, convo_id: str) -> CumulativeUsage:
        return await self._ask("usage", convo_id)

    async def over_budget(self, convo_id: str) -> BudgetExceeded | None:
        return await self._ask("over_budget", convo_id)

    async def left(self, convo_id: str) -> Budget:
        return await self._ask("left", convo_id)

    async def check_time(self, convo_id: str) -> float | None:
        return await self._ask("check_time", convo_id)

    async def notice(self, convo_id: str, from_part: float) -> str:
        return await self._ask("notice", convo_id, from_part)

    async def reset_budget(self, convo_id: str, budget: Budget) -> None:
        await self._ask("reset_budget", convo_id, budget)

    async def fund(self, convo_id: str, budget: Budget, *, asked_by: str) -> Budget:
        return await self._ask_once("fund", convo_id, budget, asked_by=asked_by)

    async def lineage(self, convo_id: str) -> tuple[str, ...]:
        return await self._ask("lineage", convo_id)

    async def statements(self, convo_id: str, *, ended: bool = True) -> tuple[Statement, ...]:
        return await self._ask("statements", convo_id, ended=ended)

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        for again_after_s in (*_AGAIN_AFTER_S, None):
            try:
                return await self._ask_once(method, *args, **kwargs)
            except ConvoUnreachable:
                if again_after_s is None:
                    raise
                await asyncio.sleep(again_after_s)
        raise AssertionError("the last try returns or raises")

    async def _ask_once(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await reply(self._root.at_treasury.remote(method, *args, **kwargs), self._root_id)
