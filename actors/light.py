"""Handles of light conversations, which share the process of another: used as an actor's handle is.

Layer: actors; Ray through the handle of the process's own conversation alone.
"""

from __future__ import annotations

from typing import Any

STREAMED = frozenset({"stream", "map"})
"""Methods that give batches, as Ray's streaming generator does."""


class LightHandle:
    """Stands for a conversation that lives in the process of `host`, and travels as any value does."""

    def __init__(self, host: Any, convo_id: str) -> None:
        self.host = host
        self._convo_id = convo_id

    def __getattr__(self, name: str) -> LightMethod:
        if name.startswith("__"):
            raise AttributeError(name)
        return LightMethod(self.host, self._convo_id, name)

    def __reduce__(self) -> tuple[object, ...]:
        return LightHandle, (self.host, self._convo_id)

    def __repr__(self) -> str:
        return f"LightHandle({self._convo_id})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LightHandle) and other._convo_id == self._convo_id

    def __hash__(self) -> int:
        return hash(self._convo_id)


class LightMethod:
    """A method of such a conversation."""

    def __init__(self, host: Any, convo_id: str, name: str, options: dict[str, Any] | None = None) -> None:
        self._host = host
        self._convo_id = convo_id
        self._name = name
        self._options = options

    def options(self, **ray_options: Any) -> LightMethod:
        """The same method with Ray's options for a call."""
        return LightMethod(self._host, self._convo_id, self._name, ray_options)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call it: an ObjectRef, or Ray's generator of those."""
        method = self._host.stream_at if self._name in STREAMED else self._host.at
        if self._options:
            method = method.options(**self._options)
        return method.remote(self._convo_id, self._name, *args, **kwargs)


def light_handle(host: object, convo_id: str) -> LightHandle:
    """A handle of a light conversation, by one of the conversation whose process it shares, light or not."""
    return LightHandle(host.host if isinstance(host, LightHandle) else host, convo_id)
