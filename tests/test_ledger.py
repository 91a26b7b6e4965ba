"""The ledger: reservations that never pass a limit, every entry once, money exact, unknown costs unknown."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_fakes import FakeClock

from palaver.actors.budget import Budget
from palaver.actors.entries import AccountOpened, LedgerEvent, ResponseCharged, ToolCalled
from palaver.actors.errors import BudgetExceeded, ConvoClosed, ConvoIdTaken, UnknownConvo, UnknownPrice
from palaver.actors.ledger import DEFAULT_OUTPUT_TOKENS, Ask, Grant, Ledger, Wait
from palaver.actors.treasury import RootTreasury
from palaver.providers.errors import ConfigurationError, PalaverError
from palaver.providers.usage import Usage
from palaver.providers.worst_case import WorstCase

CENT = Decimal("0.01")


def opened(convo_id: str, parent_id: str | None = None, **limits: Any) -> AccountOpened:
    return AccountOpened(
        convo_id=convo_id, parent_id=parent_id, budget=Budget(**limits), at=FakeClock().now()
    )


def tree(*accounts: AccountOpened, clock: FakeClock | None = None) -> Ledger:
    ledger = Ledger(clock or FakeClock())
    for each in accounts:
        ledger.open([each])
    return ledger


def worst(
    usd: str | None = "0.1", output: int | None = 1_000, rate: str = "0", input: int = 100, least: int = 256
) -> WorstCase:
    """A request that costs `usd` for its input and `rate` for a token of its answer."""
    return WorstCase(
        input_tokens=input,
        output_tokens=output,
        min_output_tokens=least,
        input_usd=None if usd is None else Decimal(usd),
        usd_per_output_token=None if usd is None else Decimal(rate),
    )


def ask(convo_id: str, request_id: str, **case: Any) -> Ask:
    return Ask(convo_id, request_id, worst(**case))


def charge(convo_id: str, request_id: str, usd: str | None = "0.1", answered: bool = True) -> ResponseCharged:
    usage = Usage(
        input_tokens=10,
        output_tokens=5,
        cache_read_input_tokens=3,
        cache_creation_input_tokens=2,
        cost_usd=None if usd is None else Decimal(usd),
    )
    return ResponseCharged(convo_id=convo_id, request_id=request_id, usage=usage, answered=answered)


def called(convo_id: str, *ids: str) -> list[ToolCalled]:
    return [ToolCalled(convo_id=convo_id, tool_use_id=id, tool_name="bash") for id in ids]


# Reserving


def test_an_account_that_is_opened_again_after_a_lost_answer_stays_one() -> None:
    first = opened("child", "root")
    ledger = tree(opened("root"), first)
    ledger.reserve(ask("child", "r1"))
    ledger.open([first])
    assert [each.convo_id for each in ledger.accounts("root")] == ["root", "child"]
    assert ledger.account("root").sub_convos == 1
    assert ledger.account("child").reserved_usd == Decimal("0.1")


def test_an_id_that_another_has_is_refused_and_none_is_opened_with_it() -> None:
    ledger = tree(opened("root"), opened("child", "root"))
    other = opened("child", "root").model_copy(update={"label": "another"})
    with pytest.raises(ConvoIdTaken, match="another conversation of the tree is called child"):
        ledger.open([opened("new", "root"), other])
    assert [each.convo_id for each in ledger.accounts("root")] == ["root", "child"]


def test_what_is_reserved_is_held_at_every_ancestor_and_comes_back() -> None:
    ledger = tree(opened("a", max_dollars=1), opened("b", "a"), opened("c", "b"))
    assert ledger.reserve(ask("c", "1", usd="0.4")) == Grant(None, None)
    assert [each.reserved_usd for each in ledger.accounts("a")] == [Decimal("0.4")] * 3
    ledger.settle(charge("c", "1", "0.25"))
    assert [each.reserved_usd for each in ledger.accounts("a")] == [0, 0, 0]
    assert [each.known_cost_usd for each in ledger.accounts("a")] == [Decimal("0.25")] * 3


def test_a_request_that_does_not_fit_at_one_ancestor_is_reserved_at_none() -> None:
    ledger = tree(opened("a", max_dollars=1), opened("b", "a", max_dollars="0.5"), opened("c", "b"))
    ledger.reserve(ask("c", "1", usd="0.4"))
    assert ledger.reserve(ask("c", "2", usd="0.2")) == Wait(("b",))
    assert [each.reserved_usd for each in ledger.accounts("a")] == [Decimal("0.4")] * 3


def test_a_request_waits_while_what_is_reserved_may_come_back() -> None:
    ledger = tree(opened("a", max_dollars=1), opened("b", "a"))
    ledger.reserve(ask("a", "1", usd="0.9"))
    assert ledger.reserve(ask("b", "2", usd="0.2")) == Wait(("a",))
    ledger.release("a", "1")
    assert isinstance(ledger.reserve(ask("b", "2", usd="0.2")), Grant)


def test_a_request_gets_a_smaller_answer_when_that_fits_and_is_of_use() -> None:
    ledger = tree(opened("a", max_dollars=1))
    ledger.settle(charge("a", "0", "0.5"))
    granted = ledger.reserve(ask("a", "1", usd="0.1", output=1_000, rate="0.001"))
    assert granted == Grant(max_tokens=400, time_left_s=None)
    assert next(iter(ledger.accounts("a"))).reserved_usd == Decimal("0.5")


def test_a_request_whose_smallest_useful_answer_does_not_fit_is_refused_by_name() -> None:
    ledger = tree(opened("a", max_dollars=1), opened("b", "a"))
    ledger.settle(charge("b", "0", "0.7"))
    ledger.reserve(ask("a", "1", usd="0.02"))
    with pytest.raises(BudgetExceeded) as refused:
        ledger.reserve(ask("b", "2", usd="0.1", output=1_000, rate="0.001"))
    assert refused.value.convo_id == "a"
    (breach,) = refused.value.breaches
    assert breach == ("max_dollars", Decimal(1), Decimal("0.7"), Decimal("0.02"), Decimal("0.356"))
    assert str(refused.value).startswith(
        "conversation a is over its budget: $0.7 spent, $0.02 reserved for requests under way, at least "
        "$0.356 more for the request, max_dollars is $1"
    )


def test_an_answer_that_nothing_bounds_is_bounded_where_a_limit_depends_on_it() -> None:
    assert tree(opened("a")).reserve(ask("a", "1", output=None, rate="1")) == Grant(None, None)
    free = tree(opened("a", max_dollars=1)).reserve(ask("a", "1", output=None))
    assert free == Grant(None, None)
    paid = tree(opened("a", max_dollars=100)).reserve(ask("a", "1", output=None, rate="0.001"))
    assert paid == Grant(DEFAULT_OUTPUT_TOKENS, None)


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({"max_dollars": "0.15"}, "max_dollars"),
        ({"max_responses": 1}, "max_responses"),
        ({"max_total_tokens": 1_200}, "max_total_tokens"),
    ],
)
def test_each_kind_of_limit_counts_what_is_reserved(limits: dict[str, Any], name: str) -> None:
    ledger = tree(opened("a", **limits))
    ledger.reserve(ask("a", "1"))
    assert ledger.reserve(ask("a", "2")) == Wait(("a",))
    ledger.settle(
        ResponseCharged(
            convo_id="a", request_id="1", usage=Usage(input_tokens=1_000, cost_usd=Decimal("0.1"))
        )
    )
    with pytest.raises(BudgetExceeded) as refused:
        ledger.reserve(ask("a", "2"))
    assert [each.limit_name for each in refused.value.breaches] == [name]


@pytest.mark.parametrize("limits", [{"max_dollars": 0}, {"max_responses": 0}, {"max_total_tokens": 0}])
def test_a_limit_of_zero_allows_nothing_not_even_what_is_free(limits: dict[str, Any]) -> None:
    with pytest.raises(BudgetExceeded):
        tree(opened("a", **limits)).reserve(ask("a", "1", usd="0", input=0))


def test_wall_time_is_inherited_and_the_shortest_holds() -> None:
    clock = FakeClock()
    ledger = tree(opened("a", max_wall_time=10), opened("b", "a", max_wall_time=60), clock=clock)
    clock.time_s = 7.5
    assert ledger.reserve(ask("b", "1")) == Grant(None, 2.5)
    clock.time_s = 10.0
    with pytest.raises(BudgetExceeded, match="conversation a is over its budget: 10 s elapsed"):
        ledger.reserve(ask("b", "2"))


def test_a_model_without_a_price_is_refused_under_a_dollar_limit_alone() -> None:
    ledger = tree(opened("a", max_dollars=1), opened("b", "a"))
    with pytest.raises(UnknownPrice, match=r"of model 'mystery' is not known.*conversation a.*price="):
        ledger.reserve(Ask("b", "1", worst(None), "mystery"))
    assert isinstance(tree(opened("a", max_total_tokens=10_000)).reserve(Ask("a", "1", worst(None))), Grant)


def test_an_advisory_budget_tells_and_refuses_nothing() -> None:
    ledger = tree(
        opened("a", max_dollars="0.1", max_responses=1, max_tool_calls=0, max_sub_convos=0, advisory=True)
    )
    ledger.open([opened("b", "a")])
    for request_id in ("1", "2"):
        assert isinstance(ledger.reserve(ask("b", request_id)), Grant)
        ledger.settle(charge("b", request_id))
    assert isinstance(ledger.reserve(Ask("b", "3", worst(None))), Grant)
    assert ledger.count(called("b", "1")).allowed == 1
    over = ledger.over_budget("b")
    assert over is not None
    assert [each.limit_name for each in over.breaches] == [
        "max_dollars",
        "max_responses",
        "max_tool_calls",
        "max_sub_convos",
    ]


def test_a_repeated_ask_is_granted_again_and_holds_no_more() -> None:
    ledger = tree(opened("a", max_dollars=1))
    small = ask("a", "1", usd="0.5", output=1_000, rate="0.001")
    assert ledger.reserve(small) == ledger.reserve(small) == Grant(500, None)
    assert next(iter(ledger.accounts("a"))).reserved_usd == 1


def test_an_answer_of_unknown_cost_counts_at_its_worst_and_is_shown_as_unknown() -> None:
    ledger = tree(opened("a", max_dollars=1))
    ledger.reserve(ask("a", "1", usd="0.6"))
    ledger.settle(charge("a", "1", None))
    usage = ledger.usage("a")
    assert (usage.total_cost_usd, usage.known_cost_usd, usage.unpriced_responses) == (None, 0, 1)
    assert ledger.left("a").max_dollars == Decimal("0.4")
    assert isinstance(ledger.reserve(ask("a", "2", usd="0.4")), Grant)


@pytest.mark.parametrize("told", [{}, {"input_tokens": 90}, {"output_tokens": 10}])
def test_an_answer_whose_tokens_are_not_told_counts_all_that_was_reserved(told: dict[str, int]) -> None:
    ledger = tree(opened("a", max_total_tokens=1_000), opened("b", "a"))
    ledger.reserve(ask("b", "1", input=100, output=500))
    unknown = Usage(**told, cost_usd=None)
    ledger.settle(ResponseCharged(convo_id="b", request_id="1", usage=unknown, answered=True))
    assert ledger.left("a").max_total_tokens == 400
    assert ledger.usage("a").total_tokens == sum(told.values())
    with pytest.raises(BudgetExceeded, match="600 tokens used"):
        ledger.reserve(ask("b", "2", input=100, output=500, least=400))
    ledger.reset_budget("a", Budget(max_total_tokens=700))
    assert ledger.left("a").max_total_tokens == 700


# Limits of tool calls and of sub-conversations


def test_as_many_tool_calls_run_as_fit_and_a_repeat_counts_once() -> None:
    ledger = tree(opened("a", max_tool_calls=3), opened("b", "a"))
    assert ledger.count(called("b", "1", "2")).over is None
    assert ledger.count(called("b", "1", "2")).allowed == 2
    counted = ledger.count(called("b", "3", "4", "5"))
    assert counted.allowed == 1
    assert str(counted.over).startswith(
        "conversation a is over its budget: 2 tool calls made, at least 3 more asked for, max_tool_calls is 3"
    )
    assert ledger.usage("a").tool_uses == {"bash": 3}


def test_sub_conversations_are_counted_over_all_descendants_ended_or_not() -> None:
    ledger = tree(opened("a", max_sub_convos=3), opened("b", "a"))
    ledger.open([opened("c", "b"), opened("d", "b")])
    ledger.close("c")
    with pytest.raises(BudgetExceeded, match="3 sub-conversations started, at least 1 more asked for"):
        ledger.open([opened("e", "d")])
    assert [each.convo_id for each in ledger.accounts("a")] == ["a", "b", "c", "d"]


def test_depth_is_counted_from_the_conversation_that_limits_it() -> None:
    ledger = tree(opened("a"), opened("b", "a", max_depth=1), opened("c", "b"))
    with pytest.raises(
        BudgetExceeded, match=r"conversation b .* 2 levels below it asked for, max_depth is 1"
    ):
        ledger.open([opened("d", "c")])


# Ending, funding


def test_what_a_lost_conversation_and_all_below_it_held_comes_back() -> None:
    ledger = tree(opened("a", max_dollars=1), opened("b", "a"), opened("c", "b"))
    ledger.reserve(ask("b", "1", usd="0.4"))
    ledger.reserve(ask("c", "2", usd="0.4"))
    ledger.close("b", lost=True)
    assert ledger.left("a").max_dollars == 1
    assert [(each.convo_id, each.lost) for each in ledger.accounts("a")] == [
        ("a", False),
        ("b", True),
        ("c", True),
    ]
    with pytest.raises(ConvoClosed, match="its process is gone"):
        ledger.reserve(ask("c", "3"))
    # What it still said before its end is true.
    ledger.settle(charge("c", "2", "0.3"))
    assert ledger.usage("a").total_cost_usd == Decimal("0.3")


def test_a_withdrawn_request_stays_withdrawn_when_its_ask_comes_late() -> None:
    ledger = tree(opened("a"))
    ledger.release("a", "1")
    assert ledger.has_ended("a", "1")


def test_fund_raises_the_limits_there_are() -> None:
    ledger = tree(opened("a", max_dollars=1, max_responses=2), opened("b", "a"))
    assert ledger.fund("a", Budget(max_dollars=5), asked_by="a") == Budget(max_dollars=6, max_responses=2)
    with pytest.raises(ConfigurationError, match="max_total_tokens cannot be raised: there is no such limit"):
        ledger.fund("a", Budget(max_total_tokens=5), asked_by="a")
    with pytest.raises(UnknownConvo, match="no conversation 'a' at or below b"):
        ledger.fund("a", Budget(max_dollars=5), asked_by="b")


def test_a_reset_budget_counts_from_what_was_used() -> None:
    clock = FakeClock()
    ledger = tree(opened("a", max_responses=1), clock=clock)
    ledger.settle(charge("a", "1", "0.2"))
    ledger.count(called("a", "1"))
    clock.time_s = 5.0
    ledger.reset_budget(
        "a", Budget(max_dollars=1, max_responses=1, max_total_tokens=100, max_tool_calls=2, max_wall_time=9)
    )
    assert ledger.left("a") == Budget(
        max_dollars=1, max_responses=1, max_total_tokens=100, max_tool_calls=2, max_wall_time=9
    )


# Sums


def test_a_repeated_entry_counts_once() -> None:
    ledger = tree(opened("a"), opened("b", "a"))
    assert ledger.settle(charge("b", "1"))
    assert not ledger.settle(charge("b", "1"))
    assert ledger.usage("a").responses == 1


def test_money_adds_up_to_the_last_digit_whatever_its_size() -> None:
    ledger = tree(opened("a"))
    for request_id, usd in enumerate(["1e-30", "12345678901234567890", "0.1", "0.2"]):
        ledger.settle(charge("a", str(request_id), usd))
    total = ledger.usage("a").total_cost_usd
    assert str(total) == "12345678901234567890.300000000000000000000000000001"


def test_one_unknown_cost_makes_the_total_unknown_and_keeps_what_is_known() -> None:
    ledger = tree(opened("a"))
    ledger.settle(charge("a", "1"))
    ledger.settle(charge("a", "2", None))
    usage = ledger.usage("a")
    assert (usage.total_cost_usd, usage.dollars_per_hour) == (None, None)
    assert (usage.known_cost_usd, usage.unpriced_responses, usage.responses) == (Decimal("0.1"), 1, 2)


def test_a_request_that_failed_costs_but_is_no_response() -> None:
    ledger = tree(opened("a"))
    ledger.settle(charge("a", "1", answered=False))
    usage = ledger.usage("a")
    assert (usage.responses, usage.total_cost_usd) == (0, Decimal("0.1"))


def test_totals_count_each_token_once() -> None:
    ledger = tree(opened("a"))
    ledger.settle(charge("a", "1"))
    usage = ledger.usage("a")
    assert (usage.input_tokens, usage.total_input_tokens, usage.total_tokens) == (10, 15, 20)


def test_dollars_per_hour_is_zero_for_hardly_any_time() -> None:
    clock = FakeClock()
    ledger = tree(opened("a"), clock=clock)
    ledger.settle(charge("a", "1", "6"))
    assert ledger.usage("a").dollars_per_hour == 0
    clock.time_s = 7200.0
    assert ledger.usage("a").dollars_per_hour == 3


def test_wall_time_stops_when_a_conversation_ends() -> None:
    clock = FakeClock()
    ledger = tree(opened("a"), opened("b", "a"), clock=clock)
    clock.time_s = 3.0
    ledger.close("b")
    clock.time_s = 9.0
    assert [ledger.usage(id).wall_time for id in "ab"] == [timedelta(seconds=9), timedelta(seconds=3)]


def test_the_log_view_is_plain_values() -> None:
    ledger = tree(opened("a"))
    ledger.settle(charge("a", "1"))
    view = ledger.usage("a").log_view()
    assert view["total_cost_usd"] == "0.1"
    assert all(isinstance(each, str | int | float | dict | None) for each in view.values())


def test_usage_is_a_snapshot_that_later_entries_do_not_change() -> None:
    ledger = tree(opened("a"))
    before = ledger.usage("a")
    ledger.count(called("a", "1"))
    assert before.tool_uses == {}


def test_a_gap_in_the_events_is_refused() -> None:
    with pytest.raises(ValueError, match="event 2 does not follow event 0"):
        Ledger().apply(LedgerEvent(seq=2, entry=charge("a", "1")))


# Any tree, any order, any failure

IDS = "abcdefgh"
DOLLARS = st.none() | st.decimals("0", "2", places=4)
SMALL = st.none() | st.integers(0, 12)


@st.composite
def trees(draw: st.DrawFn) -> list[AccountOpened]:
    """A root and up to seven below it, some with limits."""
    accounts: list[AccountOpened] = []
    for index, convo_id in enumerate(IDS[: draw(st.integers(1, len(IDS)))]):
        parent_id = None if index == 0 else IDS[draw(st.integers(0, index - 1))]
        tokens = draw(st.none() | st.integers(0, 20_000))
        accounts.append(
            opened(
                convo_id,
                parent_id,
                max_dollars=draw(DOLLARS),
                max_responses=draw(SMALL),
                max_total_tokens=tokens,
            )
        )
    return accounts


class Simulation:
    """Conversations that spend at once through one treasury, fail, are cancelled, killed and funded."""

    def __init__(self, accounts: Sequence[AccountOpened], seed: int) -> None:
        self.random = random.Random(seed)
        self.events: list[LedgerEvent] = []
        self.ledger = Ledger(FakeClock(), on_event=self.on_event)
        for each in accounts:
            self.ledger.open([each])
        self.treasury = RootTreasury(self.ledger)
        self.spent: dict[str, Decimal] = dict.fromkeys((each.convo_id for each in accounts), Decimal())
        self.alive = {each.convo_id for each in accounts}
        self.asks = 0
        self.under_way: dict[str, tuple[str, WorstCase, asyncio.Task[Grant]]] = {}

    def on_event(self, event: LedgerEvent) -> None:
        self.events.append(event)
        self.check_limits()

    def check_limits(self) -> None:
        """Of no conversation may what is spent and reserved pass a limit, whatever just happened."""
        for account in self.ledger.accounts("a"):
            limits = account.budget
            if limits.max_dollars is not None:
                assert account.known_cost_usd + account.reserved_usd <= limits.max_dollars
            if limits.max_responses is not None:
                assert account.responses + account.reserved_responses <= limits.max_responses
            if limits.max_total_tokens is not None:
                assert account.committed_tokens + account.reserved_tokens <= limits.max_total_tokens

    def begin(self) -> None:
        convo_id = self.random.choice(sorted(self.alive))
        self.asks += 1
        case = worst(
            str(Decimal(self.random.randrange(0, 5_000)) / 10_000),
            output=self.random.randrange(1, 4_000),
            rate=str(Decimal(self.random.randrange(0, 20)) / 100_000),
            input=self.random.randrange(0, 3_000),
        )
        task = asyncio.create_task(self.treasury.reserve(Ask(convo_id, str(self.asks), case)))
        self.under_way[str(self.asks)] = (convo_id, case, task)

    async def end_one(self) -> None:
        """One request ends: answered, failed at a cost, failed, cancelled while it waits, or told twice."""
        request_id = self.random.choice(sorted(self.under_way))
        convo_id, case, task = self.under_way.pop(request_id)
        if not task.done() or self.random.random() < 0.3:
            task.cancel()
            await asyncio.wait({task})
            for _ in range(self.random.randrange(1, 3)):
                await self.treasury.release(convo_id, request_id)
            return
        if task.exception() is not None:
            assert isinstance(task.exception(), PalaverError)
            return
        output = self.random.randrange(0, (task.result().max_tokens or case.output_tokens or 0) + 1)
        assert case.input_usd is not None
        assert case.usd_per_output_token is not None
        part = Decimal(self.random.randrange(0, 101)) / 100
        cost = case.input_usd * part + case.usd_per_output_token * output
        usage = Usage(
            input_tokens=self.random.randrange(0, case.input_tokens + 1), output_tokens=output, cost_usd=cost
        )
        answered = self.random.random() < 0.8
        told = ResponseCharged(convo_id=convo_id, request_id=request_id, usage=usage, answered=answered)
        for _ in range(self.random.randrange(1, 3)):
            await self.treasury.settle(told)
        for ancestor in self.ledger.lineage(convo_id):
            self.spent[ancestor] += cost

    async def kill(self) -> None:
        """A conversation's process dies with all below it; what it asked for is never heard of again."""
        convo_id = self.random.choice(sorted(self.alive - {"a"}) or ["a"])
        if convo_id == "a":
            return
        await self.treasury.close(convo_id, lost=True)
        dead = {each.convo_id for each in self.ledger.accounts(convo_id)}
        self.alive -= dead
        for request_id, (asker, _, task) in list(self.under_way.items()):
            if asker in dead:
                del self.under_way[request_id]
                task.cancel()
                await asyncio.wait({task})

    async def fund(self) -> None:
        convo_id = self.random.choice(sorted(self.alive))
        limits = self.ledger.account(convo_id).budget.limits
        limits_of_one: dict[str, Any] = dict.fromkeys(limits, 1)
        if limits:
            await self.treasury.fund(convo_id, Budget(**limits_of_one), asked_by="a")

    async def settle_down(self) -> None:
        """Let whoever can go on do so. Where nothing is reserved, nobody has anything to wait for."""
        for _ in range(3):
            await asyncio.sleep(0)
        if self.ledger.account("a").reserved_responses == 0:
            assert all(task.done() for _, _, task in self.under_way.values())

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            match self.random.randrange(10):
                case 0 | 1 | 2 | 3 | 4:
                    self.begin()
                case 5 | 6 | 7 if self.under_way:
                    await self.end_one()
                case 8:
                    await self.kill()
                case _:
                    await self.fund()
            await self.settle_down()
        while self.under_way:
            await self.end_one()
            await self.settle_down()


@settings(max_examples=300, deadline=None)
@given(trees(), st.integers(0, 2**32), st.integers(1, 60))
def test_no_limit_is_passed_no_headroom_lost_and_every_sum_is_exact(
    accounts: list[AccountOpened], seed: int, steps: int
) -> None:
    simulation = Simulation(accounts, seed)
    asyncio.run(simulation.run(steps))
    for account in simulation.ledger.accounts("a"):
        assert (account.reserved_usd, account.reserved_tokens, account.reserved_responses) == (0, 0, 0)
        assert account.known_cost_usd == simulation.spent[account.convo_id]
    replayed = Ledger(FakeClock())
    for event in simulation.events:
        replayed.apply(LedgerEvent.model_validate_json(event.model_dump_json()))
    for account in simulation.ledger.accounts("a"):
        assert replayed.usage(account.convo_id) == simulation.ledger.usage(account.convo_id)
        assert replayed.left(account.convo_id) == simulation.ledger.left(account.convo_id)
