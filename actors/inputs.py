"""What the command line was given, checked before anything is started or spent.

Layer: actors, command line; no Ray.
"""

from __future__ import annotations

import asyncio
import math
import os
import stat
import tempfile
from collections.abc import Iterable, Sequence
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from pydantic import ValidationError

from palaver.actors.budget import Budget
from palaver.actors.items import Item
from palaver.actors.options import check_price, check_window
from palaver.actors.screen import printable
from palaver.actors.tool_names import load_mcp, load_tools
from palaver.providers.capabilities import context_window as window_of
from palaver.providers.errors import ConfigurationError, MissingKey, ProviderError, UnknownModel
from palaver.providers.prices import Price
from palaver.providers.profiles import service_at
from palaver.providers.provider import Provider
from palaver.providers.rate_limits import RateLimits
from palaver.tools.limits import ToolLimits
from palaver.tools.mcp import McpTool
from palaver.tools.tool import Tool, check_names


class Setup(NamedTuple):
    """What a conversation is made of. `notes` are for the person to read before it starts."""

    provider: Provider
    tools: tuple[Tool[..., Any] | McpTool, ...]
    budget: Budget
    system_prompt: str
    max_tokens: int | None
    address: str | None
    workspace: str | None
    tool_limits: ToolLimits
    tell_budget_from: float | None
    compact_from: float | None
    notes: tuple[str, ...]


def setup(
    *,
    model: str | None,
    base_url: str | None,
    tools: Sequence[str],
    mcp: Sequence[str] = (),
    max_dollars: str | None,
    max_responses: int | None,
    max_wall_time_s: float | None,
    max_total_tokens: int | None = None,
    max_tool_calls: int | None = None,
    max_sub_convos: int | None = None,
    max_depth: int | None = None,
    tell_budget_from: float | None = None,
    compact_from: float | None = None,
    system_prompt: str,
    max_tokens: int | None,
    address: str | None,
    workspace: str | None,
    tool_timeout_s: float | None,
    price: str | None = None,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
    context_window: int | None = None,
    server: str | None = None,
) -> Setup:
    """All of it, checked. Raises ConfigurationError."""
    _check_text("--system", system_prompt)
    if max_tokens is not None and max_tokens < 1:
        raise ConfigurationError(f"--max-tokens is {max_tokens}; use 1 or more, or leave it out")
    if tell_budget_from is not None and not 0 <= tell_budget_from <= 1:
        raise ConfigurationError(
            f"--tell-budget-from is {tell_budget_from:g}; use a part of a limit, from 0 to 1"
        )
    if compact_from is not None and not 0 < compact_from <= 1:
        raise ConfigurationError(
            f"--compact-from is {compact_from:g}; use a part of the context window, above 0 and at most 1"
        )
    limits = budget(
        max_dollars,
        max_wall_time_s,
        max_responses=max_responses,
        max_total_tokens=max_total_tokens,
        max_tool_calls=max_tool_calls,
        max_sub_convos=max_sub_convos,
        max_depth=max_depth,
    )
    tool_limits = limits_of_tools(tool_timeout_s)
    loaded = (*load_tools(tools), *load_mcp(mcp))
    check_names(loaded)
    folder = choose_workspace(workspace, loaded)
    provider, notes = choose_model(
        model,
        base_url,
        None if price is None else model_price(price),
        rate_limits(requests_per_minute, tokens_per_minute),
        context_window,
        server,
        needs_window=compact_from is not None,
    )
    check_price(provider, limits)
    check_window(provider, compact_from)
    if folder is not None:
        notes = (*notes, f"workspace: {printable(folder)}")
    return Setup(
        provider=provider,
        tools=loaded,
        budget=limits,
        system_prompt=system_prompt,
        max_tokens=max_tokens,
        address=address,
        workspace=folder,
        tool_limits=tool_limits,
        tell_budget_from=tell_budget_from,
        compact_from=compact_from,
        notes=notes,
    )


def choose_model(
    name: str | None,
    base_url: str | None,
    price: Price | None = None,
    rate_limits: RateLimits | None = None,
    context_window: int | None = None,
    server: str | None = None,
    *,
    needs_window: bool = False,
) -> tuple[Provider, tuple[str, ...]]:
    """The provider, and what the person should know about the choice. Raises ConfigurationError.

    With `needs_window`, a server at `base_url` is asked for its model's context window where nobody knows it.
    """
    from palaver.providers import models  # knows every adapter

    options: dict[str, Any] = {}
    if price is not None:
        _check_priced(name)
        options["price"] = price
    if rate_limits is not None:
        _check_of_a_service("--requests-per-minute or --tokens-per-minute", name)
        options["rate_limits"] = rate_limits
    for option, given in (("context_window", context_window), ("server", server)):
        if given is not None:
            _check_of_a_service(f"--{option.replace('_', '-')}", name)
            options[option] = given
    if name is not None:
        try:
            provider = models.provider_for(name, base_url=base_url, **options)
        except (MissingKey, UnknownModel) as error:
            # They speak to who calls Python; here the same things have other names.
            text = str(error).replace(" or pass api_key=...", "").replace("base_url=...", "--base-url")
            raise type(error)(text) from None
        if needs_window and base_url is not None and window_of(provider) is None:
            options["context_window"] = _asked_window(base_url, provider.model)
            provider = models.provider_for(name, base_url=base_url, **options)
        return provider, (f"model: {provider.name} {provider.model}",)
    if base_url is not None:
        raise ConfigurationError("--base-url needs --model: which of that server's models to use")
    provider = models.default_provider()
    if not hasattr(provider, "hold"):
        return provider, (f"model: {provider.name} {provider.model} (its key is set; --model takes another)",)
    rows = models.known_models(with_prices=False)
    variables = dict.fromkeys(row.key_variable for row in rows if row.key_variable)
    return provider, (
        f"model: {provider.name} {provider.model}, a small one on this machine, because no key is set "
        f"({', '.join(variables)}); set one, or choose with --model",
    )


def _asked_window(base_url: str, model: str) -> int | None:
    """What a server says of its model's context window; None when it does not."""
    from palaver.providers.served import served_models

    service = service_at(base_url)
    key = None if service is None else os.environ.get(service.key_variable)
    try:
        served = asyncio.run(served_models(base_url, api_key=key or None))
    except ProviderError:
        return None  # the first request will tell why
    # A server of one model may call it as it likes.
    windows = [each.context_window for each in served if each.id == model or len(served) == 1]
    return next(iter(windows), None)


def _check_priced(name: str | None) -> None:
    if name is None:
        raise ConfigurationError("--price needs --model: whose price it is")
    kind, _, rest = name.partition(":")
    if kind == "scripted" and rest:
        raise ConfigurationError(
            f"--price goes to models that are charged by the token, and {name!r} is none; leave it out, or "
            f'write "price": {{"input_usd": 0.15, "output_usd": 0.6}} into {rest!r}'
        )
    if name == "local" or (kind == "local" and rest):
        raise ConfigurationError(
            f"--price goes to models that are charged by the token, and {name!r} is free; leave it out"
        )


def _check_of_a_service(option: str, name: str | None) -> None:
    if name is None:
        raise ConfigurationError(f"{option} needs --model: what it is said of")
    if name.partition(":")[0] in ("scripted", "local"):
        raise ConfigurationError(f"{option} goes to models of a service, and {name!r} is none; leave it out")


def rate_limits(requests_per_minute: float | None, tokens_per_minute: float | None) -> RateLimits | None:
    """The limits of the model's key; None when none is given. Raises ConfigurationError."""
    given = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    for name, limit in given.items():
        if limit is not None and not 0 < limit < math.inf:
            raise ConfigurationError(
                f"--{name.replace('_', '-')} is {limit:g}; use a number above 0, or leave it out"
            )
    if requests_per_minute is None and tokens_per_minute is None:
        return None
    return RateLimits(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)


def model_price(text: str) -> Price:
    """INPUT/OUTPUT in USD per million tokens. Raises ConfigurationError."""
    rates = [each.strip().removeprefix("$") for each in text.split("/")]
    try:
        if len(rates) == 2:
            return Price.per_million_tokens(*rates)
    except ConfigurationError:
        pass
    raise ConfigurationError(
        f"--price is {text!r}; write USD per million tokens of input and of output, both 0 or more, like "
        "0.15/0.60"
    )


def budget(
    max_dollars: str | None = None,
    max_wall_time_s: float | None = None,
    *,
    named: str = "--max-",
    **counts: Any,
) -> Budget:
    """The limits; `counts` are those of Budget that are plain numbers.

    Raises ConfigurationError that names the option, which begins with `named`.
    """
    try:
        amount = None if max_dollars is None else Decimal(max_dollars.removeprefix("$"))
    except InvalidOperation:
        raise ConfigurationError(
            f"{named}dollars is {max_dollars!r}, no amount; write it like 0.50"
        ) from None
    if max_wall_time_s is not None and max_wall_time_s < 0:
        raise ConfigurationError(f"{named}wall-time is {max_wall_time_s:g} s; use 0 or more, or leave it out")
    try:
        wall_time = None if max_wall_time_s is None else timedelta(seconds=max_wall_time_s)
    except (OverflowError, ValueError):
        raise ConfigurationError(f"{named}wall-time is {max_wall_time_s}; write seconds, like 90") from None
    try:
        return Budget(max_dollars=amount, max_wall_time=wall_time, **counts)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = named + str(first["loc"][0]).removeprefix("max_").replace("_", "-")
        told = first["msg"].removeprefix("Value error, ").replace("None for no limit", "leave it out")
        raise ConfigurationError(f"{option}: {told}") from None


# Files


def read_items(prompt: str, paths: Sequence[str]) -> list[Item]:
    """One item per file: the prompt, an empty line, the file's text. Raises ConfigurationError."""
    _check_text("PROMPT", prompt)
    if not prompt.strip():
        raise ConfigurationError("PROMPT is empty; say what is to be done")
    seen: dict[str, str] = {}
    items: list[Item] = []
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            raise ConfigurationError(
                f"--over has one file twice, as {seen[real]!r} and {path!r}; name it once, or it "
                "would be paid for twice"
            )
        seen[real] = path
        text = read_text(path)
        items.append(Item(label=label_of(path), prompt=f"{prompt.rstrip()}\n\n{text}"))
    return items


def label_of(path: str) -> str:
    """A file's name as text; bytes and characters that cannot be shown are escaped."""
    return printable(os.fsencode(path).decode("utf-8", "backslashreplace"))


def read_text(path: str) -> str:
    """The text of a file. Raises ConfigurationError for what is no file, no UTF-8, or empty."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ConfigurationError(f"--over {path!r} is a folder; name the files in it, like {path}/*.txt")
        if not stat.S_ISREG(mode):
            raise ConfigurationError(f"--over {path!r} is no regular file; save it as one and name that")
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"--over {path!r} cannot be read: {error.strerror}{_glob_hint(path)}"
        ) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"--over {path!r} is no UTF-8 text: byte {content[error.start]:#04x} at offset {error.start}; "
            "convert it (iconv -f latin1 -t utf-8, for instance), or leave it out if it is no text"
        ) from None
    if not text.strip():
        raise ConfigurationError(f"--over {path!r} is empty ({len(content)} bytes); leave it out")
    return text


def _glob_hint(path: str) -> str:
    if any(each in path for each in "*?["):
        return "; the shell found no file that fits the pattern"
    return "; check its name and permissions"


def open_out(path: str, inputs: Iterable[str]) -> TextIO:
    """The file for the results, at whose end they are added. Raises ConfigurationError."""
    out = Path(path)
    for each in inputs:
        if out.exists() and os.path.samefile(each, out):
            raise ConfigurationError(f"--out {path!r} is one of the files of --over; write to another one")
    try:
        # A file name that is no UTF-8 becomes a lone surrogate, for which this writes JSON's own escape.
        return out.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigurationError(
            f"--out {path!r} cannot be written: {error.strerror}; name a file in a folder that exists and "
            "is yours"
        ) from None


def _check_text(option: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{option} is no UTF-8 text; convert it, or set a UTF-8 locale") from None


# Tools


def limits_of_tools(timeout_s: float | None) -> ToolLimits:
    """The limits of tools that set none themselves. Raises ConfigurationError."""
    if timeout_s is not None and not timeout_s > 0:
        raise ConfigurationError(
            f"--tool-timeout is {timeout_s:g}; use seconds above 0, or leave it out for no limit"
        )
    return ToolLimits(timeout_s=timeout_s)


def choose_workspace(given: str | None, tools: Iterable[Tool[..., Any] | McpTool]) -> str | None:
    """The folder that the tools work in: the one given, else the current one when a tool needs one.

    Raises ConfigurationError when there is none that can be written to.
    """
    needing = [each.name for each in tools if each.in_workspace]
    if given is None and not needing:
        return None
    what = f"--workspace {given!r}"
    try:
        if given is None:
            what = f"the current folder, the workspace of {', '.join(needing)},"
            given = os.getcwd()
            what = f"the current folder {given!r}, the workspace of {', '.join(needing)},"
        mode = os.stat(given).st_mode
    except OSError as error:
        raise ConfigurationError(
            f"{what} cannot be used: {error.strerror}; name a folder that is there with --workspace"
        ) from None
    if not stat.S_ISDIR(mode):
        raise ConfigurationError(f"{what} is no folder; name the folder that the tools are to work in")
    try:
        # Tried, because permissions do not tell of file systems that nobody can write to.
        with tempfile.TemporaryFile(dir=given):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"{what} cannot be written to: {error.strerror}; name a folder that is yours with --workspace"
        ) from None
    path = os.path.realpath(given)
    _check_text("the path of the workspace", path)
    return path
