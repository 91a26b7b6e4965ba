"""One command's stay on Ray: the local model where it is used, Ray, a root conversation; all gone at the end.

Layer: actors, command line; Ray through `cluster` and `convo` alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.text import Text

from palaver.actors.cluster import Cluster, cluster
from palaver.actors.convo import Convo, ConvoHandle
from palaver.actors.inputs import Setup
from palaver.actors.interrupts import Interrupted, Interrupts
from palaver.actors.nodes import check_nodes, here, unmet
from palaver.actors.replies import reply
from palaver.actors.screen import Screen
from palaver.actors.swarm import close
from palaver.providers.errors import ConfigurationError, PalaverError
from palaver.providers.local import Local

T = TypeVar("T")


class RayFailed(ConfigurationError):
    """Ray could not be started here."""


@dataclass(frozen=True, slots=True)
class Session:
    """A root conversation, and the event loop to talk to it in."""

    root: ConvoHandle
    setup: Setup
    screen: Screen
    interrupts: Interrupts
    address: str
    """Of the Ray it is on."""
    _runner: asyncio.Runner

    @property
    def root_id(self) -> str:
        """The id of the root conversation. Raises PalaverError when it did not start."""
        return self.run(reply(self.root.id.remote()))

    def run(self, work: Awaitable[T]) -> T:
        """Do `work` in the session's event loop."""

        async def awaited() -> T:
            return await work

        return self._runner.run(awaited())


@contextmanager
def session(
    setup: Setup,
    screen: Screen,
    interrupts: Interrupts,
    *,
    label: str,
    needs: Mapping[str, Any] | None = None,
) -> Generator[Session]:
    """Start what `setup` needs, and leave nothing of it behind.

    `needs` are Ray's options for sub-conversations: where no node has that, it is told, or refused when none
    could join. Raises ConfigurationError when something does not start, Interrupted for a signal until it
    has.
    """
    for note in setup.notes:
        screen.note(note)
    with ExitStack() as stack:
        stack.enter_context(screen.quiet())
        if isinstance(setup.provider, Local):
            stack.enter_context(setup.provider.hold())
            stack.callback(interrupts.ignore)
        joined = _start_ray(setup.address, screen, interrupts, stack)
        if lacking := unmet(needs or {}):
            if joined.owned:
                raise ConfigurationError(
                    f"{lacking}: this run has a Ray of its own, on this machine alone. Change its placement, "
                    "or name a cluster with --address"
                )
            screen.note(f"palaver: {lacking} at the moment; what needs it waits until such a node joins")
        # With the program that it ends with.
        root = Convo.options(scheduling_strategy=here()).remote(
            setup.provider,
            tools=setup.tools,
            budget=setup.budget,
            system_prompt=setup.system_prompt,
            max_tokens=setup.max_tokens,
            tool_limits=setup.tool_limits,
            workspace=setup.workspace,
            tell_budget_from=setup.tell_budget_from,
            compact_from=setup.compact_from,
            label=label,
        )
        runner = asyncio.Runner()
        hurried = False
        try:
            yield Session(root, setup, screen, interrupts, joined.address, runner)
        except Interrupted:
            hurried = True
            screen.clear()
            raise
        finally:
            interrupts.ignore()
            if not hurried:
                _end(runner, root)
            # Else: what the event loop would still wait for ends with Ray.


def _start_ray(address: str | None, screen: Screen, interrupts: Interrupts, stack: ExitStack) -> Cluster:
    # Interrupted half-way, Ray would not know of all that it has started.
    with interrupts.held_back("palaver: interrupted; stopping as soon as Ray has started"), screen.picture():
        screen.show(Text("joining Ray ..." if address else "starting Ray ..."))
        try:
            joined = stack.enter_context(cluster(address, log_to_driver=False))
            if not joined.owned:
                check_nodes()
        except PalaverError:
            raise
        except Exception as error:
            first_line = next(iter(str(error).strip().splitlines()), "no reason given")
            raise RayFailed(
                f"Ray did not start: {type(error).__name__}: {first_line}. Is there memory, and room in the "
                "temp folder? --address uses a Ray that runs already"
            ) from error
        stack.callback(interrupts.ignore)
        return joined


def _end(runner: asyncio.Runner, root: ConvoHandle) -> None:
    with suppress(PalaverError):
        runner.run(close(root))
    runner.close()
