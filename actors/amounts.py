"""Amounts as people read them: money, tokens, time, and what was used of them.

Layer: actors, command line; no Ray.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from palaver.actors.budget import Budget
from palaver.actors.usage import EXACT, CumulativeUsage


def dollars(amount: Decimal | None) -> str:
    """USD to six decimals at most; "unknown cost" for None."""
    if amount is None:
        return "unknown cost"
    if not amount:
        return "$0"
    smallest = Decimal("0.000001")
    if 0 < amount < smallest:
        return "<$0.000001"
    text = f"{amount.quantize(smallest, context=EXACT):f}"
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents.rstrip('0').ljust(2, '0')}"


def tokens(count: int) -> str:
    """A number of tokens, short: 950, 12.3k, 4.56M."""
    if count < 1_000:
        return str(count)
    if count < 999_950:
        return f"{count / 1_000:.1f}k"
    return f"{count / 1_000_000:.2f}M"


def duration(span: timedelta) -> str:
    """A length of time: 9.5 s, 75 s, 12 min 5 s, 3 h 20 min."""
    seconds = span.total_seconds()
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def against(usage: CumulativeUsage, budget: Budget, reserved_usd: Decimal = Decimal()) -> str:
    """What was used, against the limits there are; `reserved_usd` is kept for requests under way."""

    def of(limit: str | None) -> str:
        return "" if limit is None else f" of {limit}"

    money = f" (+{dollars(reserved_usd)} reserved)" if reserved_usd else ""
    money += of(None if budget.max_dollars is None else dollars(budget.max_dollars))
    turns = of(None if budget.max_responses is None else str(budget.max_responses))
    wall = of(None if budget.max_wall_time is None else duration(budget.max_wall_time))
    told = [
        f"{usage.responses}{turns} turns",
        f"{tokens(usage.total_input_tokens)} in",
        f"{tokens(usage.output_tokens)} out",
        f"{dollars(usage.total_cost_usd)}{money}",
        f"{duration(usage.wall_time)}{wall}",
    ]
    if budget.max_total_tokens is not None:
        told.append(f"{tokens(usage.total_tokens)} of {tokens(budget.max_total_tokens)} tokens")
    if budget.max_tool_calls is not None:
        told.append(f"{usage.tool_calls} of {budget.max_tool_calls} tool calls")
    if budget.max_sub_convos is not None:
        told.append(f"{usage.sub_convos} of {budget.max_sub_convos} sub-conversations")
    return ", ".join(told)


def progress(done: int, total: int, took: timedelta, spent_usd: Decimal | None) -> str:
    """How far many items are: how many, how many a second, what each cost, and when all will be done."""
    told = [f"{done} of {total} done"]
    took_s = took.total_seconds()
    if done and took_s > 0:
        rate = done / took_s
        told.append(f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min")
        if spent_usd:
            told.append(f"{dollars(spent_usd / done)} each")
        if done < total:
            told.append(f"{duration(timedelta(seconds=(total - done) / rate))} left")
    return ", ".join(told)


def summary(usage: CumulativeUsage, budget: Budget) -> str:
    """The usage of a whole tree at its end, in a few lines."""
    cached = ""
    if usage.cache_read_input_tokens or usage.cache_creation_input_tokens:
        cached = (
            f" ({usage.cache_read_input_tokens} of them read from the cache, "
            f"{usage.cache_creation_input_tokens} written to it)"
        )
    cost = dollars(usage.total_cost_usd)
    if usage.total_cost_usd is None:
        count = usage.unpriced_responses
        cost = (
            f"unknown ({count} response{'s' if count > 1 else ''} without a known price or without "
            f"its tokens; {dollars(usage.known_cost_usd)} for the others)"
        )
    if budget.max_dollars is not None:
        cost += f" of {dollars(budget.max_dollars)}"
        if usage.known_cost_usd > budget.max_dollars:
            cost += ", MORE than the limit: the provider charged more than the price that was reckoned with"
    calls = ", ".join(f"{name} {count}" for name, count in sorted(usage.tool_uses.items()))
    lines = [
        f"responses   {usage.responses}",
        f"tokens      {usage.total_input_tokens} in{cached}, {usage.output_tokens} out",
        f"cost        {cost}",
        f"wall time   {duration(usage.wall_time)}",
    ]
    if calls:
        lines.append(f"tool calls  {calls}")
    return "\n".join(lines)
