"""The supervisor in a process of its own, whose main thread it needs, as a Ray worker gives it.

Each test runs a small program: tools, then calls. What the program prints is JSON, one line per value;
after a stop that could not be unwound nothing more comes, because the process has ended.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from conftest import eventually, is_alive

FOREVER_S = 60

PRELUDE = """
import _thread, asyncio, hashlib, json, os, re, signal, socket, subprocess, sys, threading, time
from typing import Annotated
from pydantic import BeforeValidator
from palaver.tools import DoNotRespond, ToolCallInfo, current_call, tool
from palaver.tools.supervisor import Supervisor

started = threading.Event()  # set by a tool, when it may be interrupted

def show(*values):
    print(json.dumps(values), flush=True)

def call(tool, **tool_input):
    outcome = Supervisor(tool, tool_input, ToolCallInfo("call-1", tool.name, "abc-defg")).run()
    result = outcome.to_result("call-1")
    show(type(outcome.error).__name__ if outcome.error else "ok", result.text)
    return outcome

def interrupt(how=_thread.interrupt_main):
    started.clear()
    def wait():
        started.wait(20)
        how()
    threading.Thread(target=wait, daemon=True).start()

def sigint():
    os.kill(os.getpid(), signal.SIGINT)

@tool
def fine(word: str) -> str:
    return word
"""


def run(program: str) -> tuple[list[Any], int]:
    """What a program printed, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program], capture_output=True, text=True, timeout=40, check=False
    )
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()], done.returncode


UNWINDABLE = {
    "steps": """
@tool
def stuck() -> str:
    started.set()
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            pass
""",
    "its own clean-up": """
@tool
def stuck() -> str:
    try:
        started.set()
        while True:
            time.sleep(0.01)
    finally:
        time.sleep(0.1)
        show("cleaned up")
""",
    "a value after all": """
@tool
def stuck() -> str:
    try:
        started.set()
        while True:
            time.sleep(0.01)
    except BaseException:
        return "too late"
""",
    "async": """
@tool
async def stuck() -> str:
    started.set()
    await asyncio.sleep(60)
""",
    "async with clean-up": """
@tool
async def stuck() -> str:
    try:
        started.set()
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.1)
        show("cleaned up")
""",
    "async that returns when cancelled": """
@tool
async def stuck() -> str:
    try:
        started.set()
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return "too late"
""",
    "async with tasks of its own": """
@tool
async def stuck() -> str:
    asyncio.create_task(asyncio.sleep(60))
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(60))
        started.set()
""",
    "async call of an object": """
class Stuck:
    async def __call__(self) -> str:
        started.set()
        await asyncio.sleep(60)
stuck = tool(name="stuck")(Stuck())
""",
    "slow check of the input": """
def check(value):
    started.set()
    time.sleep(0.5)
    return value
@tool
def stuck(value: Annotated[int, BeforeValidator(check)] = 0) -> str:
    show("called although it was stopped")
""",
    "slow check of an async tool's input": """
def check(value):
    started.set()
    time.sleep(0.5)
    return value
@tool
async def stuck(value: Annotated[int, BeforeValidator(check)] = 0) -> str:
    show("called although it was stopped")
""",
}


@pytest.mark.parametrize("how", ["_thread.interrupt_main", "sigint"])
@pytest.mark.parametrize("stuck", UNWINDABLE)
def test_a_cancelled_call_that_can_be_unwound_is_one_error_and_the_next_call_runs(
    stuck: str, how: str
) -> None:
    tool_input = "value=1" if "check" in stuck else ""
    printed, code = run(f"""{UNWINDABLE[stuck]}
interrupt({how})
call(stuck, {tool_input})
call(fine, word="next")
show(threading.active_count() <= 2, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
""")
    cleaned_up = [["cleaned up"]] if "clean-up" in stuck else []
    assert printed == [
        *cleaned_up,
        ["ToolCancelled", "tool 'stuck' was cancelled"],
        ["ok", "next"],
        [True, True],
    ]
    assert code == 0


STUCK = {
    "sleep": """
@tool
def stuck() -> str:
    started.set()
    time.sleep(60)
""",
    "C without the lock": """
@tool
def stuck() -> str:
    started.set()
    return hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9).hex()
""",
    "swallows everything": """
@tool
def stuck() -> str:
    started.set()
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass
""",
    "async that swallows everything": """
@tool
async def stuck() -> str:
    while True:
        try:
            started.set()
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            pass
""",
    "async that blocks": """
@tool
async def stuck() -> str:
    started.set()
    time.sleep(60)
""",
    "async whose clean-up takes too long": """
@tool
async def stuck() -> str:
    try:
        started.set()
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(60)
""",
    "thread of an async tool": """
@tool
async def stuck() -> str:
    started.set()
    await asyncio.to_thread(time.sleep, 60)
""",
}


@pytest.mark.parametrize("stuck", STUCK)
def test_a_cancelled_call_that_cannot_be_unwound_ends_its_process_and_gives_nothing(stuck: str) -> None:
    before = time.monotonic()
    printed, code = run(f"""{STUCK[stuck]}
interrupt()
call(stuck)
show("went on")
""")
    assert (printed, code) == ([], 0)
    assert time.monotonic() - before < FOREVER_S / 2


def test_a_process_that_ends_takes_what_the_call_started_along() -> None:
    printed, code = run("""
@tool
def stuck() -> str:
    show(subprocess.Popen(["sleep", "60"], start_new_session=True).pid)
    started.set()
    time.sleep(60)
interrupt()
call(stuck)
""")
    ((pid,),) = printed
    assert code == 0
    assert eventually(lambda: not is_alive(pid), 5)


TREE = """
daemon = "import os, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); " \\
    "print(os.getpid(), flush=True); time.sleep(60)"
def start_tree():
    shell = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE)
    lost = subprocess.Popen([sys.executable, "-c", daemon], stdout=subprocess.PIPE)
    stubborn = subprocess.Popen(["sh", "-c", "trap '' TERM; echo ready; while true; do sleep 1; done"],
        stdout=subprocess.PIPE)
    stubborn.stdout.readline()
    pids = [shell.pid, int(shell.stdout.readline()), int(lost.stdout.readline()), stubborn.pid]
    lost.wait()
    return pids
"""


def test_every_process_of_a_cancelled_call_is_gone_when_it_returns_and_no_other() -> None:
    printed, code = run(f"""{TREE}
pids = []
bystander = subprocess.Popen(["sleep", "60"])
time.sleep(0.1)  # so that the clock, which ticks every 10 ms, tells them apart
@tool
def stuck() -> str:
    pids.extend(start_tree())
    started.set()
    while True:
        time.sleep(0.01)
interrupt()
call(stuck)
import psutil
def runs(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
show([pid for pid in pids if runs(pid)], len(pids), bystander.poll())
bystander.kill()
""")
    assert printed == [["ToolCancelled", "tool 'stuck' was cancelled"], [[], 4, None]]
    assert code == 0


def test_an_async_tool_may_end_its_processes_itself() -> None:
    printed, _ = run("""
@tool
async def stuck() -> str:
    process = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        started.set()
        await process.wait()
    finally:
        process.kill()
        show(await process.wait())
interrupt()
call(stuck)
""")
    assert printed == [[-9], ["ToolCancelled", "tool 'stuck' was cancelled"]]


def test_what_a_call_leaves_behind_ends_with_it() -> None:
    printed, _ = run("""
@tool
def start() -> list[int]:
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    asked = subprocess.Popen(["sleep", "60"], **quiet)
    deaf = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 60"], **quiet)
    time.sleep(0.2)
    return [asked.pid, deaf.pid]
for pid in json.loads(call(start).content[0].text):
    show(os.path.exists(f"/proc/{pid}"))
""")
    assert printed[1:] == [[False], [False]]


def test_whatever_a_tool_raises_is_one_error_and_the_worker_goes_on() -> None:
    printed, code = run("""
class Odd(BaseException):
    def __str__(self):
        raise ValueError
class Pending(Exception):
    pass
def raising(error, wrap=lambda f: f):
    def plain() -> str:
        raise error
    async def awaiting() -> str:
        await asyncio.sleep(0)
        raise error
    call(tool(plain))
    call(tool(awaiting))
raising(SystemExit(3))
raising(KeyboardInterrupt())
raising(asyncio.CancelledError())
raising(Odd())
raising(GeneratorExit())
raising(TimeoutError("its own"))
call(fine)
call(fine, word="fine")
@tool
def quiet() -> str:
    raise DoNotRespond
show(call(quiet).respond)
""")
    assert [kind for kind, *_ in printed[:13]] == ["ToolRaised"] * 12 + ["ToolInputInvalid"]
    assert [line[1].partition("raised ")[2] for line in printed[:12]] == [
        text
        for text in (
            "SystemExit: 3",
            "KeyboardInterrupt",
            "CancelledError",
            "Odd: (no text: its __str__ raised ValueError)",
            "GeneratorExit",
            "TimeoutError: its own",
        )
        for _ in range(2)
    ]
    assert printed[13:] == [["ok", "fine"], ["ok", ""], [False]]
    assert code == 0


def test_a_call_over_its_limit_times_out_and_the_worker_goes_on() -> None:
    printed, code = run("""
@tool(timeout_s=0.2)
def steps() -> str:
    while True:
        time.sleep(0.01)
@tool(timeout_s=0.2)
async def waits() -> str:
    await asyncio.sleep(60)
@tool(timeout_s=1e12)
def quick() -> str:
    return "quick"
@tool(timeout_s=60)
async def gives_up() -> str:
    raise TimeoutError("no answer")
for each in (steps, waits, quick, gives_up):
    call(each)
""")
    assert printed == [
        ["ToolTimedOut", "tool 'steps' was stopped: it took longer than its limit of 0.2 s"],
        ["ToolTimedOut", "tool 'waits' was stopped: it took longer than its limit of 0.2 s"],
        ["ok", "quick"],
        ["ToolRaised", "tool 'gives_up' raised TimeoutError: no answer"],
    ]
    assert code == 0


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("time.sleep(60)", 0),
        # Holds the interpreter lock: no Python runs meanwhile, the supervisor neither.
        ('re.match(r"(a+)+$", "a" * 40 + "b")', 1),
    ],
)
def test_a_call_over_its_limit_that_cannot_be_unwound_ends_its_process(body: str, code: int) -> None:
    assert run(f"""
@tool(timeout_s=0.2)
def stuck() -> str:
    {body}
call(stuck)
show("went on")
""") == ([], code)


def test_the_watchdog_of_a_call_that_ended_bites_no_later_one() -> None:
    printed, code = run("""
@tool(timeout_s=0.01)
def quick() -> str:
    return "quick"
@tool
def slow() -> str:
    time.sleep(2.5)
    return "slow"
call(quick)
call(slow)
""")
    assert (printed[1], code) == (["ok", "slow"], 0)


def test_signals_and_wakeup_are_as_before_after_each_way_to_end() -> None:
    printed, _ = run("""
mine, other = socket.socketpair()
mine.setblocking(False)
def handler(*_): show("mine")
signal.signal(signal.SIGINT, handler)
signal.set_wakeup_fd(mine.fileno())
def check():
    wakeup, files = signal.set_wakeup_fd(mine.fileno()), len(os.listdir("/proc/self/fd"))
    show(signal.getsignal(signal.SIGINT) is handler, wakeup == mine.fileno(), files)
@tool(timeout_s=0.1)
async def waits() -> str:
    started.set()
    await asyncio.sleep(60)
check()
call(fine, word="x")
check()
call(fine)
check()
call(waits)
check()
interrupt()
call(tool(waits.function))
check()
os.kill(os.getpid(), signal.SIGINT)
""")
    checks = [line for line in printed if len(line) == 3]
    assert len(checks) == 5
    assert checks == [checks[0]] * 5
    assert checks[0][:2] == [True, True]
    assert printed[-1] == ["mine"]


def test_a_call_that_was_interrupted_before_it_began_is_never_run() -> None:
    printed, _ = run("""
@tool
def late() -> str:
    show("called")
try:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sigint()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    call(late)
except KeyboardInterrupt:
    show("as Ray expects")
""")
    assert printed == [["as Ray expects"]]


def test_other_signals_neither_stop_a_call_nor_keep_the_processor_busy() -> None:
    printed, _ = run("""
count = 0
def handler(*_):
    global count
    count += 1
signal.signal(signal.SIGUSR1, handler)
@tool
def noisy() -> str:
    for _ in range(20000):  # more than the wake-up socket holds
        os.kill(os.getpid(), signal.SIGUSR1)
    begin = time.process_time()
    time.sleep(1)
    show("busy" if time.process_time() - begin > 0.5 else "idle")
    return "done"
call(noisy)
show(count > 0)
""")
    assert printed == [["idle"], ["ok", "done"], [True]]


def test_the_current_call_is_known_in_plain_and_async_tools_and_their_threads() -> None:
    printed, _ = run("""
@tool
def plain(info: ToolCallInfo) -> bool:
    return current_call() is info
@tool
async def awaiting(info: ToolCallInfo) -> list[bool]:
    async def below():
        return current_call() is info
    return [await below(), await asyncio.create_task(below()), await asyncio.to_thread(current_call) is info]
call(plain)
call(awaiting)
try:
    current_call()
except LookupError:
    show("none outside")
""")
    assert printed == [["ok", "true"], ["ok", "[true,true,true]"], ["none outside"]]


def test_a_stop_that_meets_the_end_of_the_tool_is_one_outcome_every_time() -> None:
    printed, code = run("""
@tool
def short() -> str:
    started.set()
    sum(range(2000))
    return "done"
@tool
async def short_async() -> str:
    started.set()
    await asyncio.sleep(0)
    return "done"
import contextlib, io
kinds = set()
for number in range(150):
    for each in (short, short_async):
        interrupt()
        outcome = Supervisor(each, {}, ToolCallInfo("call-1", each.name, "abc-defg"))
        try:
            kinds.add(type(outcome.run().error).__name__)
            # An interrupt that comes after the call is for whoever runs next.
            for thread in threading.enumerate():
                if thread is not threading.current_thread():
                    thread.join()
        except KeyboardInterrupt:
            pass
show(sorted(kinds), threading.active_count())
call(fine, word="next")
""")
    kinds, count = printed[0]
    assert set(kinds) <= {"NoneType", "ToolCancelled"}
    assert count <= 2
    assert printed[1] == ["ok", "next"]
    assert code == 0
