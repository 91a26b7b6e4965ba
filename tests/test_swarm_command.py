"""`palaver run swarm.yaml` as a person runs it: real processes, real kills, and going on afterwards."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import eventually

from palaver.actors.cluster import Cluster

pytestmark = pytest.mark.ray

PALAVER = str(Path(sys.executable).with_name("palaver"))
COUNT = 200


def swarm(folder: Path, **fields: Any) -> Path:
    """A swarm of COUNT items, each of which takes a fifth of a second."""
    (folder / "script.json").write_text(json.dumps({"replies": ["done"], "delay_s": 0.2, "cost_usd": "0.01"}))
    (folder / "items.jsonl").write_text("".join(json.dumps({"id": f"n{n}"}) + "\n" for n in range(COUNT)))
    fields = {
        "model": "scripted:script.json",
        "prompt": "Do {id}.",
        "items": {"json_lines": "items.jsonl", "id": "id"},
        "out": "out",
        "concurrency": 10,
        "placement": "light",
        **fields,
    }
    (folder / "swarm.yaml").write_text(
        "".join(f"{name}: {json.dumps(each)}\n" for name, each in fields.items())
    )
    return folder / "swarm.yaml"


def start(path: Path, cluster: Cluster, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PALAVER, "run", str(path), "--address", cluster.address, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(path: Path) -> list[str]:
    file = path.parent / "out" / "results.jsonl"
    return file.read_text().splitlines(keepends=True) if file.exists() else []


def states(cluster: Cluster) -> dict[str, str]:
    """The states that conversations are in, each with the id of the first."""
    command = [PALAVER, "ps", "--address", cluster.address, "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    return {each["state"]: each["id"] for each in reversed(json.loads(shown.stdout))}


def test_a_driver_killed_at_ten_moments_leaves_each_item_one_result(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    path = swarm(tmp_path)
    chance = random.Random(6)
    for _ in range(10):
        before = len(lines(path))
        process = start(path, ray_cluster, *(["--resume"] if before else []))
        wanted = before + chance.randint(0, 18)
        assert eventually(lambda: len(lines(path)) >= wanted or process.poll() is not None, 60)  # noqa: B023
        time.sleep(chance.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
    assert 0 < len(lines(path)) < COUNT
    last = start(path, ray_cluster, "--resume")
    _, told = last.communicate(timeout=120)
    assert last.returncode == 0, told
    found = lines(path)
    assert len(found) == COUNT
    assert all(line.endswith("\n") for line in found)
    records = [json.loads(line) for line in found]
    assert Counter(each["item"] for each in records) == Counter(f"n{n}" for n in range(COUNT))
    assert all(each["finished"] and each["text"] == "done" for each in records)
    assert not (tmp_path / "out" / "replaced.jsonl").exists()
    again = start(path, ray_cluster, "--resume")
    _, told = again.communicate(timeout=60)
    assert (again.returncode, "nothing is left to do" in told) == (0, True)


def test_an_interrupt_ends_a_swarm_that_can_be_gone_on_with(ray_cluster: Cluster, tmp_path: Path) -> None:
    path = swarm(tmp_path)
    process = start(path, ray_cluster)
    assert eventually(lambda: len(lines(path)) >= 20, 60)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; stopping" in told
    done = [json.loads(line) for line in lines(path)]
    # Those that were stopped at work are told of, those that never began are not.
    assert len(done) < 60
    assert {each["stop"] for each in done} == {"end_turn", "cancelled"}
    last = start(path, ray_cluster, "--resume")
    _, told = last.communicate(timeout=120)
    assert last.returncode == 0, told
    records = [json.loads(line) for line in lines(path)]
    assert sorted(each["item"] for each in records) == sorted(f"n{n}" for n in range(COUNT))
    assert all(each["finished"] for each in records)
    replaced = [json.loads(line) for line in (tmp_path / "out" / "replaced.jsonl").read_text().splitlines()]
    assert {each["stop"] for each in replaced} == {"cancelled"}


def test_a_budget_that_is_used_up_ends_a_swarm_that_goes_on_with_a_higher_one(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    path = swarm(tmp_path, budget={"max_dollars": "0.30"})
    first = start(path, ray_cluster)
    _, told = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "30 of 200 finished" in told
    spent = [json.loads(line)["usage"]["cost_usd"] for line in lines(path)]
    assert sum(map(float, spent)) == pytest.approx(0.30)
    again = palaver(path, "--address", ray_cluster.address, "--resume")
    assert again.returncode == 2
    assert f"{path}:7: budget.max_dollars: the results in" in again.stderr
    swarm(tmp_path, budget={"max_dollars": "0.50"})
    second = start(path, ray_cluster, "--resume")
    _, told = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "30 of 200 were finished before, for $0.30" in told
    assert "20 of 170 finished" in told
    assert "$0.20 of $0.20" in told
    swarm(tmp_path, budget={"max_dollars": 5})
    last = start(path, ray_cluster, "--resume")
    _, told = last.communicate(timeout=60)
    assert last.returncode == 0, told
    assert len(lines(path)) == COUNT


def test_a_detached_swarm_goes_on_without_its_terminal(ray_cluster: Cluster, tmp_path: Path) -> None:
    path = swarm(tmp_path)
    command = [PALAVER, "run", str(path), "--address", ray_cluster.address, "--detach"]
    terminal = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    root_id, told = terminal.communicate(timeout=60)
    assert terminal.returncode == 0, told
    stops = f"`palaver cancel {root_id.strip()} --address {ray_cluster.address}` stops it"
    assert f"{stops}; log: {tmp_path}/out/run.log" in told
    pid = int(told.split("(process ")[1].split(")")[0])
    with suppress(ProcessLookupError):  # all that the terminal had
        os.killpg(terminal.pid, signal.SIGHUP)
    assert len(lines(path)) < COUNT
    assert root_id.strip() in states(ray_cluster).values()
    assert eventually(lambda: not psutil.pid_exists(pid), 60)
    assert len(lines(path)) == COUNT
    assert "200 of 200 finished" in (tmp_path / "out" / "run.log").read_text()


def test_what_keeps_a_detached_swarm_from_its_start_is_told_where_it_was_asked_for(tmp_path: Path) -> None:
    path = swarm(tmp_path)
    done = palaver(path, "--detach", "--address", "127.0.0.1:1")
    assert done.returncode == 2
    assert done.stderr.startswith("palaver: error: nothing listens at Ray address '127.0.0.1:1'")
    assert lines(path) == []


def test_what_no_node_has_is_refused_on_a_ray_of_its_own_and_told_on_another(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    path = swarm(tmp_path, placement={"kind": "process", "labels": {"zone": "nowhere"}})
    own = palaver(path, "--address", "local")
    assert own.returncode == 2
    assert "no node has the label zone=nowhere: this run has a Ray of its own" in own.stderr
    assert not (tmp_path / "out").exists()
    process = start(path, ray_cluster)
    assert process.stderr is not None
    told = ""
    while "at the moment" not in told:
        told = process.stderr.readline()
        assert told
    assert told.endswith(" at the moment; what needs it waits until such a node joins\n")
    assert eventually(lambda: "starting" in states(ray_cluster), 60)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "had not started within 2 s, so it never will" in rest
    assert lines(path) == []


def test_a_fault_in_the_file_starts_nothing(tmp_path: Path) -> None:
    path = swarm(tmp_path, concurrency=0)
    done = palaver(path)
    assert done.returncode == 2
    assert done.stderr == f"palaver: error: {path}:5: concurrency: Input should be greater than 0 (it is 0)\n"
    assert not (tmp_path / "out").exists()
    done = palaver(path, "--model", "x", "--max-dollars", "1")
    assert "--max-dollars, --model: what a swarm is made of stands in its file" in done.stderr
    assert "--resume goes with a swarm file" in palaver("a prompt", "--resume").stderr


def palaver(*words: object) -> subprocess.CompletedProcess[str]:
    command = [PALAVER, "run", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
