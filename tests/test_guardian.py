"""The guardian of a node, with workers that are plain processes: no Ray."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from conftest import eventually, is_alive

from palaver.tools import guarded, guardian
from palaver.tools.stopped import Stopped

pytestmark = pytest.mark.skipif(not guarded.available, reason="guardians need Linux")

WORKER = """
import os, subprocess, sys, time
from palaver.tools.guarded import guarded

def daemon():
    # Left its parent, its session and its environment.
    code = (
        "import os, time\\nif os.fork(): os._exit(0)\\n"
        "os.setsid()\\nprint(os.getpid(), flush=True)\\ntime.sleep(60)"
    )
    started = subprocess.Popen(["env", "-i", sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE)
    started.wait()
    return int(started.stdout.readline())

title, lineage = sys.argv[1], sys.argv[2].split("/")
with guarded(title, lineage):
    print(daemon(), flush=True)
    sys.stdin.readline()
print("ended", flush=True)
sys.stdin.readline()
"""


class Worker:
    """A process that runs one guarded call, which has started a daemon."""

    def __init__(self, title: str, lineage: str = "root") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, title, lineage],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.daemon = int(self.read() or 0)

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end_call(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.read() == "ended"

    def close(self) -> None:
        with suppress(OSError):
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(OSError):
                stream.close()
        with suppress(ProcessLookupError):
            os.kill(self.daemon, signal.SIGKILL)


@pytest.fixture
def workers() -> Iterator[ExitStack]:
    """Whatever is registered with it is closed; then no guardian of these tests is left."""
    before = set(guardians())
    with ExitStack() as stack:
        yield stack
    assert eventually(lambda: set(guardians()) <= before, 10)


def guardians() -> list[int]:
    return [process.pid for process in psutil.process_iter() if guardian.__file__ in _command_of(process)]


def _command_of(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def worker(workers: ExitStack, title: str, lineage: str = "root") -> Worker:
    made = Worker(title, lineage)
    workers.callback(made.close)
    return made


def kill(title: str) -> Stopped:
    return asyncio.run(guarded.kill_call(title))


def test_a_daemon_that_left_everything_ends_when_its_worker_is_killed(workers: ExitStack) -> None:
    one = worker(workers, "one")
    assert is_alive(one.daemon)
    one.process.kill()
    one.process.wait()
    stopped = kill("one")
    assert not is_alive(one.daemon)
    assert stopped.complete
    assert {each.pid for each in stopped.processes} == {one.daemon, one.process.pid}
    assert stopped.ran_s is not None
    assert stopped.ran_s > 0


def test_what_a_call_has_left_is_no_concern_of_the_guardian_once_it_ended(workers: ExitStack) -> None:
    one = worker(workers, "one")
    one.end_call()
    one.process.kill()
    one.process.wait()
    assert kill("one").processes == ()
    assert is_alive(one.daemon)


def test_a_call_is_killed_with_its_worker_and_no_other(workers: ExitStack) -> None:
    one, other = worker(workers, "one"), worker(workers, "other")
    stopped = kill("one")
    assert {each.pid for each in stopped.processes} == {one.daemon, one.process.pid}
    assert all(each.killed for each in stopped.processes)
    assert not is_alive(one.daemon)
    assert [is_alive(other.daemon), other.process.poll()] == [True, None]


def test_a_call_nobody_knows_is_told_as_nothing(workers: ExitStack) -> None:
    assert kill("nothing") == Stopped()
    worker(workers, "one")
    assert kill("nothing") == Stopped()


def test_a_fence_ends_a_conversation_and_all_below_it_for_good(workers: ExitStack) -> None:
    above, at, below = (worker(workers, path, path) for path in ("root", "root/mid", "root/mid/leaf"))
    stopped = asyncio.run(guarded.fence(["mid"]))
    assert {each.pid for each in stopped.processes} == {
        each for one in (at, below) for each in (one.daemon, one.process.pid)
    }
    assert is_alive(above.daemon)
    late = subprocess.Popen(
        [sys.executable, "-c", WORKER, "late", "root/mid/late"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert late.wait(20) == -signal.SIGKILL
    for stream in (late.stdin, late.stdout):
        assert stream is not None
        stream.close()


def test_a_guardian_that_was_killed_is_replaced_at_the_next_call(workers: ExitStack) -> None:
    before = set(guardians())
    worker(workers, "one").end_call()
    (pid,) = set(guardians()) - before or before
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not is_alive(pid), 5)
    two = worker(workers, "two")
    two.process.kill()
    two.process.wait()
    assert {each.pid for each in kill("two").processes} >= {two.daemon}


def test_calls_of_one_process_begin_and_end_for_next_to_nothing(workers: ExitStack) -> None:
    program = (
        "from palaver.tools.guarded import guarded\n"
        "import resource\n"
        "before = resource.getrlimit(resource.RLIMIT_RTTIME)\n"
        "for number in range(1000):\n"
        "    with guarded(f'call {number}', ['root']):\n"
        "        assert resource.getrlimit(resource.RLIMIT_RTTIME)[0] != before[0]\n"
        "assert resource.getrlimit(resource.RLIMIT_RTTIME) == before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_the_guardian_is_a_file_of_its_own_that_needs_the_standard_library_alone() -> None:
    source = Path(guardian.__file__).read_text()
    assert "palaver." not in source.replace("`palaver.tools.guarded`", "")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import runpy; runpy.run_path({guardian.__file__!r})"],
        check=True,
        capture_output=True,
    )
    assert done.stderr == b""
