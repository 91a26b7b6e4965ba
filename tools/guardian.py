"""The guardian of a node: ends what a tool call has started when its worker dies before the call ended.

One process per node and user, outside of Ray, so that it outlives whatever is killed. A worker tells it of
each call over a socket that the kernel closes when the worker dies. What belongs to the call is known by
its mark, a number in a resource limit that every process inherits and hardly any can know of: also one
that has left its session, lost its parent and cleared its environment. It ends by itself when no
worker is connected any more and nothing is left to be ended.

It runs as a file of its own with the standard library alone, because it starts on the way of a call and
stays for long. Linux only. `palaver.tools.guarded` is the other end.

Layer: tools; no Ray.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import shutil
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Any

_GONE_WITHIN_S = 5.0
"""A process that does not end on SIGKILL for this long waits in the kernel; it is told of and left."""

_LOOK_S = 0.01
_REMEMBERED = 1000
"""How many ended calls it can still be asked about."""

_CONNECTED_WITHIN_S = 10.0
"""It was started for somebody; if nobody has come by then, nobody will."""

_ASKED_WITHIN_S = 2.0
"""How long it stays, after having had to end something, for whoever wants to know of it."""


def marked(mark: int) -> list[int]:
    """The processes of this machine that wear `mark` and have not ended; never this one."""
    found: list[int] = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with suppress(OSError, ValueError):
                if resource.prlimit(int(entry), resource.RLIMIT_RTTIME)[0] == mark and _runs(entry):
                    found.append(int(entry))
    return found


def _runs(pid: str) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] not in "ZX"


def _name(pid: int) -> str:
    with suppress(OSError), open(f"/proc/{pid}/comm") as file:
        return file.read().strip()
    return "?"


def end(mark: int) -> tuple[dict[int, str], bool]:
    """Kill what wears `mark`: the names by process id, and whether nothing of it is left."""
    killed: dict[int, str] = {}
    deadline = time.monotonic() + _GONE_WITHIN_S
    while found := marked(mark):
        for pid in found:
            killed.setdefault(pid, _name(pid))
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return killed, False
        time.sleep(_LOOK_S)
    return killed, True


class _Client:
    """A connection: a worker with the call it runs, or somebody who wants a call ended."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.unread = b""
        self.call: dict[str, Any] | None = None
        self.began = 0.0


class Guardian:
    """Serves `listener` until nobody is left to be watched."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, _Client] = {}
        self._fenced: set[str] = set()
        # How calls ended that it had to end, by title.
        self._ended: dict[str, dict[str, Any]] = {}
        self._was_needed = False
        self._stays_until = time.monotonic() + _CONNECTED_WITHIN_S

    def serve(self) -> None:
        """Until the last connection is closed, or none ever came."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        while (left_s := self._stays_until - time.monotonic()) > 0 or self._clients:
            for key, _ in self._selector.select(None if self._clients else left_s):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(self._clients[key.fd])

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if _peer(connection)[1] != os.getuid():
            connection.close()
            return
        if not self._was_needed:
            self._was_needed, self._stays_until = True, 0.0
        self._clients[connection.fileno()] = _Client(connection)
        self._selector.register(connection, selectors.EVENT_READ)
        with suppress(OSError):
            connection.sendall(b"{}\n")

    def _read(self, client: _Client) -> None:
        try:
            received = client.connection.recv(65536)
        except OSError:
            received = b""
        if not received:
            self._closed(client)
            return
        *lines, client.unread = (client.unread + received).split(b"\n")
        for line in lines:
            self._take(client, json.loads(line))

    def _take(self, client: _Client, told: dict[str, Any]) -> None:
        match told["do"]:
            case "begin":
                client.call, client.began = told, time.monotonic()
                if self._fenced.intersection(told["lineage"]):
                    self._end(client)
            case "end":
                client.call = None
            case "kill":
                self._kill([each for each in self._at_work() if each[1]["title"] == told["title"]])
                nothing: dict[str, Any] = {"ran_s": None, "killed": [], "complete": True}
                self._answer(client, self._ended.get(told["title"], nothing))
            case "fence":
                convos: set[str] = set(told["convos"])
                self._fenced |= convos
                before = set(self._ended)
                self._kill([each for each in self._at_work() if convos.intersection(each[1]["lineage"])])
                ended = [
                    each
                    for title, each in self._ended.items()
                    if title not in before or convos.intersection(each["lineage"])
                ]
                self._answer(
                    client,
                    {
                        "killed": [process for each in ended for process in each["killed"]],
                        "complete": all(each["complete"] for each in ended),
                    },
                )
            case _:
                pass

    def _answer(self, client: _Client, answer: dict[str, Any]) -> None:
        with suppress(OSError):
            client.connection.sendall(json.dumps(answer).encode() + b"\n")

    def _at_work(self) -> list[tuple[_Client, dict[str, Any]]]:
        return [(each, each.call) for each in self._clients.values() if each.call is not None]

    def _kill(self, meant: list[tuple[_Client, dict[str, Any]]]) -> None:
        for client, _ in meant:
            self._end(client)

    def _end(self, client: _Client) -> None:
        """End the call of a worker, and the worker with it, which wears the mark too."""
        call, client.call = client.call, None
        assert call is not None
        killed, complete = end(call["mark"])
        # It may have been dead already, which is why this is being done.
        killed.setdefault(_peer(client.connection)[0], "worker")
        self._stays_until = time.monotonic() + _ASKED_WITHIN_S
        if call["folder"]:
            shutil.rmtree(call["folder"], ignore_errors=True)
        self._ended[call["title"]] = {
            "ran_s": time.monotonic() - client.began,
            "killed": [(pid, name) for pid, name in killed.items()],
            "complete": complete,
            "lineage": call["lineage"],
        }
        while len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]

    def _closed(self, client: _Client) -> None:
        if client.call is not None:
            self._end(client)
        self._selector.unregister(client.connection)
        del self._clients[client.connection.fileno()]
        client.connection.close()


def _peer(connection: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end (unix(7), SO_PEERCRED)."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def main(address: str) -> None:
    """Serve at an abstract socket's name, unless somebody does already. Returns at once: a child serves."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind("\0" + address)
    except OSError:
        return
    listener.listen(1024)
    if os.fork():
        os._exit(0)  # who waits for this can connect now
    os.setsid()
    # Nothing of who started it: no terminal, no folder, no signals meant for others, no mark.
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
    resource.setrlimit(resource.RLIMIT_RTTIME, (hard, hard))
    Guardian(listener).serve()


if __name__ == "__main__":
    main(sys.argv[1])
