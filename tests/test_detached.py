"""A process that divides: who is told, and what stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DIVIDES = """
import sys, time
from pathlib import Path
from palaver.actors.detached import Detached, NotBegun
detached = Detached(Path(sys.argv[1]))
if detached.in_background:
    print("said before")
    if sys.argv[2] == "fails":
        print("palaver: error: it cannot work", file=sys.stderr)
        sys.exit(2)
    detached.begun("root-1")
    sys.exit(0)
try:
    print("begun", detached.wait())
except NotBegun as error:
    print("not begun", error)
"""


@pytest.mark.parametrize(("ends", "told"), [("well", "begun root-1"), ("fails", "it cannot work")])
def test_who_detaches_is_told_how_the_run_began(ends: str, told: str, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("earlier\n")
    done = subprocess.run(
        [sys.executable, "-c", DIVIDES, str(log), ends],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert told in done.stdout
    assert "earlier" not in done.stdout
    assert log.read_text().startswith("earlier\nsaid before\n")
