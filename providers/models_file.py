"""The user's own models: endpoints and prices in a YAML file.

    models:
      qwen:                                   # the name for --model and provider_for
        base_url: http://gpu7:8000/v1
        model: Qwen/Qwen3-32B
        server: vllm
        context_window: 32768
        price: {input: 0.10, output: 0.40}    # USD per million tokens

The file is the one that PALAVER_MODELS names, else `palaver/models.yaml` in the user's folder of settings
(XDG_CONFIG_HOME, by default ~/.config). Never one in the current folder, which somebody else may have
written: it says where keys are sent. A name here goes before the same one of palaver's own.

Layer: providers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, TypeAdapter, model_validator

from palaver.providers.messages import Value
from palaver.providers.prices import Price, Rates
from palaver.providers.profiles import SERVERS, Profile
from palaver.providers.rate_limits import RateLimits
from palaver.providers.untyped import as_dict
from palaver.providers.yaml_file import YamlFault, nearest, read_yaml

PATH_VARIABLE = "PALAVER_MODELS"

Api: TypeAlias = Literal["chat", "responses", "anthropic"]
"""Chat completions, OpenAI's Responses, or Anthropic's Messages."""

_HEADERS_OF_KEYS = frozenset({"authorization", "proxy-authorization", "x-api-key", "api-key", "cookie"})
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_MAY_BE_ONE = re.compile(r"[A-Z0-9_]{32,}")
"""Longer than any variable is called, and without a word in it: an upper-case key."""


def _url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it has to be an http(s) URL, such as http://gpu7:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError("a URL with a user, a password or a query may hold a key; use key_variable")
    return url


def _variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name) or _MAY_BE_ONE.fullmatch(name.replace("_", "")):
        raise ValueError(
            "it has to be the name of an environment variable, such as TEAM_API_KEY; the key itself never "
            "stands in a file"
        )
    return name


def _server(name: str) -> str:
    if name not in SERVERS:
        raise ValueError(f"there is no such kind of server; {nearest(name, sorted(SERVERS))}")
    return name


ServerName: TypeAlias = Annotated[str, AfterValidator(_server)]
"""A kind of server that there is."""


def _headers(headers: dict[str, str]) -> dict[str, str]:
    for name in headers:
        if name.lower() in _HEADERS_OF_KEYS:
            raise ValueError(f"header {name!r} holds a key; name its variable in key_variable")
    return headers


def _profile(flags: dict[str, Any]) -> dict[str, Any]:
    for name in flags:
        if name not in Profile.model_fields:
            raise ValueError(f"there is no flag {name!r}; {nearest(name, sorted(Profile.model_fields))}")
    Profile.model_validate(flags)
    return flags


class OwnPrice(Value):
    """USD per million tokens. Without a rate for the cache, input costs the same there."""

    input: Decimal = Field(ge=0)
    output: Decimal = Field(ge=0)
    cache_read: Decimal | None = Field(default=None, ge=0)
    cache_write: Decimal | None = Field(default=None, ge=0)
    cache_write_1h: Decimal | None = Field(default=None, ge=0)

    @property
    def price(self) -> Price:
        """The same as a Price."""
        return Price(usd_per_million_tokens=Rates(**dict(self)))


class OwnModel(Value):
    """One model of the user's. What is left out is as in the constructor of its provider."""

    model: str = ""
    """The id that its server knows; empty: the name it has here."""
    base_url: Annotated[str, AfterValidator(_url)] | None = None
    """None: that of the service, which follows from `model`."""
    api: Api | None = None
    """None: what follows from the model and the URL."""
    server: ServerName | None = None
    key_variable: Annotated[str, AfterValidator(_variable)] | None = None
    """The environment variable that holds the key; None: that of the service, none elsewhere."""
    price: OwnPrice | None = None
    context_window: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    timeout_s: PositiveFloat | None = None
    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None
    headers: Annotated[dict[str, str], AfterValidator(_headers)] = Field(default_factory=dict, repr=False)
    profile: Annotated[dict[str, Any], AfterValidator(_profile)] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _no_key(cls, given: Any) -> Any:
        for name in as_dict(given):
            if name in ("api_key", "key", "secret", "token"):
                raise ValueError(f"{name!r}: a key never stands in a file; name its variable in key_variable")
        return given

    def options(self) -> dict[str, Any]:
        """What its provider is made with, besides where it is."""
        given: dict[str, Any] = {
            "price": None if self.price is None else self.price.price,
            "context_window": self.context_window,
            "max_tokens": self.max_tokens,
            "timeout_s": self.timeout_s,
            "headers": self.headers or None,
            "profile": self.profile or None,
            "server": self.server,
        }
        if self.requests_per_minute or self.tokens_per_minute:
            given["rate_limits"] = RateLimits(
                requests_per_minute=self.requests_per_minute, tokens_per_minute=self.tokens_per_minute
            )
        return {name: value for name, value in given.items() if value is not None}


class _File(Value):
    models: dict[str, OwnModel]


_FILE = TypeAdapter(_File)


def own_models() -> Mapping[str, OwnModel]:
    """The models of the user's file, by name; none when there is no file.

    Raises YamlFault, a ConfigurationError, for a file that cannot be used, and for PALAVER_MODELS that names
    none.
    """
    named = os.environ.get(PATH_VARIABLE)
    path = Path(named).expanduser() if named else _default_path()
    if not named and not path.is_file():
        return {}
    models = read_yaml(path, _FILE).value.models
    for name in models:
        if not name or name != name.strip() or "://" in name:
            raise YamlFault(f"{path}: {name!r} is no name of a model; use a word without spaces at its ends")
    return models


def _default_path() -> Path:
    settings = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(settings).expanduser() / "palaver" / "models.yaml"
