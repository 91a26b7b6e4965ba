"""The command line: `palaver run`, `palaver chat`, `palaver models`.

Everything a person typed is checked before anything is started or spent. Exit codes: 0 all finished, 1 not
all did, 2 what was asked for cannot work, 128 + signal when interrupted.

Layer: actors, command line; no Ray but through `session`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.exceptions import TyperException

from palaver.actors import inputs, swarm_file
from palaver.actors.amounts import dollars
from palaver.actors.cli_attach import app as attached
from palaver.actors.cli_options import (
    Address,
    BaseUrl,
    CompactFrom,
    ContextWindow,
    MaxDepth,
    MaxDollars,
    MaxResponses,
    MaxSubConvos,
    MaxTokens,
    MaxToolCalls,
    MaxTotalTokens,
    MaxWallTime,
    Mcp,
    Model,
    ModelPrice,
    RequestsPerMinute,
    Server,
    System,
    TellBudget,
    TokensPerMinute,
    Tools,
    ToolTimeout,
    WorkspaceFolder,
    Yes,
)
from palaver.actors.detached import Detached
from palaver.actors.interrupts import Interrupted, Interrupts
from palaver.actors.results_file import ResultsFile
from palaver.actors.screen import Screen, printable
from palaver.providers.errors import ConfigurationError, PalaverError

app = typer.Typer(
    name="palaver",
    help="Swarms of LLM agents on Ray, under one budget.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(attached)

DEFAULT_CONCURRENCY = 4


class _RunCommand(TyperCommand):
    """`--over` takes all the files that follow it, as a shell expands a pattern."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args, "--over"))


def spread(args: Sequence[str], option: str) -> list[str]:
    """`option A B` written as `option A option B`, up to the next option or `--`.

    Raises ConfigurationError when nothing follows it.
    """
    spread_args: list[str] = []
    waiting = swallowing = False
    for index, arg in enumerate(args):
        is_option = arg.startswith("-") and arg != "-"
        if waiting and is_option:
            break
        if arg == "--":
            return spread_args + list(args[index:])
        if arg == option:
            waiting = swallowing = True
        elif swallowing and not is_option:
            spread_args += [option, arg]
            waiting = False
        else:
            swallowing = arg.startswith(option + "=")
            spread_args.append(arg)
    if waiting:
        raise ConfigurationError(f"{option} needs a file, or several")
    return spread_args


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"palaver {version('palaver')}")
        raise typer.Exit


@app.callback()
def _palaver(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command("run", cls=_RunCommand)
def _run(  # pyright: ignore[reportUnusedFunction]
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="What is to be done.", metavar="PROMPT", show_default=False)
    ] = None,
    *,
    over: Annotated[
        list[str] | None,
        typer.Option(
            help="Files: each is put below the prompt in a conversation of its own.", metavar="FILE..."
        ),
    ] = None,
    model: Model = None,
    base_url: BaseUrl = None,
    server: Server = None,
    context_window: ContextWindow = None,
    price: ModelPrice = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    system: System = "",
    tools: Tools = None,
    yes: Yes = False,
    workspace: WorkspaceFolder = None,
    tool_timeout: ToolTimeout = None,
    mcp: Mcp = None,
    max_dollars: MaxDollars = None,
    max_responses: MaxResponses = None,
    max_wall_time: MaxWallTime = None,
    max_total_tokens: MaxTotalTokens = None,
    max_tool_calls: MaxToolCalls = None,
    max_sub_convos: MaxSubConvos = None,
    max_depth: MaxDepth = None,
    tell_budget: TellBudget = None,
    compact_from: CompactFrom = None,
    max_tokens: MaxTokens = None,
    concurrency: Annotated[
        int, typer.Option(help="How many files at once.", metavar="N")
    ] = DEFAULT_CONCURRENCY,
    out: Annotated[
        str | None,
        typer.Option(help="A file to which each result is added as a line of JSON.", metavar="FILE"),
    ] = None,
    address: Address = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Run the items of a swarm file that have no finished result yet.")
    ] = False,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", help="Run a swarm file in the background; it goes on when the terminal is closed."
        ),
    ] = False,
) -> int:
    """Run a prompt, a prompt over many files at once, or the swarm of a file like swarm.yaml.

    Answers go to stdout, everything else to stderr; those of a swarm file to the folder that it names.
    PROMPT stands before --over, which takes all the files that follow it.
    """
    if prompt is not None and swarm_file.is_swarm_file(prompt):
        return _run_swarm(context, prompt, resume=resume, detach=detach, yes=yes, address=address)
    for option, given in (("--resume", resume), ("--detach", detach)):
        if given:
            raise ConfigurationError(f"{option} goes with a swarm file: palaver run swarm.yaml {option}")
    if prompt is None:
        misplaced = ": it stands before --over, which takes everything up to the next option" if over else ""
        raise ConfigurationError(f"PROMPT is missing{misplaced}")
    if concurrency < 1:
        raise ConfigurationError(f"--concurrency is {concurrency}; use 1 or more")
    items = inputs.read_items(prompt, over or ())
    setup = inputs.setup(
        model=model,
        base_url=base_url,
        server=server,
        context_window=context_window,
        price=price,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        tools=tools or (),
        mcp=mcp or (),
        max_dollars=max_dollars,
        max_responses=max_responses,
        max_wall_time_s=max_wall_time,
        max_total_tokens=max_total_tokens,
        max_tool_calls=max_tool_calls,
        max_sub_convos=max_sub_convos,
        max_depth=max_depth,
        tell_budget_from=tell_budget,
        compact_from=compact_from,
        system_prompt=system,
        max_tokens=max_tokens,
        address=address,
        workspace=workspace,
        tool_timeout_s=tool_timeout,
    )
    with ExitStack() as stack:
        lines = None if out is None else stack.enter_context(inputs.open_out(out, over or ()))
        interrupts = stack.enter_context(_interrupts())
        from palaver.actors.run import run
        from palaver.actors.session import session

        with session(setup, Screen(), interrupts, label="" if over is None else "all") as started:
            return run(started, prompt, items if over else None, concurrency=concurrency, out=lines, yes=yes)


_OF_SWARMS = frozenset({"prompt", "resume", "detach", "yes", "address"})
"""What may be given beside a swarm file; all else stands in it."""


def _run_swarm(
    context: typer.Context, path: str, *, resume: bool, detach: bool, yes: bool, address: str | None
) -> int:
    others = sorted(
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in _OF_SWARMS and "COMMANDLINE" in str(context.get_parameter_source(name))
    )
    if others:
        raise ConfigurationError(f"{', '.join(others)}: what a swarm is made of stands in its file, {path}")
    loaded = swarm_file.load(path, address=address)
    with ExitStack() as stack:
        file = ResultsFile(loaded.out, loaded.depends_on, resume=resume)
        stack.callback(file.close)
        items = file.missing(loaded.items)
        screen = Screen()
        if file.finished:
            spent = f", for {dollars(file.used.known_cost_usd)}" if file.used.known_cost_usd else ""
            screen.note(f"{file.finished} of {len(loaded.items)} were finished before{spent}")
        if not items:
            screen.note(f"nothing is left to do: {file.path}")
            return 0
        loaded = loaded.with_left(file.used)
        detached: Detached | None = None
        if detach:
            detached = Detached(file.path.with_name("run.log"))
            if not detached.in_background:
                stack.pop_all()  # the results are the other process's now
                return _tell_detached(screen, detached)
            screen = Screen()
        interrupts = stack.enter_context(_interrupts())
        from palaver.actors.run import run_swarm
        from palaver.actors.session import session

        label, needs = loaded.read.path.stem, loaded.actor_options
        with session(loaded.setup, screen, interrupts, label=label, needs=needs) as started:
            if detached is not None:
                detached.begun(f"{started.root_id} {started.address}")
            code = run_swarm(started, loaded, file, items, yes=yes)
        goes_on = f"; `palaver run {path} --resume` runs what is missing" if code else ""
        screen.note(f"results: {file.path}{goes_on}")
        return code


def _tell_detached(screen: Screen, detached: Detached) -> int:
    root_id, address = detached.wait().split()
    screen.answer(root_id)
    screen.note(
        f"runs in the background (process {detached.pid}); `palaver top --address {address}` shows it, "
        f"`palaver cancel {root_id} --address {address}` stops it; log: {detached.log}"
    )
    return 0


@app.command("chat")
def _chat(  # pyright: ignore[reportUnusedFunction]
    *,
    model: Model = None,
    base_url: BaseUrl = None,
    server: Server = None,
    context_window: ContextWindow = None,
    price: ModelPrice = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    system: System = "",
    tools: Tools = None,
    yes: Yes = False,
    workspace: WorkspaceFolder = None,
    tool_timeout: ToolTimeout = None,
    mcp: Mcp = None,
    max_dollars: MaxDollars = None,
    max_responses: MaxResponses = None,
    max_wall_time: MaxWallTime = None,
    max_total_tokens: MaxTotalTokens = None,
    max_tool_calls: MaxToolCalls = None,
    max_sub_convos: MaxSubConvos = None,
    max_depth: MaxDepth = None,
    tell_budget: TellBudget = None,
    compact_from: CompactFrom = None,
    max_tokens: MaxTokens = None,
    address: Address = None,
) -> int:
    """Talk to a model. Ctrl-C cancels an answer; at the prompt it ends, as Ctrl-D does."""
    setup = inputs.setup(
        model=model,
        base_url=base_url,
        server=server,
        context_window=context_window,
        price=price,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        tools=tools or (),
        mcp=mcp or (),
        max_dollars=max_dollars,
        max_responses=max_responses,
        max_wall_time_s=max_wall_time,
        max_total_tokens=max_total_tokens,
        max_tool_calls=max_tool_calls,
        max_sub_convos=max_sub_convos,
        max_depth=max_depth,
        tell_budget_from=tell_budget,
        compact_from=compact_from,
        system_prompt=system,
        max_tokens=max_tokens,
        address=address,
        workspace=workspace,
        tool_timeout_s=tool_timeout,
    )
    with _interrupts() as interrupts:
        from palaver.actors.chat import chat
        from palaver.actors.session import session

        with session(setup, Screen(), interrupts, label="chat") as started:
            return chat(started, yes=yes)


@app.command("models")
def _models(  # pyright: ignore[reportUnusedFunction]
    base_url: Annotated[
        str | None, typer.Option(help="Ask this server which models it serves.", metavar="URL")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with exact prices.")] = False,
) -> int:
    """List the models that have a name here, their prices and windows, and whether their key is set.

    The file that PALAVER_MODELS names, or palaver/models.yaml in the folder of settings, adds models.
    """
    from palaver.actors.model_table import print_models, print_served

    if base_url is None:
        print_models(as_json=as_json)
    else:
        print_served(base_url, as_json=as_json)
    return 0


class _CutShort(Exception):
    """Interrupted, as an exception that typer does not take for its own."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


@contextmanager
def _interrupts() -> Generator[Interrupts]:
    with Interrupts() as interrupts:
        try:
            yield interrupts
        except Interrupted as interrupted:
            raise _CutShort(interrupted.exit_code) from None


def main(argv: Sequence[str] | None = None) -> None:
    """The `palaver` command. Ends the process with its exit code."""
    hurried = False
    try:
        args = list(sys.argv[1:] if argv is None else argv)
        code = app(args or ["--help"], prog_name="palaver", standalone_mode=False) or 0
    except TyperException as error:
        code = _complain(error.format_message() or str(error))
    except PalaverError as error:
        code = _complain(str(error))
    except _CutShort as cut_short:
        code, hurried = cut_short.exit_code, True
        print("palaver: interrupted", file=sys.stderr)
    except BrokenPipeError:
        # Whoever read our stdout has gone; Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        code = 1
    if hurried:
        sys.stdout.flush()
        sys.stderr.flush()
        # The event loop was left as it stood; nobody wants to hear what it thinks of that.
        os._exit(code)
    sys.exit(code)


def _complain(message: str) -> int:
    print(f"palaver: error: {printable(message, keep=chr(10))}", file=sys.stderr)
    return 2
