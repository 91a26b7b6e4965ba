"""A Ray of two nodes on this machine, for as long as the standard input is open. Prints its address.

The second node alone has the resource `elsewhere`, which the tools in `stuck` ask for when STUCK_ELSEWHERE
is set: conversations are then on one node and what they call on the other.
"""

from __future__ import annotations

import logging
import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Start them, tell, wait, end them."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2, resources={"elsewhere": 1000})
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
