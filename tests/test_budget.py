"""Budgets: limits, what breaches them, and what they say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from palaver.actors.budget import Budget
from palaver.actors.errors import BudgetExceeded
from palaver.actors.ledger import CumulativeUsage


def used(dollars: str = "0", responses: int = 0, seconds: float = 0, unpriced: int = 0) -> CumulativeUsage:
    return CumulativeUsage(
        started_at=datetime.now(UTC),
        wall_time=timedelta(seconds=seconds),
        responses=responses,
        known_cost_usd=Decimal(dollars),
        unpriced_responses=unpriced,
    )


def test_no_limit_is_never_breached() -> None:
    assert Budget().breaches(used("1000000", 10**9, 10**9, unpriced=1)) == ()


def test_a_limit_is_breached_when_it_is_reached() -> None:
    assert not Budget(max_dollars=Decimal(1)).breaches(used("0.999999"))
    assert Budget(max_dollars=Decimal(1)).breaches(used("1.00"))


def test_a_limit_of_zero_allows_nothing() -> None:
    assert Budget(max_dollars=Decimal(0)).breaches(used())
    assert Budget(max_responses=0).breaches(used())
    assert Budget(max_wall_time=timedelta(0)).breaches(used())


def test_breaches_name_money_first_then_time_then_responses() -> None:
    budget = Budget(max_dollars=Decimal(1), max_responses=2, max_wall_time=timedelta(seconds=3))
    assert [each.limit_name for each in budget.breaches(used("5", 5, 5))] == [
        "max_dollars",
        "max_wall_time",
        "max_responses",
    ]


def test_an_unknown_cost_breaches_a_dollar_limit() -> None:
    (breach,) = Budget(max_dollars=Decimal(1)).breaches(used(unpriced=1))
    assert "unknown amount" in str(breach)


def test_the_error_names_the_conversation_each_limit_and_what_to_do() -> None:
    budget = Budget(max_dollars=Decimal("1.50"), max_responses=2)
    error = BudgetExceeded("abc-defg", budget.breaches(used("1.75", 2)))
    assert str(error) == (
        "conversation abc-defg is over its budget: $1.75 spent, max_dollars is $1.50; "
        "2 responses received, max_responses is 2. reset_budget() grants more."
    )


@pytest.mark.parametrize("limit", [{"max_dollars": -1}, {"max_responses": -1}, {"max_wall_time": -1}])
def test_a_negative_limit_is_refused_by_name(limit: dict[str, Any]) -> None:
    with pytest.raises(
        ValidationError, match=rf"(?s){next(iter(limit))}.*is negative; use 0 or more, or None"
    ):
        Budget(**limit)


@pytest.mark.parametrize("limit", ["nan", "inf"])
def test_a_limit_that_is_no_number_is_refused(limit: str) -> None:
    with pytest.raises(ValidationError, match="max_dollars"):
        Budget(max_dollars=Decimal(limit))


def test_an_unknown_limit_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="max_dollar'"):
        Budget(max_dollar=1)  # pyright: ignore[reportCallIssue]


def test_a_float_is_taken_as_it_is_written_and_a_number_as_seconds() -> None:
    budget = Budget(max_dollars=0.1, max_wall_time=90)
    assert budget.max_dollars == Decimal("0.1")
    assert budget.max_wall_time == timedelta(seconds=90)


def test_a_budget_on_top_counts_from_what_was_used() -> None:
    budget = Budget(max_dollars=Decimal(1), max_responses=2, max_wall_time=timedelta(seconds=3))
    assert budget.on_top_of(used("5", 5, 5)) == Budget(
        max_dollars=Decimal(6), max_responses=7, max_wall_time=timedelta(seconds=8)
    )
    assert Budget().on_top_of(used("5", 5, 5)) == Budget()
