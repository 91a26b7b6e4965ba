"""Model names: the short ones palaver knows, and how any other name becomes a provider.

Layer: providers, at the top: the one module that knows every adapter.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from palaver.providers.anthropic import ANTHROPIC_KEY_VARIABLE, ANTHROPIC_URL, Anthropic
from palaver.providers.errors import ConfigurationError, UnknownModel
from palaver.providers.keys import key_is_set
from palaver.providers.messages import Value
from palaver.providers.openai import LLAMA_CPP_URL, LlamaCPP, OpenAI
from palaver.providers.price_list import lookup_price
from palaver.providers.prices import Price
from palaver.providers.profiles import SERVICES, needs_responses, service_at
from palaver.providers.provider import Provider
from palaver.providers.responses import OpenAIResponses
from palaver.providers.scripted import Scripted
from palaver.providers.secret import Secret

_URLS = {"anthropic": ANTHROPIC_URL, **{service.name: service.base_url for service in SERVICES}}
_KEY_VARIABLES = {
    "anthropic": ANTHROPIC_KEY_VARIABLE,
    **{service.name: service.key_variable for service in SERVICES},
}


class _Named(NamedTuple):
    service: str
    model: str


_MODELS = {
    # The names of the seed (shared/seed): they stay, also where the vendor has retired the model.
    "gpt4.1": _Named("openai", "gpt-4.1-2025-04-14"),
    "gemini-flash-2.5": _Named("gemini", "gemini-2.5-flash"),
    "gemini-pro-2.5": _Named("gemini", "gemini-2.5-pro"),
    "together-deepseek-v3": _Named("together", "deepseek-ai/DeepSeek-V3"),
    "together-llama4-maverick": _Named("together", "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8"),
    "together-llama3-70b": _Named("together", "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
    "together-mistral-small": _Named("together", "mistralai/Mistral-Small-24B-Instruct-2501"),
    "fireworks-deepseek-v3": _Named("fireworks", "accounts/fireworks/models/deepseek-v3-0324"),
    "claude-3.5-sonnet": _Named("anthropic", "claude-3-5-sonnet-20241022"),
    "claude-3.5-haiku": _Named("anthropic", "claude-3-5-haiku-20241022"),
    "claude-3.7-sonnet": _Named("anthropic", "claude-3-7-sonnet-20250219"),
    # Current ones: in genai-prices 0.2.3 and, of Claude and GPT, in the official SDKs (November 2026).
    "claude-fable-5.2": _Named("anthropic", "claude-fable-5-2"),
    "claude-opus-5.5": _Named("anthropic", "claude-opus-5-5"),
    "claude-sonnet-5.5": _Named("anthropic", "claude-sonnet-5-5"),
    "claude-haiku-5.5": _Named("anthropic", "claude-haiku-5-5"),
    "claude-sonnet-4.5": _Named("anthropic", "claude-sonnet-4-5"),
    "gpt6.1-sol": _Named("openai", "gpt-6.1-sol"),
    "gpt6.1-terra": _Named("openai", "gpt-6.1-terra"),
    "gpt6-luna": _Named("openai", "gpt-6-luna"),
    "gpt6-astra": _Named("openai", "gpt-6-astra"),
    "gpt5.4-mini": _Named("openai", "gpt-5.4-mini"),
    "gemini-argon-4": _Named("gemini", "gemini-4-argon"),
    "gemini-flash-3.8": _Named("gemini", "gemini-3.8-flash"),
    "together-gpt-oss-120b": _Named("together", "openai/gpt-oss-120b"),
    "together-kimi-k3.1": _Named("together", "moonshotai/Kimi-K3.1-Pro"),
    "together-glm-5.3": _Named("together", "zai-org/GLM-5.3"),
    "fireworks-deepseek-v4": _Named("fireworks", "accounts/fireworks/models/deepseek-v4-pro"),
    "fireworks-gpt-oss-120b": _Named("fireworks", "accounts/fireworks/models/gpt-oss-120b"),
}
_LLAMA_CPP = "llama.cpp"

_SERVICE_BY_PREFIX = {
    "claude-": "anthropic",
    "gpt-": "openai",
    "o1": "openai",
    "o3": "openai",
    "o4": "openai",
    "gemini-": "gemini",
}

_DEFAULTS = ("claude-sonnet-4.5", "gpt6.1-sol", "gemini-flash-3.8", "together-gpt-oss-120b",
             "fireworks-gpt-oss-120b")  # fmt: skip
"""One model of each service, in the order in which keys are looked for."""


class ModelRow(Value):
    """One line of `palaver models`."""

    name: str
    model: str
    endpoint: str
    """Base URL; "this machine" for a model that palaver serves itself."""
    key_variable: str | None
    """The environment variable of its key; None when it needs none."""
    has_key: bool
    """Whether it can be used now: the variable is set, or none is needed."""
    price: Price | None
    """None when unknown, or when prices were not asked for."""


def provider_for(
    name: str, *, base_url: str | None = None, api_key: str | Secret | None = None, **options: Any
) -> Provider:
    """The provider of a model's name.

    - a short name of `known_models()`: "gpt4.1", "claude-sonnet-5.5", "llama.cpp"
    - a vendor's own id, told by its beginning: "claude-...", "gpt-...", "o3...", "gemini-..."
    - a service and any id: "anthropic/claude-...", "together/org/model", "openrouter/org/model"
    - any id with `base_url`, for every server that speaks chat completions; "anthropic/..." with a
      `base_url` speaks Anthropic's API there
    - "local", or "local:/path/model.gguf": a model that palaver serves on this machine
    - "scripted:FILE": the replies of a JSON file

    `api_key` None takes the key from the service's environment variable, and none for a server that is
    not known. `options` go to the provider's constructor: `price`, `retry`, `timeout_s`, `max_tokens`.

    Raises UnknownModel, MissingKey, and ConfigurationError for a base URL or a script that is of no use.
    """
    kind, _, rest = name.partition(":")
    if kind in ("local", "scripted") and (rest or name == "local"):
        if base_url is not None or api_key is not None:
            raise ConfigurationError(f"model {name!r} takes neither base_url nor api_key; leave them out")
        return _local(rest, options) if kind == "local" else Scripted.from_file(Path(rest), **options)
    if name == _LLAMA_CPP:
        return LlamaCPP(base_url=base_url or LLAMA_CPP_URL, api_key=api_key, **options)
    if base_url is not None:
        return _at(name, base_url)(api_key=api_key, **options)
    service, model = _resolved(name)
    return _adapter(service, model, _URLS[service])(
        model, base_url=_URLS[service], api_key=api_key, **options
    )


def default_provider() -> Provider:
    """A provider that works here and now: of the first service whose key is set, else a local model.

    The order is Anthropic, OpenAI, Gemini, Together, Fireworks.
    """
    for name in _DEFAULTS:
        if key_is_set(_KEY_VARIABLES[_MODELS[name].service]):
            return provider_for(name)
    return _local("", {})


def known_models(*, with_prices: bool = True) -> tuple[ModelRow, ...]:
    """Every short name, what it stands for, and whether it can be used now.

    Looking up prices takes about a second in the first call; `with_prices=False` leaves them out.
    """
    rows = [
        ModelRow(
            name=name,
            model=model,
            endpoint=_URLS[service],
            key_variable=_KEY_VARIABLES[service],
            has_key=key_is_set(_KEY_VARIABLES[service]),
            price=lookup_price(model, _URLS[service]) if with_prices else None,
        )
        for name, (service, model) in _MODELS.items()
    ]
    own = {_LLAMA_CPP: LLAMA_CPP_URL, "local": "this machine"}
    free = Price.free() if with_prices else None
    rows += [
        ModelRow(name=name, model=name, endpoint=url, key_variable=None, has_key=True, price=free)
        for name, url in own.items()
    ]
    return tuple(rows)


def _local(path: str, options: dict[str, Any]) -> Provider:
    from palaver.providers.local import Local  # what serves a model is of no use to the others

    return Local(path or None, **options)


def _at(name: str, base_url: str) -> Callable[..., Provider]:
    """Who speaks to `base_url`: the API follows from the name, the host is the user's."""
    if name in _MODELS:
        service, model = _MODELS[name]
        return partial(_adapter(service, model, base_url), model, base_url=base_url)
    service, _, model = name.partition("/")
    # OpenRouter and its likes name models "anthropic/...", and speak chat completions.
    if service == "anthropic" and model and service_at(base_url) is None:
        return partial(Anthropic, model, base_url=base_url)
    return partial(OpenAI, name, base_url=base_url)


def _adapter(service: str, model: str, base_url: str) -> Callable[..., Provider]:
    if service == "anthropic":
        return Anthropic
    return OpenAIResponses if needs_responses(base_url, model) else OpenAI


def _resolved(name: str) -> _Named:
    if name in _MODELS:
        return _MODELS[name]
    service, _, model = name.partition("/")
    if service in _URLS and model:
        return _Named(service, model)
    for prefix, of_prefix in _SERVICE_BY_PREFIX.items():
        if name.startswith(prefix):
            return _Named(of_prefix, name)
    names = [*_MODELS, _LLAMA_CPP, "local"]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(repr(match) for match in near)}? " if near else ""
    raise UnknownModel(
        f"model {name!r} is not known; {guess}Known: {', '.join(sorted(names))}. For any other model pass "
        "base_url=..., of a server that speaks chat completions, or write SERVICE/MODEL with one of "
        f"{', '.join(sorted(_URLS))}"
    )
