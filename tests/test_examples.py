"""The examples and the README's code run as they stand, and leave nothing behind."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually

from palaver.actors import Convo
from palaver.actors.cluster import Cluster
from palaver.actors.swarm_file import Items, Limits, Placement, SwarmFile, load
from palaver.providers import OpenAI, Scripted, provider_for

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder whose path leaves room for the paths of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp") as folder:
        yield Path(folder)


def run(program: Path, folder: Path) -> str:
    """Run a program as a stranger does, with no key and an empty home; its output."""
    keys = [name for name in os.environ if name.endswith("_API_KEY")]
    environment = {name: value for name, value in os.environ.items() if name not in keys}
    environment |= {"HOME": str(folder), "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, str(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.ray
@pytest.mark.local
@pytest.mark.parametrize("program", EXAMPLES, ids=lambda each: each.name)
def test_each_example_runs_and_leaves_no_file_behind(program: Path, short_folder: Path) -> None:
    output = run(program, short_folder)
    assert EXPECTED[program.name].search(output), output
    # The token that Ray writes to the home directory of who starts it otherwise is not there either.
    assert eventually(lambda: not list(short_folder.iterdir()), 10), list(short_folder.rglob("*"))


EXPECTED = {
    "two_agents.py": re.compile(
        r"---\n.*\neditor: 2 responses, \$0\n  writer: 1 responses, \$0\n", re.DOTALL
    ),
    "tools_that_delegate.py": re.compile(r"root calls survey.*Cairo has a river.*'responses': 5", re.DOTALL),
    "fix_a_test.py": re.compile(
        r"before: the tests fail.*'responses': 5.*'bash': 2.*\n\+ .*max\(.*after: the tests pass", re.DOTALL
    ),
    "follow_a_run.py": re.compile(
        r"temperature\(.*Cairo.*gave 31\.5\]\nIt is 31\.5 degrees in Cairo\.\n\[end_turn after 2 responses\]"
    ),
    "swarm_over_files.py": re.compile(r"(.+\.txt: .+\n){4}.*'responses': 4"),
}


def test_the_readmes_first_program_is_the_example_it_names() -> None:
    shown = re.search(r"`examples/(\w+\.py)`\):\n\n```python\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    docstring, _, program = (ROOT / "examples" / shown[1]).read_text().partition("\n\n")
    assert docstring.startswith('"""')
    assert shown[2] == program


@pytest.mark.parametrize("name", DOCS)
def test_every_python_block_of_the_docs_compiles_and_its_imports_exist(name: str) -> None:
    for block in re.findall(r"```python\n(.*?)```", DOCS[name], re.DOTALL):
        imports: list[ast.stmt] = [
            node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        exec(compile(ast.Module(imports, []), name, "exec"), {})  # noqa: S102


def test_the_readmes_tool_is_a_tool_that_runs(tmp_path: Path) -> None:
    (block,) = [each for each in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "@tool" in each]
    module = tmp_path / "readme_tool.py"
    module.write_text(block)
    code = (
        "import readme_tool as r, sys; from palaver.tools import ToolCallInfo\n"
        "info = ToolCallInfo('1', 'count_words', 'c')\n"
        "print(r.count_words(sys.argv[1], info), r.count_words.spec.description)"
    )
    text = tmp_path / "text"
    text.write_text("three little words")
    done = subprocess.run(
        [sys.executable, "-c", code, str(text)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "{'words': 3} Count the words of a text file.\n"


def test_the_providers_of_the_docs_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "DEEPSEEK_API_KEY"):
        monkeypatch.setenv(variable, "key")
    (block,) = re.findall(r"```python\n(.*?)```", DOCS["providers.md"], re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102
    assert [type(provider).__name__ for provider in names["providers"]()] == [
        "Anthropic",
        "OpenAI",
        "OpenAIResponses",
        "OpenAI",
        "OpenAI",
        "OpenAIResponses",
        "Anthropic",
        "OpenAI",
        "OpenAIResponses",
    ]


def test_the_models_file_of_the_docs_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCS["providers.md"], re.DOTALL)
    (tmp_path / "models.yaml").write_text(block)
    monkeypatch.setenv("PALAVER_MODELS", str(tmp_path / "models.yaml"))
    monkeypatch.setenv("TEAM_API_KEY", "key")
    qwen = provider_for("qwen")
    assert isinstance(qwen, OpenAI)
    assert (qwen.model, qwen.context_window) == ("Qwen/Qwen3-32B", 32_768)
    assert qwen.price is not None
    assert qwen.price.usd_per_million_tokens.output == Decimal("0.40")


def test_the_swarm_file_of_the_docs_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key")
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCS["swarms.md"], re.DOTALL)
    (tmp_path / "swarm.yaml").write_text(block)
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "notes" / "deep" / "one.txt").write_text("a note")
    found = load(str(tmp_path / "swarm.yaml"))
    assert [item.label for item in found.items] == ["notes/deep/one.txt"]
    assert found.items[0].prompt == "Summarise one:\n\na note\n"


def test_the_swarm_file_of_the_readme_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "swarm.yaml").write_text(block)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    found = load(str(tmp_path / "swarm.yaml"))
    assert [item.label for item in found.items] == [
        f"examples/texts/{path.name}" for path in sorted((ROOT / "examples" / "texts").iterdir())
    ]


def test_every_field_of_a_swarm_file_is_in_the_docs() -> None:
    names = [
        name for kind in (SwarmFile, Items, Limits, Placement) for name in kind.model_fields if name != "kind"
    ]
    text = re.sub(r"```.*?```", "", DOCS["swarms.md"], flags=re.DOTALL)
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`]+`", text))))
    assert [name for name in names if name not in words] == []


def test_links_of_the_docs_lead_somewhere() -> None:
    for name, text in DOCS.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert "://" in link or (folder / link).exists(), f"{name}: {link}"


def test_every_command_line_option_in_the_docs_exists() -> None:
    shown = "".join(
        subprocess.run(
            [Path(sys.executable).parent / "palaver", command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for command in ("run", "models", "ps", "show", "cancel", "fund")
    )
    others = re.compile(r"(pip install|docker|kubectl|\bray [a-z-]+) .*")
    for name, text in DOCS.items():
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]+", others.sub("", text)):
            assert option in shown, f"{name}: {option}"


def function_of(text: str, name: str) -> Any:
    """The function of that name in the Python of a page."""
    (block,) = [
        each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if f"def {name}(" in each
    ]
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102
    return names[name]


async def test_the_functions_of_the_docs_do_what_they_say(
    ray_cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"a": "one", "b": "two", "c": "three"}
    model = Scripted(lambda request: f"said: {request.messages[0].text}", cost_usd=1)

    summaries = function_of(DOCS["swarms.md"], "summaries")
    await summaries(model, texts, tmp_path)
    assert sorted(capsys.readouterr().out.splitlines()) == [
        f"{name} said: Summarise: {text}" for name, text in texts.items()
    ]
    await summaries(model, {**texts, "d": "four"}, tmp_path, resume=True)
    assert capsys.readouterr().out == "d said: Summarise: four\n"

    await function_of(DOCS["costs.md"], "within_two_dollars")(Scripted(["ok"], cost_usd="0.05"), texts)
    assert sorted(capsys.readouterr().out.splitlines()) == ["a 0.05", "b 0.05", "c 0.05"]

    convo = Convo.remote(Scripted(['{"name": "Rex", "legs": 4}'], output_by="schema"))
    pet = await function_of(README, "pet_of")(convo)
    assert (pet.name, pet.legs) == ("Rex", 4)
    await convo.close.remote()
