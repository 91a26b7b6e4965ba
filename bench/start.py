"""Conversations started per second, against a bare Ray actor with one async method (0.8 or better)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import ray
from report import Bare, in_pairs, ratio, report, say_ok

from palaver.actors import Convo
from palaver.actors.cluster import cluster
from palaver.providers.scripted import Scripted

AT_ONCE = 8
ROUNDS = 7


def started_per_s(start: Callable[[], Any], ping: Callable[[Any], Any]) -> float:
    """Start some at once, until all have answered. Those of the round before are gone by then."""
    before = time.monotonic()
    actors = [start() for _ in range(AT_ONCE)]
    ray.get([ping(actor) for actor in actors])
    rate = AT_ONCE / (time.monotonic() - before)
    for actor in actors:
        ray.kill(actor)
    time.sleep(1)
    return rate


def main() -> None:
    """Print the rate of conversations and of bare actors, and their ratio."""
    provider = Scripted(say_ok)
    # Workers that Ray keeps for tasks would make some of the starts free.
    with cluster(num_cpus=2, log_to_driver=False):
        pairs = in_pairs(
            lambda: started_per_s(lambda: Convo.remote(provider), lambda convo: convo.id.remote()),
            lambda: started_per_s(Bare.remote, lambda bare: bare.ping.remote()),
            ROUNDS,
        )
    report(
        "start",
        ratio=ratio(pairs),
        target="0.8 or more",
        convos_per_s=statistics.median(ours for ours, _ in pairs),
        bare_actors_per_s=statistics.median(bare for _, bare in pairs),
    )


if __name__ == "__main__":
    main()
