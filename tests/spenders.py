"""Conversations that spend as fast as they can under one budget, for tests and benchmarks."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

import ray
from kinds import Kind

from palaver.actors import Branch, Budget, Convo, ConvoHandle, reply
from palaver.actors.errors import BudgetExceeded, ConvoClosed
from palaver.providers.prices import Price
from palaver.providers.provider import Request
from palaver.providers.scripted import Reply, Scripted

PRICE = Price.per_million_tokens("0.37", "2.9")
MAX_TOKENS = 1_500


def answer_of_some_length(request: Request) -> Reply:
    """An answer of 1 to 1,500 words, by the request's id."""
    return "word " * random.Random(request.id).randrange(1, MAX_TOKENS + 1)


def varied(delay_s: float = 0.05) -> Scripted:
    """A model whose answers cost up to 0.44 cents."""
    return Scripted(answer_of_some_length, price=PRICE, max_tokens=MAX_TOKENS, delay_s=delay_s)


@dataclass(frozen=True, slots=True)
class Spent:
    """What came of it: the answers that were told of, and how many conversations ended in which way."""

    tree: Branch
    answers: int
    killed: int
    over: int

    @property
    def usd(self) -> Decimal:
        """What all of it cost."""
        assert self.tree.spent_usd is not None
        return self.tree.spent_usd


async def spend(children: int, budget: Budget, *, kind: Kind, kills: int = 0, seed: int = 0) -> Spent:
    """Let sub-conversations of one root send until each is refused; kill some at random moments."""
    root = Convo.remote(varied(), budget=budget, label="root")
    chance = random.Random(seed)
    try:
        handles = await asyncio.gather(*(kind.sub(root, label=str(number)) for number in range(children)))
        await asyncio.gather(*(reply(each.id.remote()) for each in handles))  # all have started
        doomed = chance.sample(handles, kills)
        spending = [asyncio.create_task(_spend(each)) for each in handles]
        for part, each in zip(sorted(chance.uniform(0.05, 0.8) for _ in doomed), doomed, strict=True):
            await _kill(each, root, Decimal(part) * (budget.max_dollars or 0))
        ended = await asyncio.gather(*spending)
        tree = await reply(root.tree.remote())
    finally:
        await reply(root.close.remote())
    return Spent(
        tree,
        answers=sum(answers for answers, _ in ended),
        killed=sum(end is ConvoClosed for _, end in ended),
        over=sum(end is BudgetExceeded for _, end in ended),
    )


async def _spend(convo: ConvoHandle) -> tuple[int, type[Exception]]:
    answers = 0
    while True:
        try:
            await reply(convo.send_user_text_message.remote("More, please."))
        except (BudgetExceeded, ConvoClosed) as error:
            return answers, type(error)
        answers += 1


async def _kill(convo: Any, root: ConvoHandle, spent_usd: Decimal) -> None:
    """Kill a conversation's process once so much is spent."""
    while (await reply(root.cumulative_usage.remote())).known_cost_usd < spent_usd:
        await asyncio.sleep(0.005)
    cast("Any", ray).kill(convo)
