"""How the methods of a conversation's actor look from outside: `handle.method.remote(...)`.

Layer: actors; Ray for its types alone.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from palaver.actors.feed import ConvoEvent
from palaver.actors.items import Item, ItemResult
from palaver.actors.mapping import AT_ONCE
from palaver.actors.result import RunResult
from palaver.actors.typed_output import OUTPUT_RETRIES
from palaver.providers.messages import Content

if TYPE_CHECKING:
    import ray

    from palaver.actors.options import SubConvoOptions

P = ParamSpec("P")
R = TypeVar("R")


class RemoteMethod(Protocol[P, R]):
    """A method of an actor: called as `handle.method.remote(...)`, which gives an ObjectRef at once."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ray.ObjectRef[R]:
        """Call the method. `await` the reference, or `ray.get` it, for the result."""
        ...

    def options(self, **ray_options: Any) -> RemoteMethod[P, R]:
        """The same method with Ray's options for a call."""
        ...


def remotely(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> RemoteMethod[P, R]:
    """Tell type checkers how a method looks from outside the actor. Changes nothing else."""
    return cast("RemoteMethod[P, R]", method)


class RemoteRun(Protocol):
    """`ConvoActor.run` seen from outside: the result's `output` is of the type that was asked for."""

    @overload
    def remote(self, text: str, *contents: Content) -> ray.ObjectRef[RunResult]: ...

    @overload
    def remote(
        self, text: str, *contents: Content, output_type: type[R], output_retries: int = OUTPUT_RETRIES
    ) -> ray.ObjectRef[RunResult[R]]: ...

    @overload
    def remote(
        self, text: str, *contents: Content, output_type: Any, output_retries: int = OUTPUT_RETRIES
    ) -> ray.ObjectRef[RunResult[Any]]: ...

    def remote(
        self, text: str, *contents: Content, output_type: Any = None, output_retries: int = OUTPUT_RETRIES
    ) -> ray.ObjectRef[RunResult[Any]]:
        """Call the method. `await` the reference, or `ray.get` it, for the result."""
        ...

    def options(self, **ray_options: Any) -> RemoteRun:
        """The same method with Ray's options for a call."""
        ...


def remote_run(method: Callable[..., Coroutine[Any, Any, RunResult[Any]]]) -> RemoteRun:
    """As `remotely`, for `run`, whose result depends on an argument."""
    return cast("RemoteRun", method)


class RemoteStream(Protocol):
    """`ConvoActor.stream` seen from outside: batches of events, each an object of its own.

    `palaver.actors.events` takes them apart.
    """

    def remote(
        self, text: str, *contents: Content, output_type: Any = None, output_retries: int = OUTPUT_RETRIES
    ) -> AsyncIterator[ray.ObjectRef[tuple[ConvoEvent, ...]]]:
        """Call the method: Ray's ObjectRefGenerator, with a reference to each batch when it is there."""
        ...

    def options(self, **ray_options: Any) -> RemoteStream:
        """The same method with Ray's options for a call."""
        ...


class RemoteMap(Protocol):
    """`ConvoActor.map` seen from outside: batches of results; `palaver.actors.results` takes them apart."""

    def remote(
        self,
        items: Iterable[Item | str],
        *,
        concurrency: int = AT_ONCE,
        workers: int = 0,
        output_type: Any = None,
        output_retries: int = OUTPUT_RETRIES,
        **options: Unpack[SubConvoOptions],
    ) -> AsyncIterator[ray.ObjectRef[tuple[ItemResult, ...]]]:
        """Call the method: Ray's ObjectRefGenerator, with a reference to each batch when it is there."""
        ...

    def options(self, **ray_options: Any) -> RemoteMap:
        """The same method with Ray's options for a call."""
        ...


def remote_map(method: Callable[..., AsyncGenerator[tuple[ItemResult, ...]]]) -> RemoteMap:
    """As `remotely`, for `map`."""
    return cast("RemoteMap", method)


def remote_stream(method: Callable[..., AsyncGenerator[tuple[ConvoEvent, ...]]]) -> RemoteStream:
    """As `remotely`, for `stream`."""
    return cast("RemoteStream", method)
