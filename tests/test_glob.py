from __future__ import annotations

import time

import pytest

from palaver.tools.glob import Glob


def matches(pattern: str, path: str) -> bool:
    glob = Glob(pattern)
    state = glob.start
    for name in path.split("/"):
        state = glob.below(state, name)
    return glob.matches(state)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.py", ["a.py", "x/y/a.py", ".py"], ["a.pyc", "a.py/b", "A.PY"]),
        ("./*.py", [], []),
        ("/*.py", ["a.py"], ["x/a.py"]),
        ("src/*.py", ["src/a.py"], ["a.py", "src/x/a.py", "x/src/a.py"]),
        ("src/**", ["src/a", "src/x/a"], ["src", "a"]),
        ("src/**/*.py", ["src/a.py", "src/x/a.py", "src/x/y/a.py"], ["a.py", "src/a.txt"]),
        ("**/*.py", ["a.py", "x/y/a.py"], ["a.txt"]),
        ("**", ["a", "x/y", ".hidden"], []),
        ("**/x/**", ["x/a", "b/x/a/c"], ["x", "y/a"]),
        ("a/**/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["a", "b"]),
        ("?.[ab]", ["x.a", "x.b"], ["xx.a", "x.c"]),
        ("[!a]", ["b"], ["a"]),
        ("*.{ts,tsx}", ["a.ts", "x/a.tsx"], ["a.js", "a.{ts,tsx}"]),
        ("{src,test}/**/{a,b}.py", ["src/a.py", "test/x/b.py"], ["lib/a.py", "src/c.py"]),
        ("{a,{b,c}}", ["a", "b", "c"], ["d"]),
        ("{a}", ["{a}"], ["a"]),
        ("with space/ü*", ["with space/über"], []),
        ("a[", ["a["], ["a"]),
    ],
)
def test_a_pattern_means_what_it_says(pattern: str, yes: list[str], no: list[str]) -> None:
    if pattern == "./*.py":
        with pytest.raises(ValueError, match="as a name"):
            Glob(pattern)
        return
    assert [path for path in yes if not matches(pattern, path)] == []
    assert [path for path in no if matches(pattern, path)] == []


def test_a_folder_in_which_nothing_can_match_has_an_empty_state() -> None:
    glob = Glob("src/*.py")
    assert not glob.below(glob.start, "lib")
    assert glob.below(glob.start, "src")
    assert not glob.below(glob.below(glob.start, "src"), "x")


def test_names_that_are_written_out_are_known() -> None:
    assert Glob(".git/**").names(".git")
    assert Glob("{a,.git}/x").names(".git")
    assert not Glob(".gi*/**").names(".git")


@pytest.mark.parametrize("pattern", ["", "/", "../x", "a/../b", "./a", "{a,b}" * 9])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"it is empty|as a name|more than 200 patterns"):
        Glob(pattern)


def test_no_pattern_takes_long() -> None:
    started = time.perf_counter()
    assert not matches("*a" * 50 + "b", "a" * 250)
    assert not matches("**/" * 50 + "b", "/".join("a" * 200))
    assert time.perf_counter() - started < 2
