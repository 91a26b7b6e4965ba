"""A glob: which paths are meant by a pattern such as `src/**/*.py`.

`*` and `?` stand for characters of one name, `[…]` for one of several characters, `**` for any number of
folders, `{a,b}` for one of several texts. As in .gitignore, a pattern without "/" is about the name alone, in
whatever folder. Names with a dot in front are like any other. Case counts.

A path is matched folder by folder, so that a walk leaves out folders in which nothing can match. Each name
is matched by a regular expression that fnmatch makes, which cannot take long.

Layer: tools; no Ray.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from typing import TypeAlias

_MAX_ALTERNATIVES = 200

_BRACES = re.compile(r"\{([^{}]*)\}")

State: TypeAlias = frozenset[tuple[int, int]]
"""How far into each alternative of the pattern a path has come; empty when nothing below can match."""


class Glob:
    """A pattern. Raises ValueError for one that is none."""

    def __init__(self, pattern: str) -> None:
        wanted = [each for each in _alternatives(pattern) if each.strip("/")]
        if not wanted:
            raise ValueError("it is empty")
        self._alternatives = [_parts(each) for each in wanted]
        if any(part in ("..", ".") for each in self._alternatives for part in each):
            raise ValueError("it has '.' or '..' as a name; it counts from path, so give that instead")
        self._names = {
            part: re.compile(fnmatch.translate(part)) for each in self._alternatives for part in each
        }
        self.start: State = self._closed((number, 0) for number in range(len(self._alternatives)))
        """The state of the folder that the pattern counts from."""

    def below(self, state: State, name: str) -> State:
        """The state of what is called `name` in a folder of state `state`."""
        found: set[tuple[int, int]] = set()
        for number, at in state:
            parts = self._alternatives[number]
            if at == len(parts):
                continue
            if parts[at] == "**":
                found.add((number, at))
            elif self._names[parts[at]].match(name):
                found.add((number, at + 1))
        return self._closed(found)

    def matches(self, state: State) -> bool:
        """Whether what has this state is meant."""
        return any(at == len(self._alternatives[number]) for number, at in state)

    def names(self, name: str) -> bool:
        """Whether the pattern has this name in it as it is, without a wildcard."""
        return any(name in each for each in self._alternatives)

    def _closed(self, state: Iterable[tuple[int, int]]) -> State:
        """With the places after each "**", which also stands for no folder."""
        found: set[tuple[int, int]] = set()
        for number, at in state:
            parts = self._alternatives[number]
            found.add((number, at))
            if parts[at : at + 1] == ["**"]:
                found.add((number, at + 1))
        return frozenset(found)


def _alternatives(pattern: str) -> list[str]:
    """The patterns without braces that one with braces stands for."""
    done: list[str] = []
    todo = [pattern]
    while todo:
        each = todo.pop()
        braces = _BRACES.search(each)
        if braces is None or "," not in braces[1]:
            done.append(each)
        else:
            todo += [each[: braces.start()] + part + each[braces.end() :] for part in braces[1].split(",")]
        if len(done) + len(todo) > _MAX_ALTERNATIVES:
            raise ValueError(f"its braces stand for more than {_MAX_ALTERNATIVES} patterns")
    return done


def _parts(pattern: str) -> list[str]:
    parts = [part for part in pattern.split("/") if part]
    if "/" not in pattern:
        parts = ["**", *parts]
    if parts[-1] == "**":
        parts.append("*")
    return [part for at, part in enumerate(parts) if part != "**" or parts[at - 1 : at] != ["**"]]
