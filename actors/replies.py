"""What a conversation answers, less Ray: its own exceptions instead of Ray's around them.

Layer: actors; one of the modules that know Ray.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from palaver.actors.endings import to_the_end
from palaver.actors.errors import ConvoClosed, ConvoUnreachable
from palaver.actors.feed import ConvoEvent
from palaver.actors.items import ItemResult
from palaver.providers.errors import ConfigurationError, PalaverError

T = TypeVar("T")


async def reply(ref: ray.ObjectRef[T], convo_id: str = "(unknown id)") -> T:
    """Await what a conversation answers: `await reply(convo.run.remote("..."))`.

    Raises what the conversation raised, as it raised it (`await ref` raises the same error with Ray's
    traceback for its text); ConvoClosed when its process is gone, ConvoUnreachable, which is one of these,
    when nobody knows; and ConfigurationError when it could not read what it was passed: an `output_type` of a
    module that is not there (`await ref` raises Ray's own RaySystemError).
    """
    try:
        return await ref
    except RayTaskError as error:
        if isinstance(error.cause, RayError):
            said = _first_line(error.cause).removeprefix("System error: ")
            raise ConfigurationError(
                f"the conversation's process could not read what it was passed: {said}. A type's module has "
                "to be importable on the node of the conversation; a type of the main program or of a "
                "function travels whole"
            ) from error
        raise error.cause from None
    except ActorUnavailableError as error:
        raise ConvoUnreachable(convo_id, f"its node does not answer ({_first_line(error)})") from error
    except OutOfMemoryError as error:
        reason = "its process was killed because its node ran out of memory"
        raise ConvoClosed(convo_id, reason) from error
    except RayActorError as error:
        reason = "its process is gone: killed, out of memory, or ended with its parent or its last handle"
        raise ConvoClosed(convo_id, reason) from error
    except RayError as error:
        raise ConvoUnreachable(convo_id, f"{type(error).__name__}: {_first_line(error)}") from error


def events(
    batches: AsyncIterator[ray.ObjectRef[tuple[ConvoEvent, ...]]], convo_id: str = "(unknown id)"
) -> AsyncGenerator[ConvoEvent]:
    """What happens in a run, as it happens: `async for event in events(convo.stream.remote("...")):`.

    Ends with a RunEnded. Raises what `reply` raises. Leaving early stops the run, once the generator is
    closed: use `contextlib.aclosing`.
    """
    return _one_by_one(batches, convo_id)


def results(
    batches: AsyncIterator[ray.ObjectRef[tuple[ItemResult, ...]]], convo_id: str = "(unknown id)"
) -> AsyncGenerator[ItemResult]:
    """The results of a map, as they come: `async for result in results(convo.map.remote([...])):`.

    Raises what `reply` raises. Leaving early stops the work, once the generator is closed: use
    `contextlib.aclosing`.
    """
    return _one_by_one(batches, convo_id)


async def _one_by_one(
    batches: AsyncIterator[ray.ObjectRef[tuple[T, ...]]], convo_id: str
) -> AsyncGenerator[T]:
    ended = False
    try:
        async for ref in batches:
            for each in await reply(ref, convo_id):
                yield each
        ended = True
    except PalaverError:
        ended = True
        raise
    finally:
        if not ended:
            await to_the_end(_stopped(batches))


async def _stopped(batches: Any) -> None:
    """Stop a run that nobody follows any more, and wait until it has stopped."""
    with suppress(RayError):
        ray.cancel(batches)  # pyright: ignore[reportUnknownMemberType]
        async for ref in batches:
            await ref


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
