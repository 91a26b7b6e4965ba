"""cluster.yaml, checked as `ray up` checks it before it touches a machine. Starts no Ray.

Layer: tests.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER_YAML = Path(__file__).parent.parent / "cluster.yaml"
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
        assert " /opt/palaver/.venv/bin/ray " in line
    assert "RAY_num_workers_soft_limit=" in lines[1]


def test_dashboard_listens_on_loopback_alone(prepared: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in prepared["head_start_ray_commands"][1]
