"""Connecting to Ray: what cannot work is said at once, and a Ray of somebody else stays."""

from __future__ import annotations

import socket
import time

import pytest
import ray

from palaver.actors.cluster import Cluster, ClusterUnreachable, cluster


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def connect(address: str) -> None:
    with cluster(address):
        pass


def test_an_address_where_nothing_listens_is_refused_at_once_with_the_next_step() -> None:
    address = f"127.0.0.1:{free_port()}"
    before = time.monotonic()
    with pytest.raises(ClusterUnreachable, match=rf"nothing listens at Ray address '{address}'; check host"):
        connect(address)
    assert time.monotonic() - before < 5


@pytest.mark.parametrize("address", ["nonsense", "host:", "127.0.0.1:port"])
def test_an_address_of_the_wrong_form_is_refused(address: str) -> None:
    with pytest.raises(ClusterUnreachable, match="is not of the form host:port"):
        connect(address)


def test_a_process_that_uses_a_ray_goes_on_with_it(ray_cluster: Cluster) -> None:
    with cluster() as same:
        assert same == Cluster(ray_cluster.address, owned=False)
    assert ray.is_initialized()
    with pytest.raises(ClusterUnreachable, match=r"uses the Ray at .* already"):
        connect(f"127.0.0.1:{free_port()}")
    assert ray.is_initialized()
