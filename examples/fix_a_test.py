"""An agent that mends a repository whose tests fail, with bash and the tools for files.

    python examples/fix_a_test.py                     # a script plays the model: no key, always the same
    python examples/fix_a_test.py --model claude-...  # a real one, at its price

The agent works on a copy of `broken_repo`. Whether the tests pass in the end is not asked of it: this
program runs them itself, as they were before. Nothing confines what bash does to that copy.
"""

import argparse
import difflib
import shlex
import shutil
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import ray

from palaver.actors import Budget, Convo, ConvoInfo, NoopListener
from palaver.actors.cluster import cluster
from palaver.providers import Provider, Scripted, ToolUse, provider_for
from palaver.tools.bash import BASH_TOOLS
from palaver.tools.files import FILE_TOOLS

BROKEN = Path(__file__).parent / "broken_repo"
TESTS = "test_intervals.py"
TEST = [sys.executable, "-B", "-m", "unittest"]

SYSTEM_PROMPT = (
    "You are a careful programmer. The workspace is a Python repository. Look before you change anything, "
    "change as little as possible, and never change a test to make it pass."
)
TASK = f"A test of this repository fails. Mend the code. The tests are run with: {shlex.join(TEST)}"

SCRIPT = [
    ToolUse(id="1", name="bash", input={"command": shlex.join(TEST)}),
    ToolUse(id="2", name="read_file", input={"path": "intervals/merge.py"}),
    ToolUse(
        id="3",
        name="edit_file",
        input={
            "path": "intervals/merge.py",
            "old": "merged[-1] = (merged[-1][0], end)",
            "new": "merged[-1] = (merged[-1][0], max(merged[-1][1], end))",
        },
    ),
    ToolUse(id="4", name="bash", input={"command": shlex.join(TEST)}),
    "An interval within another one cut it short: the end of the later one was taken, not of the longer one.",
]
"""What the model does when none is named."""


class Narrator(NoopListener):
    """Prints each tool call as it is made."""

    def on_tool_call(self, convo: ConvoInfo, call: ToolUse) -> None:
        """Print a call."""
        print(f"{call.name}({', '.join(f'{name}={value!r:.60}' for name, value in call.input.items())})")


def passes(repo: Path) -> bool:
    """Whether the tests of `repo` pass."""
    return subprocess.run(TEST, cwd=repo, capture_output=True, check=False).returncode == 0


def changes(before: Path, after: Path) -> str:
    """What was changed in the Python files, as a diff."""
    files = sorted({path.relative_to(folder) for folder in (before, after) for path in folder.rglob("*.py")})
    lines: list[str] = []
    for file in files:
        old, new = (
            (folder / file).read_text().splitlines(keepends=True) if (folder / file).exists() else []
            for folder in (before, after)
        )
        lines += difflib.unified_diff(old, new, f"a/{file}", f"b/{file}")
    return "".join(lines)


def mend(repo: Path, provider: Provider, max_dollars: float | None) -> None:
    """Have an agent mend `repo`; print what it says, and what it used."""
    budget = Budget(max_dollars=max_dollars, max_responses=40, max_wall_time=timedelta(minutes=10))
    with cluster():
        agent = Convo.remote(
            provider,
            system_prompt=SYSTEM_PROMPT,
            tools=[*BASH_TOOLS, *FILE_TOOLS],
            workspace=repo,
            budget=budget,
            listener=Narrator(),
            label="mender",
        )
        result = ray.get(agent.run.remote(TASK))
        print(f"{result.stop}: {result.detail or result.text}")
        print(result.usage.log_view())
        ray.get(agent.close.remote())


def main() -> int:
    """Mend a copy of the repository; 0 when its tests pass then, else 1."""
    parser = argparse.ArgumentParser(description="An agent mends a repository whose tests fail.")
    parser.add_argument("--model", help="such as claude-sonnet-5.5; a script plays the model when left out")
    parser.add_argument(
        "--max-dollars", type=float, default=1.0, help="0 for no limit, which models without a price need"
    )
    arguments = parser.parse_args()
    provider = provider_for(arguments.model) if arguments.model else Scripted(SCRIPT)

    with tempfile.TemporaryDirectory(prefix="fix") as folder:
        repo = Path(folder) / "repo"
        shutil.copytree(BROKEN, repo, ignore=shutil.ignore_patterns("__pycache__"))
        print(f"{provider.name} {provider.model} mends {BROKEN.name}")
        print(f"before: the tests {'pass' if passes(repo) else 'fail'}")
        mend(repo, provider, arguments.max_dollars or None)
        print(changes(BROKEN, repo), end="")
        shutil.copy(BROKEN / TESTS, repo)
        mended = passes(repo)
        print(f"after: the tests {'pass' if mended else 'fail'}")
    return 0 if mended else 1


if __name__ == "__main__":
    sys.exit(main())
