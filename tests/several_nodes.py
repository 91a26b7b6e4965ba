"""A Ray of several nodes on this machine, for as long as the standard input is open. Prints its address.

`python several_nodes.py COUNT [DASHBOARD_PORT]`. All but the first have the resource `elsewhere`, which the
tools in `stuck` ask for when STUCK_ELSEWHERE is set: conversations are then on one node and what they call on
another. A line of the standard input is the number of a node that is killed (1 is the second).
"""

from __future__ import annotations

import logging
import sys
from typing import Any, cast

from ray.cluster_utils import Cluster


def main(count: int, dashboard_port: int = 0) -> None:
    """Start them, tell, wait, end them."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    dashboard = {"include_dashboard": bool(dashboard_port), "dashboard_port": dashboard_port or None}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **dashboard})
    nodes = [cluster.head_node]
    nodes += [cluster.add_node(num_cpus=2, resources={"elsewhere": 1000}) for _ in range(1, count)]
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for line in sys.stdin:
        cluster.remove_node(cast("Any", nodes[int(line)]), allow_graceful=False)
    cluster.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
