from __future__ import annotations

from pathlib import Path

import pytest
from file_calls import Calls

from palaver.tools.search import MAX_SEARCH_BYTES, MAX_SHOWN_CHARS


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("import os\n\n\ndef Find():\n    return os.sep\n")
    (tmp_path / "src" / "b.txt").write_text("find me\r\nnot me\r\n")
    (tmp_path / "bin").write_bytes(b"find\0me")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("find me not")
    return Calls(tmp_path)


async def test_each_line_found_has_its_file_and_number(calls: Calls) -> None:
    assert await calls.text("search_files", pattern=r"\bos\b|me$") == (
        "src/a.py:1:import os\nsrc/a.py:5:    return os.sep\nsrc/b.txt:1:find me\nsrc/b.txt:2:not me\n"
        "[4 matching lines in 2 of 2 files searched; left out 1 binary file; not entered unless named by "
        "path or pattern: .git/]"
    )


async def test_no_match_is_told_with_what_was_searched(calls: Calls) -> None:
    assert await calls.text("search_files", pattern="nowhere", path="src") == (
        "[no match for 'nowhere' in 2 files searched]"
    )


async def test_case_counts_unless_it_is_not_to(calls: Calls) -> None:
    assert "Find" not in await calls.text("search_files", pattern="find")
    assert "src/a.py:4:def Find():" in await calls.text("search_files", pattern="find", ignore_case=True)


async def test_a_glob_says_which_files(calls: Calls) -> None:
    text = await calls.text("search_files", pattern="find", glob="*.txt")
    assert text.startswith("src/b.txt:1:find me\n[1 matching line in 1 of 1 files searched")
    assert "src/b.txt" in await calls.text("search_files", pattern="find", glob="src/*.{txt,md}")
    assert "no match" in await calls.text("search_files", pattern="find", glob="*.md")
    assert ".git/config:1:" in await calls.text("search_files", pattern="find", glob=".git/*")
    assert "glob '..' is no glob" in await calls.refusal("search_files", pattern="x", glob="..")


async def test_one_file_or_a_skipped_folder_can_be_searched_by_its_path(calls: Calls) -> None:
    assert (await calls.text("search_files", pattern="me", path="src/b.txt")).startswith(
        "src/b.txt:1:find me\n"
    )
    assert ".git/config:1:find me not" in await calls.text("search_files", pattern="find", path=".git")
    assert "did you mean 'src'?" in await calls.refusal("search_files", pattern="find", path="scr")


async def test_lines_around_a_match_are_shown_once(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "c").write_text("".join(f"{n}\n" for n in range(1, 21)))
    assert await calls.text("search_files", pattern="^(3|5|6|12|20)$", path="c", context_lines=1) == (
        "c-2-2\nc:3:3\nc-4-4\nc:5:5\nc:6:6\nc-7-7\n--\nc-11-11\nc:12:12\nc-13-13\n--\nc-19-19\nc:20:20\n"
        "[5 matching lines in 1 of 1 files searched]"
    )
    both = await calls.text("search_files", pattern="^5$|find me$", context_lines=1)
    assert both.startswith("c-4-4\nc:5:5\nc-6-6\n--\nsrc/b.txt:1:find me\nsrc/b.txt-2-not me\n[")


async def test_many_matches_are_cut(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "c").write_text("x\n" * 10)
    text = await calls.text("search_files", pattern="x", path="c", max_matches=3)
    assert text.startswith("c:1:x\nc:2:x\nc:3:x\n[3 matching lines")
    assert "stopped at max_matches=3: there are more; use a narrower" in text
    assert "there are more" not in await calls.text("search_files", pattern="x", path="c", max_matches=10)
    (tmp_path / "d").write_text(("x" * 300 + "\n") * 5000)
    text = await calls.text("search_files", pattern="x", path="d", max_matches=5000)
    assert "stopped at 100,000 bytes of result" in text
    assert len(text) < MAX_SEARCH_BYTES + 1000


async def test_of_a_long_line_the_part_with_the_match_is_shown(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a" * 3000 + "needle" + "b" * 3000 + "\nnext needle\n")
    text = await calls.text("search_files", pattern="needle", path="c")
    first, second, _ = text.splitlines()
    assert first.startswith("c:1:…aaa")
    assert "aneedleb" in first
    assert first.endswith("b…")
    assert len(first) < MAX_SHOWN_CHARS + 10
    assert second == "c:2:next needle"


@pytest.mark.parametrize("at", [0, 9_990, 9_999, 10_000, 10_001, 65_530, 199_990, 250_000])
async def test_a_match_is_found_wherever_it_is_in_a_very_long_line(
    calls: Calls, tmp_path: Path, at: int
) -> None:
    (tmp_path / "c").write_text("first\n" + "a" * at + "needle" + "b" * (250_000 - at) + "\nlast needle\n")
    text = await calls.text("search_files", pattern="a?needleb?", path="c", context_lines=1)
    assert "needle" in text.splitlines()[1]
    assert [line[:4] for line in text.splitlines()[:-1]] == ["c-1-", "c:2:", "c:3:"]
    assert text.startswith("c-1-first\nc:2:")
    assert "no match" in await calls.text("search_files", pattern="^needle" if at else "^eedle", path="c")


async def test_a_pattern_that_is_none_is_told_with_its_place(calls: Calls) -> None:
    text = await calls.refusal("search_files", pattern="a(b")
    assert "no regular expression of Python: missing ), unterminated subpattern at position 1" in text
    assert "is no regular expression" in await calls.refusal("search_files", pattern="a{1" + "0" * 30 + "}")


async def test_text_that_is_no_utf_8_is_searched_too(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9 find\n")
    (tmp_path / "utf16").write_bytes("über find\n".encode("utf-16"))
    text = await calls.text("search_files", pattern="find$")
    assert "latin:1:caf\ufffd find" in text
    assert "utf16:1:über find" in text
