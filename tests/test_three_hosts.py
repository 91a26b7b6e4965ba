"""Swarms over a cluster of three hosts, as jobs, one of which is lost half-way.

The hosts are those of `hosts`, which `ray up cluster.yaml` makes a cluster of, the file as it stands. Where
there can be none, three nodes of Ray on this machine take their place, and the test says so.
PALAVER_TESTS_HOSTS=no asks for that.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import eventually
from hosts import ROOT, Host, hosts, missing

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

COUNT = 36
MODULE = '''
import socket

from palaver.tools import tool


@tool
def host() -> str:
    """The host that this runs on."""
    return socket.gethostname()
'''
CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "host", "input": {}}]}
JOB = """
mkdir -p $2
palaver run $1.yaml > $2/$1.log 2>&1
echo "exit $?" >> $2/$1.log
"""
SUBMIT = "ray job submit --address http://127.0.0.1:{port} "


@dataclass(frozen=True, slots=True)
class Machines:
    """Three of them, with a Ray.

    `command` is what runs a line of a shell where somebody would type it, `on_head` on the head; `work` is a
    folder at the first and `out` one at the second, `..._as_seen` by those who run there. `lose` takes number
    1 or 2 away.
    """

    command: Callable[[str], list[str]]
    on_head: Callable[[str], list[str]]
    dashboard_port: int
    address: str
    work: Path
    work_as_seen: str
    out: Path
    out_as_seen: str
    lose: Callable[[int], None]

    def run(self, line: str, on_head: bool = False) -> tuple[int, str]:
        """Exit code and output of a line; where somebody would type it, in the folder."""
        command = self.on_head if on_head else self.command
        folder = "/" if on_head else self.work_as_seen
        done = subprocess.run(
            command(f"cd {folder}; export RAY_AUTH_MODE=token; {line}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout

    @property
    def submit(self) -> str:
        """How a job begins."""
        return SUBMIT.format(port=self.dashboard_port)


@pytest.fixture(scope="module")
def machines(request: pytest.FixtureRequest) -> Iterator[Machines]:
    """A cluster of three."""
    why = "PALAVER_TESTS_HOSTS=no" if os.environ.get("PALAVER_TESTS_HOSTS") == "no" else missing()
    folder = Path(tempfile.mkdtemp(prefix="three-", dir="/tmp"))
    try:
        if why:
            told: Any = request.config.pluginmanager.get_plugin("terminalreporter")
            told.write_line(f"\nthree nodes of Ray on one host instead of three hosts: {why}")
        with _nodes_here(folder) if why else _hosts(folder) as started:
            yield started
    finally:
        shutil.rmtree(folder)


@contextmanager
def _hosts(folder: Path) -> Generator[Machines]:
    subprocess.run(["make", "-C", str(ROOT), "wheel"], check=True, capture_output=True)
    with hosts(folder, 3) as (desk, (head, *others)):
        shutil.copytree(ROOT / "dist", desk.disk / "dist")
        shutil.copy(ROOT / "cluster.yaml", desk.disk)
        # As `.venv/bin/ray` in a checkout.
        ray = desk.disk / "bin" / "ray"
        ray.parent.mkdir()
        ray.write_text('#!/bin/sh\nexec /opt/checkout/.venv/bin/python -m ray.scripts.scripts "$@"\n')
        ray.chmod(0o755)
        path = "export PATH=/opt/palaver/bin:$PATH; "
        desk.run(f"{path} ray get-auth-token --generate && chmod 600 ~/.ray/auth_token")
        desk.run(f"{path} cd /opt/palaver && ray up --yes cluster.yaml")
        assert eventually(lambda: _nodes(head) == 3, 90), _nodes(head)
        tunnel = subprocess.Popen(
            desk.command(f"exec ssh -N -o StrictHostKeyChecking=no -L 8265:127.0.0.1:8265 {head.address}"),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        work = desk.disk / "work"
        work.mkdir()
        try:
            assert eventually(lambda: "LISTEN" in desk.run("ss -Hltn sport = 8265"), 10)
            yield Machines(
                command=lambda line: desk.command(path + line),
                on_head=lambda line: head.command(f"PATH=/opt/palaver/dist/.venv/bin:$PATH; {line}"),
                dashboard_port=8265,
                address=f"{head.address}:6379",
                work=work,
                work_as_seen="/opt/palaver/work",
                out=head.disk / "out",
                out_as_seen="/opt/palaver/out",
                lose=lambda number: others[number - 1].kill(),
            )
        finally:
            tunnel.kill()
            tunnel.wait()


def _nodes(head: Host) -> int:
    return head.run("RAY_AUTH_MODE=token /opt/palaver/dist/.venv/bin/ray list nodes").count("ALIVE")


@contextmanager
def _nodes_here(folder: Path) -> Generator[Machines]:
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("several_nodes.py")), "3", str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=env,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    stdin = process.stdin
    address = process.stdout.readline().strip()
    below = psutil.Process(process.pid).children(recursive=True)
    work, out = folder / "work", folder / "out"
    work.mkdir()
    names = " ".join(f"{name}={env[name]}" for name in ("PATH", "RAY_AUTH_TOKEN_PATH"))

    def lose(number: int) -> None:
        print(number, file=stdin, flush=True)

    def command(line: str) -> list[str]:
        return ["bash", "-c", f"export {names}; {line}"]

    yield Machines(
        command=command,
        on_head=command,
        dashboard_port=port,
        address=address,
        work=work,
        work_as_seen=str(work),
        out=out,
        out_as_seen=str(out),
        lose=lose,
    )
    stdin.close()
    process.wait(60)
    process.stdout.close()
    assert psutil.wait_procs(below, timeout=20)[1] == []


def write_swarm(machines: Machines, name: str, placement: Any) -> None:
    """A swarm of COUNT items, each of two requests and a call of a tool that a module beside it defines."""
    (machines.work / "lookup.py").write_text(MODULE)
    script = {"replies": [CALL, "done"], "delay_s": 0.5, "cost_usd": "0.01"}
    (machines.work / "script.json").write_text(json.dumps(script))
    lines = (json.dumps({"item": f"n{n}"}) + "\n" for n in range(COUNT))
    (machines.work / "items.jsonl").write_text("".join(lines))
    fields = {
        "model": "scripted:script.json",
        "prompt": "Do {item}.",
        "items": {"json_lines": "items.jsonl", "id": "item"},
        "tools": ["lookup:host"],
        "concurrency": 9,
        "placement": placement,
        "retries": 3,
        "out": f"{machines.out_as_seen}/{name}",
    }
    text = "".join(f"{field}: {json.dumps(each)}\n" for field, each in fields.items())
    (machines.work / f"{name}.yaml").write_text(text)


def results(machines: Machines, name: str) -> list[dict[str, Any]]:
    with suppress(FileNotFoundError):
        lines = (machines.out / name / "results.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]
    return []


def test_another_token_is_refused_at_once_and_said(machines: Machines) -> None:
    write_swarm(machines, "refused", "light")
    other = "export RAY_AUTH_TOKEN=" + "a" * 64
    code, told = machines.run(f"{other}; {machines.submit} -- palaver run refused.yaml")
    assert code == 1
    assert "Forbidden: Invalid authentication token" in told
    code, told = machines.run(f"unset RAY_AUTH_MODE; {machines.submit} -- palaver run refused.yaml")
    assert code == 1
    assert "Unauthorized: Missing authentication token" in told
    for setting, message in (
        (other, "does not take the token that is sent"),
        ("unset RAY_AUTH_MODE", "wants a token"),
    ):
        code, told = machines.run(
            f"{setting}; timeout 15 palaver ps --address {machines.address}", on_head=True
        )
        assert code == 2
        assert told.startswith(f"palaver: error: Ray at '{machines.address}' {message}")
        assert told.count("\n") == 1
        assert "a" * 64 not in told
    assert results(machines, "refused") == []


def test_swarms_of_which_a_host_is_lost_half_way_have_one_result_of_each_item_and_all_of_their_usage(
    machines: Machines,
) -> None:
    swarms = {"process": "process", "light": {"kind": "light", "workers": 4}}
    for name, placement in swarms.items():
        write_swarm(machines, name, placement)
    (machines.work / "job.sh").write_text(JOB)
    for name in swarms:
        # Not waited for here: who asks Ray for a job's end may ask the host that is lost, for minutes.
        job = f"sh job.sh {name} {machines.out_as_seen}"
        code, told = machines.run(f"{machines.submit} --no-wait --working-dir . -- {job}")
        assert code == 0, told
    assert eventually(lambda: all(len(results(machines, name)) >= COUNT // 3 for name in swarms), 90), {
        name: len(results(machines, name)) for name in swarms
    }
    machines.lose(2)
    for name in swarms:
        log = machines.out / f"{name}.log"
        assert eventually(lambda: "exit " in log.read_text(), 180), log.read_text()  # noqa: B023
        told = log.read_text()
        assert "exit 0" in told, told
        found = results(machines, name)
        assert Counter(each["item"] for each in found) == Counter(f"n{n}" for n in range(COUNT))
        assert all(each["finished"] and each["text"] == "done" for each in found)
        # What the run says is its root's.
        assert f"{COUNT} of {COUNT} finished" in told
        total = re.search(r"responses +(\d+)\ntokens +(\S+) in, (\S+) out\ncost +\$(\S+)\n", told)
        assert total is not None, told
        usages = [each["usage"] for each in found]
        assert sum(each["responses"] for each in usages) == int(total[1])
        assert sum(each["input_tokens"] for each in usages) == int(total[2].replace(",", ""))
        assert sum(each["output_tokens"] for each in usages) == int(total[3].replace(",", ""))
        assert sum(Decimal(each["cost_usd"]) for each in usages) == Decimal(total[4])
        assert int(total[1]) >= 2 * COUNT
