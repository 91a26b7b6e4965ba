"""Providers: the neutral types of a conversation, and one adapter per wire API.

Layer: the lowest of palaver; imports neither tools nor actors, nor Ray. Importing it is cheap: adapters,
httpx, tenacity and genai-prices are loaded when first needed, so that a conversation's process holds its own
adapter alone.
"""

import importlib
from typing import TYPE_CHECKING

from palaver.providers.errors import (
    AuthenticationFailed,
    BadRequest,
    BadResponse,
    ConfigurationError,
    ContextTooLong,
    MissingKey,
    Overloaded,
    PalaverError,
    ProviderError,
    QuotaExhausted,
    RateLimited,
    StreamBroken,
    TransportFailed,
    UnknownModel,
)
from palaver.providers.http_errors import AnswerLost, IncompleteAnswer, MalformedCall
from palaver.providers.messages import Content, Image, Message, Opaque, Text, Thinking, ToolResult, ToolUse
from palaver.providers.prices import Price, Rates, Tier
from palaver.providers.profiles import Profile
from palaver.providers.provider import (
    OutputSchema,
    Provider,
    Request,
    Response,
    StopReason,
    TakesOutputSchema,
    ToolChoice,
    ToolSpec,
)
from palaver.providers.rate_limits import RateLimits
from palaver.providers.retry import Retry, RetryPolicy
from palaver.providers.stream import (
    Answered,
    Delta,
    Streams,
    TextDelta,
    ThinkingDelta,
    ToolInputDelta,
    UsageSoFar,
)
from palaver.providers.usage import Usage
from palaver.providers.worst_case import BoundsCost, CountedInput, WorstCase

if TYPE_CHECKING:
    from palaver.providers.anthropic import Anthropic
    from palaver.providers.models import ModelRow, default_provider, known_models, provider_for
    from palaver.providers.openai import LlamaCPP, OpenAI
    from palaver.providers.price_list import lookup_price
    from palaver.providers.responses import OpenAIResponses
    from palaver.providers.scripted import Reply, Script, Scripted, ScriptEnded
    from palaver.providers.served import ServedModel, served_models

__all__ = [
    "AnswerLost",
    "Answered",
    "Anthropic",
    "AuthenticationFailed",
    "BadRequest",
    "BadResponse",
    "BoundsCost",
    "ConfigurationError",
    "Content",
    "ContextTooLong",
    "CountedInput",
    "Delta",
    "Image",
    "IncompleteAnswer",
    "LlamaCPP",
    "MalformedCall",
    "Message",
    "MissingKey",
    "ModelRow",
    "Opaque",
    "OpenAI",
    "OpenAIResponses",
    "OutputSchema",
    "Overloaded",
    "PalaverError",
    "Price",
    "Profile",
    "Provider",
    "ProviderError",
    "QuotaExhausted",
    "RateLimited",
    "RateLimits",
    "Rates",
    "Reply",
    "Request",
    "Response",
    "Retry",
    "RetryPolicy",
    "Script",
    "ScriptEnded",
    "Scripted",
    "ServedModel",
    "StopReason",
    "StreamBroken",
    "Streams",
    "TakesOutputSchema",
    "Text",
    "TextDelta",
    "Thinking",
    "ThinkingDelta",
    "Tier",
    "ToolChoice",
    "ToolInputDelta",
    "ToolResult",
    "ToolSpec",
    "ToolUse",
    "TransportFailed",
    "UnknownModel",
    "Usage",
    "UsageSoFar",
    "WorstCase",
    "default_provider",
    "known_models",
    "lookup_price",
    "provider_for",
    "served_models",
]

_LOADED_WHEN_NEEDED = {
    "Anthropic": "anthropic",
    "LlamaCPP": "openai",
    "ModelRow": "models",
    "OpenAI": "openai",
    "OpenAIResponses": "responses",
    "Reply": "scripted",
    "Script": "scripted",
    "ScriptEnded": "scripted",
    "Scripted": "scripted",
    "ServedModel": "served",
    "default_provider": "models",
    "known_models": "models",
    "lookup_price": "price_list",
    "provider_for": "models",
    "served_models": "served",
}
"""Names, and the modules that hold them."""


def __getattr__(name: str) -> object:
    if name not in _LOADED_WHEN_NEEDED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_LOADED_WHEN_NEEDED[name]}")
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(globals() | _LOADED_WHEN_NEEDED)
