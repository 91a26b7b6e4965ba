"""The results of a swarm in a folder: whole lines, no item twice, nothing of another swarm."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from palaver.actors.items import Item, ItemResult, failed
from palaver.actors.result import RunResult
from palaver.actors.results_file import ResultsFile, digest
from palaver.actors.usage import CumulativeUsage
from palaver.providers import ConfigurationError

OF = {"model": "m", "prompt": "p"}
ITEMS = [Item(label=name, prompt=f"about {name}") for name in "abc"]


AT = datetime(2026, 11, 26, tzinfo=UTC)


def opened(folder: Path, *, resume: bool = False, of: dict[str, Any] = OF) -> ResultsFile:
    return ResultsFile(folder, of, resume=resume)


def add(file: ResultsFile, name: str, *, finished: bool = True, text: str = "grüße") -> None:
    stop = "end_turn" if finished else "budget"
    usage = CumulativeUsage(
        started_at=AT, wall_time=timedelta(), responses=2, input_tokens=7, known_cost_usd=Decimal("0.25")
    )
    run = RunResult(convo_id="abc-defg", stop=stop, text=text, message=None, responses=1, usage=usage)
    file.add(ItemResult(label=name, convo_id="abc-defg", result=run, usage=usage), f"about {name}")


def names(folder: Path, file: str = "results.jsonl") -> list[str]:
    return [json.loads(line)["item"] for line in (folder / file).read_text().splitlines()]


def test_each_result_is_a_line_as_soon_as_it_is_added(tmp_path: Path) -> None:
    file = opened(tmp_path / "a" / "b")
    add(file, "a")
    [line] = (tmp_path / "a" / "b" / "results.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert (told["item"], told["finished"], told["text"]) == ("a", True, "grüße")
    assert told["prompt_digest"] == digest("about a")
    file.close()


def test_what_nobody_began_is_missing(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.add(failed(ITEMS[0], ConfigurationError("no"), "not started: "), "about a")
    file.add(failed(ITEMS[1], ConfigurationError("no"), convo_id="abc-defg"), "about b")
    assert names(tmp_path) == ["b"]
    file.close()


def test_what_is_missing_is_gone_on_with(tmp_path: Path) -> None:
    file = opened(tmp_path)
    add(file, "b")
    file.close()
    file = opened(tmp_path, resume=True)
    assert [item.label for item in file.missing(ITEMS)] == ["a", "c"]
    assert file.finished == 1
    add(file, "a")
    add(file, "c")
    file.close()
    assert names(tmp_path) == ["b", "a", "c"]
    assert opened(tmp_path, resume=True).missing(ITEMS) == []


@pytest.mark.parametrize("end", ["\x85", "\u2028", "\u2029", "\x0b", "\x1c", "\r", "\n"])
def test_whatever_an_answer_holds_is_one_line(end: str, tmp_path: Path) -> None:
    file = opened(tmp_path)
    add(file, "a", text=f"one{end}two")
    file.close()
    [line] = (tmp_path / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == f"one{end}two"
    file = opened(tmp_path, resume=True)
    assert [item.label for item in file.missing(ITEMS)] == ["b", "c"]
    file.close()


def test_what_all_runs_have_used_is_known_of_finished_items_and_others(tmp_path: Path) -> None:
    for run, finished in enumerate((False, False, True)):
        file = opened(tmp_path, resume=run > 0)
        assert (file.used.responses, file.used.known_cost_usd) == (2 * run, Decimal("0.25") * run)
        add(file, "a", finished=finished)
        file.close()
    used = opened(tmp_path, resume=True).used
    assert (used.responses, used.total_tokens, used.total_cost_usd) == (6, 21, Decimal("0.75"))


def test_of_a_run_without_results_nothing_is_left(tmp_path: Path) -> None:
    opened(tmp_path / "new").close()
    opened(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_half_a_line_is_cut_off_and_its_item_run_again(tmp_path: Path) -> None:
    file = opened(tmp_path)
    add(file, "a")
    add(file, "b")
    file.close()
    whole = (tmp_path / "results.jsonl").read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        (tmp_path / "results.jsonl").write_bytes(whole[:cut])
        file = opened(tmp_path, resume=True)
        assert [item.label for item in file.missing(ITEMS)] == ["b", "c"]
        file.close()
        assert names(tmp_path) == ["a"]


def test_what_had_not_finished_is_replaced_and_kept_aside(tmp_path: Path) -> None:
    file = opened(tmp_path)
    add(file, "a", finished=False)
    add(file, "b")
    file.close()
    file = opened(tmp_path, resume=True)
    assert [item.label for item in file.missing(ITEMS)] == ["a", "c"]
    add(file, "a")
    file.close()
    assert names(tmp_path) == ["b", "a"]
    assert names(tmp_path, "replaced.jsonl") == ["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "replaced.jsonl",
        "results.jsonl",
        "swarm.json",
    ]


def test_results_are_not_added_to_unasked(tmp_path: Path) -> None:
    file = opened(tmp_path)
    add(file, "a")
    file.close()
    with pytest.raises(ConfigurationError, match="has 1 results already; --resume"):
        opened(tmp_path)
    with pytest.raises(ConfigurationError, match=r"there are no results in .*; leave --resume"):
        opened(tmp_path / "other", resume=True)
    assert not (tmp_path / "other").exists()


def test_results_of_something_else_are_not_mixed_with(tmp_path: Path) -> None:
    file = opened(tmp_path)
    add(file, "a")
    file.close()
    with pytest.raises(ConfigurationError, match=r"^model, prompt changed since the results in"):
        opened(tmp_path, resume=True, of={"model": "n", "prompt": "q"})
    file = opened(tmp_path, resume=True)
    changed = r"item .a. changed since its result was made; remove its line"
    with pytest.raises(ConfigurationError, match=changed):
        file.missing([Item(label="a", prompt="about something else")])
    file.close()
    # Also after a refusal.
    with pytest.raises(ConfigurationError, match=r"^model changed"):
        opened(tmp_path, resume=True, of={**OF, "model": "n"})


def test_one_run_at_a_time(tmp_path: Path) -> None:
    file = opened(tmp_path)
    with pytest.raises(ConfigurationError, match=r"another run writes to"):
        opened(tmp_path)
    add(file, "a", finished=False)
    file.close()
    file = opened(tmp_path, resume=True)  # which makes the file anew
    with pytest.raises(ConfigurationError, match=r"another run writes to"):
        opened(tmp_path, resume=True)
    file.close()


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"results cannot be written to .*: Not a directory"):
        opened(tmp_path / "file" / "x")


def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        file = opened(tmp_path, resume=(tmp_path / "results.jsonl").exists())
        add(file, "a", finished=False)
        file.close()
    with pytest.raises(ConfigurationError):
        opened(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
