"""Entries of a ledger: the only ways in which what a tree of conversations may spend, and has spent, changes.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from palaver.actors.budget import Budget
from palaver.providers.messages import Value
from palaver.providers.usage import Usage


class AccountOpened(Value):
    """A conversation has begun. `parent_id` is None for the root."""

    type: Literal["account_opened"] = "account_opened"
    convo_id: str
    parent_id: str | None = None
    label: str = ""
    model: str = ""
    budget: Budget = Budget()
    at: datetime


class Reserved(Value):
    """A request may be sent: this much is kept for it, here and at every ancestor.

    `usd` is what it may cost at most; None for a model without a known price.
    """

    type: Literal["reserved"] = "reserved"
    convo_id: str
    request_id: str
    usd: Decimal | None
    tokens: int


class Released(Value):
    """A request has ended and nothing is known to have been charged for it."""

    type: Literal["released"] = "released"
    convo_id: str
    request_id: str


class ResponseCharged(Value):
    """A response was paid for, or a request that failed and cost all the same. Its reservation ends."""

    type: Literal["response_charged"] = "response_charged"
    convo_id: str
    request_id: str
    usage: Usage
    answered: bool = True
    """False for a request that failed: it costs, but is no response."""


class ToolCalled(Value):
    """A tool was called."""

    type: Literal["tool_called"] = "tool_called"
    convo_id: str
    tool_use_id: str
    tool_name: str


class BudgetSet(Value):
    """A conversation got other limits."""

    type: Literal["budget_set"] = "budget_set"
    convo_id: str
    budget: Budget


class AccountClosed(Value):
    """A conversation has ended, and all below it. `lost`: its process is gone without having been closed."""

    type: Literal["account_closed"] = "account_closed"
    convo_id: str
    lost: bool = False
    at: datetime


Entry: TypeAlias = Annotated[
    AccountOpened | Reserved | Released | ResponseCharged | ToolCalled | BudgetSet | AccountClosed,
    Field(discriminator="type"),
]


class LedgerEvent(Value):
    """One change of a ledger. `seq` counts from 1 without gaps."""

    seq: int
    entry: Entry
