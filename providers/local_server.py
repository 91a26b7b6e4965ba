"""The process that serves one model on this machine, and the folder by which its users share it.

One server per user, machine, and settings, however many processes want it at once. Its folder holds

    lock     held (exclusive) while somebody starts a server, takes a lease, or clears the folder away
    alive    held (exclusive) by the server from before its first instruction until it is gone
    users    held (shared) by every process that uses the server: its lease
    state    the server's address and API key, there once it answers
    log      what the server said, for the message of one that did not start

The invariants:

- Every hold is an flock: the kernel gives it back when its process is gone, however it went. No process
  id is ever believed.
- A server starts, a lease is taken, and the folder is cleared only under `lock`. So nobody can take a
  lease on a server that has decided to leave.
- A server whose `users` nobody holds for LINGER_S clears the folder and exits.
- `lock` goes away with the folder: whoever gets it checks that it is still the one at that path.

Layer: providers; standard library alone, and xllamacpp in the server's own process.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib
import json
import os
import resource
import secrets
import shutil
import signal
import stat
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palaver.providers.errors import ConfigurationError

REPEAT_PENALTY = 1.1
"""Small models fall into repeating themselves until they are cut. Of 32 summaries by SmolLM2-135M 2 did
without this, and none with it (November 2026)."""

LINGER_S = 0.7
"""How long a server outlives its last user. Short: it is a fraction of a second's work to start again."""

POLL_S = 0.1
"""How often a server looks for users."""

HTTP_THREADS = 64
"""A kept-alive connection holds a thread of llama.cpp's HTTP server, and every conversation keeps one."""

PROMPT_CACHE_MIB = 512
"""Memory for prompts seen before. llama.cpp's own default is 8192 (xllamacpp 2026.10)."""


@dataclass(frozen=True)
class State:
    """Where a server answers, and the key it asks for. `pid` is for people, never for decisions."""

    url: str
    api_key: str
    pid: int

    def __repr__(self) -> str:
        return f"State(url={self.url!r}, pid={self.pid})"


class Lease:
    """Keeps a server running until `release()`, or until this process is gone."""

    def __init__(self, folder: Folder, users: int, alive: int, state: State) -> None:
        self.folder = folder
        self.state = state
        self._users: int | None = users
        self._alive: int | None = alive

    def is_server_alive(self) -> bool:
        """Whether the server of this lease still runs. Costs one system call. False once released."""
        return self._alive is not None and not _try_flock(self._alive, fcntl.LOCK_SH, keep=False)

    def release(self, wait_s: float = 0.0) -> None:
        """Give the lease back; harmless when called twice.

        `wait_s` bounds the wait until the server is gone, where this was its last user.
        """
        if self._users is None or self._alive is None:
            return
        os.close(self._users)
        self._users = None
        deadline = time.monotonic() + wait_s
        seen_used = 0
        # The server itself holds `users` for an instant when it looks; a user holds it every time.
        while seen_used < 5 and self.is_server_alive() and time.monotonic() < deadline:
            seen_used = seen_used + 1 if self.folder.is_used() else 0
            time.sleep(0.02)
        if not self.is_server_alive():
            self.folder.clear_if_deserted()
        os.close(self._alive)
        self._alive = None


class Folder:
    """The folder of one server; see the module's docstring for what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state_path = path / "state"
        self.log_path = path / "log"

    @classmethod
    def of(cls, key: str) -> Folder:
        """The folder for the server whose settings are named by `key`, of this user on this machine."""
        return cls(Path(tempfile.gettempdir()) / f"palaver-local-{os.getuid()}" / key)

    def make(self) -> None:
        """Make the folder and the one around it, for this user's eyes alone.

        Raises ConfigurationError when somebody else made it first, or opened it to others.
        """
        parent = self.path.parent
        while True:
            with contextlib.suppress(FileExistsError):
                parent.mkdir(mode=0o700)
            try:
                found = parent.lstat()
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                    raise ConfigurationError(
                        f"{str(parent)!r} must be a folder of user {os.getuid()} with mode 700, and is "
                        f"{stat.filemode(found.st_mode)} of user {found.st_uid}; remove it, or set TMPDIR"
                    )
                with contextlib.suppress(FileExistsError):
                    self.path.mkdir(mode=0o700)
                return
            except FileNotFoundError:
                continue  # the last server cleared it away between the two steps

    def try_lock(self) -> int | None:
        """Take the lock; None when it is held, or was cleared away. `os.close` gives it back."""
        try:
            lock = self._open("lock")
        except FileNotFoundError:
            return None
        with contextlib.suppress(FileNotFoundError):
            if _try_flock(lock, fcntl.LOCK_EX) and os.path.samestat(
                os.fstat(lock), (self.path / "lock").stat()
            ):
                return lock
        os.close(lock)
        return None

    def read_state(self) -> State | None:
        """What the server wrote once it answered; None before that."""
        try:
            return State(**json.loads(self.state_path.read_bytes()))
        except FileNotFoundError:
            return None

    def is_alive(self) -> bool:
        """Whether a server runs or starts. Call it under the lock."""
        alive = self._open("alive")
        try:
            return not _try_flock(alive, fcntl.LOCK_SH, keep=False)
        finally:
            os.close(alive)

    def take_alive(self) -> int:
        """The hold a new server inherits. Call it under the lock, when no server is alive."""
        alive = self._open("alive")
        while not _try_flock(alive, fcntl.LOCK_EX):
            time.sleep(0.001)  # somebody looks at this instant; there is no server
        return alive

    def take_lease(self, state: State) -> Lease:
        """A lease on the server that runs. Call it under the lock."""
        users = self._open("users")
        while not _try_flock(users, fcntl.LOCK_SH):
            time.sleep(0.001)  # the server looks for users at this instant
        return Lease(self, users, self._open("alive"), state)

    def is_used(self) -> bool:
        """Whether anybody holds a lease."""
        try:
            users = os.open(self.path / "users", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            return not _try_flock(users, fcntl.LOCK_EX, keep=False)
        finally:
            os.close(users)

    def clear(self) -> None:
        """Remove the folder, and the one around it when it was the last. Call it under the lock."""
        # Renamed first, so that nobody makes a file in it half-way.
        doomed = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            self.path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            self.path.parent.rmdir()

    def clear_if_deserted(self) -> None:
        """Remove what a server that was killed left, unless somebody uses the folder."""
        lock = self.try_lock()
        if lock is not None:
            if not self.is_alive() and not self.is_used():
                self.clear()
            os.close(lock)

    def log_tail(self, lines: int = 12) -> str:
        """The last lines of the log."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def _open(self, name: str) -> int:
        return os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _try_flock(file: int, kind: int, *, keep: bool = True) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if not keep:
        fcntl.flock(file, fcntl.LOCK_UN)
    return True


def serve(folder: Folder, arguments: argparse.Namespace) -> None:
    """Load the model, say where it answers, and stay until nobody has used it for a while."""
    api_key = secrets.token_urlsafe(32)
    # No Python runs while llama.cpp loads, so the kernel is the one to end a start that takes too long.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, arguments.startup_timeout_s)
    server = _start_llama(arguments, api_key)
    signal.setitimer(signal.ITIMER_REAL, 0)

    leaving = False

    def leave(number: int, frame: object) -> None:
        nonlocal leaving
        leaving = True

    signal.signal(signal.SIGTERM, leave)
    partial = folder.path / "state.new"
    partial.write_text(json.dumps({"url": server.listening_address, "api_key": api_key, "pid": os.getpid()}))
    partial.rename(folder.state_path)

    unused_since = time.monotonic()
    while True:
        time.sleep(POLL_S)
        now = time.monotonic()
        if not folder.state_path.exists():
            return  # somebody cleaned the temporary folder: nobody can find this server any more
        if not leaving and folder.is_used():
            unused_since = now
        elif leaving or now - unused_since >= LINGER_S:
            lock = folder.try_lock()
            if lock is None:
                continue
            if leaving or not folder.is_used():
                folder.clear()
                return  # the lock goes with the process: who waits for it finds it cleared away
            os.close(lock)


def _start_llama(arguments: argparse.Namespace, api_key: str) -> Any:
    xllamacpp: Any = importlib.import_module("xllamacpp")  # untyped, and optional
    params: Any = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.model_alias = {arguments.name}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [api_key]
    params.n_parallel = arguments.slots
    params.n_ctx = arguments.context_tokens * arguments.slots  # shared out among the slots in equal parts
    params.cpuparams.n_threads = arguments.threads
    params.cpuparams_batch.n_threads = arguments.threads
    params.n_threads_http = HTTP_THREADS
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.sampling.temp = arguments.temperature
    params.sampling.penalty_repeat = REPEAT_PENALTY
    params.verbosity = 2  # warnings; above that every request is logged
    params.ui = False
    params.endpoint_slots = False
    params.cors_origins = ""
    params.offline = True
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise SystemExit(f"llama.cpp: {error}") from error  # its reasons stand in the log already


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Serve one model on this machine for palaver's local provider."
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument(
        "--alive", type=int, required=True, help="number of the inherited file that says it runs"
    )
    parser.add_argument("--name", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--context-tokens", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--temperature", type=float, required=True)
    parser.add_argument("--startup-timeout-s", type=float, required=True)
    return parser.parse_args(words)


def main() -> None:
    """Leave the process that started this one behind, then serve.

    Ray ends the children of a worker with it. A grandchild in its own session is no child of anybody's.
    """
    arguments = parse()
    if os.fork():
        os._exit(0)
    os.umask(0o077)
    if sys.platform == "linux":
        # What belongs to a tool call, or to a program, wears a mark in this limit and ends with it. The
        # server belongs to all that use it.
        _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
        resource.setrlimit(resource.RLIMIT_RTTIME, (hard, hard))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.set_inheritable(arguments.alive, False)
    serve(Folder(arguments.folder), arguments)
    # No destructors: nobody is served any more, and llama.cpp's take their time.
    os._exit(0)


def command_line(
    executable: str, folder: Folder, alive: int, options: dict[str, str | int | float]
) -> list[str]:
    """The command that becomes a server: `options` by the names that `parse` knows."""
    words = [executable, "-P", "-m", "palaver.providers.local_server"]
    words += ["--folder", str(folder.path), "--alive", str(alive)]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


if __name__ == "__main__":
    main()
