"""Files that people write in YAML: read into a type, with the line of each fault in its error.

Layer: providers; PyYAML is imported when a file is read.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from palaver.providers.errors import ConfigurationError
from palaver.providers.untyped import as_dict, as_list, as_text

if TYPE_CHECKING:
    import yaml

T = TypeVar("T")

_Path: TypeAlias = tuple[str | int, ...]

_MOST_FAULTS = 5

_KEYS = ("api_key", "key", "token", "secret")


class YamlFault(ConfigurationError):
    """A YAML file that cannot be used: where, and why."""


class YamlFile(Generic[T]):
    """A file that was read: its value, and where each part of it stands."""

    def __init__(self, path: Path, value: T, lines: Mapping[_Path, int]) -> None:
        self.path = path
        self.value = value
        self._lines = lines

    def fault(self, message: str, *at: str | int) -> YamlFault:
        """An error about the part that is at these names: `file:line: part: what is wrong`."""
        known: _Path = ()
        for part in at:
            known = (*known, part) if (*known, part) in self._lines else known
        named = ".".join(map(str, at))
        return YamlFault(f"{self.path}:{self._lines.get(known, 1)}: {named}{named and ': '}{message}")


def read_yaml(path: Path, type: TypeAdapter[T]) -> YamlFile[T]:
    """The file as a value of the type. Numbers that are money have to be Decimal there: none becomes a float.

    Raises YamlFault, whose text has a line for each of the first faults: `file:line: what is wrong`.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise YamlFault(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise YamlFault(f"{path}: is no UTF-8 text: {error.reason} at byte {error.start}") from error
    try:
        node = cast("yaml.Node | None", cast("Any", yaml).compose(text, Loader=yaml.SafeLoader))
        if node is None:
            raise YamlFault(f"{path}: is empty")
        lines: dict[_Path, int] = {}
        value = _value_of(node, (), lines, path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        raise YamlFault(f"{path}{line}: is no YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise YamlFault(f"{path}: is no YAML: {error}") from error
    try:
        return YamlFile(path, type.validate_python(value), lines)
    except ValidationError as error:
        known = error.errors(include_url=False)
        faults = [_told(fault, lines, path, type.json_schema()) for fault in known[:_MOST_FAULTS]]
        if len(known) > _MOST_FAULTS:
            faults.append(f"and {len(known) - _MOST_FAULTS} more")
        raise YamlFault("\n".join(faults)) from None


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint at the known names: the nearest one, or all."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"


def _value_of(node: yaml.Node, at: _Path, lines: dict[_Path, int], path: Path) -> Any:
    """The plain value of a node; `lines` gets where each part of it stands."""
    import yaml

    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str | int) or key_node.tag == "tag:yaml.org,2002:merge":
                raise YamlFault(f"{path}:{line}: a name has to be a plain word")
            key = str(key)
            if key in found:
                raise YamlFault(f"{path}:{line}: {key!r} stands here a second time; once is enough")
            lines[(*at, key)] = line
            found[key] = _value_of(value_node, (*at, key), lines, path)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_value_of(each, (*at, index), lines, path) for index, each in enumerate(node.value)]
    return _scalar(node)


def _scalar(node: yaml.Node) -> Any:
    # A float would round money: what looks like one stays the text that was written.
    if node.tag == "tag:yaml.org,2002:float":
        return str(node.value)
    import yaml

    loader = cast("Any", yaml).SafeLoader("")
    try:
        return loader.construct_object(node)
    finally:
        loader.dispose()


def _told(fault: Mapping[str, Any], lines: Mapping[_Path, int], path: Path, schema: Mapping[str, Any]) -> str:
    given: _Path = tuple(fault["loc"])
    # What pydantic adds to tell the members of a union apart stands in no file.
    at: _Path = ()
    for part in given:
        at = (*at, part) if (*at, part) in lines else at
    shown = _shown(at, fault.get("input"))
    where = f"{path}:{lines.get(at, 1)}: {'.'.join(map(str, at)) or 'the file'}"
    match fault["type"]:
        case "extra_forbidden" if str(given[-1]).lower() in _KEYS:
            return f"{where}: a key never stands in a file; set the service's variable"
        case "extra_forbidden":
            known = _fields_at(schema, given[:-1])
            return f"{where}: there is no such field; {nearest(str(given[-1]), known)}"
        case "missing":
            name = str(given[-1])
            fields = [as_dict(as_dict(each.get("properties")).get(name)) for each in _at(schema, given[:-1])]
            examples = [as_text(each) for field in fields for each in as_list(field.get("examples"))]
            such_as = f", such as {name}: {examples[0]}" if examples else ""
            return f"{where}: {name!r} is missing; add it{such_as}"
        case "model_type" | "dict_type":
            known = _fields_at(schema, given)
            there_are = f": {', '.join(known)}" if known else ""
            return f"{where}: fields have to stand here{there_are}{shown}"
        case _:
            message = str(fault["msg"]).removeprefix("Value error, ")
            return f"{where}: {message}{shown}"


def _shown(at: _Path, value: object) -> str:
    """The value itself, where it is short and no place for a secret."""
    secret = any(word in str(part).lower() for part in at for word in ("key", "header", "password", "url"))
    if not secret and isinstance(value, str | int | float) and len(repr(value)) <= 60:
        return f" (it is {value!r})"
    return ""


def _fields_at(schema: Mapping[str, Any], at: _Path) -> list[str]:
    """The names of the fields that may stand at a place, by the JSON schema of the whole."""
    fields = [name for each in _at(schema, at) for name in as_dict(each.get("properties"))]
    return list(dict.fromkeys(fields))


def _at(schema: Mapping[str, Any], at: _Path) -> list[dict[str, Any]]:
    """What of a JSON schema is for a place."""
    here = [as_dict(schema)]
    for part in at:
        below: list[dict[str, Any]] = []
        for each in _choices(here, schema):
            named = as_dict(each.get("properties")).get(str(part), each.get("additionalProperties"))
            below.append(as_dict(each.get("items") if isinstance(part, int) else named))
        here = below
    return list(_choices(here, schema))


def _choices(schemas: Iterable[dict[str, Any]], root: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for given in schemas:
        name = as_text(given.get("$ref")).removeprefix("#/$defs/")
        each = as_dict(as_dict(root.get("$defs")).get(name)) if name else given
        yield each
        yield from _choices(map(as_dict, as_list(each.get("anyOf"))), root)
