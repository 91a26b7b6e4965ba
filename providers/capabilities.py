"""What a model can take: its context window.

Layer: providers; imports the errors alone.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from palaver.providers.errors import ConfigurationError

LOCAL_CONTEXT_TOKENS = 4_096
"""The window of a model on this machine, unless told otherwise: more takes more memory."""


@runtime_checkable
class KnowsContextWindow(Protocol):
    """What a provider has besides when it may know its model's context window; one without it does not."""

    @property
    def context_window(self) -> int | None:
        """The most tokens of input and output together; None when nobody knows."""
        ...


def context_window(provider: object) -> int | None:
    """The context window of a provider's model, in tokens; None when nobody knows."""
    return provider.context_window if isinstance(provider, KnowsContextWindow) else None


def check_context_window(window: object) -> None:
    """Raise ConfigurationError for a `context_window` that is neither a number of tokens nor None."""
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ConfigurationError(
            f"context_window is {window!r}; use a number of tokens, or None to look it up"
        )
