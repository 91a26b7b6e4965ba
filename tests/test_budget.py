"""Budgets: limits, what breaches them, and what they say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from pydantic import ValidationError

from palaver.actors.budget import Budget
from palaver.actors.budget_notice import notice
from palaver.actors.errors import Breach, BudgetExceeded, LimitName
from palaver.actors.usage import CumulativeUsage
from palaver.providers.errors import ConfigurationError


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
        "2 responses received, max_responses is 2. fund() raises limits, reset_budget() sets new ones."
    )


@pytest.mark.parametrize(
    "limit",
    [
        {"max_dollars": -1},
        {"max_responses": -1},
        {"max_wall_time": -1},
        {"max_total_tokens": -1},
        {"max_tool_calls": -1},
        {"max_sub_convos": -1},
        {"max_depth": -1},
    ],
    ids=str,
)
def test_a_negative_limit_is_refused_by_name(limit: dict[str, Any]) -> None:
    with pytest.raises(
        ValidationError, match=rf"(?s){next(iter(limit))}.*is negative; use 0 or more, or None"
    ):
        Budget(**limit)


@pytest.mark.parametrize("limit", ["nan", "inf"])
def test_a_limit_that_is_no_number_is_refused(limit: str) -> None:
    with pytest.raises(ValidationError, match="max_dollars"):
        Budget(max_dollars=Decimal(limit))


@pytest.mark.parametrize(
    ("limit", "fault"),
    [
        ({"max_responses": True}, "True is no number"),
        ({"max_dollars": "1e400"}, "more than 1e\\+15"),
        ({"max_total_tokens": 10**16}, "more than 1e\\+15"),
    ],
)
def test_a_limit_beyond_reason_is_refused_by_name(limit: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){next(iter(limit))}.*{fault}"):
        Budget(**limit)


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


def test_what_is_left_is_each_limit_less_what_was_used_and_never_below_zero() -> None:
    budget = Budget(max_dollars=Decimal(1), max_responses=2, max_wall_time=timedelta(seconds=3))
    assert budget.left(used("0.3", 1, 1)) == Budget(
        max_dollars=Decimal("0.7"), max_responses=1, max_wall_time=2
    )
    assert budget.left(used("5", 5, 5)) == Budget(max_dollars=0, max_responses=0, max_wall_time=0)
    assert Budget().left(used("5", 5, 5)) == Budget()


def test_an_unknown_cost_leaves_nothing_of_a_dollar_limit_alone() -> None:
    left = Budget(max_dollars=1, max_responses=2).left(used("0.1", 1, unpriced=1))
    assert left == Budget(max_dollars=0, max_responses=1)
    assert Budget().left(used(unpriced=1)) == Budget()


def test_a_share_is_that_part_of_each_limit_and_no_limit_stays_no_limit() -> None:
    budget = Budget(max_dollars=Decimal("0.3"), max_responses=7, max_wall_time=timedelta(seconds=10))
    assert budget.share(0.1) == Budget(max_dollars=Decimal("0.03"), max_responses=1, max_wall_time=1)
    assert budget.share(Decimal("0.5")).max_responses == 3
    assert budget.share(1) == budget
    assert Budget().share(0.5) == Budget()


def test_shares_that_sum_up_to_one_are_never_more_than_the_whole() -> None:
    whole = Budget(max_dollars=Decimal("3.000000000000000000000000003"), max_wall_time=0.000001)
    half = whole.share(0.5)
    assert half.max_dollars is not None
    assert Fraction(3) <= 2 * Fraction(half.max_dollars) <= Fraction("3.000000000000000000000000003")
    assert half.max_wall_time == timedelta(0)


def test_a_share_of_any_responses_is_at_least_one_and_of_none_is_none() -> None:
    assert Budget(max_responses=1).share(0.01) == Budget(max_responses=1)
    assert Budget(max_responses=0).share(1) == Budget(max_responses=0)


@pytest.mark.parametrize("part", [0, -0.5, 1.01, float("nan"), float("inf")])
def test_a_share_that_is_no_part_is_refused_with_what_it_may_be(part: float) -> None:
    with pytest.raises(ConfigurationError, match=r"budget_share is .*above 0 and at most 1"):
        Budget(max_dollars=1).share(part)


def test_counts_are_shared_out_as_responses_are_and_depth_is_not() -> None:
    whole = Budget(max_total_tokens=1_001, max_tool_calls=3, max_sub_convos=1, max_depth=4, advisory=True)
    assert whole.share(0.5) == Budget(
        max_total_tokens=500, max_tool_calls=1, max_sub_convos=1, max_depth=4, advisory=True
    )


def test_each_limit_can_be_raised_and_none_where_there_is_none() -> None:
    budget = Budget(max_dollars="0.1", max_wall_time=5, max_depth=1)
    assert budget.raised_by(Budget(max_dollars="0.2", max_wall_time=1, max_depth=2)) == Budget(
        max_dollars="0.3", max_wall_time=6, max_depth=3
    )
    with pytest.raises(ConfigurationError, match=r"max_responses cannot be raised.*limited: max_dollars"):
        budget.raised_by(Budget(max_responses=1))
    with pytest.raises(ConfigurationError, match="names no limit; say by how much"):
        budget.raised_by(Budget())
    with pytest.raises(ConfigurationError, match="is advisory; say by how much"):
        budget.raised_by(Budget(max_dollars=1, advisory=True))


def test_an_advisory_budget_is_never_the_tightest() -> None:
    budgets = [Budget(max_dollars=1, advisory=True), Budget(max_dollars=2)]
    assert Budget.tightest(budgets) == Budget(max_dollars=2)


def test_every_kind_of_limit_says_what_was_asked_for() -> None:
    def told(name: LimitName) -> str:
        return str(Breach(name, Decimal(9), Decimal(8), Decimal(1), Decimal(2)))

    assert told("max_dollars") == (
        "$8 spent, $1 reserved for requests under way, at least $2 more for the request, max_dollars is $9"
    )
    assert told("max_total_tokens") == (
        "8 tokens used, 1 reserved for requests under way, at least 2 more for the request, "
        "max_total_tokens is 9"
    )
    assert told("max_tool_calls").startswith("8 tool calls made, ")
    assert told("max_sub_convos").startswith("8 sub-conversations started, ")
    assert told("max_depth") == "2 levels below it asked for, max_depth is 9"


def test_the_model_is_told_of_the_tightest_limits_once_enough_of_them_is_used() -> None:
    root = Budget(max_dollars=10, max_responses=4, max_wall_time=100)
    own = Budget(max_dollars=1, max_total_tokens=1_000)
    root_left = Budget(max_dollars="0.12345", max_responses=3, max_wall_time=5)
    budgets = [(own, Budget(max_dollars="0.5", max_total_tokens=150)), (root, root_left)]
    assert notice(budgets, 0.8) == (
        "[Left of your budget: $0.1234 of $10.0000, 5 s of 100 s of time, 150 of 1000 tokens. "
        "Come to an end before it is used up.]"
    )
    assert notice(budgets, 0.99) == ""
    assert "3 of 4 responses" in notice(budgets, 0)


def test_the_tightest_budget_has_the_lowest_of_each_limit() -> None:
    budgets = [Budget(max_dollars=2, max_responses=3), Budget(max_dollars=1), Budget(max_wall_time=5)]
    assert Budget.tightest(budgets) == Budget(max_dollars=1, max_responses=3, max_wall_time=5)
    assert Budget.tightest([]) == Budget()
