"""What a conversation answers, less Ray: its own exceptions instead of Ray's around them.

Layer: actors; one of the modules that know Ray.
"""

from __future__ import annotations

from typing import TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from palaver.actors.errors import ConvoClosed

T = TypeVar("T")


async def reply(ref: ray.ObjectRef[T], convo_id: str = "(unknown id)") -> T:
    """Await what a conversation answers: `await reply(convo.run.remote("..."))`.

    Raises what the conversation raised, as it raised it (`await ref` raises the same error with Ray's
    traceback for its text), and ConvoClosed when its process is gone.
    """
    try:
        return await ref
    except RayTaskError as error:
        raise error.cause from None
    except OutOfMemoryError as error:
        reason = "its process was killed because its node ran out of memory"
        raise ConvoClosed(convo_id, reason) from error
    except RayActorError as error:
        reason = "its process is gone: killed, out of memory, or ended with its parent or its last handle"
        raise ConvoClosed(convo_id, reason) from error
    except RayError as error:
        said = next(iter(str(error).strip().splitlines()), "")
        reason = f"Ray could not reach it ({type(error).__name__}: {said})"
        raise ConvoClosed(convo_id, reason) from error
