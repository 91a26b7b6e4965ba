"""A prompt with fields: `{name}` stands for a field's text, `{{` and `}}` for braces.

Layer: actors, command line; no Ray.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

_PART = re.compile(r"\{\{|\}\}|\{([^{}\n]*)\}|[{}]")


class TemplateFault(ValueError):
    """A prompt that cannot be filled in."""


class Template:
    """A prompt, taken apart. Raises TemplateFault for a brace that belongs to no field."""

    def __init__(self, text: str) -> None:
        self._parts: list[tuple[str, str | None]] = []
        """Texts, each with the field after it."""
        before, end = "", 0
        for found in _PART.finditer(text):
            before += text[end : found.start()]
            end = found.end()
            if found[0] in ("{{", "}}"):
                before += found[0][0]
            elif found[1] is None:
                raise TemplateFault(
                    f"there is a {found[0]!r} that belongs to no field; write {found[0] * 2!r} for a brace"
                )
            elif not (name := found[1].strip()):
                raise TemplateFault("there is a field without a name, {}; name it, or write {{}} for braces")
            else:
                self._parts.append((before, name))
                before = ""
        self._parts.append((before + text[end:], None))

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of its fields."""
        return tuple(dict.fromkeys(name for _, name in self._parts if name is not None))

    def filled(self, fields: Mapping[str, object]) -> str:
        """The prompt with these fields; what is no text is written as JSON. Raises TemplateFault."""
        missing = [name for name in self.fields if name not in fields]
        if missing:
            raise TemplateFault(
                f"there is no field {missing[0]!r} to fill in; there are: {', '.join(map(str, fields))}"
            )
        return "".join(before + ("" if name is None else _told(fields[name])) for before, name in self._parts)


def _told(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
