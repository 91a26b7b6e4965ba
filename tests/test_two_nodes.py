"""What `test_fence` shows, with the conversations on one node of Ray and their tool calls on another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import ADDRESS_VARIABLE

HERE = Path(__file__).parent

KINDS = "leaves_a_daemon or (delegates and cancel_returns)"
"""A selection, for time's sake. All of them: STUCK_KINDS= in the environment."""


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[dict[str, str]]:
    """An environment that leads to a Ray of two nodes."""
    env = {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "STUCK_ELSEWHERE": "1",
        # No token: this Ray is for this test, on loopback.
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Short, for the paths of sockets in it.
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="two-", dir="/tmp"),
    }
    process = subprocess.Popen(
        [sys.executable, str(HERE / "several_nodes.py"), "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=env,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    address = process.stdout.readline().strip()
    below = psutil.Process(process.pid).children(recursive=True)
    yield {**env, ADDRESS_VARIABLE: address}
    process.stdin.close()
    process.wait(30)
    process.stdout.close()
    left = psutil.wait_procs(below, timeout=20)[1]
    shutil.rmtree(env["RAY_TMPDIR"])
    assert left == []


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_nothing_is_left_on_either_node(two_nodes: dict[str, str], tmp_path: Path) -> None:
    kinds = os.environ.get("STUCK_KINDS", KINDS)
    selection = f"({kinds or 'test'} or driver) and not own_ray and not fifty"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", str(HERE / "test_fence.py"), "-q", "-k", selection),
            *("-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inner")),
        ],
        env=two_nodes,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
