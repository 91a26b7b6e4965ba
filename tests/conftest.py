"""Fixtures for all tests. A test that asks for `ray_cluster` shares one Ray with all others that do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest
from kinds import KIND_NAMES, Kind

from palaver.actors.cluster import Cluster, cluster


def pytest_configure() -> None:
    """Take signals as a command in the foreground does, and no settings of the user who runs the tests.

    A shell starts what it runs in the background with SIGINT ignored, and nohup with SIGHUP ignored;
    all that the tests start would inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Of this machine's user, not of the tests.
    os.environ.pop("PALAVER_MODELS", None)
    os.environ["XDG_CONFIG_HOME"] = os.devnull


# The same examples in every run; PYTEST_ARGS="--hypothesis-profile=default" looks for others.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.load_profile("steady")


ADDRESS_VARIABLE = "PALAVER_TESTS_ADDRESS"
"""The environment variable that names a Ray to run the tests on, rather than one of their own."""


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """One Ray of our own, with 2 CPUs; gone afterwards with all its processes and files."""
    # Workers import the tools that tests define from the tests' own modules.
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    address = os.environ.get(ADDRESS_VARIABLE)
    with cluster(address or "local", num_cpus=None if address else 2, log_to_driver=False) as started:
        yield started
    left = [each for each in psutil.Process().children(recursive=True) if "ray" in each.name()]
    assert not psutil.wait_procs(left, timeout=10)[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses Ray is marked so, and runs last, so that what is quick to fail fails first."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)


def eventually(condition: Callable[[], object], within_s: float) -> bool:
    """Whether `condition` comes true in time; looks every 20 ms."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead but not collected yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(params=KIND_NAMES)
def kind(request: pytest.FixtureRequest, ray_cluster: Cluster) -> Kind:
    """Each kind of conversation in turn."""
    return Kind(request.param)


@pytest.fixture(scope="module")
def llama() -> Iterator[dict[str, str]]:
    """Where llama.cpp's server answers with a model that calls tools, and its key."""
    program = Path(__file__).with_name("llama_server.py")
    process = subprocess.Popen(
        [sys.executable, str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())
    process.stdin.close()
    assert process.wait(20) == 0
    process.stdout.close()
