"""The ledger: every entry once, money exact, unknown costs shown as unknown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palaver.actors.ledger import CumulativeUsage, Entry, Ledger, LedgerEvent, ResponseCharged, ToolCalled
from palaver.providers.usage import Usage

START = datetime(2026, 11, 1, tzinfo=UTC)


def charge(request_id: str, cost: str | None = "0.1", answered: bool = True) -> ResponseCharged:
    usage = Usage(
        input_tokens=10,
        output_tokens=5,
        cache_read_input_tokens=3,
        cache_creation_input_tokens=2,
        cost_usd=None if cost is None else Decimal(cost),
    )
    return ResponseCharged(convo_id="c", request_id=request_id, usage=usage, answered=answered)


def sums(*entries: Entry, wall_time: timedelta = timedelta(hours=2)) -> CumulativeUsage:
    ledger = Ledger()
    for entry in entries:
        ledger.record(entry)
    return ledger.usage(START, wall_time)


def test_a_repeated_entry_counts_once() -> None:
    ledger = Ledger()
    assert ledger.record(charge("r1"))
    assert not ledger.record(charge("r1"))
    assert ledger.usage(START, timedelta()).responses == 1


def test_money_adds_up_to_the_last_digit() -> None:
    assert sums(*(charge(str(i), "0.1") for i in range(10))).total_cost_usd == Decimal("1.0")


def test_one_unknown_cost_makes_the_total_unknown_and_keeps_what_is_known() -> None:
    usage = sums(charge("1"), charge("2", cost=None))
    assert usage.total_cost_usd is None
    assert usage.dollars_per_hour is None
    assert usage.known_cost_usd == Decimal("0.1")
    assert usage.unpriced_responses == 1
    assert usage.responses == 2


def test_a_request_that_failed_costs_but_is_no_response() -> None:
    usage = sums(charge("1", answered=False))
    assert (usage.responses, usage.total_cost_usd) == (0, Decimal("0.1"))


def test_total_input_counts_cached_tokens_once() -> None:
    usage = sums(charge("1"))
    assert (usage.input_tokens, usage.total_input_tokens) == (10, 15)


def test_dollars_per_hour_is_zero_for_hardly_any_time() -> None:
    assert sums(charge("1", "6")).dollars_per_hour == Decimal(3)
    assert sums(charge("1", "6"), wall_time=timedelta(milliseconds=1)).dollars_per_hour == 0


def test_tool_calls_are_counted_by_name_and_once() -> None:
    call = ToolCalled(convo_id="c", tool_use_id="1", tool_name="bash")
    other = ToolCalled(convo_id="d", tool_use_id="1", tool_name="bash")
    assert sums(call, call, other).tool_uses == {"bash": 2}


def test_the_log_view_is_plain_values() -> None:
    view = sums(charge("1")).log_view()
    assert view["total_cost_usd"] == "0.1"
    assert view["wall_time_s"] == 7200.0
    assert all(isinstance(each, str | int | float | dict | None) for each in view.values())


def test_usage_is_a_snapshot_that_later_entries_do_not_change() -> None:
    ledger = Ledger()
    before = ledger.usage(START, timedelta())
    ledger.record(ToolCalled(convo_id="c", tool_use_id="1", tool_name="bash"))
    assert before.tool_uses == {}


def test_a_gap_in_the_events_is_refused() -> None:
    with pytest.raises(ValueError, match="event 2 does not follow event 0"):
        Ledger().apply(LedgerEvent(seq=2, entry=charge("1")))


@given(st.lists(st.tuples(st.integers(0, 20), st.decimals("0", "9", places=6)), max_size=40))
def test_replaying_the_events_gives_the_same_sums(charges: list[tuple[int, Decimal]]) -> None:
    events: list[LedgerEvent] = []
    ledger = Ledger(on_event=events.append)
    for request_id, cost in charges:
        ledger.record(charge(str(request_id), str(cost)))
    replayed = Ledger()
    for event in events:
        replayed.apply(LedgerEvent.model_validate_json(event.model_dump_json()))
    assert replayed.usage(START, timedelta()) == ledger.usage(START, timedelta())
    first_costs = dict(reversed(charges))
    assert ledger.usage(START, timedelta()).known_cost_usd == sum(first_costs.values(), Decimal())
