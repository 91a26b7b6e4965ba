"""Budgets over a tree of conversations in one process: who is refused, who waits, what each request gets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any, cast

import pytest
from wire_fakes import FakeClock

from palaver.actors.budget import Budget
from palaver.actors.conversation import Conversation
from palaver.actors.errors import BudgetExceeded, ConvoCancelled, UnknownConvo, UnknownPrice
from palaver.actors.kin import State
from palaver.actors.ledger import DEFAULT_OUTPUT_TOKENS
from palaver.actors.settings import Settings
from palaver.providers.errors import ConfigurationError, Overloaded
from palaver.providers.messages import Message, ToolUse
from palaver.providers.prices import Price
from palaver.providers.provider import Request, Response
from palaver.providers.scripted import Reply, Scripted
from palaver.providers.usage import Usage
from palaver.providers.worst_case import CountedInput, WorstCase
from palaver.tools import ToolOverBudget, tool
from palaver.tools.toolset import InlineToolset

WORD_USD = Decimal("0.001")
"""What a word costs, asked or answered, at PRICE."""

PRICE = Price.per_million_tokens(1_000, 1_000)


@tool
async def echo(text: str) -> str:
    """Give the text back."""
    return text


@tool
async def hang() -> str:
    """Never end."""
    await asyncio.Event().wait()
    return "unreachable"


def words(count: int) -> str:
    return " ".join(["word"] * count)


def priced(reply: Reply | Callable[[Request], Reply], **options: Any) -> Scripted:
    script = reply if callable(reply) else lambda _: reply
    return Scripted(script, price=PRICE, **options)


def convo(provider: Any, *tools: Any, clock: FakeClock | None = None, **settings: Any) -> Conversation:
    return Conversation(provider, InlineToolset(tools), Settings(**settings), clock=clock)


async def below(parent: Conversation, *tools: Any, **settings: Any) -> Conversation:
    return await parent.sub_conversation(InlineToolset(tools), Settings(**settings))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


class Gated(Scripted):
    """Answers when it is let; `waiting` are the requests that came and have no answer yet."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.waiting: list[Request] = []
        self.let = asyncio.Event()

    async def generate(self, request: Request) -> Response:
        self.waiting.append(request)
        try:
            await self.let.wait()
        finally:
            self.waiting.remove(request)
        return await super().generate(request)


# Where budgets are


async def test_a_budget_in_the_middle_of_the_tree_stops_its_branch_and_no_other() -> None:
    root = convo(priced("a b c"))
    middle = await below(root, budget=Budget(max_responses=1))
    leaf, elsewhere = await below(middle), await below(root)
    await leaf.send_user_text_message("x")
    for each in (leaf, middle):
        with pytest.raises(BudgetExceeded, match=f"conversation {middle.id} is over its budget"):
            await each.send_user_text_message("x")
    await elsewhere.send_user_text_message("x")
    await root.send_user_text_message("x")


async def test_of_two_budgets_in_one_path_both_are_kept_and_the_one_that_refuses_is_named() -> None:
    root = convo(priced(words(9)), budget=Budget(max_dollars=Decimal("0.021")), max_tokens=9)
    child = await below(root, budget=Budget(max_dollars=Decimal("0.015")), max_tokens=9)
    await child.send_user_text_message("x")
    with pytest.raises(BudgetExceeded, match=f"conversation {child.id} is over") as refused:
        await child.send_user_text_message("x")
    assert refused.value.breaches[0].actual == Decimal("0.010")
    await root.send_user_text_message("x")
    with pytest.raises(BudgetExceeded, match=f"conversation {root.id} is over"):
        await root.send_user_text_message("x")
    assert (await root.cumulative_usage()).total_cost_usd == Decimal("0.020")


async def test_a_fund_while_fifty_wait_lets_them_go_on() -> None:
    provider = Gated(lambda _: words(9), price=PRICE)
    root = convo(provider)
    middle = await below(root, budget=Budget(max_responses=1))
    leaves = [await below(middle) for _ in range(51)]
    sends = [asyncio.create_task(each.send_user_text_message("x")) for each in leaves]
    await until(lambda: sum(each.exchanges.is_held for each in leaves) == 50)
    await until(lambda: len(provider.waiting) == 1)
    assert [each.state for each in (await middle.tree()).children].count(State.HELD) == 50
    with pytest.raises(UnknownConvo, match=f"no conversation '{root.id}' at or below {middle.id}"):
        await middle.fund(root.id, Budget(max_responses=1))
    await root.fund(middle.id, Budget(max_responses=50))
    await until(lambda: len(provider.waiting) == 51)
    provider.let.set()
    assert len(await asyncio.gather(*sends)) == 51


async def test_nothing_is_sent_of_a_model_without_a_price_under_a_dollar_limit_anywhere_above() -> None:
    provider = Scripted(["never"], cost_usd=None, model="mystery")
    child = await below(convo(provider, budget=Budget(max_dollars=1)))
    with pytest.raises(UnknownPrice, match="'mystery' is not known"):
        await child.send_user_text_message("x")
    assert provider.requests == []


# What a request gets


async def test_the_last_request_is_sent_with_the_smaller_answer_that_fits() -> None:
    provider = priced(words(1_000))
    c = convo(provider, budget=Budget(max_dollars="1.401"), max_tokens=1_000)
    await c.send_user_text_message("one")
    # One dollar and a tenth of a cent are spent; the next has 1,002 words of input before its answer.
    await c.reset_budget(Budget(max_dollars="1.402"))
    response = await c.send_user_text_message("two")
    assert (provider.requests[1].max_tokens, response.usage.output_tokens) == (400, 400)
    assert (await c.budget_left()).max_dollars == 0


async def test_an_answer_that_nothing_bounds_is_bounded_under_a_limit_it_could_pass() -> None:
    provider = priced("ok")
    await convo(provider).send_user_text_message("x")
    await convo(provider, budget=Budget(max_total_tokens=10_000)).send_user_text_message("x")
    assert [each.max_tokens for each in provider.requests] == [None, DEFAULT_OUTPUT_TOKENS]


async def test_what_is_reserved_is_shown_and_left_to_nobody() -> None:
    provider = Gated(lambda _: words(9), price=PRICE)
    root = convo(provider, budget=Budget(max_dollars=1))
    child = await below(root, max_tokens=99)
    send = asyncio.create_task(child.send_user_text_message("x"))
    await until(lambda: provider.waiting)
    tree = await root.tree()
    assert [each.reserved_usd for each in tree.walk()] == [Decimal("0.1")] * 2
    assert [each.spent_usd for each in tree.walk()] == [0, 0]
    assert (await root.budget_left()).max_dollars == Decimal("0.9")
    assert await root.budget_share(0.5) == Budget(max_dollars=Decimal("0.45"))
    provider.let.set()
    await send
    assert [each.reserved_usd for each in (await root.tree()).walk()] == [0, 0]


async def test_input_that_the_provider_has_counted_is_not_estimated_again() -> None:
    told: list[CountedInput | None] = []

    class Telling(Scripted):
        def worst_case(self, request: Request, counted: CountedInput | None = None) -> WorstCase:
            told.append(counted)
            return super().worst_case(request, counted)

    c = convo(Telling(["a b", "c"], price=PRICE))
    await c.send_user_text_message("x y z")
    await c.send_user_text_message("again")
    assert told == [None, CountedInput(messages=1, input_tokens=3, output_tokens=2)]


# What becomes of a request


async def test_a_cancelled_wait_gives_its_place_to_the_next() -> None:
    provider = Gated(lambda _: words(9), price=PRICE)
    root = convo(provider, budget=Budget(max_dollars="0.03"))
    first, large, small = [await below(root, max_tokens=size) for size in (20, 25, 2)]
    sends = [asyncio.create_task(each.send_user_text_message("x")) for each in (first, large, small)]
    await until(lambda: small.exchanges.is_held)
    report = await large.cancel("no more")
    assert report.requests
    with pytest.raises(ConvoCancelled):
        await sends[1]
    await until(lambda: len(provider.waiting) == 2)
    provider.let.set()
    await asyncio.gather(sends[0], sends[2])


@pytest.mark.parametrize("charged", [None, Decimal("0.25")])
async def test_a_request_that_fails_gives_back_what_it_was_not_charged(charged: Decimal | None) -> None:
    usage = None if charged is None else Usage(cost_usd=charged)
    provider = Scripted([Overloaded("busy", usage=usage)] * 3, cost_usd=Decimal("0.3"))
    c = convo(provider, clock=FakeClock(), budget=Budget(max_dollars=1))
    with pytest.raises(Overloaded):
        await c.send_user_text_message("x")
    assert (await c.tree()).reserved_usd == 0
    assert (await c.cumulative_usage()).total_cost_usd == (charged or 0) * len(provider.requests)


async def test_a_charged_try_is_made_again_only_within_the_budget_each_with_an_id_of_its_own() -> None:
    failure = Overloaded("cut", usage=Usage(output_tokens=5, cost_usd=Decimal("0.4")))
    clock = FakeClock()
    provider = Scripted([failure, "ok"], cost_usd=Decimal("0.4"))
    response = await convo(provider, clock=clock, budget=Budget(max_dollars=1)).send_user_text_message("x")
    assert response.message.text == "ok"
    assert len(clock.waits) == 1
    assert len({each.id for each in provider.requests}) == 2
    assert all(not each.retry_charged for each in provider.requests)
    provider = Scripted([failure, "ok"], cost_usd=Decimal("0.4"))
    c = convo(provider, clock=FakeClock(), budget=Budget(max_dollars="0.7"))
    with pytest.raises(BudgetExceeded, match=r"\$0.4 spent, at least \$0.4 more"):
        await c.send_user_text_message("x")
    assert len(provider.requests) == 1


async def test_a_deadline_of_an_ancestor_stops_a_request() -> None:
    provider = Gated(lambda _: "late")
    root = convo(provider, budget=Budget(max_wall_time=0.05))
    leaf = await below(await below(root), budget=Budget(max_wall_time=60))
    with pytest.raises(BudgetExceeded, match=f"conversation {root.id} is over its budget: 0 s elapsed"):
        await leaf.send_user_text_message("x")
    assert provider.waiting == []


async def test_a_run_that_a_deadline_stops_tells_why_its_last_try_failed() -> None:
    failure = Overloaded("out of capacity", usage=Usage(input_tokens=1, output_tokens=1, cost_usd=Decimal()))

    class FailsFirst(Gated):
        failed = False

        async def generate(self, request: Request) -> Response:
            if not self.failed:
                self.failed = True
                raise failure
            return await super().generate(request)

    provider = FailsFirst(lambda _: "late")
    c = convo(provider, clock=FakeClock(), budget=Budget(max_wall_time=0.05))
    result = await c.run("x")
    assert result.stop == "budget"
    assert str(result.detail).endswith("; the last try before that failed: out of capacity")


async def test_only_a_budget_can_be_set_or_raised_by() -> None:
    c = convo(Scripted(()), budget=Budget(max_dollars=1))
    for no_budget in (5, None, {"max_dollars": 1}):
        with pytest.raises(ConfigurationError, match=r"pass a Budget\(...\)"):
            await c.fund(c.id, cast("Any", no_budget))
        with pytest.raises(ConfigurationError, match=r"pass a Budget\(...\)"):
            await c.reset_budget(cast("Any", no_budget))


async def test_a_deadline_of_an_ancestor_stops_a_tool_and_the_run() -> None:
    root = convo(Scripted(lambda _: ToolUse(id="1", name="hang")), budget=Budget(max_wall_time=0.05))
    leaf = await below(await below(root), hang)
    result = await leaf.run("go")
    assert (result.stop, result.responses) == ("budget", 1)
    (stopped,) = leaf.transcript.kept_results
    assert stopped.is_error
    assert "max_wall_time is 0.05 s" in stopped.text


async def test_a_deadline_that_is_raised_meanwhile_holds_at_its_new_length() -> None:
    clock, provider = FakeClock(), Gated(lambda _: "in time")
    root = convo(provider, clock=clock, budget=Budget(max_wall_time=0.02))
    child = await below(root)
    send = asyncio.create_task(child.send_user_text_message("x"))
    await until(lambda: provider.waiting)
    await root.fund(root.id, Budget(max_wall_time=60))
    clock.time_s = 0.03
    await asyncio.wait({send}, timeout=0.05)
    assert not send.done()
    provider.let.set()
    assert (await send).message.text == "in time"


# Tool calls


async def test_tool_calls_beyond_the_limit_are_answered_and_not_run() -> None:
    calls = [ToolUse(id=id, name="echo", input={"text": id}) for id in "abc"]
    root = convo(Scripted([Message.assistant(*calls), "done"]), budget=Budget(max_tool_calls=2))
    child = await below(root, echo)
    result = await child.run("go")
    assert (result.stop, result.text) == ("end_turn", "done")
    results = child.transcript.messages[2].tool_results
    assert [each.is_error for each in results] == [False, False, True]
    assert f"the tool 'echo' was not called: conversation {root.id} is over its budget" in results[2].text
    assert (await root.cumulative_usage()).tool_calls == 2


async def test_a_run_whose_calls_are_all_refused_stops_and_can_go_on_when_funded() -> None:
    ids = iter("abc")
    script = [ToolUse(id=next(ids), name="echo", input={"text": "x"}) for _ in range(2)]
    c = convo(Scripted([*script, "done"]), echo, budget=Budget(max_tool_calls=1))
    result = await c.run("go")
    assert (result.stop, result.responses) == ("budget", 2)
    assert result.detail is not None
    assert "max_tool_calls is 1" in result.detail
    assert (await c.run("")).text == "done"


async def test_a_refused_call_is_told_as_what_it_is() -> None:
    from palaver.actors.listener import NoopListener

    class Told(NoopListener):
        def on_tool_result(self, convo: Any, call: Any, result: Any, error: Any) -> None:
            errors.append(error)

    errors: list[Any] = []
    c = Conversation(
        Scripted([ToolUse(id="1", name="echo", input={"text": "x"})]),
        InlineToolset([echo]),
        Settings(budget=Budget(max_tool_calls=0)),
        listener=Told(),
    )
    await c.run("go")
    assert [type(each) for each in errors] == [ToolOverBudget]


# Sub-conversations


async def test_sub_conversations_are_limited_in_number_and_depth_from_any_ancestor() -> None:
    root = convo(Scripted(()), budget=Budget(max_sub_convos=2, max_depth=2))
    child = await below(root)
    grandchild = await below(child)
    with pytest.raises(BudgetExceeded, match=f"conversation {root.id} .*max_sub_convos is 2; 3 levels"):
        await below(grandchild)
    assert len(list((await root.tree()).walk())) == 3


# What the model is told


async def test_the_model_is_told_what_is_left_once_enough_is_used() -> None:
    provider = priced(words(300))
    c = convo(provider, budget=Budget(max_dollars=1, max_responses=9), max_tokens=300, tell_budget_from=0.5)
    await c.send_user_text_message("one")
    await c.send_user_text_message("two")
    first, second = (each.messages[-1].content for each in provider.requests)
    assert len(first) == 1
    assert [part.text for part in second if part.type == "text"] == ["two"]
    await c.reset_budget(Budget(max_dollars="0.9"))
    await c.send_user_text_message("three")
    told = provider.requests[2].messages[-1].content[-1]
    assert told.type == "text"
    assert told.text.startswith("[Left of your budget: $0.9000 of $1.8030.")
    assert provider.requests[2].messages[-1] in c.transcript.messages


@pytest.mark.parametrize("part", [-0.1, 1.1, "half"])
def test_a_part_that_is_none_is_refused(part: Any) -> None:
    with pytest.raises(ConfigurationError, match="tell_budget_from"):
        convo(Scripted(()), tell_budget_from=part)
