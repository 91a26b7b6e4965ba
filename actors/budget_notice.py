"""What a model is told of its budget near the end of it, so that it can wrap up.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from decimal import ROUND_FLOOR, Decimal
from typing import Any

from palaver.actors.budget import Budget
from palaver.actors.errors import LimitName

_CENT_OF_A_CENT = Decimal("0.0001")


def _dollars(amount: Decimal) -> str:
    return f"${amount.quantize(_CENT_OF_A_CENT, ROUND_FLOOR):f}"


def _seconds(span: timedelta) -> str:
    return f"{span.total_seconds():.0f} s"


_SHOWN: Mapping[LimitName, tuple[str, Callable[[Any], str]]] = {
    "max_dollars": ("", _dollars),
    "max_wall_time": (" of time", _seconds),
    "max_responses": (" responses", str),
    "max_total_tokens": (" tokens", str),
    "max_tool_calls": (" tool calls", str),
}


def notice(budgets: Iterable[tuple[Budget, Budget]], from_part: float) -> str:
    """What is left of limits of which `from_part` (0 to 1) is used; empty when there is no such limit.

    `budgets` are those that hold, each with what is left of it; of each kind the tightest is told.
    """
    tightest: dict[LimitName, tuple[Any, Any]] = {}
    for budget, left in budgets:
        for name in _SHOWN:
            limit, rest = getattr(budget, name), getattr(left, name)
            if limit is not None and (name not in tightest or rest < tightest[name][0]):
                tightest[name] = (rest, limit)
    told = [
        f"{shown(rest)} of {shown(limit)}{unit}"
        for name, (unit, shown) in _SHOWN.items()
        if name in tightest
        for rest, limit in [tightest[name]]
        if not limit or float(1 - rest / limit) >= from_part
    ]
    if not told:
        return ""
    return f"[Left of your budget: {', '.join(told)}. Come to an end before it is used up.]"
