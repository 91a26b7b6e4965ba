from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from file_calls import Calls
from hypothesis import given, settings
from hypothesis import strategies as st

from palaver.tools.edit import Edit


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "a.py"
    made.write_text("def one():\n    return 1\n\n\ndef two():\n    return 2\n")
    return made


async def test_an_edit_shows_what_the_file_has_now(calls: Calls, path: Path) -> None:
    assert await calls.text("edit_file", path="a.py", old="return 2", new="two = 2\n    return two") == (
        "'a.py': replaced 1 place, in line 6. Now:\n"
        "3\t\n4\t\n5\tdef two():\n6\t    two = 2\n7\t    return two"
    )
    assert path.read_text() == "def one():\n    return 1\n\n\ndef two():\n    two = 2\n    return two\n"


async def test_a_text_can_be_deleted(calls: Calls, path: Path) -> None:
    await calls.text("edit_file", path="a.py", old="def one():\n    return 1\n\n\n", new="")
    assert path.read_text() == "def two():\n    return 2\n"
    await calls.text("edit_file", path="a.py", old="def two():\n    return 2\n", new="")
    assert path.read_text() == ""


async def test_a_text_that_is_there_several_times_is_refused_with_its_lines(calls: Calls, path: Path) -> None:
    before = path.read_text()
    assert await calls.refusal("edit_file", path="a.py", old="return", new="yield") == (
        "'a.py' was not changed: old is there 2 times, in lines 2, 6; give more of the text around it, so "
        "that it is there once, or replace_all=true to replace each"
    )
    assert path.read_text() == before
    assert (
        await calls.text("edit_file", path="a.py", old="return", new="yield", replace_all=True)
    ).startswith("'a.py': replaced 2 places, in lines 2, 6. Now:\n1\tdef one():\n2\t    yield 1\n")
    assert path.read_text() == before.replace("return", "yield")


async def test_very_many_places_are_counted_and_not_all_listed(calls: Calls, path: Path) -> None:
    path.write_text("x\n" * 1000)
    text = await calls.refusal("edit_file", path="a.py", old="x", new="y")
    assert "there 1000 times, in lines 1, 2, 3, " in text
    assert "20 and 980 more" in text


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("", "x", "old is empty; give the text"),
        ("one", "one", "old and new are the same"),
        ("a\r\nb", "a\nb", "old and new are the same"),
    ],
)
async def test_what_is_no_edit_is_told(calls: Calls, path: Path, old: str, new: str, why: str) -> None:
    before = path.stat()
    text = await calls.refusal("edit_file", path="a.py", old=old, new=new)
    assert text.startswith(f"'a.py' was not changed: {why}")
    assert path.stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    ("old", "why"),
    [
        (
            "def two():\n\treturn 2",
            "with other spaces, tabs or indentation it is; copy it from the file, which has:\n"
            "5\tdef two():\n6\t    return 2",
        ),
        (
            "def  two():",
            "with other spaces, tabs or indentation it is; copy it from the file, which has:\n5\t",
        ),
        ("5\tdef two():\n6\t    return 2", "without the line numbers before each line"),
        ("def two():\n    return two\n", "The most like old is:\n5\tdef two():\n6\t    return 2"),
        ("def twoo():", "The most like old is:\n5\tdef two():"),
        ("class Nothing(Like): it", "There is nothing like old either; read_file shows what the file has"),
        ("   ", "old is there"),
    ],
)
async def test_a_text_that_is_not_there_is_told_with_what_is(
    calls: Calls, path: Path, old: str, why: str
) -> None:
    text = await calls.refusal("edit_file", path="a.py", old=old, new="something new")
    assert why in text


async def test_an_edit_made_before_is_told_as_such(calls: Calls, path: Path) -> None:
    await calls.text("edit_file", path="a.py", old="return 1", new="yield 1")
    assert "old is not there, but new is, in line 2: the change may have been made already" in (
        await calls.refusal("edit_file", path="a.py", old="return 1", new="yield 1")
    )


async def test_line_ends_stay_as_they_are(calls: Calls, path: Path) -> None:
    path.write_bytes(b"one\r\ntwo\r\nthree\nfour\r\nlast")
    await calls.text("edit_file", path="a.py", old="one\ntwo", new="1\n2\n2.5")
    assert path.read_bytes() == b"1\r\n2\r\n2.5\r\nthree\nfour\r\nlast"
    await calls.text("edit_file", path="a.py", old="three", new="3\n3.5")
    assert path.read_bytes() == b"1\r\n2\r\n2.5\r\n3\n3.5\nfour\r\nlast"
    await calls.text("edit_file", path="a.py", old="four\r\nlast", new="4\r\n5\n")
    assert path.read_bytes() == b"1\r\n2\r\n2.5\r\n3\n3.5\n4\r\n5\r\n"


async def test_a_file_without_a_line_end_stays_without(calls: Calls, path: Path) -> None:
    path.write_bytes(b"a\r\nb")
    await calls.text("edit_file", path="a.py", old="b", new="c\nd")
    assert path.read_bytes() == b"a\r\nc\r\nd"


async def test_old_is_text_and_no_regular_expression(calls: Calls, path: Path) -> None:
    path.write_text("a.b\naxb\n")
    await calls.text("edit_file", path="a.py", old="a.b\n", new=r"\1\n\g<0>" + "\n")
    assert path.read_text() == "\\1\\n\\g<0>\naxb\n"


async def test_edits_at_once_all_count(calls: Calls, path: Path) -> None:
    """Sixteen calls read one file and replace it; none undoes another."""
    path.write_text("".join(f"place {n:02}\n" for n in range(16)))
    texts = await asyncio.gather(
        *(calls.text("edit_file", path="a.py", old=f"place {n:02}", new=f"done {n:02}") for n in range(16))
    )
    assert len(texts) == 16
    assert path.read_text() == "".join(f"done {n:02}\n" for n in range(16))


LINES = st.text(alphabet="ab \r\n", max_size=12)


@settings(derandomize=True, deadline=None, database=None)
@given(text=LINES, old=LINES.filter(bool), new=LINES)
def test_an_edit_changes_nothing_but_its_places(text: str, old: str, new: str) -> None:
    """In lines, as a model sees them, it is what str.replace does; elsewhere not a byte changes."""
    edit = Edit(old, new, everywhere=True)
    spans = edit.spans(text)
    after, starts = edit.applied(text, spans)
    assert len(starts) == len(spans)
    done = 0
    rest = after
    for (start, end), new_start in zip(spans, starts, strict=True):
        before = text[done:start]
        assert rest.startswith(before)
        rest = rest[len(before) :]
        assert new_start == len(after) - len(rest)
        assert text[start:end].replace("\r\n", "\n") == old.replace("\r\n", "\n")
        put = next(each for each in variants(new) if rest.startswith(each))
        rest = rest[len(put) :]
        done = end
    assert rest == text[done:]
    assert bool(spans) == (edit.why_not(text, spans) is None)


def variants(new: str) -> list[str]:
    """`new` with either line end, the longer one first."""
    lines = new.replace("\r\n", "\n")
    return [lines.replace("\n", "\r\n"), lines]
