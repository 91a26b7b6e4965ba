"""The folder of a job: all that is known of a command that runs in the background of a conversation.

Whoever looks at a job is another process than the one that runs it, perhaps on another node, and may come
after that was killed. So everything is in files, in `.palaver/jobs/<conversation>/<number>/` of the
workspace: `order.json`, how it was asked for; `output`; `status.json`, replaced as a whole each time;
`lock`, held for as long as the job runs, which no death leaves held; and `stop`, made by whoever wants
the job to end.

Layer: tools; no Ray.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeAlias

from palaver.providers.messages import Value
from palaver.tools.bash_output import write_all
from palaver.tools.workspace import OWN_FOLDER, own_folder

State: TypeAlias = Literal["starting", "running", "ended", "gone"]
"""A job that is gone has ended without a word: the process that ran it was killed."""


class Order(Value):
    """How a job was asked for."""

    command: str
    folder: str


class Status(Value):
    """How a job goes. `exit_code` is bash's, below 0 when it was killed by a signal, `signal`; None while it
    runs, and when it never started. `stopped` is why it was stopped, "" when it was not.
    """

    pid: int | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    exit_code: int | None = None
    signal: str | None = None
    stopped: str = ""


class JobFolder:
    """The folder of one job; `number` is its name among those of its conversation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = int(path.name)
        self.output = path / "output"
        self._status = path / "status.json"
        self._stop = path / "stop"

    @classmethod
    def make(cls, workspace: str, convo_id: str, order: Order) -> JobFolder:
        """A new one. Raises OSError."""
        parent = own_folder(workspace, "jobs", convo_id or "-")
        number = max((each.number for each in cls.all(workspace, convo_id)), default=0) + 1
        while True:
            try:
                (parent / str(number)).mkdir(0o700)
                break
            except FileExistsError:  # made by another call just now
                number += 1
        folder = cls(parent / str(number))
        folder._write("order.json", order)
        return folder

    @classmethod
    def all(cls, workspace: str, convo_id: str) -> Sequence[JobFolder]:
        """Those of a conversation, by number."""
        parent = Path(workspace, OWN_FOLDER, "jobs", convo_id or "-")
        names = os.listdir(parent) if parent.is_dir() else []
        return [cls(parent / str(number)) for number in sorted(int(each) for each in names if each.isdigit())]

    def order(self) -> Order:
        """How it was asked for. Raises OSError or ValueError when its file is gone or was changed."""
        return Order.model_validate_json((self.path / "order.json").read_bytes())

    def state(self) -> tuple[State, Status]:
        """How it goes."""
        status = self._read_status()
        if status is None:
            return "starting", Status()
        if status.ended_at is None and not self._is_held():
            # It may have ended between the two looks.
            status = self._read_status() or status
            return ("gone" if status.ended_at is None else "ended"), status
        return ("running" if status.ended_at is None else "ended"), status

    def set_status(self, status: Status) -> None:
        """Tell how it goes. Raises OSError."""
        self._write("status.json", status)

    def ask_to_stop(self) -> None:
        """Have it end, also if it has not started yet. Raises OSError."""
        os.close(os.open(self._stop, os.O_WRONLY | os.O_CREAT, 0o600))

    def is_to_stop(self) -> bool:
        """Whether somebody wants it to end."""
        return self._stop.exists()

    @contextmanager
    def held(self) -> Generator[None]:
        """While in the block, all can see that it runs. Raises OSError."""
        lock = os.open(self.path / "lock", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            with suppress(OSError):  # a file system without locks: it is then taken to run
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _is_held(self) -> bool:
        try:
            lock = os.open(self.path / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            return False
        finally:
            os.close(lock)

    def _read_status(self) -> Status | None:
        try:
            return Status.model_validate_json(self._status.read_bytes())
        except FileNotFoundError:
            return None

    def _write(self, name: str, value: Value) -> None:
        """Put a file in its place as a whole."""
        new = self.path / f"{name}.new"
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_all(file, value.model_dump_json().encode())
        finally:
            os.close(file)
        new.replace(self.path / name)
