"""`run` with an instant provider and one tool, against a bare actor call plus a bare task (1.5 or less)."""

from __future__ import annotations

import statistics
import time
from typing import Any, cast

import ray
from report import Bare, in_pairs, ratio, report

from palaver.actors import Convo
from palaver.actors.cluster import cluster
from palaver.providers.messages import ToolUse
from palaver.providers.provider import Request
from palaver.providers.scripted import Reply, Scripted
from palaver.tools import tool

CALLS = 30
ROUNDS = 15


@tool
def noop() -> str:
    """Do nothing."""
    return "ok"


@ray.remote(num_cpus=0)
def bare_task() -> str:
    """Do nothing."""
    return "ok"


def one_tool_then_done(request: Request) -> Reply:
    """A script: one tool call, then the end."""
    last = request.messages[-1]
    return "done" if last.tool_results else ToolUse(id=request.id, name="noop")


def main() -> None:
    """Print the time of a run and of what it cannot do without, and their ratio."""
    with cluster(num_cpus=2, log_to_driver=False):
        bare = cast("Any", Bare).remote()

        def runs_s() -> float:
            # A conversation of its own for each round: a longer history makes longer requests.
            convo = Convo.remote(Scripted(one_tool_then_done), tools=[noop])
            ray.get(convo.run.remote("go"))
            before = time.perf_counter()
            for _ in range(CALLS):
                ray.get(convo.run.remote("go"))
            took_s = (time.perf_counter() - before) / CALLS
            ray.kill(convo)  # pyright: ignore[reportArgumentType]
            return took_s

        def bare_s() -> float:
            before = time.perf_counter()
            for _ in range(CALLS):
                ray.get(bare.ping.remote())
                ray.get(bare_task.remote())
            return (time.perf_counter() - before) / CALLS

        pairs = in_pairs(runs_s, bare_s, ROUNDS)
    report(
        "run",
        ratio=ratio(pairs),
        target="1.5 or less",
        run_ms=1e3 * statistics.median(ours for ours, _ in pairs),
        bare_call_and_task_ms=1e3 * statistics.median(baseline for _, baseline in pairs),
    )


if __name__ == "__main__":
    main()
