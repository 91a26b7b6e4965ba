"""What a budget costs a request: a send at depth 1, 2, 4 and 8 under limits of every conversation on its way
to the root, against the same send without any; and against the send of a root, which asks no other process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import ray
from report import in_pairs, ratio, report

from palaver.actors import Budget, Convo, ConvoHandle
from palaver.actors.cluster import cluster
from palaver.providers.prices import Price
from palaver.providers.provider import Request
from palaver.providers.scripted import Reply, Scripted

CALLS = 30
ROUNDS = 9
DEPTHS = (1, 2, 4, 8)

LIMITS = Budget(
    max_dollars=1_000, max_responses=10**6, max_total_tokens=10**9, max_tool_calls=10**6, max_wall_time=3_600
)


def say_ok(_: Request) -> Reply:
    """A script for an instant provider that always answers the same."""
    return "ok"


def sends_s(convo: ConvoHandle) -> Callable[[], float]:
    """A measurement: the time of one send, from call to return, when all ancestors have counted it."""

    def measure() -> float:
        before = time.perf_counter()
        for _ in range(CALLS):
            ray.get(convo.send_user_text_message.remote("hi"))
        return (time.perf_counter() - before) / CALLS

    return measure


def root_of(budget: Budget) -> ConvoHandle:
    """A root with that budget."""
    model = Scripted(say_ok, price=Price.per_million_tokens(3, 15), max_tokens=1_000)
    return Convo.remote(model, budget=budget)


def line(budget: Budget) -> list[ConvoHandle]:
    """A root and one conversation on each level below it, each with that budget."""
    convos = [root_of(budget)]
    for _ in range(max(DEPTHS)):
        convos.append(ray.get(convos[-1].sub_convo.remote(budget=budget, max_tokens=1_000)))
    return convos


def main() -> None:
    """Print, for each depth, the ratio of a send with budgets to one without."""
    with cluster(num_cpus=2, log_to_driver=False):
        limited, unlimited = line(LIMITS), line(Budget())
        for depth in (0, *DEPTHS):
            pairs = in_pairs(sends_s(limited[depth]), sends_s(unlimited[depth]), ROUNDS)
            # New ones, since a longer history makes longer requests.
            leaf = (
                ray.get(limited[depth - 1].sub_convo.remote(max_tokens=1_000)) if depth else root_of(LIMITS)
            )
            to_root = in_pairs(sends_s(leaf), sends_s(root_of(Budget())), ROUNDS)
            report(
                f"budgets at depth {depth}",
                ratio=ratio(pairs),
                **({"target": "1.3 or less"} if depth == 1 else {}),
                ratio_to_a_root_without=ratio(to_root),
                with_ms=1e3 * statistics.median(ours for ours, _ in pairs),
                without_ms=1e3 * statistics.median(baseline for _, baseline in pairs),
            )


if __name__ == "__main__":
    main()
