"""Starts the sub-conversations of one conversation: with processes of their own, or light in this one.

It owns the invariant that several are all started or none, each with its account at the treasury.

Layer: actors; Ray through handles alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from palaver.actors.approvals import Desk
from palaver.actors.budget import Budget
from palaver.actors.conversation import Conversation
from palaver.actors.entries import AccountOpened
from palaver.actors.errors import ConvoIdTaken
from palaver.actors.ids import new_convo_id
from palaver.actors.items import Item
from palaver.actors.light import light_handle
from palaver.actors.options import AnyTool, SubConvoOptions, check_options, packed_tools
from palaver.actors.relatives import Ancestors, Remote
from palaver.actors.settings import Settings
from palaver.actors.treasury import Treasury
from palaver.providers.errors import ConfigurationError, PalaverError
from palaver.providers.messages import Message
from palaver.tools.task import AnyPacked, RayToolset
from palaver.tools.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Seat:
    """A conversation of this process, and what its sub-conversations are started from.

    `handle` is its own (a `palaver.actors.ConvoHandle`); `ancestors` are above it, none for a root.
    """

    core: Conversation
    handle: Any
    toolset: RayToolset
    ancestors: Ancestors
    workspace: Workspace | None


class Home(Protocol):
    """The process, as far as starting in it goes."""

    start: Callable[..., Any]
    """Starts an actor, a process of its own; gives its handle."""

    def move_in(self, seat: Seat) -> None:
        """Take in a light conversation."""

    def move_out(self, convo_id: str) -> None:
        """A light conversation has closed."""


class SubConvos:
    """Starts those of the conversation in `seat`; the light ones move into its home."""

    def __init__(self, seat: Seat, home: Home) -> None:
        self._seat = seat
        self._core = seat.core
        self._home = home
        self._weakening: set[asyncio.Task[None]] = set()

    async def start(
        self,
        options_of_each: Sequence[SubConvoOptions],
        messages: Sequence[Message] = (),
        *,
        at_most: int | None = None,
        light: bool = False,
    ) -> list[Any]:
        """Start all or none. Raises what `Convo.sub_convos` raises."""
        prepared = [await self.prepared(options) for options in options_of_each]
        if light and any(options.get("actor_options") for options in options_of_each):
            raise ConfigurationError("a light sub-conversation has no actor; leave actor_options out")
        accounts = await self._opened(
            [settings for settings, _ in prepared], lambda: self._refuse(options_of_each, at_most)
        )
        try:
            # Nothing is awaited from here on: all are started or none, and nobody else's in between.
            self._refuse(options_of_each, at_most)
        except PalaverError:
            for each in accounts:
                await self._core.treasury.close(each.convo_id)
            raise
        handles: list[Any] = []
        for account, options, (settings, tools) in zip(accounts, options_of_each, prepared, strict=True):
            if light:
                seat = self._light_seat(account.convo_id, settings, tools, messages)
                self._core.adopt(seat.core.id, seat.core, options.get("within_call"))
                handles.append(seat.handle)
            else:
                handles.append(self._start_actor(account.convo_id, options, settings, tools, messages))
        return handles

    def for_items(
        self, settings: Settings, tools: Sequence[AnyPacked], within_call: str | None = None
    ) -> Callable[[Item], Awaitable[Conversation]]:
        """What begins a light one for an item, as it was `prepared`."""

        async def begin(item: Item) -> Conversation:
            own = replace(settings, label=item.label)
            [account] = await self._opened([own], lambda: self._core.refuse_if_ending(within_call))
            child = self._light_seat(account.convo_id, own, tools).core
            try:
                self._core.adopt(child.id, child, within_call)
            except PalaverError:
                await child.close()
                raise
            return child

        return begin

    async def _opened(
        self, settings_of_each: Sequence[Settings], refuse: Callable[[], None]
    ) -> list[AccountOpened]:
        """The accounts of new sub-conversations; `refuse` raises when there are to be none."""
        while True:
            refuse()
            accounts = [self._account_of(new_convo_id(), settings) for settings in settings_of_each]
            try:
                await self._core.treasury.open(accounts)
            except ConvoIdTaken:
                continue
            return accounts

    def _account_of(self, child_id: str, settings: Settings) -> AccountOpened:
        return AccountOpened(
            convo_id=child_id,
            parent_id=self._core.id,
            label=settings.label,
            model=self._core.provider.model,
            budget=settings.budget,
            at=datetime.now(UTC),
        )

    def _refuse(self, options_of_each: Sequence[SubConvoOptions], at_most: int | None) -> None:
        for within_call in dict.fromkeys(each.get("within_call") for each in options_of_each):
            self._core.refuse_if_ending(within_call)
            if at_most is not None:
                self._core.refuse_too_many(len(options_of_each), at_most, within_call)

    async def prepared(self, options: SubConvoOptions) -> tuple[Settings, list[AnyPacked]]:
        """What a sub-conversation is started with. Everything that can be refused is refused here."""
        check_options(options)
        share = options.get("budget_share")
        given = options.get("budget") or Budget()
        settings = Settings(
            system_prompt=options.get("system_prompt", ""),
            budget=given if share is None else await self._core.budget_share(share),
            prompt_caching=self._core.settings.prompt_caching,
            tool_use_only=options.get("tool_use_only", False),
            max_tokens=options.get("max_tokens"),
            label=options.get("label", ""),
            tool_limits=self._core.settings.tool_limits,
            tell_budget_from=self._core.settings.tell_budget_from,
            compact_from=self._core.settings.compact_from,
        )
        tools = [self._own_tool(each) if isinstance(each, str) else each for each in options.get("tools", ())]
        return settings, packed_tools(tools, settings, self._seat.workspace)

    def _own_tool(self, name: str) -> AnyTool:
        """The tool of this conversation that is passed on by its name."""
        own = self._seat.toolset.tools
        if name not in own:
            raise ConfigurationError(
                f"conversation {self._core.id} has no tool {name!r} to pass on; available: {sorted(own)}"
            )
        return own[name]

    def _start_actor(
        self,
        child_id: str,
        options: SubConvoOptions,
        settings: Settings,
        tools: Sequence[AnyPacked],
        messages: Sequence[Message],
    ) -> Any:
        seat = self._seat
        handle = self._home.start(
            self._core.provider,
            tools,
            settings,
            self._core.listener,
            # On another node one after the other: the loss of one then takes few.
            {"scheduling_strategy": "SPREAD", **(options.get("actor_options") or {})},
            id=child_id,
            ancestors=seat.ancestors.and_below(Remote(self._core.id, seat.handle)),
            messages=messages,
            workspace=seat.workspace,
        )
        child = Remote(child_id, handle, settings.label)
        self._core.adopt(child_id, child, options.get("within_call"))
        weakening = asyncio.create_task(child.weaken())
        self._weakening.add(weakening)
        weakening.add_done_callback(self._weakening.discard)
        return handle

    def _light_seat(
        self, child_id: str, settings: Settings, tools: Sequence[AnyPacked], messages: Sequence[Message] = ()
    ) -> Seat:
        above = self._seat
        ancestors = above.ancestors.and_below(Remote(self._core.id, above.handle))
        handle = light_handle(above.handle, child_id)
        toolset = RayToolset(
            tools,
            (*ancestors.lineage, child_id),
            handle,
            workspace=above.workspace,
            limits=settings.tool_limits,
        )
        parent = _Housing(self._core, self._home)
        core = self._core.beside(toolset, settings, id=child_id, parent=parent, messages=messages)
        seat = Seat(core, handle, toolset, ancestors, above.workspace)
        self._home.move_in(seat)
        return seat


class _Housing:
    """The parent of a light conversation, whose place in the process is free when it has closed."""

    def __init__(self, core: Conversation, home: Home) -> None:
        self._core = core
        self._home = home

    @property
    def lineage(self) -> tuple[str, ...]:
        return self._core.lineage

    @property
    def desk(self) -> Desk:
        return self._core.desk

    @property
    def treasury(self) -> Treasury:
        return self._core.treasury

    async def child_closed(self, convo_id: str) -> None:
        self._home.move_out(convo_id)
        await self._core.child_closed(convo_id)
