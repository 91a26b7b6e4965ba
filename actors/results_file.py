"""The results of a swarm in a folder: a line of JSON for each item, added as it comes, and never one twice.

It owns two invariants. A line is whole: one that a kill tore is taken away when the file is opened again. And
a finished item has one line for good.

    results.jsonl    the results
    replaced.jsonl   lines of items that had not finished, and were run again
    swarm.json       what the results are of, so that nothing else is added to them

Layer: actors; no Ray.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from palaver.actors.items import Item, ItemResult
from palaver.actors.usage import EXACT, CumulativeUsage
from palaver.providers.errors import ConfigurationError
from palaver.providers.untyped import as_count, as_dict, as_text, json_in

_LINE_ENDS = {ord(each): f"\\u{ord(each):04x}" for each in "\x85\u2028\u2029"}

_COUNTS = (
    *("responses", "tool_calls", "input_tokens", "output_tokens"),
    *("cache_read_input_tokens", "cache_creation_input_tokens"),
)

RESULTS, REPLACED, OF = "results.jsonl", "replaced.jsonl", "swarm.json"


def digest(value: object) -> str:
    """A short mark of a value that dumps to JSON; another value has another one."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class ResultsFile:
    """The folder of one swarm, for one run at a time.

    `of` are the things that the results depend on. Raises ConfigurationError for a folder that another run
    writes to, that has results already without `resume`, or those of another swarm.
    """

    def __init__(self, folder: Path, of: Mapping[str, object], *, resume: bool) -> None:
        self._folder = folder
        self._path = folder / RESULTS
        had = self._path.exists()
        if resume and not had:
            raise ConfigurationError(
                f"there are no results in {str(folder)!r} to go on from; leave --resume (resume=True) out "
                "to begin"
            )
        self.used = _usage_in([])
        """What the runs before have used for items, finished or not, as far as their lines tell; no time."""
        self._made_folder = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ConfigurationError(
                f"results cannot be written to {str(self._path)!r}: {error.strerror}"
            ) from None
        try:
            self._begin(of, resume=resume)
        except BaseException:
            os.close(self._file)
            raise

    def _begin(self, of: Mapping[str, object], *, resume: bool) -> None:
        if not _locked(self._file) or not os.path.samestat(os.fstat(self._file), os.stat(self._path)):
            raise ConfigurationError(
                f"another run writes to {str(self._path)!r}; wait for its end, or name another folder in out"
            )
        lines = self._whole_lines()
        if lines and not resume:
            raise ConfigurationError(
                f"{str(self._path)!r} has {len(lines)} results already; --resume (resume=True) runs what is "
                "missing, or name another folder in out"
            )
        marks = {name: digest(value) for name, value in of.items()}
        before = as_dict(json_in(_read(self._folder / OF)))
        changed = [name for name, mark in marks.items() if before.get(name, mark) != mark]
        if lines and changed:
            raise ConfigurationError(
                f"{', '.join(changed)} changed since the results in {str(self._folder)!r} were made; put it "
                "back, or name another folder in out"
            )
        _replace(self._folder / OF, json.dumps(marks, indent=1) + "\n")
        self._keep_finished(lines)

    def _whole_lines(self) -> list[str]:
        """The lines that are there; half a line at the end is cut off."""
        text = _read(self._path)
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            os.truncate(self._file, len(whole.encode()))
        # Not splitlines, which takes more for the end of a line than JSON does.
        return whole.split("\n")[:-1]

    def _keep_finished(self, lines: Sequence[str]) -> None:
        records = [as_dict(json_in(line)) for line in lines]
        earlier = _read(self._folder / REPLACED).split("\n")
        self.used = _usage_in([*records, *(as_dict(json_in(line)) for line in earlier)])
        kept: list[str] = []
        replaced: list[str] = []
        self._finished: dict[str, str] = {}
        for line, record in zip(lines, records, strict=True):
            if record.get("finished") is True and as_text(record.get("item")) not in self._finished:
                self._finished[as_text(record.get("item"))] = as_text(record.get("prompt_digest"))
                kept.append(line + "\n")
            else:
                replaced.append(line + "\n")
        if replaced:
            with (self._folder / REPLACED).open("a", encoding="utf-8") as others:
                others.writelines(replaced)
            # Whoever looks finds all lines or the kept ones, also after a kill. The lock is of the file.
            beside = self._folder / f".{RESULTS}"
            file = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666)
            _locked(file)
            _write(file, "".join(kept))
            beside.replace(self._path)
            os.close(self._file)
            self._file = file

    def missing(self, items: Iterable[Item]) -> list[Item]:
        """The items that have no finished result. Raises ConfigurationError when a finished one changed."""
        left: list[Item] = []
        for item in items:
            mark = self._finished.get(item.label)
            if mark is None:
                left.append(item)
            elif mark and mark != digest(item.prompt):
                raise ConfigurationError(
                    f"item {item.label!r} changed since its result was made; remove its line from "
                    f"{str(self._path)!r} to run it again, or name another folder in out"
                )
        return left

    @property
    def finished(self) -> int:
        """How many items had finished before."""
        return len(self._finished)

    @property
    def path(self) -> Path:
        """The file of the results."""
        return self._path

    def add(self, result: ItemResult, prompt: str) -> None:
        """Add the result of an item, made of this prompt. Raises OSError.

        What nobody began is simply missing: it is run when the swarm goes on.
        """
        if result.convo_id is not None:
            _write(self._file, line_of({**record(result, name="item"), "prompt_digest": digest(prompt)}))

    def close(self) -> None:
        """End the run. Where it had no result, nothing of it is left."""
        if not os.fstat(self._file).st_size and not (self._folder / REPLACED).exists():
            for name in (RESULTS, OF):
                (self._folder / name).unlink(missing_ok=True)
            with suppress(OSError):
                if self._made_folder:
                    self._folder.rmdir()
        os.close(self._file)


def record(result: ItemResult, *, name: str, with_name: bool = True) -> dict[str, Any]:
    """One result as plain values: a line of the results. Money is text, exact; None is unknown.

    `name` is what its label is called.
    """
    usage = result.usage
    run = result.result
    return {
        name: result.label if with_name else None,
        "convo_id": result.convo_id,
        "finished": result.finished,
        "stop": run.stop if run is not None else None,
        "text": run.text if run is not None else None,
        **({} if run is None or run.output is None else {"output": to_jsonable_python(run.output)}),
        "error": result.reason or None,
        "error_type": result.error_type,
        "usage": None
        if usage is None
        else {
            **{name: getattr(usage, name) for name in _COUNTS},
            "cost_usd": None if usage.total_cost_usd is None else f"{usage.total_cost_usd:f}",
            "wall_time_s": usage.wall_time.total_seconds(),
        },
    }


def _usage_in(records: Iterable[Mapping[str, Any]]) -> CumulativeUsage:
    """The sum of what records tell of usage."""
    counts: Counter[str] = Counter()
    cost = Decimal()
    for each in records:
        usage = as_dict(each.get("usage"))
        counts.update({name: as_count(usage.get(name)) for name in _COUNTS})
        cost = EXACT.add(cost, Decimal(as_text(usage.get("cost_usd")) or 0))
    return CumulativeUsage.model_validate(
        {"started_at": datetime.now(UTC), "wall_time": timedelta(), "known_cost_usd": cost, **counts}
    )


def line_of(record: Mapping[str, Any]) -> str:
    """A record as one line of JSON, also for readers that end lines at U+0085, U+2028 and U+2029."""
    return json.dumps(record, ensure_ascii=False).translate(_LINE_ENDS) + "\n"


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _write(file: int, text: str) -> None:
    left = memoryview(text.encode("utf-8", "backslashreplace"))
    while left:
        left = left[os.write(file, left) :]


def _replace(path: Path, text: str) -> None:
    """Write a file so that whoever reads it finds the old one or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)
