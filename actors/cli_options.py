"""What may stand on the command line of several commands, with its help.

Layer: actors, command line; no Ray.
"""

from __future__ import annotations

from typing import Annotated

import typer

from palaver.providers.profiles import SERVERS
from palaver.tools.builtin import CATALOGUE

Model = Annotated[
    str | None,
    typer.Option(
        help="A name of `palaver models`, SERVICE/MODEL, local, or scripted:FILE. Default: by the key set."
    ),
]
BaseUrl = Annotated[str | None, typer.Option(help="A server that speaks chat completions; needs --model.")]
ModelPrice = Annotated[
    str | None,
    typer.Option(
        "--price",
        help="USD per million tokens, like 0.15/0.60, instead of the list price; needs --model.",
        metavar="INPUT/OUTPUT",
    ),
]
RequestsPerMinute = Annotated[
    float | None,
    typer.Option(help="What the key may send. Default: learned from refusals; needs --model.", metavar="N"),
]
TokensPerMinute = Annotated[
    float | None,
    typer.Option(help="What the key may send. Default: learned from refusals; needs --model.", metavar="N"),
]
System = Annotated[str, typer.Option(help="The system prompt.")]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens of one answer.", metavar="N")]
MaxDollars = Annotated[str | None, typer.Option(help="USD for all of it together.", metavar="USD")]
MaxResponses = Annotated[int | None, typer.Option(help="Answers for all of it together.", metavar="N")]
MaxWallTime = Annotated[float | None, typer.Option(help="Seconds for all of it together.", metavar="SECONDS")]
MaxTotalTokens = Annotated[
    int | None, typer.Option(help="Tokens, input and output, for all of it together.", metavar="N")
]
MaxToolCalls = Annotated[int | None, typer.Option(help="Tool calls for all of it together.", metavar="N")]
MaxSubConvos = Annotated[
    int | None, typer.Option(help="Sub-conversations for all of it together, ended or not.", metavar="N")
]
MaxDepth = Annotated[
    int | None, typer.Option(help="Levels of sub-conversations below the first one.", metavar="N")
]
TellBudget = Annotated[
    float | None,
    typer.Option(
        "--tell-budget-from",
        help="From this part of a limit on, 0 to 1, tell the model what is left. Default: never.",
        metavar="PART",
    ),
]
CompactFrom = Annotated[
    float | None,
    typer.Option(
        help="From this part of the model's context window on, 0 to 1, go on from a summary of the "
        "conversation. Default: never.",
        metavar="PART",
    ),
]
ContextWindow = Annotated[
    int | None,
    typer.Option(help="Tokens of the model's context window, where it is not known.", metavar="N"),
]
Server = Annotated[
    str | None,
    typer.Option(
        help=f"What serves --base-url, if the URL does not tell: {', '.join(sorted(SERVERS))}.",
        metavar="NAME",
    ),
]
Tools = Annotated[
    list[str] | None,
    typer.Option(
        help="Built-in tools, with commas between, and your own as MODULE:NAME, a Tool or a list of them. "
        f"May be repeated. Built in: {', '.join(CATALOGUE)}.",
        metavar="NAME,...",
    ),
]
ToolTimeout = Annotated[
    float | None,
    typer.Option(
        help="Seconds a tool call may take, of tools that set no limit themselves, as bash (120 s, or what "
        "the model asks for) and delegate do. Default: no limit.",
        metavar="SECONDS",
    ),
]
WorkspaceFolder = Annotated[
    str | None,
    typer.Option(
        "--workspace",
        help="The folder that tools work in. Default: the current one, when a tool needs one.",
        metavar="FOLDER",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Approve every tool call that needs approval, unseen.")]
Mcp = Annotated[
    list[str] | None,
    typer.Option(
        help="An MCP server whose tools to use: a command in quotes, or a URL. May be repeated.",
        metavar="COMMAND|URL",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="A running Ray, or local for one of its own. Default: RAY_ADDRESS, one on this machine, or one "
        "of its own.",
        metavar="HOST:PORT",
    ),
]

# Of conversations that another process has

ConvoId = Annotated[
    str, typer.Argument(help="The id of a conversation, as `palaver ps` shows it.", metavar="ID")
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
Attached = Annotated[
    str | None,
    typer.Option(
        help="The Ray to look at. Default: RAY_ADDRESS, one on this machine, or that of a palaver that runs.",
        metavar="HOST:PORT",
    ),
]
