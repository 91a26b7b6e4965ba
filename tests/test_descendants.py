from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from conftest import eventually, is_alive

from palaver.tools.descendants import Descendants, process_clock, started_at

FORKS = """
import os, time
for _ in range(3):
    os.fork()
os.write(1, str(os.getpid()).encode() + bytes([10]))
time.sleep(60)
"""


@pytest.fixture
def later() -> Iterator[float]:
    """A moment later than the start of every process there is; what a test starts then is gone after it."""
    before = process_clock()
    assert eventually(lambda: process_clock() > before + 0.1, 5)
    moment = process_clock()
    yield moment
    Descendants(moment).kill()


def sleeper(**options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"], **options)  # type: ignore[call-overload]


def test_the_clock_agrees_with_the_start_of_a_process() -> None:
    before = process_clock()
    process = sleeper()
    after = process_clock()
    assert before - 0.02 <= started_at(psutil.Process(process.pid)) <= after
    process.kill()
    process.wait()


def test_only_what_was_started_since_is_ended() -> None:
    older = sleeper()
    before = process_clock()
    assert eventually(lambda: process_clock() > before + 0.1, 5)
    younger = [sleeper(), sleeper(start_new_session=True)]
    Descendants(before + 0.1).kill()
    assert [is_alive(each.pid) for each in (older, *younger)] == [True, False, False]
    older.kill()
    older.wait()
    for each in younger:
        each.wait()  # collected already, which Popen takes calmly


def test_a_family_that_forks_is_ended_to_the_last(later: float) -> None:
    process = subprocess.Popen([sys.executable, "-c", FORKS], stdout=subprocess.PIPE)
    assert process.stdout is not None
    pids = [int(process.stdout.readline()) for _ in range(8)]
    Descendants(later).kill()
    assert not [pid for pid in pids if is_alive(pid)]
    process.stdout.close()
    process.wait()


def test_terminate_asks_and_kill_does_not(later: float) -> None:
    process = subprocess.Popen(
        ["sh", "-c", "trap 'echo asked' TERM; echo ready; while true; do sleep 0.02; done"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    descendants = Descendants(later)
    descendants.terminate()
    assert process.stdout.readline() == b"asked\n"
    assert is_alive(process.pid)
    descendants.kill()
    assert not is_alive(process.pid)
    process.stdout.close()
    process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="marks need Linux")
def test_a_process_that_took_the_mark_off_belongs_to_nobody(later: float) -> None:
    def off() -> None:
        resource.setrlimit(resource.RLIMIT_RTTIME, (1 << 50, resource.RLIM_INFINITY))

    ours, nobodys = sleeper(), sleeper(preexec_fn=off)
    Descendants(later).kill()
    assert [is_alive(ours.pid), is_alive(nobodys.pid)] == [False, True]
    nobodys.kill()
    for each in (ours, nobodys):
        each.wait()
