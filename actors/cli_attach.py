"""The commands for conversations that other processes have: `palaver ps`, `top`, `show`, `cancel`, `fund`.

Layer: actors, command line; no Ray but through `attach` and `top`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from palaver.actors import inputs, own_rays
from palaver.actors.budget import Budget
from palaver.actors.cli_options import AsJson, Attached, ConvoId
from palaver.actors.screen import Screen
from palaver.providers.errors import ConfigurationError

app = typer.Typer()


@app.command("ps")
def _ps(  # pyright: ignore[reportUnusedFunction]
    *,
    ended: Annotated[bool, typer.Option("--all", help="Those that have ended, too.")] = False,
    as_json: AsJson = False,
    address: Attached = None,
) -> int:
    """List the conversations that go on, as trees, with what they do and spend."""
    address = own_rays.join(address)
    from palaver.actors.attach import print_trees

    return print_trees(Screen(), address, ended=ended, as_json=as_json)


@app.command("top")
def _top(  # pyright: ignore[reportUnusedFunction]
    *, address: Attached = None
) -> int:
    """Watch all conversations that go on, and cancel, fund or read one.

    Keys: up and down choose one, c cancels it, f raises its limits, enter shows its messages, s sorts by how
    long each has been busy, q ends.
    """
    address = own_rays.join(address)
    from palaver.actors.top import top

    return top(Screen(), address)


@app.command("cancel")
def _cancel(  # pyright: ignore[reportUnusedFunction]
    convo_id: ConvoId,
    *,
    cause: Annotated[str, typer.Option(help="What its run is told.")] = "cancelled from outside",
    as_json: AsJson = False,
    address: Attached = None,
) -> int:
    """Stop a conversation and all below it: requests, tool calls, and the processes of these."""
    address = own_rays.join(address)
    from palaver.actors.attach import cancel

    return cancel(Screen(), address, convo_id, cause=cause, as_json=as_json)


@app.command("fund")
def _fund(  # pyright: ignore[reportUnusedFunction]
    convo_id: ConvoId,
    *,
    dollars: Annotated[str | None, typer.Option(help="USD more.", metavar="USD")] = None,
    responses: Annotated[int | None, typer.Option(help="Answers more.", metavar="N")] = None,
    wall_time: Annotated[float | None, typer.Option(help="Seconds more.", metavar="SECONDS")] = None,
    total_tokens: Annotated[int | None, typer.Option(help="Tokens more.", metavar="N")] = None,
    tool_calls: Annotated[int | None, typer.Option(help="Tool calls more.", metavar="N")] = None,
    as_json: AsJson = False,
    address: Attached = None,
) -> int:
    """Raise the limits of a conversation; what waits for its budget goes on."""
    counts = {"max_responses": responses, "max_total_tokens": total_tokens, "max_tool_calls": tool_calls}
    more = inputs.budget(dollars, wall_time, named="--", **counts)
    if more == Budget():
        raise ConfigurationError("say what to raise: --dollars, --responses, --wall-time, --total-tokens ...")
    address = own_rays.join(address)
    from palaver.actors.attach import fund

    return fund(Screen(), address, convo_id, more, as_json=as_json)


@app.command("show")
def _show(  # pyright: ignore[reportUnusedFunction]
    convo_id: ConvoId, *, as_json: AsJson = False, address: Attached = None
) -> int:
    """Show the messages of a conversation."""
    address = own_rays.join(address)
    from palaver.actors.attach import show

    return show(Screen(), address, convo_id, as_json=as_json)
