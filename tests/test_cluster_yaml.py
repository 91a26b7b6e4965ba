"""cluster.yaml, checked as `ray up` checks it before it touches a machine. Starts no Ray.

Layer: tests.
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER_YAML = Path(__file__).parent.parent / "cluster.yaml"
OF_OWN_MACHINES = "RAY_enable_autoscaler_v2=0 "
DOCUMENTATION = ipaddress.ip_network("192.0.2.0/24")  # RFC 5737: no machine has such an address


@pytest.fixture
def written() -> dict[str, Any]:
    return yaml.safe_load(CLUSTER_YAML.read_text())


@pytest.fixture
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    return prepare_config(written)


def test_ray_accepts_it(prepared: dict[str, Any]) -> None:
    validate_config(prepared)


def test_ray_refuses_a_key_it_does_not_know(prepared: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="no_such_key"):
        validate_config({**prepared, "no_such_key": 1})


def test_workers_are_as_many_as_their_addresses(written: dict[str, Any]) -> None:
    workers = len(written["provider"]["worker_ips"])
    assert (written["min_workers"], written["max_workers"]) == (workers, workers)


def test_every_address_is_one_that_no_machine_has(written: dict[str, Any]) -> None:
    addresses = [written["provider"]["head_ip"], *written["provider"]["worker_ips"]]
    assert all(ipaddress.ip_address(address) in DOCUMENTATION for address in addresses)


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_ray_command_asks_for_the_token_and_is_found_without_a_path(
    prepared: dict[str, Any], commands: str
) -> None:
    lines = prepared[commands]
    assert len(lines) == 2
    for line in lines:
        assert "RAY_AUTH_MODE=token" in line
        assert " /opt/palaver/dist/.venv/bin/ray " in line
    assert "RAY_num_workers_soft_limit=" in lines[1]


def test_dashboard_listens_on_loopback_alone(prepared: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in prepared["head_start_ray_commands"][1]


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_the_files_for_clouds_are_of_the_form_ray_takes_and_start_it_as_the_local_one_does(
    cloud: str, written: dict[str, Any]
) -> None:
    given = yaml.safe_load((CLUSTER_YAML.parent / "deploy" / f"{cloud}.yaml").read_text())
    # What `ray up` asks the cloud itself about is left out.
    validate_config({"cluster_synced_files": [], **given})
    for commands in ("head_start_ray_commands", "worker_start_ray_commands", "file_mounts"):
        # The second autoscaler is for clouds alone.
        assert given[commands] == yaml.safe_load(json.dumps(written[commands]).replace(OF_OWN_MACHINES, ""))
    assert given["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_every_node_of_the_cluster_on_kubernetes_has_one_image_and_the_token_is_on() -> None:
    given = yaml.safe_load((CLUSTER_YAML.parent / "deploy" / "kuberay.yaml").read_text())
    assert given["spec"]["authOptions"] == {"mode": "token"}
    groups = [given["spec"]["headGroupSpec"], *given["spec"]["workerGroupSpecs"]]
    containers = [each for group in groups for each in group["template"]["spec"]["containers"]]
    assert len({each["image"] for each in containers}) == 1
    assert all(each["env"] == containers[0]["env"] for each in containers)
