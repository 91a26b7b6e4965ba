"""The catalogue of built-in tools: which there are, by which names, and where they are.

A tool is imported when it is asked for by name, and not before: importing the catalogue imports none.

Layer: tools; no Ray.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from palaver.providers.errors import ConfigurationError

if TYPE_CHECKING:
    from palaver.tools.tool import Tool


class Place(NamedTuple):
    """Where tools are: a module, and the name in it of a Tool or of a sequence of Tools. `only` is the name
    of one tool among those; None is all of them.
    """

    module: str
    attribute: str
    only: str | None = None


_FILES = Place("palaver.tools.files", "FILE_TOOLS")
_FETCH = Place("palaver.tools.fetch", "fetch_url")

CATALOGUE: Mapping[str, Place] = {
    "bash": Place("palaver.tools.bash", "BASH_TOOLS"),
    "files": _FILES,
    "web": _FETCH,
    "delegate": Place("palaver.tools.delegate", "delegate"),
    "think": Place("palaver.tools.think", "think"),
    "todo": Place("palaver.tools.todo", "todo"),
    "fetch_url": _FETCH,
    **{
        name: _FILES._replace(only=name)
        for name in ("read_file", "write_file", "edit_file", "list_files", "search_files")
    },
}
"""The built-in tools and groups of tools, by the names under which `builtin_tools` has them."""


def builtin_tools(*names: str) -> tuple[Tool[..., Any], ...]:
    """The built-in tools of these names, in that order; each once, also where a group has it too.

    There are the groups `bash` (to run commands, and to look after those that go on), `files` (all that
    work with files) and `web`, and each tool by its own name: see CATALOGUE. Raises ConfigurationError for
    a name that is none, and for a tool that cannot be loaded.
    """
    return tuple({each.name: each for name in names for each in _load(name)}.values())


def unknown_name(name: str) -> str:
    """What to say of a name that is not in the catalogue."""
    near = difflib.get_close_matches(name, CATALOGUE, n=1, cutoff=0.7)
    guess = f"did you mean {near[0]!r}? There" if near else "there"
    return f"there is no built-in tool {name!r}; {guess} are: {', '.join(CATALOGUE)}"


def _load(name: str) -> list[Tool[..., Any]]:
    place = CATALOGUE.get(name)
    if place is None:
        raise ConfigurationError(unknown_name(name))
    try:
        found: object = getattr(importlib.import_module(place.module), place.attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"built-in tool {name!r} cannot be loaded ({error}); install palaver with all that it needs"
        ) from error
    tools = list(cast("Sequence[Tool[..., Any]]", found if isinstance(found, list | tuple) else (found,)))
    return [each for each in tools if place.only in (None, each.name)]
