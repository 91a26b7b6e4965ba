"""`palaver models`: the models that have a name, as a table or as JSON.

Layer: actors, command line; no Ray.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table

from palaver.providers.models import ModelRow, known_models
from palaver.providers.prices import Rates

_COLUMNS = ("name", "model", "$/M in", "$/M out", "key", "set", "endpoint")


def print_models(*, as_json: bool) -> None:
    """Print all models palaver has a name for."""
    rows = known_models()
    if as_json:
        print(json.dumps([record(row) for row in rows], indent=2))
    elif sys.stdout.isatty():
        Console(highlight=False, markup=False, emoji=False).print(table(rows))
    else:
        for cells in (_COLUMNS, *(_cells(row) for row in rows)):
            print("\t".join(cells))


def table(rows: Sequence[ModelRow]) -> Table:
    """The models for a terminal."""
    drawn = Table(box=None, pad_edge=False, header_style="bold", caption="$/M is USD per million tokens.")
    # Without the endpoint, for which 80 columns have no room.
    for title in _COLUMNS[:-1]:
        is_model = title == "model"
        justify = "right" if title.startswith("$") else "left"
        drawn.add_column(title, justify=justify, no_wrap=not is_model, overflow="fold")
    for row in rows:
        drawn.add_row(*_cells(row)[:-1], style="" if row.has_key else "dim")
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
        row.key_variable or "not needed",
        "" if row.key_variable is None else "yes" if row.has_key else "no",
        row.endpoint,
    )


def _rates(row: ModelRow) -> Rates | None:
    return None if row.price is None else row.price.usd_per_million_tokens


def _usd(amount: Decimal | None) -> str:
    return "unknown" if amount is None else f"{amount.normalize():f}"
