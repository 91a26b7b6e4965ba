"""Errors of palaver and of its providers.

    PalaverError
      ConfigurationError        what the user passed cannot work; nothing was sent
        MissingKey              no API key
        UnknownModel            no such model name
      ProviderError             a request to a provider failed
        RateLimited             too many requests or tokens; passes                   (retryable)
        Overloaded              the provider is out of capacity or broken; passes     (retryable)
        TransportFailed         no connection, cut connection, or no answer in time   (retryable)
        BadResponse             an answer that cannot be read
        BadRequest              the provider refuses the request as it stands
        ContextTooLong          the request exceeds the model's context window
        AuthenticationFailed    the key is wrong or may not do this
        QuotaExhausted          no credit left, or a spending limit was reached
        StreamBroken            an answer broke off after parts of it were handed out

`palaver.tools.errors` and `palaver.actors.errors` carry the tree on. Every error keeps its state in
positional arguments, so that it survives pickling on its way through Ray.

Layer: providers; imports `messages` and `usage` alone.
"""

from __future__ import annotations

from typing import ClassVar, Self

from palaver.providers.messages import Message
from palaver.providers.usage import Usage


class PalaverError(Exception):
    """Base of every error palaver raises."""


class ConfigurationError(PalaverError):
    """What the user passed cannot work. Raised before anything is sent or spent."""


class MissingKey(ConfigurationError):
    """A provider needs an API key and has none."""


class UnknownModel(ConfigurationError):
    """A model name that palaver does not know, and no base URL that would make it usable."""


class ProviderError(PalaverError):
    """A request to a provider failed for good: its retries, if the failure allows any, are used up.

    `status` is the HTTP status, None when no answer came. `request_id` is the provider's id of the
    request, for its support, and part of the error's text; None when it gave none. `retry_after_s` is how
    long the provider asks to wait, None when it did not say. `usage` is what the provider charged although
    the request failed, None when unknown or nothing.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        provider: str = "",
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(message, provider, status, request_id, retry_after_s, usage)
        self.message = message
        self.provider = provider
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.usage = usage

    def __str__(self) -> str:
        if self.request_id is None or self.request_id in self.message:
            return self.message
        return f"{self.message} (request id {self.request_id})"

    def identified(self, request_id: str | None) -> Self:
        """The same error with the provider's id of the request, unless it has one."""
        if self.request_id is not None or request_id is None:
            return self
        message, provider, status, _, *more = self.args
        return type(self)(message, provider, status, request_id, *more)

    def retold(self, message: str, usage: Usage | None) -> Self:
        """The same error in other words, with what all tries together were charged."""
        _, provider, status, request_id, retry_after_s, _, *more = self.args
        return type(self)(message, provider, status, request_id, retry_after_s, usage, *more)


class RateLimited(ProviderError):
    """Too many requests or tokens per minute."""

    retryable = True


class Overloaded(ProviderError):
    """The provider is out of capacity or broken for the moment (HTTP 5xx, 529)."""

    retryable = True


class TransportFailed(ProviderError):
    """No connection, a connection cut before the answer was whole, or no answer in time."""

    retryable = True


class BadResponse(ProviderError):
    """An answer that cannot be read: not JSON, empty, or not of the documented shape.

    Not retried: the provider may have charged for it.
    """


class BadRequest(ProviderError):
    """The provider refuses the request as it stands."""


class ContextTooLong(BadRequest):
    """The request does not fit the model's context window."""


class AuthenticationFailed(ProviderError):
    """The key is wrong, or may not use this model or endpoint."""


class QuotaExhausted(ProviderError):
    """No credit left, or a spending limit was reached. Waiting does not help."""


class StreamBroken(ProviderError):
    """An answer broke off after parts of it were handed out, so that it was not asked for again.

    `partial` is what had come of it, None when that cannot be read; its tool calls may lack their ends.
    `usage` is what the provider had told by then; what it had not is reckoned at four bytes a token.
    """

    def __init__(
        self,
        message: str,
        provider: str = "",
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        usage: Usage | None = None,
        partial: Message | None = None,
    ) -> None:
        super().__init__(message, provider, status, request_id, retry_after_s, usage)
        self.args = (*self.args, partial)
        self.partial = partial
