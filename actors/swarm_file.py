"""A swarm in a file: what `palaver run swarm.yaml` reads, checked to its last item before anything starts.

    model: claude-sonnet-5-5
    prompt: "Summarise this in one sentence.\\n\\n{text}"
    items: {files: notes/*.txt}
    budget: {max_dollars: 2}
    out: summaries

Paths are relative to the file's own folder. Layer: actors, command line; no Ray.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    model_validator,
)

from palaver.actors import inputs
from palaver.actors.amounts import dollars
from palaver.actors.budget import Budget
from palaver.actors.entries import AccountOpened
from palaver.actors.errors import BudgetExceeded, UnknownPrice
from palaver.actors.inputs import Setup
from palaver.actors.items import Item
from palaver.actors.ledger import Ask, Ledger
from palaver.actors.swarm_items import ItemFault, Source, read_items
from palaver.actors.template import Template, TemplateFault
from palaver.actors.tool_names import load_attribute
from palaver.actors.typed_output import OutputType
from palaver.actors.usage import CumulativeUsage
from palaver.providers.errors import ConfigurationError
from palaver.providers.messages import Message, Value
from palaver.providers.models_file import ServerName
from palaver.providers.provider import Request
from palaver.providers.worst_case import BoundsCost
from palaver.providers.yaml_file import YamlFile, read_yaml

SUFFIXES = (".yaml", ".yml")


def _text(given: Any) -> Any:
    if isinstance(given, bool) or given is None:
        raise ValueError("write text; a word such as yes, no or null needs quotes")
    return str(given) if isinstance(given, int) else given


def _list(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


Words = Annotated[str, BeforeValidator(_text), Field(min_length=1)]
Names = Annotated[tuple[Words, ...], BeforeValidator(_list)]


class Limits(Value):
    """Limits as in `Budget`; what is left out has none."""

    max_dollars: Decimal | None = Field(default=None, ge=0)
    max_responses: NonNegativeInt | None = None
    max_wall_time_s: Annotated[float, Field(ge=0)] | None = None
    max_total_tokens: NonNegativeInt | None = None
    max_tool_calls: NonNegativeInt | None = None
    max_sub_convos: NonNegativeInt | None = None
    max_depth: NonNegativeInt | None = None

    @property
    def budget(self) -> Budget:
        """The same as a Budget."""
        given = self.model_dump(exclude={"max_dollars", "max_wall_time_s"})
        dollars = None if self.max_dollars is None else f"{self.max_dollars:f}"
        return inputs.budget(dollars, self.max_wall_time_s, **given)


class Items(Value):
    """Where the items come from: one of the four."""

    files: Names | None = None
    """Paths and patterns; `**` goes down. Fields of the prompt: {text}, {file}, {name}."""
    json_lines: Words | None = None
    """A file of one JSON object a line; its fields are those of the prompt."""
    csv: Words | None = None
    """A file with a head line, which names the fields."""
    python: Words | None = None
    """MODULE:NAME of an iterable, or of a function that gives one, of texts ({item}) or of mappings."""
    id: Words | None = None
    """The field that tells items apart; without it they go by their line, or their place."""

    @model_validator(mode="after")
    def _one(self) -> Items:
        given = [name for name in ("files", "json_lines", "csv", "python") if getattr(self, name) is not None]
        if len(given) != 1:
            there = f"there are {' and '.join(given)}" if given else "there is none"
            raise ValueError(f"exactly one of files, json_lines, csv and python has to stand here; {there}")
        if self.id is not None and self.files is not None:
            raise ValueError("files go by their paths; leave id out")
        return self


class Placement(Value):
    """Where the conversations of the items run."""

    kind: Literal["process", "light"] = "process"
    workers: NonNegativeInt = 0
    """Light: so many processes share the items; 0 for the root's own alone."""
    num_cpus: Annotated[float, Field(ge=0)] | None = None
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    memory_mb: PositiveInt | None = None
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    labels: dict[str, Words] = Field(default_factory=dict)
    """Only on nodes with these labels."""
    spread: bool = True
    """One after the other on another node, so that the loss of one node takes few."""

    @model_validator(mode="before")
    @classmethod
    def _of_a_word(cls, given: Any) -> Any:
        return {"kind": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _fits(self) -> Placement:
        if self.kind == "process" and self.workers:
            raise ValueError("workers are for light items; write kind: light, or leave workers out")
        if self.kind == "light" and not self.workers and self._asked:
            raise ValueError(
                f"{', '.join(self._asked)} are for processes; add workers, or write kind: process"
            )
        return self

    @property
    def _asked(self) -> list[str]:
        return [
            name
            for name in ("num_cpus", "num_gpus", "memory_mb", "resources", "labels")
            if getattr(self, name)
        ]

    @property
    def actor_options(self) -> dict[str, Any]:
        """The same as Ray's options for an actor."""
        if self.kind == "light" and not self.workers:
            return {}
        options: dict[str, Any] = {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "memory": None if self.memory_mb is None else self.memory_mb * 1024**2,
            "resources": self.resources or None,
            "label_selector": self.labels or None,
            "scheduling_strategy": "SPREAD" if self.spread else None,
        }
        return {name: value for name, value in options.items() if value is not None}


class SwarmFile(Value):
    """The fields of a swarm file."""

    prompt: Words = Field(examples=['"Summarise {text}"'])
    items: Items = Field(examples=["{files: notes/*.txt}"])
    out: Words = Field(examples=["results"])
    """The folder of the results: `results.jsonl` in it has a line for each item."""
    model: Words | None = None
    base_url: Words | None = None
    server: ServerName | None = None
    context_window: PositiveInt | None = None
    price: Words | None = None
    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None
    system: Annotated[str, BeforeValidator(_text)] = ""
    tools: Names = ()
    mcp: Names = ()
    workspace: Words | None = None
    tool_timeout_s: PositiveFloat | None = None
    output: Words | None = None
    """MODULE:NAME of the type that answers have to be of."""
    output_retries: NonNegativeInt = 2
    budget: Limits = Limits()
    """For all items together."""
    item_budget: Limits = Limits()
    """For each item on its own."""
    tell_budget_from: Annotated[float, Field(ge=0, le=1)] | None = None
    compact_from: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: PositiveInt | None = None
    concurrency: PositiveInt = 8
    placement: Placement = Placement()
    retries: NonNegativeInt = 1
    """How often an item is run again whose process died, or whose provider failed for the moment."""


_FILE = TypeAdapter(SwarmFile)


class SwarmSetup(NamedTuple):
    """A swarm that can be started."""

    read: YamlFile[SwarmFile]
    setup: Setup
    items: tuple[Item, ...]
    output_type: Any
    out: Path
    actor_options: Mapping[str, Any]

    @property
    def file(self) -> SwarmFile:
        """Its fields."""
        return self.read.value

    def with_left(self, used: CumulativeUsage) -> SwarmSetup:
        """The same, where runs before have used that of its budget. The time is of each run.

        Raises ConfigurationError, with the line, when a limit leaves nothing.
        """
        budget = self.setup.budget
        left = budget.left(used.model_copy(update={"wall_time": timedelta()}))
        for name, limit in left.limits.items():
            given = getattr(budget, name)
            if not limit and given:
                told = dollars(given) if isinstance(given, Decimal) else given
                raise self.read.fault(
                    f"the results in {str(self.out)!r} have used all of it ({told}); raise it to go on",
                    *("budget", name),
                )
        return self._replace(setup=self.setup._replace(budget=left))

    @property
    def depends_on(self) -> Mapping[str, object]:
        """What the results depend on, beside the items: results of anything else are not added to them."""
        names = ("prompt", "model", "base_url", "system", "tools", "mcp", "output", "max_tokens")
        return {name: getattr(self.file, name) for name in names}


def is_swarm_file(word: str) -> bool:
    """Whether a word on the command line names a swarm file rather than being a prompt."""
    return word.endswith(SUFFIXES) and not any(each.isspace() for each in word)


def load(path: str, *, address: str | None = None) -> SwarmSetup:
    """The swarm of a file, with all of its items. Raises ConfigurationError with the line of each fault."""
    read = read_yaml(Path(path), _FILE)
    file = read.value
    folder = read.path.resolve().parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # for modules of the user's beside it
    with _told_in(read):
        setup = inputs.setup(
            model=_model(file.model, folder),
            base_url=file.base_url,
            server=file.server,
            context_window=file.context_window,
            price=file.price,
            requests_per_minute=file.requests_per_minute,
            tokens_per_minute=file.tokens_per_minute,
            tools=file.tools,
            mcp=file.mcp,
            max_dollars=None if file.budget.max_dollars is None else f"{file.budget.max_dollars:f}",
            max_wall_time_s=file.budget.max_wall_time_s,
            **file.budget.model_dump(exclude={"max_dollars", "max_wall_time_s"}),
            tell_budget_from=file.tell_budget_from,
            compact_from=file.compact_from,
            system_prompt=file.system,
            max_tokens=file.max_tokens,
            address=address,
            workspace=None if file.workspace is None else str(folder / file.workspace),
            tool_timeout_s=file.tool_timeout_s,
        )
        output_type = None if file.output is None else _output_type(file.output)
    try:
        template = Template(file.prompt)
    except TemplateFault as error:
        raise read.fault(str(error), "prompt") from None
    items = _items(read, template, folder)
    _check_fits(read, setup, items)
    return SwarmSetup(
        read=read,
        setup=setup,
        items=items,
        output_type=output_type,
        out=_out(read, folder),
        actor_options=file.placement.actor_options,
    )


def _items(read: YamlFile[SwarmFile], template: Template, folder: Path) -> tuple[Item, ...]:
    given = read.value.items
    source = Source(given.files, given.json_lines, given.csv, given.python, given.id)
    seen: dict[str, str] = {}
    items: list[Item] = []
    try:
        for each in read_items(source, folder):
            if each.key in seen:
                raise ItemFault(
                    f"{each.where} has the id {each.key!r}, which {seen[each.key]} has already; ids have to "
                    "differ, or one would be taken for the other"
                )
            seen[each.key] = each.where
            try:
                prompt = template.filled(each.fields)
            except TemplateFault as error:
                raise read.fault(f"{error} ({each.where})", "prompt") from None
            if not prompt.strip():
                raise read.fault(f"it is empty for {each.where}", "prompt")
            items.append(Item(label=each.key, prompt=prompt))
    except ItemFault as error:
        raise read.fault(str(error), "items", source.kind) from None
    if not items:
        raise read.fault("there are no items; nothing would be done", "items", source.kind)
    return tuple(items)


def _check_fits(read: YamlFile[SwarmFile], setup: Setup, items: Sequence[Item]) -> None:
    """Refuse the longest item when the limits leave no room for its first request: it could never be sent."""
    of_each, provider = read.value.item_budget.budget, setup.provider
    if not isinstance(provider, BoundsCost) or not (setup.budget.limits or of_each.limits):
        return
    item = max(items, key=lambda item: len(item.prompt.encode(errors="replace")))
    request = Request(
        messages=(Message.user(item.prompt),),
        system=setup.system_prompt,
        tools=tuple(each.spec for each in setup.tools),
        max_tokens=setup.max_tokens,
    )
    ledger, now = Ledger(), datetime.now(UTC)
    ledger.open([AccountOpened(convo_id="budget", budget=setup.budget, at=now)])
    ledger.open([AccountOpened(convo_id="item_budget", parent_id="budget", budget=of_each, at=now)])
    try:
        ledger.reserve(Ask("item_budget", request.id, provider.worst_case(request)))
    except BudgetExceeded as over:
        breach = over.breaches[0]
        name = "max_wall_time_s" if breach.limit_name == "max_wall_time" else breach.limit_name
        told = f"item {item.label!r} does not fit: {breach}; raise it, or lower max_tokens"
        raise read.fault(told, over.convo_id, name) from None
    except UnknownPrice as unknown:
        raise read.fault(str(unknown), "item_budget", "max_dollars") from None


def _model(name: str | None, folder: Path) -> str | None:
    """The model's name; a file in it is relative to the swarm file, as all are."""
    kind, _, rest = (name or "").partition(":")
    return f"{kind}:{folder / rest}" if kind in ("scripted", "local") and rest else name


def _output_type(name: str) -> Any:
    found = load_attribute("--output", name)
    try:
        OutputType(found)
    except ConfigurationError as error:
        raise ConfigurationError(f"--output {name!r}: {error}") from None
    return found


def _out(read: YamlFile[SwarmFile], folder: Path) -> Path:
    out = folder / read.value.out
    if out.exists() and not out.is_dir():
        raise read.fault(f"{str(out)!r} is no folder; name one for the results", "out")
    parent = next(each for each in (out, *out.parents) if each.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise read.fault(f"{str(parent)!r} cannot be written to; name a folder that is yours", "out")
    return out


_PLACES: Mapping[str, Sequence[str]] = {
    "max-dollars": ("budget", "max_dollars"),
    "max-wall-time": ("budget", "max_wall_time_s"),
    "max-responses": ("budget", "max_responses"),
    "max-total-tokens": ("budget", "max_total_tokens"),
    "max-tool-calls": ("budget", "max_tool_calls"),
    "max-sub-convos": ("budget", "max_sub_convos"),
    "max-depth": ("budget", "max_depth"),
    "tool-timeout": ("tool_timeout_s",),
}


@contextmanager
def _told_in(read: YamlFile[SwarmFile]) -> Any:
    """Errors in the words of the command line, told in those of the file."""
    try:
        yield
    except ConfigurationError as error:
        text = str(error)
        option = re.match(r"--([a-z-]+)", text)
        if option is not None:
            place = _PLACES.get(option[1], (option[1].replace("-", "_"),))
        elif isinstance(error, UnknownPrice):
            place = ("budget", "max_dollars")
        elif text.startswith("MCP server"):
            place = ("mcp",)
        else:
            place = ("model",) if read.value.model is not None else ()
        told = re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda found: found[1].replace("-", "_"), text)
        raise read.fault(told, *place) from None
