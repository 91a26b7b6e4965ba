"""Ray for a program: the cluster it is told of, the one that runs here, or one of its own for as long
as it runs.

Layer: actors; one of the modules that know Ray.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import psutil
import ray

from palaver.actors.own_rays import ADDRESS, CONNECT_WITHIN_S, PATTERN, TOKEN, listens, started_here
from palaver.providers.errors import ConfigurationError
from palaver.tools.guarded import guarded

_ray = cast("Any", ray)  # which is typed in part

_LONGEST_TEMPORARY_FOLDER = 16
"""The paths of Ray's sockets may have 107 bytes, of which those below our folder take up to 65 and its
own name 25 (Ray 2.60, November 2026). TMPDIR is often longer, on macOS always."""

_GONE_WITHIN_S = 2.0
"""How long Ray's processes may take to end after `ray.shutdown`, which waits for some of them only."""

_MAX_IDLE_WORKERS = 32
_IDLE_WORKER_BYTES = 256 * 1024**2
"""Ray ends idle workers beyond the number of CPUs after a second, so that each burst of tool calls pays
for new ones. A Ray of our own keeps up to 32, one for each 256 MiB of the machine's memory (an idle
worker has about 46 MB of its own; measured with Ray 2.60, November 2026)."""


class ClusterUnreachable(ConfigurationError):
    """No Ray answers at the address, or it does not let us in."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A connection to Ray. `owned` is whether this Ray was started for it, and ends with it."""

    address: str
    owned: bool


@contextmanager
def cluster(
    address: str | None = None, *, num_cpus: int | None = None, log_to_driver: bool = True
) -> Generator[Cluster]:
    """Connect this process to Ray for the length of the block.

    `address` is `host:port` of a running Ray. None takes RAY_ADDRESS, or else a Ray that was started on
    this machine with `ray start`; where there is none, or for "local", one is started, with `num_cpus`
    (None for all of the machine's), and is gone with its files after the block, also when this process is
    killed: then all that it has started inside the block is ended (on Linux). A process that uses a Ray
    already goes on with that one, which stays. `log_to_driver` shows what actors and tools print. Raises
    ClusterUnreachable.
    """
    if ray.is_initialized():
        current = str(_ray.get_runtime_context().gcs_address)
        if address not in (None, "auto", current):
            raise ClusterUnreachable(
                f"this process uses the Ray at {current} already, so it cannot use the one at {address!r}; "
                "end that use first (ray.shutdown())"
            )
        yield Cluster(current, owned=False)
        return
    wanted = None if address == "local" else address or os.environ.get("RAY_ADDRESS") or started_here()
    options: dict[str, Any] = {"log_to_driver": log_to_driver, "logging_level": logging.ERROR}
    # Already what ray.init says before it sets its level.
    logging.getLogger("ray").setLevel(logging.ERROR)
    if wanted is None:
        with (
            _own_files() as (folder, environment),
            _environment(environment),
            # Of a Ray whose driver is killed some processes live on for a minute, and its files for good.
            guarded(f"ray {folder}", folder=str(folder)),
        ):
            try:
                _ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    _temp_dir=str(folder),
                    _system_config={"num_workers_soft_limit": _idle_workers()},
                    **options,
                )
                address = str(_ray.get_runtime_context().gcs_address)
                (folder / ADDRESS).write_text(address)
                yield Cluster(address, owned=True)
            finally:
                processes = _started_in(folder)
                _ray.shutdown()
                _end(processes)
        return
    _check_listening(wanted)
    _check_let_in(wanted)
    try:
        try:
            _ray.init(address=wanted, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterUnreachable(_refusal(wanted, error)) from error
        yield Cluster(wanted, owned=False)
    finally:
        _ray.shutdown()


def _check_listening(address: str) -> None:
    if address == "auto":
        running = started_here()
        if running is None:
            raise ClusterUnreachable(
                "no Ray runs on this machine; start one with `ray start --head`, or leave the address "
                "out to have one started for this run"
            )
    elif not re.fullmatch(r".+:\d{1,5}", address):
        raise ClusterUnreachable(f"Ray address {address!r} is not of the form host:port")
    elif not listens(address):
        raise ClusterUnreachable(
            f"nothing listens at Ray address {address!r}; check host and port (`ray start --head` prints "
            "them, the port is 6379 by default), or leave the address out to have a Ray started here"
        )


def _check_let_in(address: str) -> None:
    """Ask Ray for its name: with another token than its own, `ray.init` would try for 20 seconds."""
    import grpc

    at = started_here() if address == "auto" else address
    token = _token_to_send()
    channel = grpc.insecure_channel(str(at), options=[("grpc.enable_http_proxy", 0)])
    with channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(
                b"", metadata=tuple(token.items()), timeout=CONNECT_WITHIN_S
            )
        except grpc.RpcError as error:
            if cast("grpc.Call", error).code() is not grpc.StatusCode.UNAUTHENTICATED:
                return  # whatever it is, ray.init tells
            places = "~/.ray/auth_token, the file RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
            what = (
                f"does not take the token that is sent (of {places}); it wants that of its head, which "
                "`ray get-auth-token` prints there"
                if token
                else f"wants a token, and none is sent: set RAY_AUTH_MODE=token, with the token in {places}"
            )
            raise ClusterUnreachable(
                f"Ray at {address!r} {what}. The address local is a Ray of its own"
            ) from None


def _token_to_send() -> dict[str, str]:
    """The header with the token that Ray sends from this process; empty without one."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return {}
    try:
        return _ray._raylet.AuthenticationTokenLoader.instance().get_token_for_http_header()
    except Exception:  # what Ray raises without a token is of no class of its own
        return {}


def _refusal(address: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"Ray at {address!r} cannot be used: {reason}. If it was started with a token, set "
        "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN); its Ray version and Python have "
        f"to be the same as here (Ray {ray.__version__})."
    )


def _idle_workers() -> int:
    return max(2, min(_MAX_IDLE_WORKERS, psutil.virtual_memory().total // _IDLE_WORKER_BYTES))


@contextmanager
def _own_files() -> Generator[tuple[Path, dict[str, str]]]:
    """A folder for a Ray of our own, with a token nobody else can read, and the environment it needs.

    The folder's name holds this process's id: one that was killed leaves its folder to the next.
    """
    root = Path(tempfile.gettempdir())
    if len(str(root)) > _LONGEST_TEMPORARY_FOLDER:
        root = Path("/tmp")
    for left in root.glob(PATTERN):
        owner = left.name.split("-")[1]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"palaver-{os.getpid()}-", dir=root))
    try:
        environment = {
            "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
            # Ray would make a copy of the environment in every worker when run under `uv run`.
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            # Silences a notice about a future change of GPU handling, of no use to who runs this.
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }
        if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            # Otherwise Ray makes a token in the home directory that all users of the machine can read.
            token = folder / TOKEN
            token.touch(mode=0o600)
            token.write_text(_token())
            environment["RAY_AUTH_TOKEN_PATH"] = str(token)
        yield folder, environment
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _started_in(folder: Path) -> list[psutil.Process]:
    """The processes of the Ray whose files are in `folder`: children of this one, and all below them."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(str(folder) in argument for argument in child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def _end(processes: list[psutil.Process]) -> None:
    """Wait for Ray's processes to be gone, and kill what is not.

    Interrupted while it starts, Ray leaves some behind for good (2.60: the dashboard's agent), and one that
    still runs writes into the folder that is about to be removed.
    """
    _, left = psutil.wait_procs(processes, timeout=_GONE_WITHIN_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=_GONE_WITHIN_S)


@cache
def _token() -> str:
    """The token of every Ray this process starts; Ray reads it once and keeps it."""
    return secrets.token_hex(32)


@contextmanager
def _environment(changes: dict[str, str]) -> Generator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
