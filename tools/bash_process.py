"""One `bash -c` and all that it starts: runs it, takes what it prints, and ends it.

Layer: tools; no Ray.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import psutil

STOP_GRACE_S = 2.0
"""How long a command that is stopped may take for its own clean-up, from SIGTERM to SIGKILL."""

_CANCEL_GRACE_S = 0.15
"""The same in a cancelled call, whose processes the supervisor asks to end after 0.2 s."""

_LEFT_GRACE_S = 0.3
"""The same for what a command has left running when it ended."""

_QUIET_S = 0.2
_DRAIN_S = 1.0
"""Bash does not wait for a `>(...)`. What still prints when bash has ended is listened to until it is quiet
for the one time, or for the other altogether."""

_TICK_S = 0.05
_LOOK_S = 0.01
_CHUNK_BYTES = 1 << 16
_KILL_ROUNDS = 20

_REPORT_FD = 90
"""The lowest number for the pipe that bash reports its folder through, out of the way of a command's own."""

_MARK = "PALAVER_COMMAND"
"""An environment variable by which what has left the session is known to be the command's."""

_SECRET = re.compile(r"(.*_)?API_?KEYS?|RAY_AUTH_TOKEN.*|ANTHROPIC_AUTH_TOKEN", re.IGNORECASE | re.DOTALL)
"""Names of variables that hold keys of model services, or the token of the Ray cluster."""


def environment(pass_env: Collection[str] = ()) -> dict[str, str]:
    """This process's environment less the keys; those named in `pass_env` stay.

    It keeps keys out of what a command prints or passes on by itself. It is no wall: a command runs as the
    same user, who may look at other processes.
    """
    left_out = {name for name in os.environ if _SECRET.fullmatch(name)} - set(pass_env)
    # The folder before belongs to another shell: `cd -` would lead there.
    return {name: value for name, value in os.environ.items() if name not in {*left_out, "OLDPWD"}}


def signal_name(number: int) -> str:
    """The name of a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"


def exit_text(exit_code: int) -> str:
    """An exit code in words. Below 0 is the signal that killed bash; bash itself says 128 + signal when
    the last program was killed by one.
    """
    if exit_code < 0:
        return f"killed by {signal_name(-exit_code)}"
    by = f" (as after {signal_name(exit_code - 128)})" if 128 < exit_code <= 192 else ""
    return f"exit code {exit_code}{by}"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    `exit_code` is bash's own, below 0 for the signal that killed it. `stopped` is why it was stopped, ""
    when it ended by itself. `folder` is where bash was at its end; None when that is not known: it was
    killed, has become another program by `exec`, or the command has an EXIT trap of its own. `left` are
    the names of processes that it had left running, which have been ended.
    """

    exit_code: int
    stopped: str
    folder: str | None
    left: tuple[str, ...]


class BashProcess:
    """A running command, which prints into `take`. `run` has to follow, in the same event loop.

    It has a session of its own, no terminal, and nothing to read. Raises OSError when bash is not there or
    does not start, and ValueError for a command that cannot be passed on.
    """

    def __init__(
        self, command: str, folder: str, environment: Mapping[str, str], take: Callable[[bytes], None]
    ) -> None:
        bash = shutil.which("bash", path=environment.get("PATH"))
        if bash is None:
            raise FileNotFoundError(
                errno.ENOENT, f"there is no bash on the PATH of this node ({environment.get('PATH', '')!r})"
            )
        self._take = take
        self._mark = secrets.token_hex(8)
        self._silent = asyncio.Event()
        self._last_read = 0.0
        with ExitStack() as unless_started, ExitStack() as once_started:
            self._output, printed = _pipe(unless_started, once_started)
            self._report, reported = _pipe(unless_started, once_started)
            reported = fcntl.fcntl(reported, fcntl.F_DUPFD_CLOEXEC, _REPORT_FD)
            once_started.callback(os.close, reported)
            script, written = os.pipe()
            once_started.callback(os.close, script)
            with os.fdopen(written, "wb") as file:
                file.write(_start_script(script, reported, environment.get("BASH_ENV")))
            self._process = subprocess.Popen(
                ["bash", "-c", command],
                executable=bash,
                cwd=folder,
                env={**environment, _MARK: self._mark, "BASH_ENV": f"/dev/fd/{script}"},
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                pass_fds=(script, reported),
                start_new_session=True,
            )
            self._open = unless_started.pop_all()

    @property
    def pid(self) -> int:
        """The process id of bash, which is that of its session and its process group too."""
        return self._process.pid

    async def run(
        self, why_stop: Callable[[], str], *, with_left: bool = False, look_s: float = _TICK_S
    ) -> Ended:
        """Until it has ended, and nothing of it is left.

        `why_stop` is asked every `look_s` seconds; it is stopped when that says anything. `with_left` is
        to wait for what it has left running, too, rather than to end that. When cancelled, everything of
        it is ended first.
        """
        loop = asyncio.get_running_loop()
        loop.add_reader(self._output, self._read)
        try:
            stopped = await self._wait(why_stop, look_s)
            if not stopped and with_left:
                stopped = await self._wait_for_left(why_stop, look_s)
            if stopped:
                await self._end(STOP_GRACE_S)
            await self._drain()
            await self._let_go()
            left = await self._end(_LEFT_GRACE_S)
            await self._drain()
        except BaseException:
            await self._end(_CANCEL_GRACE_S)
            raise
        finally:
            loop.remove_reader(self._output)
            folder = self._reported_folder()
            self._open.close()
        return Ended(self._process.wait(), stopped, folder, left)

    async def _wait(self, why_stop: Callable[[], str], look_s: float) -> str:
        """Until bash has ended (""), or is to be stopped: why."""
        pause_s = 0.001
        while self._process.poll() is None:
            if stop := why_stop():
                return stop
            if self._silent.is_set():
                # As a rule it ends right after it has closed its output.
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, look_s)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(look_s):
                        await self._silent.wait()
        return ""

    async def _wait_for_left(self, why_stop: Callable[[], str], look_s: float) -> str:
        """Until nothing that bash has left runs any more (""), or that is to be stopped: why."""
        while self._left():
            for _ in range(5):
                if stop := why_stop():
                    return stop
                await asyncio.sleep(look_s)
        return ""

    async def _let_go(self) -> None:
        """Wait a moment for what is ending anyway: a process closes its output before it is gone."""
        deadline = time.monotonic() + _TICK_S
        while self._left() and time.monotonic() < deadline:  # noqa: ASYNC110 - only looking tells
            await asyncio.sleep(_LOOK_S)

    async def _drain(self) -> None:
        """Take what is still printed, for a short time."""
        began = self._last_read = time.monotonic()
        while not self._silent.is_set():
            now = time.monotonic()
            if now - self._last_read > _QUIET_S or now - began > _DRAIN_S:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._silent.wait()

    def _read(self) -> None:
        with suppress(BlockingIOError):
            data = os.read(self._output, _CHUNK_BYTES)
            if data:
                self._last_read = time.monotonic()
                self._take(data)
            else:
                asyncio.get_running_loop().remove_reader(self._output)
                self._silent.set()

    async def _end(self, grace_s: float) -> tuple[str, ...]:
        """SIGTERM to all that is left of it, SIGKILL to what is there after the grace; their names."""
        names: dict[int, str] = {}
        if not (found := self._left()):
            return ()
        for process in found:
            with suppress(psutil.Error):
                names[process.pid] = process.name()
                process.terminate()
        deadline, pause_s = time.monotonic() + grace_s, _LOOK_S
        while found and time.monotonic() < deadline:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _TICK_S)
            found = self._left()
        rounds = 0
        # One that forks while it is looked for is found in the next round.
        while found and rounds < _KILL_ROUNDS:
            for process in found:
                with suppress(psutil.Error):
                    names.setdefault(process.pid, process.name())
                    process.kill()
            await asyncio.sleep(_LOOK_S)
            found, rounds = self._left(), rounds + 1
        names.pop(self.pid, None)
        return tuple(names.values())

    def _left(self) -> list[psutil.Process]:
        """What runs of it: bash, its session, and descendants of this process that wear its mark."""
        self._process.poll()
        found = {pid for pid in psutil.pids() if _session_of(pid) == self.pid}
        if found or _has_children():
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if child.environ().get(_MARK) == self._mark:
                        found.add(child.pid)
        running: list[psutil.Process] = []
        for pid in found:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    running.append(process)
        return running

    def _reported_folder(self) -> str | None:
        # A folder whose name is no UTF-8 cannot be kept.
        with suppress(BlockingIOError, UnicodeDecodeError):
            line = os.read(self._report, _CHUNK_BYTES).decode()
            if line.startswith("/"):
                return line.removesuffix("\n")
        return None


def _pipe(kept: ExitStack, passed_on: ExitStack) -> tuple[int, int]:
    """A pipe, whose end to read from does not block."""
    reading, writing = os.pipe()
    kept.callback(os.close, reading)
    passed_on.callback(os.close, writing)
    os.set_blocking(reading, False)
    return reading, writing


def _start_script(script: int, reported: int, bash_env: str | None) -> bytes:
    """What bash runs before the command, which it then gets as it is, with its own line numbers.

    The trap changes no exit code, and shows in nothing that `set -x` prints.
    """
    lines = [
        f"trap '{{ builtin pwd -P >&{reported} || :; }} 2>/dev/null' EXIT",
        "unset BASH_ENV" if bash_env is None else f"BASH_ENV={shlex.quote(bash_env)}",
        f"exec {script}<&-",
    ]
    if bash_env:
        lines.append('[ ! -r "$BASH_ENV" ] || . "$BASH_ENV"')
    return os.fsencode("\n".join(lines) + "\n")


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _has_children() -> bool:
    """Whether this process has any child, collected or not. Takes microseconds, and collects none."""
    if not hasattr(os, "waitid"):
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
