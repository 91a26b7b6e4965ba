from __future__ import annotations

from pathlib import Path

import pytest
from file_calls import Calls

from palaver.tools import find


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    for name in ("src/b.py", "src/a.py", "src/deep/c.py", "README.md", ".git/config", "node_modules/x/y.js"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * len(name))
    (tmp_path / "src" / "node_modules").mkdir()
    (tmp_path / "src" / "node_modules" / "z.js").touch()
    (tmp_path / "empty").mkdir()
    return Calls(tmp_path)


async def test_a_folder_is_listed_in_order_with_what_each_entry_is(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("src")
    (tmp_path / "link2").symlink_to("nothing")
    (tmp_path / "link3").symlink_to("/etc")
    assert await calls.text("list_files") == (
        ".git/\nREADME.md (9 bytes)\nempty/\nlink -> src\nlink2 -> nothing (not there)\n"
        "link3 -> /etc (cannot be used)\nnode_modules/\nsrc/\n[8 entries of '.']"
    )


async def test_a_pattern_lists_what_is_below_and_says_what_was_left_out(calls: Calls) -> None:
    assert await calls.text("list_files", pattern="**") == (
        ".git/\nREADME.md (9 bytes)\nempty/\nnode_modules/\nsrc/\nsrc/a.py (8 bytes)\nsrc/b.py (8 bytes)\n"
        "src/deep/\nsrc/deep/c.py (13 bytes)\nsrc/node_modules/\n[10 entries of '.' for '**'; not entered "
        "unless named by path or pattern: .git/, node_modules/ (2)]"
    )
    assert await calls.text("list_files", path="src", pattern="*.py") == (
        "src/a.py (8 bytes)\nsrc/b.py (8 bytes)\nsrc/deep/c.py (13 bytes)\n[3 entries of 'src' for '*.py'; "
        "not entered unless named by path or pattern: node_modules/]"
    )
    assert await calls.text("list_files", pattern="src/*.py") == (
        "src/a.py (8 bytes)\nsrc/b.py (8 bytes)\n[2 entries of '.' for 'src/*.py']"
    )


async def test_what_is_left_out_is_listed_when_it_is_named(calls: Calls) -> None:
    assert "node_modules/x/y.js" in await calls.text("list_files", path="node_modules", pattern="**")
    assert ".git/config" in await calls.text("list_files", path=".git")
    assert "src/node_modules/z.js" in await calls.text("list_files", pattern="**/node_modules/*")


async def test_an_empty_folder_and_a_pattern_without_matches_are_told(calls: Calls) -> None:
    assert await calls.text("list_files", path="empty") == "[0 entries of 'empty']"
    assert (await calls.text("list_files", pattern="*.rs")).startswith("[0 entries of '.' for '*.rs'; ")


async def test_a_long_list_is_cut(calls: Calls) -> None:
    assert await calls.text("list_files", path="src", max_entries=2) == (
        "src/a.py (8 bytes)\nsrc/b.py (8 bytes)\n[the first 2 entries of 'src'; there are more: name a "
        "folder below, or a narrower pattern, or raise max_entries]"
    )
    assert "there are more" not in await calls.text("list_files", path="src", max_entries=4)


async def test_what_cannot_be_listed_is_told(calls: Calls) -> None:
    assert "did you mean 'src'?" in await calls.refusal("list_files", path="scr")
    assert "'README.md' is no folder; read_file shows" in await calls.refusal("list_files", path="README.md")
    assert "pattern '../*' is no glob" in await calls.refusal("list_files", pattern="../*")
    assert "less than or equal to 10000" in await calls.refusal("list_files", max_entries=10**6)


async def test_links_are_not_followed(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "src" / "up").symlink_to("..")
    (tmp_path / "out").symlink_to("/")
    listed = await calls.text("list_files", pattern="**")
    assert "\nout -> / (cannot be used)\n" in listed
    assert "src/up -> ..\n" in listed
    assert "src/up/" not in listed
    assert "out/" not in listed
    assert "src/a.py" in await calls.text("list_files", path="src/up/src")


async def test_a_walk_does_not_go_down_for_ever(calls: Calls, tmp_path: Path) -> None:
    deep = "/".join(["d"] * 120)
    (tmp_path / deep).mkdir(parents=True)
    listed = await calls.text("list_files", path="d", pattern="**")
    assert "not entered, because more than 100 folders deep: " in listed


async def test_a_walk_ends_when_its_time_is_up(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "MAX_WALK_S", -1.0)
    assert "stopped after -1 s, so this is not all" in await calls.text("list_files", pattern="**")
    assert "stopped after -1 s, so this is not all" in await calls.text("search_files", pattern="x")


async def test_of_a_folder_with_very_many_names_only_some_are_read(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "_MAX_NAMES", 3)
    text = await calls.text("list_files", path="src")
    assert len(text.splitlines()) == 4
    assert "only the first 3 names read of: src/" in text
