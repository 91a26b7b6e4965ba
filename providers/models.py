"""Model names: the short ones palaver knows, the user's own, and how any other name becomes a provider.

Layer: providers, at the top: the one module that knows every adapter.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from palaver.providers.anthropic import ANTHROPIC_KEY_VARIABLE, ANTHROPIC_URL, Anthropic
from palaver.providers.anthropic_wire import may_force_calls, output_by
from palaver.providers.capabilities import LOCAL_CONTEXT_TOKENS
from palaver.providers.errors import ConfigurationError, UnknownModel
from palaver.providers.keys import find_key, key_is_set
from palaver.providers.messages import Value
from palaver.providers.models_file import Api, OwnModel, own_models
from palaver.providers.openai import LLAMA_CPP_URL, LlamaCPP, OpenAI
from palaver.providers.price_list import Listing, lookup
from palaver.providers.prices import Price
from palaver.providers.profiles import SERVICES, needs_responses, profile_for, server_name, service_at
from palaver.providers.provider import OutputSchema, Provider
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

_DEFAULTS = ("claude-sonnet-5.5", "gpt6.1-sol", "gemini-flash-3.8", "together-gpt-oss-120b",
             "fireworks-gpt-oss-120b")  # fmt: skip
"""One model of each service, in the order in which keys are looked for."""


class ModelRow(Value):
    """One line of `palaver models`."""

    name: str
    model: str
    endpoint: str
    """Base URL; "this machine" for a model that palaver serves itself."""
    api: Api
    """What is spoken there."""
    key_variable: str | None
    """The environment variable of its key; None when it needs none."""
    has_key: bool
    """Whether it can be used now: the variable is set, or none is needed."""
    price: Price | None
    """None when unknown, or when prices were not asked for."""
    context_window: int | None
    """In tokens; None when unknown, or when prices were not asked for."""
    abilities: tuple[str, ...]
    """What palaver makes use of there: of ABILITIES."""


ABILITIES: Mapping[str, str] = {
    "schema": "holds an answer to a JSON schema, beside tools too",
    "schema without tools": "holds an answer to a JSON schema, in requests without tools",
    "forced calls": "a call of one tool, or of any, can be demanded",
    "any call": "a call can be demanded, but not of which tool",
    "one call at a time": "can be told to call one tool at a time",
}
"""What a model can do besides text, tools and streams, which all can. Of pictures no list tells: a server
refuses what it cannot read."""


def provider_for(
    name: str,
    *,
    model: str | None = None,
    base_url: str | None = None,
    api_key: str | Secret | None = None,
    api: Api | None = None,
    **options: Any,
) -> Provider:
    """The provider of a model's name.

    - a name of the user's own models, in `models.yaml` (see `palaver.providers.models_file`)
    - a short name of `known_models()`: "gpt4.1", "claude-sonnet-5.5", "llama.cpp"
    - a vendor's own id, told by its beginning: "claude-...", "gpt-...", "o3...", "gemini-..."
    - a service and any id: "anthropic/claude-...", "together/org/model", "openrouter/org/model"
    - any id with `base_url`, for every server that speaks chat completions; "anthropic/..." with a
      `base_url` speaks Anthropic's API there. The URL may be the name, and the id `model`
    - "local", or "local:/path/model.gguf": a model that palaver serves on this machine
    - "scripted:FILE": the replies of a JSON file

    `api` says what to speak, where that is not what follows: "chat", "responses" or "anthropic". `api_key`
    None takes the key from the service's environment variable, and none for a server that is not known.
    `options` go to the provider's constructor: `price`, `context_window`, `retry`, `timeout_s`, `max_tokens`.

    Raises UnknownModel, MissingKey, and ConfigurationError for a base URL, a script or a models.yaml that is
    of no use.
    """
    if name.startswith(("http://", "https://")):
        if base_url is not None or model is None:
            raise ConfigurationError(
                f"{name!r} is where a model is; pass its id as model=..., and no base_url. `palaver models "
                f"--base-url {name}` lists those there are"
            )
        name, base_url, model = model, name, None
    if model is not None:
        raise ConfigurationError(f"model={model!r} goes with a URL as the name, and {name!r} is none")
    kind, _, rest = name.partition(":")
    if kind in ("local", "scripted") and (rest or name == "local"):
        if base_url is not None or api_key is not None or api is not None:
            raise ConfigurationError(
                f"model {name!r} takes neither base_url, api_key nor api; leave them out"
            )
        return _local(rest, options) if kind == "local" else Scripted.from_file(Path(rest), **options)
    if base_url is None and (own := own_models().get(name)) is not None:
        at = _place_of(name, own)
        return at.provider(api_key, api=api, **{**own.options(), **options})
    if name == _LLAMA_CPP and api is None:
        return LlamaCPP(base_url=base_url or LLAMA_CPP_URL, api_key=api_key, **options)
    return _place(name, base_url).provider(api_key, api=api, **options)


class _Place(NamedTuple):
    """Where a model is, and what is spoken there."""

    model: str
    base_url: str
    api: Api
    key_variable: str | None
    is_own: bool = False
    """Whether `key_variable` is the user's word, also where it is None."""

    def provider(self, api_key: str | Secret | None, *, api: Api | None = None, **options: Any) -> Provider:
        if (api or self.api) == "anthropic":
            if api_key is None and self.is_own:
                # Not ANTHROPIC_API_KEY, which was made for another server.
                api_key = find_key(None, self.key_variable, server_name(self.base_url)) or "none"
            unfit = sorted(options.keys() & {"server", "profile"})
            if unfit:
                raise ConfigurationError(
                    f"{' and '.join(unfit)} of model {self.model!r} go with chat completions; leave them out "
                    "where Anthropic's API is spoken"
                )
            return Anthropic(self.model, base_url=self.base_url, api_key=api_key, **options)
        if self.is_own and self.key_variable is not None:
            options["api_key_env"] = self.key_variable
        make = OpenAIResponses if (api or self.api) == "responses" else OpenAI
        return make(self.model, base_url=self.base_url, api_key=api_key, **options)


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
    own = own_models()
    places = {name: _place_of(name, each) for name, each in own.items()}
    places |= {name: _place(name, None) for name in _MODELS if name not in own}
    rows = [_row(name, place, own.get(name), with_prices) for name, place in places.items()]
    free = Price.free() if with_prices else None
    here = ((_LLAMA_CPP, LLAMA_CPP_URL, None), ("local", "this machine", LOCAL_CONTEXT_TOKENS))
    for name, url, window in here:
        if name not in own:
            known = OwnModel(server="llama.cpp", context_window=window)
            row = _row(name, _Place(name, url, "chat", None), known, False)
            rows.append(row.model_copy(update={"price": free}))
    return tuple(rows)


def _row(name: str, place: _Place, own: OwnModel | None, with_prices: bool) -> ModelRow:
    listed = lookup(place.model, place.base_url) if with_prices else Listing()
    given = OwnModel() if own is None else own
    return ModelRow(
        name=name,
        model=place.model,
        endpoint=place.base_url,
        api=place.api,
        key_variable=place.key_variable,
        has_key=place.key_variable is None or key_is_set(place.key_variable),
        price=listed.price if given.price is None else given.price.price,
        context_window=given.context_window or listed.context_window,
        abilities=_abilities(place, given),
    )


_ANY_SCHEMA = OutputSchema(
    name="x",
    json_schema={"type": "object", "properties": {"x": {"type": "string"}}, "additionalProperties": False},
)


def _abilities(place: _Place, own: OwnModel) -> tuple[str, ...]:
    if place.api == "anthropic":
        by = output_by(_ANY_SCHEMA, place.model)
        forces = may_force_calls(place.model, None)
        found = ["schema" if by == "schema" else "", "forced calls" if forces else "", "one call at a time"]
    elif place.api == "responses":
        found = ["schema", "forced calls", "one call at a time"]
    else:
        profile = profile_for(place.base_url, place.model, server=own.server, changes=own.profile)
        schema = {"always": "schema", "without_tools": "schema without tools", "never": ""}
        forced = {"named": "forced calls", "any": "any call", "never": ""}
        alone = "one call at a time" if profile.parallel_tool_calls else ""
        found = [schema[profile.output_schema], forced[profile.forced_choice], alone]
    return tuple(filter(None, found))


def _local(path: str, options: dict[str, Any]) -> Provider:
    from palaver.providers.local import Local  # what serves a model is of no use to the others

    return Local(path or None, **options)


def _place(name: str, base_url: str | None) -> _Place:
    """Where a model is: the API follows from the name, the host is the user's if one is given."""
    if base_url is None:
        service, model = _resolved(name)
        return _Place(model, _URLS[service], _api(service, model, _URLS[service]), _KEY_VARIABLES[service])
    if name in _MODELS:
        service, model = _MODELS[name]
        return _Place(model, base_url, _api(service, model, base_url), None)
    service, _, model = name.partition("/")
    # OpenRouter and its likes name models "anthropic/...", and speak chat completions.
    if service == "anthropic" and model and service_at(base_url) is None:
        return _Place(model, base_url, "anthropic", None)
    return _Place(name, base_url, _api("", name, base_url), None)


def _place_of(name: str, own: OwnModel) -> _Place:
    """Where a model of the user's file is."""
    model = own.model or name
    if own.base_url is None:
        found = _place(model, None) if own.api != "anthropic" else _place(f"anthropic/{model}", None)
        variable = own.key_variable or found.key_variable
        return found._replace(api=own.api or found.api, key_variable=variable, is_own=True)
    service = service_at(own.base_url)
    api = own.api or _place(model, own.base_url).api
    variable = own.key_variable or (None if service is None else service.key_variable)
    if api == "anthropic" and own.base_url.rstrip("/") == ANTHROPIC_URL:
        variable = own.key_variable or ANTHROPIC_KEY_VARIABLE
    return _Place(model, own.base_url, api, variable, is_own=True)


def _api(service: str, model: str, base_url: str) -> Api:
    if service == "anthropic":
        return "anthropic"
    return "responses" if needs_responses(base_url, model) else "chat"


def _resolved(name: str) -> _Named:
    if name in _MODELS:
        return _MODELS[name]
    service, _, model = name.partition("/")
    if service in _URLS and model:
        return _Named(service, model)
    for prefix, of_prefix in _SERVICE_BY_PREFIX.items():
        if name.startswith(prefix):
            return _Named(of_prefix, name)
    names = [*own_models(), *_MODELS, _LLAMA_CPP, "local"]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(repr(match) for match in near)}? " if near else ""
    raise UnknownModel(
        f"model {name!r} is not known; {guess}Known: {', '.join(sorted(names))}. For any other model pass "
        "base_url=..., of a server that speaks chat completions, or write SERVICE/MODEL with one of "
        f"{', '.join(sorted(_URLS))}"
    )
