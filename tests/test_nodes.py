"""That nodes which have another palaver are found, and told of."""

from __future__ import annotations

import pytest

from palaver.actors import nodes
from palaver.actors.cluster import Cluster
from palaver.actors.nodes import Installed, VersionSkew, check_nodes, installed, told, unmet

HERE = Installed("0.2.0", "abc")


def test_the_error_names_each_node_and_what_it_has() -> None:
    message = told(
        HERE,
        {
            Installed("", ""): ["10.0.0.4"],
            Installed("0.1.0", "abd"): ["10.0.0.2", "10.0.0.3"],
            Installed("0.2.0", "abd"): ["10.0.0.5"],
        },
    )
    assert "node 10.0.0.4 has no palaver" in message
    assert "nodes 10.0.0.2, 10.0.0.3 have palaver 0.1.0" in message
    assert "node 10.0.0.5 has palaver 0.2.0 with other code" in message
    assert "here is palaver 0.2.0. Install the same wheel on all" in message


def test_a_cluster_of_this_palaver_is_fine_and_one_of_another_is_refused(
    ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_nodes()
    monkeypatch.setattr(nodes, "_code", lambda: "other")
    with pytest.raises(VersionSkew, match=f"has palaver {installed().version} with other code"):
        check_nodes()


def test_what_no_node_has_is_named(ray_cluster: Cluster) -> None:
    assert unmet({}) == ""
    assert unmet({"num_cpus": 2, "scheduling_strategy": "SPREAD"}) == ""
    assert unmet({"label_selector": {"zone": "!a"}}) == ""
    told = unmet({"num_gpus": 3, "resources": {"lamp": 1}, "label_selector": {"zone": "a"}})
    assert told == "no node has 3 GPU and 1 lamp and the label zone=a"
