"""`palaver models`: the models that have a name, as a table or as JSON.

Layer: actors, command line; no Ray.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table

from palaver.actors.amounts import tokens
from palaver.actors.screen import printable
from palaver.providers.models import ModelRow, known_models
from palaver.providers.prices import Rates
from palaver.providers.profiles import service_at
from palaver.providers.served import served_models

_COLUMNS = ("name", "model", "$/M in", "$/M out", "window", "key", "set", "endpoint", "api", "abilities")
_NARROW = ("name", "$/M in", "$/M out", "window", "key", "set")
"""What fits into 80 columns of a terminal."""
_WIDE = ("name", "model", *_NARROW[1:], "abilities")
_WIDE_COLUMNS = 180


def print_models(*, as_json: bool) -> None:
    """Print all models that have a name: the user's own, and palaver's."""
    rows = known_models()
    if as_json:
        print(json.dumps([record(row) for row in rows], indent=2))
    elif sys.stdout.isatty():
        console = Console(highlight=False, markup=False, emoji=False)
        console.print(table(rows, console.width))
    else:
        for cells in (_COLUMNS, *(_cells(row) for row in rows)):
            print("\t".join(cells))


def print_served(base_url: str, *, as_json: bool) -> None:
    """Print what a server says of its models. Raises ProviderError when it does not tell."""
    service = service_at(base_url)
    key = None if service is None else os.environ.get(service.key_variable)
    models = asyncio.run(served_models(base_url, api_key=key or None))
    if as_json:
        print(json.dumps([model.model_dump() for model in models], indent=2))
        return
    print("id\twindow\tmost output\tabilities")
    for model in models:
        window, output = (_count(each) for each in (model.context_window, model.max_output_tokens))
        print(printable("\t".join((model.id, window, output, ", ".join(model.abilities))), keep="\t"))


def _count(count: int | None) -> str:
    return "unknown" if count is None else tokens(count)


def table(rows: Sequence[ModelRow], width: int = 80) -> Table:
    """The models for a terminal."""
    drawn = Table(
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        caption="$/M is USD per million tokens; window the tokens of input and output together. "
        "--json tells more.",
    )
    shown = _NARROW if width < _WIDE_COLUMNS else _WIDE
    for title in shown:
        justify = "right" if title in ("$/M in", "$/M out", "window") else "left"
        drawn.add_column(title, justify=justify, no_wrap=title != "abilities", overflow="fold")
    for row in rows:
        cells = dict(zip(_COLUMNS, _cells(row), strict=True))
        drawn.add_row(*(cells[title] for title in shown), style="" if row.has_key else "dim")
    return drawn


def record(row: ModelRow) -> dict[str, Any]:
    """A model as plain values. Prices are text, USD per million tokens; None is unknown."""
    rates = _rates(row)
    return {
        "name": row.name,
        "model": row.model,
        "endpoint": row.endpoint,
        "input_usd_per_million_tokens": None if rates is None else f"{rates.input:f}",
        "output_usd_per_million_tokens": None if rates is None else f"{rates.output:f}",
        "context_window": row.context_window,
        "api": row.api,
        "abilities": row.abilities,
        "key_variable": row.key_variable,
        "key_is_set": row.has_key,
    }


def _cells(row: ModelRow) -> tuple[str, ...]:
    rates = _rates(row)
    return (
        row.name,
        row.model,
        _usd(None if rates is None else rates.input),
        _usd(None if rates is None else rates.output),
        _count(row.context_window),
        row.key_variable or "not needed",
        "" if row.key_variable is None else "yes" if row.has_key else "no",
        row.endpoint,
        row.api,
        ", ".join(row.abilities),
    )


def _rates(row: ModelRow) -> Rates | None:
    return None if row.price is None else row.price.usd_per_million_tokens


def _usd(amount: Decimal | None) -> str:
    return "unknown" if amount is None else f"{amount.normalize():f}"
