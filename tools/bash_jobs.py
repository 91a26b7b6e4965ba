"""Commands in the background of a conversation: what runs one, and `bash_job`, which looks at them.

Layer: tools; no Ray. What the two know of each other is in the job's folder (see `job_folder`).
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from palaver.tools.bash_output import MAX_OUTPUT_CHARS, Shortened, write_all
from palaver.tools.bash_process import STOP_GRACE_S, BashProcess, environment, exit_text, signal_name
from palaver.tools.call import ToolCallInfo
from palaver.tools.errors import ToolError
from palaver.tools.job_folder import JobFolder, State, Status
from palaver.tools.tool import tool

MAX_WAIT_S = 300
"""How long one call of `bash_job` may wait for a job's end."""

_STOPPED_WITHIN_S = STOP_GRACE_S + 3.0
_LOOK_S = 0.1
_READ_BYTES = 1 << 20
_SHOWN_COMMAND_CHARS = 100
_SLOW_S = 60.0


class _JobOutput:
    """Takes what a job prints into its file. `stop` says why the job cannot go on, once it cannot."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._left_bytes = max_bytes
        self._max_bytes = max_bytes
        self.stop = ""

    def take(self, data: bytes) -> None:
        if self.stop:
            return
        data = data[: self._left_bytes]
        try:
            write_all(self._file, data)
        except OSError as error:
            self.stop = f"its output could not be kept: {error.strerror or error}"
            return
        self._left_bytes -= len(data)
        if not self._left_bytes:
            self.stop = (
                f"it printed {self._max_bytes:,} bytes, the limit; start it again with its output in a file "
                "that is cut off now and then, or with less of it"
            )

    def close(self) -> None:
        os.close(self._file)


@tool(name="bash_background", in_workspace=True, timeout_s=math.inf)
async def run_job(path: str, pass_env: list[str], max_bytes: int) -> None:
    """Run the job of a folder to its end, and tell of it there. No model sees this tool: `bash` starts it.

    `pass_env` are the variables with keys that it gets; it is stopped when it has printed `max_bytes`.
    Raises OSError when its folder cannot be written.
    """
    folder = JobFolder(Path(path))
    status = Status(started_at=_now())
    with folder.held():
        output = _JobOutput(folder.output, max_bytes)

        def why_stop() -> str:
            return "by bash_job" if folder.is_to_stop() else output.stop

        try:
            if stop := why_stop():
                status = status.model_copy(update={"stopped": f"{stop} before it had started"})
                return
            folder.set_status(status)
            order = folder.order()
            process = BashProcess(order.command, order.folder, environment(pass_env), output.take)
            status = status.model_copy(update={"pid": process.pid})
            with suppress(OSError):
                folder.set_status(status)
            ended = await process.run(why_stop, with_left=True, look_s=2 * _LOOK_S)
            name = signal_name(-ended.exit_code) if ended.exit_code < 0 else None
            how = {"exit_code": ended.exit_code, "signal": name, "stopped": ended.stopped or output.stop}
            status = status.model_copy(update=how)
        except asyncio.CancelledError:
            status = status.model_copy(update={"stopped": "by cancel or close of the conversation"})
            raise
        except (OSError, ValueError) as error:
            status = status.model_copy(update={"stopped": f"it could not be run: {error}"})
        finally:
            output.close()
            folder.set_status(status.model_copy(update={"ended_at": _now()}))


@tool(in_workspace=True, timeout_s=MAX_WAIT_S + 2 * _STOPPED_WITHIN_S, max_output_bytes=5 * MAX_OUTPUT_CHARS)
async def bash_job(
    info: ToolCallInfo,
    job: int | None = None,
    action: Literal["poll", "stop", "list"] = "poll",
    wait_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S)] = 0,
) -> str:
    """Look at, or stop, commands that bash runs in the background (background=true).

    poll tells how a job goes and what it has printed since the last poll, stop ends it, and list shows all
    jobs of this conversation.

    Args:
        job: The job's number, for poll and stop.
        action: What to do.
        wait_s: Seconds that poll waits for the job's end before it tells how it goes.
    """
    if info.workspace is None:
        raise ToolError(info.tool_name, "there are no jobs: this conversation has no workspace")
    folders = JobFolder.all(info.workspace, info.convo_id)
    if action == "list":
        lines = [f"{_line(each, *each.state())}: {_command_of(each)}" for each in folders]
        return "\n".join(lines) or "[no jobs; bash starts one with background=true]"
    folder = next((each for each in folders if each.number == job), None)
    if folder is None:
        numbers = ", ".join(str(each.number) for each in folders) or "none"
        which = f"{action} needs the number of a job" if job is None else f"there is no job {job}"
        raise ToolError(info.tool_name, f"{which}; this conversation's jobs: {numbers}")
    stopping = action == "stop" and _goes_on(folder.state()[0])
    if stopping:
        folder.ask_to_stop()
    deadline = time.monotonic() + (_STOPPED_WITHIN_S if stopping else wait_s)
    while _goes_on(folder.state()[0]) and time.monotonic() < deadline:  # noqa: ASYNC110 - of another process
        await asyncio.sleep(_LOOK_S)
    state, status = folder.state()
    line = _line(folder, state, status)
    if stopping and _goes_on(state):
        line += "; it was asked to stop, and will when it can"
    new = _new_output(folder, info, is_over=not _goes_on(state)).rstrip("\n")
    return f"[{line}]\n{new or '[no new output]'}"


def _goes_on(state: State) -> bool:
    return state in ("starting", "running")


def _new_output(folder: JobFolder, info: ToolCallInfo, *, is_over: bool) -> str:
    """What a job has printed since this conversation last looked, of which the call's state then knows."""
    key = f"{info.tool_name}.{folder.number}"
    begin = end = int(info.state.get(key, 0))
    new = Shortened()
    with suppress(FileNotFoundError), folder.output.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(begin)
        while end < size and (data := file.read(min(_READ_BYTES, size - end))):
            new.take(data)
            end += len(data)
    end -= 0 if is_over else new.waiting_bytes
    new.take(b"", last=is_over)
    if end != begin:
        info.state[key] = end
    path = folder.output.relative_to(info.workspace or "/")
    return new.text(f"all that it has printed is in the workspace's file {path}")


def _line(folder: JobFolder, state: State, status: Status) -> str:
    now, what = _now(), f"job {folder.number}: {state}"
    began = status.started_at or datetime.fromtimestamp(folder.path.stat().st_mtime, UTC)
    took_s = ((status.ended_at or now) - began).total_seconds()
    match state:
        case "starting":
            hint = " (it never will if the conversation was cancelled meanwhile)" if took_s > _SLOW_S else ""
            return f"{what} for {took_s:.0f} s{hint}"
        case "running":
            return f"{what} for {took_s:.0f} s, pid {status.pid}"
        case "gone":
            return f"{what}: the process that ran it was killed, and nothing of it runs any more"
        case "ended":
            code = f", {exit_text(status.exit_code)}" if status.exit_code is not None else ""
            stopped = f", stopped: {status.stopped}" if status.stopped else ""
            return f"{what} after {took_s:.0f} s{code}{stopped}"


def _command_of(folder: JobFolder) -> str:
    try:
        return shown(folder.order().command)
    except (OSError, ValueError):
        return "(its order.json cannot be read)"


def shown(command: str) -> str:
    """A command on one line, for people."""
    line = " ".join(command.split())
    return line if len(line) <= _SHOWN_COMMAND_CHARS else line[: _SHOWN_COMMAND_CHARS - 1] + "…"


def _now() -> datetime:
    return datetime.now(UTC)
