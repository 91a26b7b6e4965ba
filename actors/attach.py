"""Other people's conversations: `palaver ps`, `cancel`, `fund` and `show`, from another process.

`address` is that of a Ray that runs (see `own_rays.join`).

Layer: actors, command line; one of the modules that know Ray.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar, cast

import ray
from ray.util import list_named_actors

from palaver.actors.amounts import dollars
from palaver.actors.budget import Budget
from palaver.actors.cluster import cluster
from palaver.actors.conversation_table import table
from palaver.actors.convo import NAMESPACE, ROOT_NAME, ConvoHandle
from palaver.actors.errors import ConvoClosed, UnknownConvo
from palaver.actors.kin import Branch
from palaver.actors.nodes import node_names
from palaver.actors.replies import reply
from palaver.actors.screen import Screen
from palaver.providers.errors import ConfigurationError
from palaver.providers.messages import Image, Message, Opaque, Thinking, ToolResult, ToolUse
from palaver.providers.messages import Text as SaidText

T = TypeVar("T")

ANSWERS_WITHIN_S = 5.0
"""A root that takes longer to describe its tree is left out, and told of."""


def print_trees(screen: Screen, address: str, *, ended: bool, as_json: bool) -> int:
    """`palaver ps`: all conversations of a cluster. The exit code is 0."""

    async def look() -> list[Branch | str]:
        return await asyncio.gather(*(tree_of(id, root, ended) for id, root in roots().items()))

    with cluster(address, log_to_driver=False):
        trees = asyncio.run(look())
        nodes = node_names()
    branches = [each for each in trees if isinstance(each, Branch)]
    for each in trees:
        if isinstance(each, str):
            screen.note(each)
    if as_json:
        screen.answer(json.dumps([as_record(line) for each in branches for line in each.walk()]))
    elif branches:
        width = screen.out_console.size.width if screen.out_is_terminal else None
        screen.table(table((line for each in branches for line in each.walk()), nodes, width=width))
    else:
        screen.note(f"no conversations at {address}")
    return 0


def cancel(screen: Screen, address: str, convo_id: str, *, cause: str, as_json: bool) -> int:
    """`palaver cancel ID`: stop a conversation and all below it. The exit code is 0."""

    async def work() -> Any:
        convo = await find(convo_id)
        return await reply(convo.cancel.remote(cause), convo_id)

    with cluster(address, log_to_driver=False):
        report = asyncio.run(work())
    screen.answer(report.model_dump_json() if as_json else str(report))
    return 0


def fund(screen: Screen, address: str, convo_id: str, budget: Budget, *, as_json: bool) -> int:
    """`palaver fund ID`: raise the limits of a conversation. The exit code is 0."""

    async def raise_at(root: ConvoHandle) -> Budget:
        return await reply(root.fund.remote(convo_id, budget), convo_id)

    with cluster(address, log_to_driver=False):
        raised = asyncio.run(at_its_root(convo_id, raise_at))
    limits = raised.model_dump(mode="json", exclude_none=True)
    told = ", ".join(
        f"{name} {dollars(value) if isinstance(value, Decimal) else value}"
        for name, value in raised.limits.items()
    )
    screen.answer(json.dumps(limits) if as_json else f"{convo_id}: {told}")
    return 0


def show(screen: Screen, address: str, convo_id: str, *, as_json: bool) -> int:
    """`palaver show ID`: what one said and was told. The exit code is 0."""

    async def work() -> Said:
        return await said(await find(convo_id), convo_id)

    with cluster(address, log_to_driver=False):
        found = asyncio.run(work())
    if as_json:
        records = [each.model_dump(mode="json") for each in found.messages]
        if found.under_way is not None:
            records.append({**found.under_way.model_dump(mode="json"), "under_way": True})
        screen.answer(json.dumps(records))
    else:
        screen.answer(str(found))
    return 0


class Said(NamedTuple):
    """All messages of a conversation, those before a compaction too, and the one that is not answered yet."""

    messages: Sequence[Message]
    under_way: Message | None

    def __str__(self) -> str:
        told = [as_text(each) for each in self.messages]
        if self.under_way is not None:
            told.append(as_text(self.under_way, ", not answered yet"))
        return "\n\n".join(told) or "no messages yet"


async def said(convo: ConvoHandle, convo_id: str) -> Said:
    """What a conversation said. Raises ConvoClosed."""
    former = await reply(convo.former_messages.remote(), convo_id)
    now = await reply(convo.messages.remote(), convo_id)
    under_way = await reply(convo.message_under_way.remote(), convo_id)
    return Said([message for part in (*former, now) for message in part], under_way)


def roots() -> dict[str, ConvoHandle]:
    """The root conversations of the cluster, by id: those that no program gave a name of its own."""
    found: dict[str, ConvoHandle] = {}
    for each in cast("list[dict[str, str]]", list_named_actors(all_namespaces=True)):
        if each["namespace"] == NAMESPACE and each["name"].startswith(ROOT_NAME):
            try:
                handle = cast("Any", ray).get_actor(each["name"], namespace=NAMESPACE)
            except ValueError:
                continue  # it has just ended
            found[each["name"].removeprefix(ROOT_NAME)] = cast("ConvoHandle", handle)
    return found


async def find(convo_id: str) -> ConvoHandle:
    """A conversation of the cluster by its id. Raises UnknownConvo, ConvoClosed."""
    return await at_its_root(convo_id, lambda root: reply(root.find.remote(convo_id), convo_id))


async def at_its_root(convo_id: str, ask: Callable[[ConvoHandle], Awaitable[T]]) -> T:
    """What the root answers whose tree has the conversation."""
    for root in roots().values():
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                return await ask(root)
        except (UnknownConvo, TimeoutError):
            continue
        except ConvoClosed as closed:
            if closed.convo_id == convo_id:
                raise
    raise ConfigurationError(f"no conversation {convo_id!r} on this cluster; `palaver ps` lists them")


async def tree_of(id: str, root: ConvoHandle, ended: bool) -> Branch | str:
    """The tree of a root; why there is none, in words."""
    try:
        async with asyncio.timeout(ANSWERS_WITHIN_S):
            return await reply(root.tree.remote(ended=ended), id)
    except TimeoutError:
        return f"{id}: does not answer within {ANSWERS_WITHIN_S:g} s"
    except ConvoClosed:
        return f"{id}: has just ended"


def as_record(line: Branch) -> dict[str, Any]:
    """A line of a tree as plain values. Money is text, exact; None is unknown."""
    spent = line.spent_usd
    return {
        "id": line.id,
        "parent_id": line.parent_id,
        "depth": line.depth,
        "label": line.label,
        "state": line.state.value,
        "model": line.model,
        "responses": line.usage.responses,
        "input_tokens": line.usage.total_input_tokens,
        "output_tokens": line.usage.output_tokens,
        "spent_usd": None if spent is None else f"{spent:f}",
        "reserved_usd": f"{line.reserved_usd:f}",
        "started_at": line.usage.started_at.astimezone(UTC).isoformat(),
        "wall_time_s": line.usage.wall_time.total_seconds(),
        "budget": line.budget.model_dump(mode="json", exclude_none=True),
        "busy_s": line.busy_s,
        "running_tools": list(line.running_tools),
        "waiting_tools": list(line.waiting_tools),
        "node_id": line.node_id,
    }


def as_text(message: Message, more: str = "") -> str:
    """A message for people to read; its heading says `more`."""
    return "\n".join([f"== {message.role}{more} ==", *(_part(part) for part in message.content)])


def _part(part: Any) -> str:
    match part:
        case SaidText(text=text):
            return text
        case Thinking(text=text):
            return f"[thinking] {text}"
        case ToolUse(id=id, name=name, input=given):
            return f"[calls {name} {id}] {json.dumps(given, ensure_ascii=False)}"
        case ToolResult(tool_use_id=id, is_error=failed):
            return f"[{'error' if failed else 'result'} of {id}] {part.text}"
        case Image(media_type=kind, data=data):
            return f"[{kind}, {len(data)} bytes]"
        case Opaque():
            return "[a block that its provider alone understands]"
        case _:
            return ""
