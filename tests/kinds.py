"""The two kinds of conversations, for tests that hold for both: with a process of their own, and light."""

from __future__ import annotations

from typing import Any, Literal

from palaver.actors import Convo, ConvoHandle
from palaver.providers import Provider

KIND_NAMES: tuple[Literal["process", "light"], ...] = ("process", "light")

_OF_TREE = frozenset(
    {"listener", "workspace", "tool_limits", "prompt_caching", "tell_budget_from", "compact_from"}
)
"""What a sub-conversation takes from the conversation that starts it."""


class Kind:
    """Starts conversations of one kind."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._roots: list[ConvoHandle] = []
        """A root ends when nobody holds it any more, and with it its light conversations."""

    async def sub(self, parent: ConvoHandle, **options: Any) -> ConvoHandle:
        """A sub-conversation of this kind."""
        if self.name == "light":
            return await parent.light_sub_convo.remote(**options)
        return await parent.sub_convo.remote(**options)

    async def convo(self, provider: Provider, **options: Any) -> ConvoHandle:
        """A conversation of this kind: a root, or a light one below a root that does nothing."""
        if self.name == "process":
            return Convo.remote(provider, **options)
        of_tree = {name: options.pop(name) for name in list(options) if name in _OF_TREE}
        root = Convo.remote(provider, **of_tree)
        self._roots.append(root)
        return await self.sub(root, **options)
