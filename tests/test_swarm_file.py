"""Swarm files: what they may say, and that each fault is told with its line before anything is started."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from palaver.actors.budget import Budget
from palaver.actors.items import Item
from palaver.actors.swarm_file import is_swarm_file, load
from palaver.actors.usage import CumulativeUsage
from palaver.providers import ConfigurationError

GOOD = """\
model: scripted:s.json
prompt: "Summarise {text}"
items:
  files: notes/*.txt
out: results
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "notes").mkdir()
    for name in ("a", "b"):
        (tmp_path / "notes" / f"{name}.txt").write_text(f"note {name}\n")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "s.json").write_text('["ok"]')
    (tmp_path / "items.jsonl").write_text('{"id": "x", "q": "one"}\n\n{"id": "y", "q": {"n": 2}}\n')
    (tmp_path / "broken.jsonl").write_text('{"q": "one"}\n{"q": \n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "twice.jsonl").write_text('{"id": 1}\n{"id": 1}\n')
    (tmp_path / "items.csv").write_text('name,q\n"a, b",one\nc,"two\nlines"\n')
    (tmp_path / "ragged.csv").write_text("name,q\na\n")
    (tmp_path / "headless.csv").write_text("name,name\na,b\n")
    (tmp_path / "swarm_things.py").write_text(
        "from pydantic import BaseModel\n"
        "class Pet(BaseModel):\n    name: str\n"
        "texts = ['one', 'two']\n"
        "def maps():\n    yield {'q': 'one', 'id': 'x'}\n"
        "def fails():\n    yield 'one'\n    raise ValueError('no more')\n"
        "numbers = [1]\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str) -> str:
    path = folder / "swarm.yaml"
    path.write_text(text)
    return str(path)


def changed(**fields: Any) -> str:
    """GOOD with other fields; None takes one away."""
    lines = {
        "model": "scripted:s.json",
        "prompt": "Summarise {text}",
        "items": {"files": "notes/*.txt"},
        "out": "results",
        **fields,
    }
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in lines.items() if value is not None)


def test_a_file_is_read_to_the_last_item(folder: Path) -> None:
    found = load(write(folder, GOOD))
    assert found.items == (
        Item(label="notes/a.txt", prompt="Summarise note a\n"),
        Item(label="notes/b.txt", prompt="Summarise note b\n"),
    )
    assert (found.setup.provider.name, found.out) == ("scripted", folder / "results")
    assert not found.out.exists()


def test_everything_that_a_swarm_may_say(folder: Path) -> None:
    found = load(
        write(
            folder,
            changed(
                system="Be brief.",
                tools=["think", "todo"],
                budget={"max_dollars": 2.5, "max_responses": 100, "max_wall_time_s": 60},
                item_budget={"max_responses": 3},
                concurrency=2,
                placement={"kind": "light", "workers": 2, "num_cpus": 0.5, "labels": {"zone": "a"}},
                retries=2,
                output="swarm_things:Pet",
                max_tokens=50,
                tool_timeout_s=9.5,
            ),
        )
    )
    assert found.setup.budget.max_dollars == Decimal("2.5")
    assert found.file.item_budget.budget.max_responses == 3
    assert found.output_type.__name__ == "Pet"
    assert {"think", "todo"} <= {each.name.partition("_")[0] for each in found.setup.tools}
    assert found.actor_options == {
        "num_cpus": 0.5,
        "label_selector": {"zone": "a"},
        "scheduling_strategy": "SPREAD",
    }


@pytest.mark.parametrize(
    ("items", "prompt", "expected"),
    [
        ({"json_lines": "items.jsonl", "id": "id"}, "Q: {q}", {"x": "Q: one", "y": 'Q: {"n": 2}'}),
        ({"json_lines": "items.jsonl"}, "{id} {{}}", {"1": "x {}", "3": "y {}"}),
        ({"csv": "items.csv"}, "{name}: {q}", {"1": "a, b: one", "2": "c: two\nlines"}),
        ({"python": "swarm_things:texts"}, "{item}!", {"1": "one!", "2": "two!"}),
        ({"python": "swarm_things:maps", "id": "id"}, "{q}", {"x": "one"}),
        ({"files": ["notes/b.txt", "notes/*.txt"]}, "{name}", {"notes/b.txt": "b", "notes/a.txt": "a"}),
    ],
)
def test_items_come_from_files_json_lines_csv_and_python(
    items: dict[str, Any], prompt: str, expected: dict[str, str], folder: Path
) -> None:
    found = load(write(folder, changed(items=items, prompt=prompt)))
    assert {item.label: item.prompt for item in found.items} == expected


def test_items_may_hold_what_other_programs_take_for_the_end_of_a_line(folder: Path) -> None:
    ends = "a\x85b\u2028c"
    (folder / "ends.jsonl").write_text(json.dumps({"q": ends}, ensure_ascii=False) + "\n")
    (folder / "ends.csv").write_text(f"q\n{ends}\n")
    for items in ({"json_lines": "ends.jsonl"}, {"csv": "ends.csv"}):
        found = load(write(folder, changed(items=items, prompt="{q}")))
        assert [item.prompt for item in found.items] == [ends]


def test_what_runs_before_have_used_is_off_the_budget(folder: Path) -> None:
    found = load(write(folder, changed(budget={"max_dollars": 2, "max_responses": 5, "max_wall_time_s": 60})))
    used = CumulativeUsage(
        started_at=datetime.now(UTC), wall_time=timedelta(hours=1), responses=4, known_cost_usd=Decimal("1.5")
    )
    assert found.with_left(used).setup.budget == Budget(
        max_dollars=Decimal("0.5"), max_responses=1, max_wall_time=60
    )
    told = r"swarm\.yaml:5: budget\.max_dollars: the results in .*results' have used all of it \(\$2\.00\)"
    with pytest.raises(ConfigurationError, match=told):
        found.with_left(used.model_copy(update={"known_cost_usd": Decimal(3)}))


BAD: dict[str, tuple[str, str]] = {
    "no YAML": ("model: [a\n", r"swarm\.yaml:2: is no YAML"),
    "a tab": ("model:\ta\n\tprompt: b\n", r"swarm\.yaml:\d: is no YAML"),
    "nothing": ("", r"swarm\.yaml: is empty"),
    "a list": ("- a\n", r"swarm\.yaml:1: the file: fields have to stand here: prompt, items, out"),
    "a field twice": (
        GOOD + "out: other\n",
        r"swarm\.yaml:6: 'out' stands here a second time; once is enough",
    ),
    "an unknown field": (
        GOOD + "concurency: 3\n",
        r":6: concurency: there is no such field; did you mean 'concurrency'\?",
    ),
    "a field missing": (
        GOOD.replace("out: results\n", ""),
        r":1: the file: 'out' is missing; add it, such as out: res",
    ),
    "a key": (
        GOOD + "api_key: sk-123\n",
        r"swarm\.yaml:6: api_key: a key never stands in a file; set the service's variable",
    ),
    "no number": (
        GOOD + "concurrency: many\n",
        r":6: concurrency: Input should be a valid integer.*\(it is 'many'\)",
    ),
    "too small": (GOOD + "concurrency: 0\n", r":6: concurrency: Input should be greater than 0"),
    "a word that is none": (GOOD + "out2: yes\n", r":6: out2: there is no such field"),
    "a prompt that is none": (
        GOOD.replace('"Summarise {text}"', "yes"),
        r":2: prompt: write text; a word such as yes, no or null needs quotes",
    ),
    "two kinds of items": (
        GOOD.replace("  files: notes/*.txt", "  files: notes/*.txt\n  csv: a.csv"),
        r":3: items: exactly one of files, json_lines, csv and python.*there are files and csv",
    ),
    "no kind of items": (
        GOOD.replace("  files: notes/*.txt", "  id: x"),
        r":3: items: exactly one of.*there is none",
    ),
    "no file fits": (
        GOOD.replace("notes/*.txt", "notes/*.md"),
        r":4: items\.files: 'notes/\*\.md': no file fits the pattern in",
    ),
    "a file that is not there": (
        GOOD.replace("notes/*.txt", "none.txt"),
        r":4: items\.files: 'none\.txt': there is no such file in",
    ),
    "an empty file": (
        GOOD.replace("notes/*.txt", "empty.txt"),
        r":4: items\.files: 'empty\.txt' is empty; leave it out",
    ),
    "no UTF-8": (
        GOOD.replace("notes/*.txt", "latin.txt"),
        r":4: items\.files: 'latin\.txt' is no UTF-8 text",
    ),
    "a folder": (
        GOOD.replace("notes/*.txt", "notes"),
        r":4: items\.files: 'notes' is no file; for what is in a folder write notes/\*",
    ),
    "a file twice": (
        changed(items={"files": ["notes/a.txt", "notes/a.txt"]}),
        r":3: items\.files: 'notes/a\.txt' is named twice",
    ),
    "a field that no item has": (
        GOOD.replace("{text}", "{txt}"),
        r":2: prompt: there is no field 'txt' to fill in; there are: text, file, name \(notes/a\.txt\)",
    ),
    "half a field": (
        GOOD.replace("{text}", "{text"),
        r":2: prompt: there is a '\{' that belongs to no field; write '\{\{' for a brace",
    ),
    "a field without a name": (GOOD.replace("{text}", "{}"), r":2: prompt: there is a field without a name"),
    "JSON that breaks off": (
        changed(items={"json_lines": "broken.jsonl"}, prompt="{q}"),
        r":3: items\.json_lines: broken\.jsonl:2: is no JSON",
    ),
    "JSON that is no object": (
        changed(items={"json_lines": "list.jsonl"}, prompt="{q}"),
        r":3: items\.json_lines: list\.jsonl:1: is no JSON object",
    ),
    "an id twice": (
        changed(items={"json_lines": "twice.jsonl", "id": "id"}, prompt="a"),
        r":3: items\.json_lines: twice\.jsonl:2 has the id '1', which twice\.jsonl:1 has already",
    ),
    "an id that is not there": (
        changed(items={"json_lines": "items.jsonl", "id": "nr"}, prompt="a"),
        r"items\.jsonl:1: has no field 'nr', its id; there are: id, q",
    ),
    "a ragged CSV": (
        changed(items={"csv": "ragged.csv"}, prompt="{q}"),
        r":3: items\.csv: ragged\.csv:2: has 1 columns, and the head line 2",
    ),
    "a CSV without a head": (
        changed(items={"csv": "headless.csv"}, prompt="{q}"),
        r"headless\.csv:1: the head line has to name every column, each once",
    ),
    "a module that is not there": (
        changed(items={"python": "nowhere:items"}, prompt="a"),
        r":3: items\.python: python 'nowhere:items': there is no module 'nowhere'",
    ),
    "a name that is not there": (
        changed(items={"python": "swarm_things:none"}, prompt="a"),
        r":3: items\.python: .*module 'swarm_things' has no 'none'",
    ),
    "an iterator that fails": (
        changed(items={"python": "swarm_things:fails"}, prompt="{item}"),
        r":3: items\.python: swarm_things:fails failed at item 2: ValueError: no more",
    ),
    "items that are numbers": (
        changed(items={"python": "swarm_things:numbers"}, prompt="a"),
        r"item 1 of swarm_things:numbers is a int; give texts, or mappings of fields",
    ),
    "an unknown tool": (changed(tools=["bsh"]), r":5: tools: tools 'bsh': .*bash"),
    "an unknown model": (changed(model="gpt-nothing"), r":1: model: "),
    "an unknown server": (
        changed(server="vlm"),
        r":5: server: there is no such kind of server; did you mean 'vllm'\?",
    ),
    "dollars below nothing": (
        changed(budget={"max_dollars": -1}),
        r":5: budget\.max_dollars: Input should be greater than or equal to 0",
    ),
    "a limit that there is not": (
        changed(budget={"dollars": 1}),
        r":5: budget\.dollars: there is no such field; did you mean",
    ),
    "an output that is no type": (changed(output="swarm_things:texts"), r":5: output: "),
    "an output folder that is a file": (changed(out="s.json"), r":4: out: .*s\.json' is no folder"),
    "workers of processes": (
        changed(placement={"kind": "process", "workers": 2}),
        r":5: placement: workers are for light items",
    ),
    "resources of light ones": (
        changed(placement={"kind": "light", "num_gpus": 1}),
        r":5: placement: num_gpus are for processes; add workers",
    ),
    "a placement that there is not": (
        changed(placement="heavy"),
        r":5: placement.*Input should be 'process' or 'light'",
    ),
    "a budget that is a number": (
        changed(budget=2),
        r":5: budget: fields have to stand here: max_dollars, max_responses, .*\(it is 2\)",
    ),
    "an item that no budget has room for": (
        changed(budget={"max_total_tokens": 200}),
        r":5: budget\.max_total_tokens: item 'notes/a\.txt' does not fit: 0 tokens used, at least \d+ more "
        r"for the request, max_total_tokens is 200; raise it, or lower max_tokens",
    ),
    "an item that its own budget has no room for": (
        changed(item_budget={"max_responses": 0}),
        r":5: item_budget\.max_responses: item 'notes/a\.txt' does not fit",
    ),
    "an MCP server that there is not": (
        changed(mcp=["no-such-program"]),
        r":5: mcp: MCP server 'no-such-program' cannot be started: there is no program",
    ),
    "no workspace": (changed(workspace="nowhere", tools=["files"]), r":6: workspace|:5: workspace"),
}


@pytest.mark.parametrize("kind", BAD)
def test_each_fault_is_told_with_its_line_before_anything_is_started(kind: str, folder: Path) -> None:
    text, told = BAD[kind]
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigurationError, match=told):
        load(write(folder, text))
    left = [
        path for path in sorted(folder.rglob("*")) if path not in before and "__pycache__" not in path.parts
    ]
    assert [path.name for path in left] == ["swarm.yaml"]


def test_a_file_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.yaml: cannot be read: No such file"):
        load("none.yaml")


def test_a_word_with_the_suffix_is_a_file_and_a_sentence_is_a_prompt() -> None:
    assert [is_swarm_file(each) for each in ("swarm.yaml", "a/b.yml", "Explain swarm.yaml", "hello")] == [
        True,
        True,
        False,
        False,
    ]
