"""The treasury of a tree whose root is another actor.

All conversations of a process share one, and what they ask while an answer is on its way goes to the root
together: a call takes Ray about a millisecond, whatever the number of questions in it.

Layer: actors; one of the modules that know Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import ray

from palaver.actors.budget import Budget
from palaver.actors.entries import AccountOpened, ResponseCharged, ToolCalled
from palaver.actors.errors import BudgetExceeded, ConvoUnreachable
from palaver.actors.ledger import Ask, Counted, Grant
from palaver.actors.replies import reply
from palaver.actors.treasury import Statement, Treasury
from palaver.actors.usage import CumulativeUsage

_AGAIN_AFTER_S = (0.1, 0.3, 1.0, 3.0)
"""A root that cannot be reached for a moment is asked again, this much later. To be asked twice changes
nothing but a fund."""


_PROMPTLY_S = 0.005
"""What takes longer at the root waits for money, and is asked on its own: it is not to hold up the others."""


class Call(NamedTuple):
    """A call of a method of the root's treasury."""

    method: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    async def made_at(self, treasury: Treasury) -> Any:
        """What the method returns, or raises."""
        return await getattr(treasury, self.method)(*self.args, **self.kwargs)


class Answer(NamedTuple):
    """What came of a call: a value, or the error that it raised."""

    value: Any = None
    error: Exception | None = None

    def get(self) -> Any:
        """The value; raises the error."""
        if self.error is not None:
            raise self.error
        return self.value


async def answers_to(calls: Sequence[Call], treasury: Treasury) -> list[Answer | None]:
    """What a treasury answers to each of these, begun in their order. None: it waits, and was let go."""
    tasks = [asyncio.ensure_future(call.made_at(treasury)) for call in calls]
    _, waiting = await asyncio.wait(tasks, timeout=_PROMPTLY_S)
    for each in waiting:
        each.cancel()
    if waiting:
        await asyncio.wait(waiting)
    return [None if each.cancelled() else _answer(each) for each in tasks]


def _answer(done: asyncio.Future[Any]) -> Answer:
    match done.exception():
        case None:
            return Answer(done.result())
        case Exception() as error:
            return Answer(error=error)
        case error:
            raise error


class RemoteTreasury:
    """Asks the root, conversation `root_id`, by its handle (a `palaver.actors.ConvoHandle`)."""

    def __init__(self, root_id: str, root: Any) -> None:
        self._root_id = root_id
        self._root = root
        self._introduced = False
        self._to_send: list[tuple[Call, asyncio.Future[Answer | None]]] = []
        self._sending: asyncio.Task[None] | None = None

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
        call = Call(method, args, kwargs)
        come: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._to_send.append((call, come))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        answer = await come
        if answer is None:
            return await reply(self._root.waited_at_treasury.remote(call), self._root_id)
        return answer.get()

    async def _send(self) -> None:
        """Send what there is, all of it at once, until there is no more."""
        while self._to_send:
            together = [(call, come) for call, come in self._to_send if not come.done()]
            self._to_send.clear()
            if not together:
                break
            try:
                asking = self._root.at_treasury.remote([call for call, _ in together])
                answers: Sequence[Answer | None] = await reply(asking, self._root_id)
            except Exception as error:
                answers = [Answer(error=error)] * len(together)
            for (_, come), answer in zip(together, answers, strict=True):
                if not come.done():
                    come.set_result(answer)
        self._sending = None
