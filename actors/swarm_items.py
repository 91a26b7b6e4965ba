"""The items of a swarm: from files, JSON lines, CSV, or a Python iterable.

Layer: actors, command line; no Ray.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from palaver.actors.tool_names import load_attribute
from palaver.providers.errors import ConfigurationError


class ItemFault(ConfigurationError):
    """Items that cannot be read."""


class Source(NamedTuple):
    """Where items come from; exactly one of the first four is given."""

    files: tuple[str, ...] | None
    json_lines: str | None
    csv: str | None
    python: str | None
    id: str | None

    @property
    def kind(self) -> str:
        """Which one."""
        return next(
            name for name in ("files", "json_lines", "csv", "python") if getattr(self, name) is not None
        )


class Raw(NamedTuple):
    """One item: what tells it apart, where it stands, and its fields."""

    key: str
    where: str
    fields: Mapping[str, object]


def read_items(source: Source, folder: Path) -> Iterator[Raw]:
    """All items in order; paths are relative to `folder`. Raises ItemFault."""
    if source.files is not None:
        return _files(source.files, folder)
    if source.json_lines is not None:
        return _json_lines(folder / source.json_lines, source.id)
    if source.csv is not None:
        return _csv(folder / source.csv, source.id)
    assert source.python is not None
    return _python(source.python, source.id)


def _files(patterns: Iterable[str], folder: Path) -> Iterator[Raw]:
    seen: dict[Path, str] = {}
    for pattern in patterns:
        found = _matching(pattern, folder)
        if not found:
            hint = "no file fits the pattern" if _is_pattern(pattern) else "there is no such file"
            raise ItemFault(f"{pattern!r}: {hint} in {str(folder)!r}")
        for path in found:
            real = path.resolve()
            if real in seen:
                if _is_pattern(pattern):
                    continue  # named by two patterns
                raise ItemFault(f"{pattern!r} is named twice, also as {seen[real]!r}; once is enough")
            seen[real] = pattern
            name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()
            yield Raw(name, name, {"text": _text_of(path, name), "file": name, "name": path.stem})


def _matching(pattern: str, folder: Path) -> list[Path]:
    if not _is_pattern(pattern):
        path = folder / pattern
        return [path] if path.exists() else []
    base, rest = (Path("/"), pattern[1:]) if pattern.startswith("/") else (folder, pattern)
    try:
        return sorted(path for path in base.glob(rest) if path.is_file())
    except (ValueError, NotImplementedError) as error:
        raise ItemFault(f"{pattern!r} is no pattern for files: {error}") from None


def _is_pattern(text: str) -> bool:
    return any(each in text for each in "*?[")


def _text_of(path: Path, name: str) -> str:
    if not path.is_file():
        raise ItemFault(f"{name!r} is no file; for what is in a folder write {name}/*")
    text = _read(path, name, name)
    if not text.strip():
        raise ItemFault(f"{name!r} is empty; leave it out")
    return text


def _text_in(path: Path) -> str:
    return _read(path, path.name, str(path))


def _read(path: Path, name: str, place: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ItemFault(f"{name!r} is no UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise ItemFault(f"{place!r} cannot be read: {error.strerror}") from None


def _json_lines(path: Path, id: str | None) -> Iterator[Raw]:
    for number, line in enumerate(_text_in(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            fields: object = json.loads(line)
        except ValueError as error:
            raise ItemFault(f"{where}: is no JSON: {error}") from None
        if not isinstance(fields, dict):
            raise ItemFault(f'{where}: is no JSON object, such as {{"text": "..."}}')
        yield _raw(cast("dict[str, object]", fields), where, number, id)


def _csv(path: Path, id: str | None) -> Iterator[Raw]:
    reader = csv.reader(io.StringIO(_text_in(path)), strict=True)
    try:
        head = next(reader, list[str]())
        if not head or len(set(head)) < len(head) or not all(name.strip() for name in head):
            raise ItemFault(
                f"{path.name}:1: the head line has to name every column, each once; it has {head}"
            )
        number = 0
        for row in reader:
            if not row:
                continue
            number += 1
            where = f"{path.name}:{reader.line_num}"
            if len(row) != len(head):
                raise ItemFault(f"{where}: has {len(row)} columns, and the head line {len(head)}")
            yield _raw(dict(zip(head, row, strict=True)), where, number, id)
    except csv.Error as error:
        raise ItemFault(f"{path.name}:{reader.line_num}: is no CSV: {error}") from None


def _python(name: str, id: str | None) -> Iterator[Raw]:
    try:
        found = load_attribute("python", name)
    except ConfigurationError as error:
        raise ItemFault(str(error)) from error
    try:
        given = cast("Callable[[], Any]", found)() if callable(found) else found
        entries = iter(cast("Iterable[Any]", given))
    except Exception as error:
        raise ItemFault(f"{name} gives no items: {type(error).__name__}: {error}") from error
    number = 0
    while True:
        number += 1
        try:
            entry = next(entries)
        except StopIteration:
            return
        except Exception as error:
            raise ItemFault(f"{name} failed at item {number}: {type(error).__name__}: {error}") from error
        where = f"item {number} of {name}"
        if isinstance(entry, str):
            entry = {"item": entry}
        if not isinstance(entry, Mapping):
            raise ItemFault(f"{where} is a {type(entry).__name__}; give texts, or mappings of fields")
        yield _raw(cast("Mapping[str, object]", entry), where, number, id)


def _raw(fields: Mapping[str, object], where: str, number: int, id: str | None) -> Raw:
    if id is None:
        return Raw(str(number), where, fields)
    if id not in fields:
        raise ItemFault(f"{where}: has no field {id!r}, its id; there are: {', '.join(map(str, fields))}")
    key = fields[id]
    if isinstance(key, bool) or not isinstance(key, str | int) or not str(key).strip():
        raise ItemFault(f"{where}: its id {id!r} is {key!r}; it has to be a text or a whole number")
    return Raw(str(key), where, fields)
