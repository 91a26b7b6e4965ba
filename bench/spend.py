"""Many sub-conversations that spend at once under one dollar: how much of it is used; never more.

`python bench/spend.py CHILDREN KILLED`: so many processes (200), of which so many are killed (10) in a
second run. Starting 200 takes a minute, and 12 GB.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from decimal import Decimal
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))
os.environ["PYTHONPATH"] = str(TESTS)

from kinds import Kind  # noqa: E402
from report import report  # noqa: E402
from spenders import spend  # noqa: E402

from palaver.actors import Budget  # noqa: E402
from palaver.actors.cluster import cluster  # noqa: E402

LIMIT = Decimal(1)


def main() -> None:
    """Print the share of the budget that was used, undisturbed and with processes killed."""
    children, killed = (int(each) for each in (*sys.argv[1:], *("200", "10")[len(sys.argv) - 1 :]))
    for kills in (0, killed):
        with cluster("local", num_cpus=2, log_to_driver=False):
            began = time.monotonic()
            spent = asyncio.run(spend(children, Budget(max_dollars=LIMIT), kind=Kind("process"), kills=kills))
            report(
                f"{children} spend at once under ${LIMIT}, {kills} of them killed",
                ratio=float(spent.usd / LIMIT),
                target=f"{0.9 if kills else 0.95} to 1",
                spent_usd=str(spent.usd),
                responses=spent.tree.usage.responses,
                killed=spent.killed,
                took_s=time.monotonic() - began,
            )


if __name__ == "__main__":
    main()
