"""A hundred conversations behind the rate gate, at a server that allows 5 requests a second and tells of it
by 429 alone: how many are refused, how much of what is allowed is used, how long the unluckiest takes.

`python bench/gate.py CONVERSATIONS REQUESTS`: so many processes (100), of which each sends so many requests
(10), undisturbed and with the gate killed half-way. Ten minutes, and 6 GB.
The clock runs from the first conversation's first request: that all wake up at once is part of it.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, cast

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))
os.environ["PYTHONPATH"] = str(TESTS)

import ray  # noqa: E402
from report import report  # noqa: E402
from test_rate_gate import limiting_server  # noqa: E402

from palaver.actors import Convo, reply  # noqa: E402
from palaver.actors.cluster import cluster  # noqa: E402
from palaver.actors.rate_gate import gate_actor  # noqa: E402
from palaver.providers import OpenAI, Price  # noqa: E402
from palaver.providers.connection import load_httpx  # noqa: E402

PER_SECOND = 5


class Loaded(OpenAI):
    """A provider whose process has loaded what it sends with: a hundred that load it at once take 20 s."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        load_httpx()
        for each in ("httpcore", "anyio._backends._asyncio", "tenacity"):
            importlib.import_module(each)


async def sends_s(convo: Any, requests: int) -> float:
    """How long a conversation takes for its requests."""
    began = time.monotonic()
    for _ in range(requests):
        await reply(convo.send_user_text_message.remote("x"))
    return time.monotonic() - began


async def measure(conversations: int, requests: int, *, kill: bool) -> None:
    """Send all, and print the figures."""
    with limiting_server(PER_SECOND) as server:
        root = Convo.remote(Loaded("m", base_url=server.url, price=Price.free()))
        children = await reply(root.sub_convos.remote([{"label": str(n)} for n in range(conversations)]))
        await asyncio.gather(*(reply(each.id.remote()) for each in children))
        began = time.monotonic()
        sending = [asyncio.create_task(sends_s(each, requests)) for each in children]
        if kill:
            while server.answered < conversations * requests / 2:
                await asyncio.sleep(0.01)
            cast("Any", ray).kill(gate_actor())
        took = await asyncio.gather(*sending)
        elapsed_s = time.monotonic() - began
        report(
            f"{conversations} conversations at {PER_SECOND}/s{', the gate killed half-way' if kill else ''}",
            ratio=server.answered / (elapsed_s * PER_SECOND),
            target="0.9 or more",
            finished=len(took),
            refused_part=server.refused / (server.answered + server.refused),
            refused_target="under 0.05",
            longest_by_median=max(took) / statistics.median(took),
            longest_target="under 3",
            took_s=elapsed_s,
        )
        await reply(root.close.remote())


def main() -> None:
    """Measure both."""
    given = [int(each) for each in sys.argv[1:]]
    conversations, requests = (*given, *(100, 10)[len(given) :])
    for kill in (False, True):
        with cluster("local", num_cpus=2, log_to_driver=False):
            asyncio.run(measure(conversations, requests, kill=kill))


if __name__ == "__main__":
    main()
