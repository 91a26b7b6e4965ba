"""Usage reaching the root: a send at depth 1, 2, 4 and 8, against the same send by a root."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import ray
from report import in_pairs, ratio, report, say_ok

from palaver.actors import Convo, ConvoHandle
from palaver.actors.cluster import cluster
from palaver.providers.scripted import Scripted

CALLS = 30
ROUNDS = 5
DEPTHS = (1, 2, 4, 8)


def sends_s(convo: ConvoHandle) -> Callable[[], float]:
    """A measurement: the time of one send, from call to return, when all ancestors have counted it."""

    def measure() -> float:
        before = time.perf_counter()
        for _ in range(CALLS):
            ray.get(convo.send_user_text_message.remote("hi"))
        return (time.perf_counter() - before) / CALLS

    return measure


def main() -> None:
    """Print, for each depth, the ratio of a send there to a send of a root."""
    with cluster(num_cpus=2, log_to_driver=False):
        alone = Convo.remote(Scripted(say_ok))
        line = [Convo.remote(Scripted(say_ok))]
        for _ in range(max(DEPTHS)):
            line.append(ray.get(line[-1].sub_convo.remote()))
        for depth in DEPTHS:
            pairs = in_pairs(sends_s(line[depth]), sends_s(alone), ROUNDS)
            report(
                f"usage reaching the root from depth {depth}",
                ratio=ratio(pairs),
                send_ms=1e3 * statistics.median(ours for ours, _ in pairs),
                send_of_a_root_ms=1e3 * statistics.median(baseline for _, baseline in pairs),
            )


if __name__ == "__main__":
    main()
