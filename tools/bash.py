"""`bash`: the built-in tool that runs a command in the conversation's workspace.

A command runs as the user whom Ray's workers run as, and nothing confines it: it may read and change
whatever that user may, anywhere, and use the network. Who wants a say in each call passes
`needs_approval`; who wants a wall runs the cluster's nodes in containers or virtual machines.

Layer: tools; no Ray. The process itself is in `bash_process`, what goes on in the background in `bash_jobs`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from palaver.tools.bash_jobs import bash_job, run_job, shown
from palaver.tools.bash_output import MAX_FILE_BYTES, MAX_OUTPUT_CHARS, Output
from palaver.tools.bash_process import STOP_GRACE_S, BashProcess, Ended, environment, exit_text
from palaver.tools.call import ToolCallInfo
from palaver.tools.errors import ToolDefinitionError, ToolError
from palaver.tools.job_folder import JobFolder, Order
from palaver.tools.limits import ToolLimits
from palaver.tools.tool import NeedsApproval, Tool
from palaver.tools.workspace import own_folder

DEFAULT_TIMEOUT_S = 120.0
"""How long a command may take when the model does not say."""

MAX_TIMEOUT_S = 3600.0
"""The most that the model may say. What takes longer runs in the background."""

_FOLDER_KEY = "bash.cwd"
"""In the conversation's state: the folder that the next command starts in, when it is not the workspace."""

_ENDS_WITHIN_S = STOP_GRACE_S + 10.0

_MIN_OUTPUT_CHARS = 200
_NAMED = 10


class _Settings(NamedTuple):
    max_timeout_s: float
    max_output_chars: int
    max_file_bytes: int
    pass_env: tuple[str, ...]


def bash_tool(
    *,
    name: str = "bash",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    max_timeout_s: float = MAX_TIMEOUT_S,
    max_output_chars: int = MAX_OUTPUT_CHARS,
    max_file_bytes: int = MAX_FILE_BYTES,
    pass_env: Collection[str] = (),
    max_per_node: int | None = None,
    needs_approval: NeedsApproval = False,
) -> Tool[..., Any]:
    """A `bash` of your own.

    `timeout_s` is how many seconds a command may take when the model does not say, `max_timeout_s` the
    most that it may say; a conversation's own `tool_limits` do not count, because a command that is
    stopped by this limit still tells what it has printed. `max_output_chars` is how much of a command's
    output the model gets to read; `max_file_bytes` how much of it is kept at most, and a command that
    prints more is stopped.

    Commands get the environment of Ray's workers less variables that hold keys: `..._API_KEY`, other
    spellings of it, `ANTHROPIC_AUTH_TOKEN` and `RAY_AUTH_TOKEN...`. `pass_env` names those that they are
    to get all the same. `max_per_node` and `needs_approval` are as in `tool`.

    Raises ToolDefinitionError for limits that are none.
    """
    if not 0 < timeout_s <= max_timeout_s < float("inf"):
        raise ToolDefinitionError(
            f"timeout_s of {name!r} is {timeout_s:g} and max_timeout_s {max_timeout_s:g}; use seconds above "
            "0, the first no more than the second"
        )
    if max_output_chars < _MIN_OUTPUT_CHARS or max_file_bytes < max_output_chars:
        raise ToolDefinitionError(
            f"max_output_chars of {name!r} is {max_output_chars} and max_file_bytes {max_file_bytes}; use "
            f"{_MIN_OUTPUT_CHARS} or more, the second no less than the first"
        )
    if isinstance(pass_env, str):
        raise ToolDefinitionError(
            f"pass_env of {name!r} is one string; use a tuple: pass_env=({pass_env!r},)"
        )
    settings = _Settings(max_timeout_s, max_output_chars, max_file_bytes, tuple(pass_env))

    async def bash(
        command: Annotated[str, Field(min_length=1)],
        info: ToolCallInfo,
        timeout_s: float = timeout_s,
        background: bool = False,
    ) -> str:
        """Described below.

        Args:
            command: What to run: one command or a whole script.
            timeout_s: Seconds after which it is stopped. Does not count in the background.
            background: Whether it goes on after this call, as a job.
        """
        if background:
            return _start_job(command, info, settings)
        return await _run(command, timeout_s, info, settings)

    bash.__annotations__["timeout_s"] = Annotated[float, Field(gt=0, le=max_timeout_s)]
    # The one of this module travels by its name.
    bash.__qualname__ = "bash"
    description = (
        "Run a command with bash, in the conversation's workspace.\n\n"
        "The result is what it prints (stdout and stderr as they come), and its exit code when that is not "
        f"0. Of more than {max_output_chars:,} characters you get the head and the tail, and a file with all "
        "of it. The working directory is kept for the next call, unless the command sets an EXIT trap of its "
        "own; variables, functions and what is left running with & are not. There is no terminal, and "
        "nothing on stdin: pass what a program would ask for (-y, -m).\n\n"
        "A command is stopped after timeout_s. What runs longer, or is to go on (a server), starts with "
        "background=true; bash_job tells how it goes. Keys of model services are not in the environment. "
        "Nothing confines a command to the workspace: take care outside of it."
    )
    limits = ToolLimits(
        timeout_s=max_timeout_s + _ENDS_WITHIN_S,
        max_output_bytes=4 * max_output_chars + 10_000,
        max_per_node=max_per_node,
    )
    return Tool(
        bash,
        name=name,
        description=description,
        limits=limits,
        needs_approval=needs_approval,
        in_workspace=True,
    )


async def _run(command: str, timeout_s: float, info: ToolCallInfo, settings: _Settings) -> str:
    """Run a command to its end; what the model gets to read of it."""
    workspace, folder, gone = _where(info)
    output = Output(
        partial(own_folder, workspace, "output"), settings.max_output_chars, settings.max_file_bytes
    )
    deadline = time.monotonic() + timeout_s

    def why_stop() -> str:
        if output.is_full:
            return (
                f"it printed {settings.max_file_bytes:,} bytes, the limit. Have it print less, or into a file"
            )
        if time.monotonic() >= deadline:
            return (
                f"it took longer than {timeout_s:g} s. Give it more time (timeout_s up to "
                f"{settings.max_timeout_s:g}), or run it with background=true"
            )
        return ""

    try:
        try:
            process = BashProcess(command, folder, environment(settings.pass_env), output.take)
        except (OSError, ValueError) as error:
            raise _not_started(info, command, folder, error) from error
        ended = await process.run(why_stop)
        text = output.text(workspace)
    except BaseException:
        output.discard()
        raise
    finally:
        output.close()
    return "\n".join([*gone, text.rstrip("\n") or "[no output]", *_notes(ended, folder, info)])


def _notes(ended: Ended, folder: str, info: ToolCallInfo) -> list[str]:
    """What there is to say beside the output. Keeps the folder for the next call."""
    notes: list[str] = []
    if ended.stopped:
        notes.append(f"[stopped: {ended.stopped}]")
    elif ended.exit_code:
        notes.append(f"[{exit_text(ended.exit_code)}]")
    if ended.left and not ended.stopped:
        names = ", ".join(ended.left[:_NAMED]) + (", ..." if len(ended.left) > _NAMED else "")
        notes.append(
            f"[it left processes running ({names}), which were ended with the call; background=true keeps a "
            "command running]"
        )
    workspace = os.path.realpath(info.workspace or "/")
    now = ended.folder or folder
    if os.path.realpath(now) != os.path.realpath(folder):
        inside = Path(now).is_relative_to(workspace)
        shown_folder = os.path.relpath(now, workspace) if inside else now
        notes.append(f"[working directory: {'the workspace' if shown_folder == '.' else shown_folder}]")
    if os.path.realpath(now) == workspace:
        info.state.pop(_FOLDER_KEY, None)
    elif info.state.get(_FOLDER_KEY) != now:
        info.state[_FOLDER_KEY] = now
    return notes


def _start_job(command: str, info: ToolCallInfo, settings: _Settings) -> str:
    """Have a command run as a job; how to look at it."""
    workspace, folder, gone = _where(info)
    try:
        job = JobFolder.make(workspace, info.convo_id, Order(command=command, folder=folder))
    except (OSError, ValueError) as error:
        raise ToolError(
            info.tool_name, f"the job's folder could not be written ({error}); nothing was started"
        ) from error
    info.start_job(
        run_job,
        {
            "path": str(job.path),
            "pass_env": list(settings.pass_env),
            "max_bytes": settings.max_file_bytes,
        },
        f"bash job {job.number}: {shown(command)}",
    )
    path = job.output.relative_to(workspace)
    text = (
        f"[job {job.number} starts in the background. bash_job(job={job.number}) tells how it goes and what "
        f"it prints, and stops it; its output goes to the workspace's file {path}]"
    )
    return "\n".join([*gone, text])


def _where(info: ToolCallInfo) -> tuple[str, str, list[str]]:
    """The workspace, the folder to start in, and a line that says so when the one that was kept is gone."""
    workspace = info.workspace
    if workspace is None:
        raise ToolError(
            info.tool_name, f"tool {info.tool_name!r} works in a workspace; this conversation has none"
        )
    if not _enterable(workspace):
        raise ToolError(info.tool_name, f"the workspace {workspace} is not there, or cannot be entered")
    kept = info.state.get(_FOLDER_KEY)
    if kept is None:
        return workspace, workspace, []
    if _enterable(kept):
        return workspace, kept, []
    del info.state[_FOLDER_KEY]
    return workspace, workspace, [f"[the working directory {kept} is gone; this ran in the workspace]"]


def _enterable(folder: str) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.X_OK)


def _not_started(info: ToolCallInfo, command: str, folder: str, error: Exception) -> ToolError:
    why = str(error)
    if isinstance(error, OSError):
        why = error.strerror or why
        size = len(command.encode(errors="replace"))
        if size > 100_000:
            why += f" (the command has {size:,} bytes; write long text to a file in several calls)"
    return ToolError(info.tool_name, f"bash could not be started in {folder}: {why}")


bash = bash_tool()
"""Runs a command with bash, in the conversation's workspace."""

BASH_TOOLS = (bash, bash_job)
"""All that a model needs to run commands: pass these to a conversation that has a workspace."""
