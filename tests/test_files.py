from __future__ import annotations

import codecs
import os
import resource
import sys
from pathlib import Path

import pytest
from file_calls import Calls

from palaver.actors.cluster import Cluster
from palaver.providers.messages import Image, ToolUse
from palaver.tools.files import FILE_TOOLS, MAX_EDIT_BYTES, MAX_LINE_CHARS, MAX_READ_BYTES
from palaver.tools.outcome import MAX_IMAGE_BYTES
from palaver.tools.task import RayToolset, pack
from palaver.tools.workspace import Workspace

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path)


async def test_a_file_is_read_with_its_line_numbers(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n  three\t3\n")
    assert (
        await calls.text("read_file", path="a.txt")
        == "1\tone\n2\t\n3\t  three\t3\n[the whole file: 3 lines, 15 bytes]"
    )


async def test_a_part_of_a_file_says_how_to_read_on(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {n}\n" for n in range(1, 11)))
    assert await calls.text("read_file", path="a.txt", start_line=4, max_lines=2) == (
        "4\tline 4\n5\tline 5\n[lines 4 to 5 of a file of 71 bytes; read on with start_line=6]"
    )
    assert await calls.text("read_file", path="a.txt", start_line=9) == (
        "9\tline 9\n10\tline 10\n[lines 9 to 10, the end of the file; 71 bytes in all]"
    )
    assert "max_lines" not in await calls.text("read_file", path="a.txt", max_lines=10)


@pytest.mark.parametrize(("content", "lines"), [("a\nb\n", 2), ("a\nb", 2), ("a\n" * 100_000, 100_000)])
async def test_a_start_after_the_end_says_where_the_end_is(
    calls: Calls, tmp_path: Path, content: str, lines: int
) -> None:
    (tmp_path / "a.txt").write_text(content)
    assert await calls.refusal("read_file", path="a.txt", start_line=lines + 1) == (
        f"start_line is {lines + 1}, and 'a.txt' has {lines} lines ({len(content):,} bytes)"
    )
    assert f"{lines}\t{content[-2:].strip()}\n" in await calls.text(
        "read_file", path="a.txt", start_line=lines
    )


@pytest.mark.parametrize("name", ["start_line", "max_lines"])
async def test_numbers_of_lines_start_with_one(calls: Calls, name: str) -> None:
    assert "greater than or equal to 1" in await calls.refusal("read_file", path="a", **{name: 0})


async def test_an_empty_file_is_told_as_empty(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert await calls.text("read_file", path="a") == "['a' is empty: 0 bytes]"


async def test_line_ends_are_told_and_are_no_part_of_a_line(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\r\ntwo")
    assert await calls.text("read_file", path="a") == (
        "1\tone\n2\ttwo\n[the whole file: 2 lines, 8 bytes; lines end with CRLF; no line end after the last "
        "line]"
    )
    (tmp_path / "a").write_bytes(b"one\r\ntwo\nthr\ree\n")
    assert await calls.text("read_file", path="a") == (
        "1\tone\n2\ttwo\n3\tthr\ree\n[the whole file: 3 lines, 16 bytes; some lines end with CRLF]"
    )


async def test_more_than_a_model_can_use_is_cut_at_a_line(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("".join(f"{n:06} {'é' * 100}\n" for n in range(1, 2001)))
    text = await calls.text("read_file", path="a")
    assert MAX_READ_BYTES - 300 < len(text.encode()) < MAX_READ_BYTES + 300
    assert "of a file of 416,000 bytes; read on with start_line=" in text
    next_line = int(text.rpartition("start_line=")[2].rstrip("]"))
    assert text.splitlines()[-2].startswith(f"{next_line - 1}\t")
    assert f"\n{next_line}\t" in f"\n{await calls.text('read_file', path='a', start_line=next_line)}"


async def test_a_long_line_is_cut_and_the_lines_after_it_are_read(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x" * 300_000 + "\n" + "y" * MAX_LINE_CHARS + "\nend\n")
    assert await calls.text("read_file", path="a") == (
        f"1\t{'x' * MAX_LINE_CHARS}…\n2\t{'y' * MAX_LINE_CHARS}\n3\tend\n[the whole file: 3 lines, 302,006 "
        "bytes; 1 line is cut after 2,000 characters (…); search_files shows what is around a match]"
    )


async def test_a_huge_file_is_read_without_loading_it(calls: Calls, tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.write(b"first line\n" + b"x" * 10_000 + b"\n")
        file.truncate(10**9)
    read = 0
    real = os.pread

    def counting(file: int, size: int, at: int) -> bytes:
        nonlocal read
        got = real(file, size, at)
        read += len(got)
        return got

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", counting)
        text = await calls.text("read_file", path="sparse", max_lines=1)
    assert text == "1\tfirst line\n[lines 1 to 1 of a file of 1,000,000,000 bytes; read on with start_line=2]"
    assert read < 200_000


async def test_one_huge_line_is_never_in_memory(calls: Calls, tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.write(b"x" * 10_000)  # then NULs, which are text like any other after the first 8 KB
        file.truncate(200_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = await calls.text("read_file", path="sparse")
    assert text.startswith(f"1\t{'x' * MAX_LINE_CHARS}…\n[the whole file: 1 line, 200,000,000 bytes;")
    assert "[no match" in await calls.text("search_files", pattern="needle")
    in_kib = 1024 if sys.platform == "darwin" else 1
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / in_kib < 50_000


async def test_a_binary_file_is_refused_with_what_to_do(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"ELF\0\1")
    text = await calls.refusal("read_file", path="a.bin")
    assert "'a.bin' is a binary file of 5 bytes (NUL at offset 3)" in text
    assert "Use a program that knows its format" in text
    assert "is a binary file" in await calls.refusal("edit_file", path="a.bin", old="ELF", new="x")


async def test_a_nul_further_on_is_refused_where_it_is(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text\n" * 2000 + b"\0\n")
    assert "has a NUL in line 2001" in await calls.refusal("read_file", path="a", start_line=1999)
    assert await calls.text("read_file", path="a", start_line=1999, max_lines=1)


@pytest.mark.parametrize(
    ("start", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
    ],
)
async def test_a_picture_is_returned_as_a_picture(
    calls: Calls, tmp_path: Path, start: bytes, media_type: str
) -> None:
    (tmp_path / "no-suffix").write_bytes(start)
    result = await calls.result("read_file", path="no-suffix")
    assert result.text == f"['no-suffix': {media_type}, {len(start)} bytes]"
    picture = result.content[1]
    assert isinstance(picture, Image)
    assert (picture.media_type, picture.data) == (media_type, start)


async def test_a_picture_that_is_too_large_is_refused(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG + b"\0" * MAX_IMAGE_BYTES)
    assert "bytes; the limit is 5,000,000. Make a smaller copy" in await calls.refusal(
        "read_file", path="a.png"
    )


@pytest.mark.parametrize(
    ("mark", "codec"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
async def test_marked_encodings_are_read_and_kept(
    calls: Calls, tmp_path: Path, mark: bytes, codec: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(mark + "über\r\n€𝄞\r\n".encode(codec))
    assert await calls.text("read_file", path="a") == (
        f"1\tüber\n2\t€𝄞\n[the whole file: 2 lines, {path.stat().st_size} bytes; lines end with CRLF; "
        f"encoding {codec} with byte order mark]"
    )
    await calls.text("edit_file", path="a", old="über\n€", new="ü\nß\n$")
    assert path.read_bytes() == mark + "ü\r\nß\r\n$𝄞\r\n".encode(codec)


async def test_a_character_split_between_two_reads_is_whole(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x" * 65_535 + "€" * 3 + "\nend\n")
    found = await calls.text("search_files", pattern="x€€€$")
    assert "x€€€" in found
    assert "2\tend" in await calls.text("read_file", path="a", start_line=2)


async def test_bytes_that_are_no_text_are_told_with_their_place(calls: Calls, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes("grün\n".encode() * 20_000 + b"caf\xe9\nend\n")
    assert await calls.refusal("read_file", path="a", start_line=20_000) == (
        "'a' is not utf-8 text: byte 0xe9 at offset 120003, in line 20001 (invalid continuation byte). Say "
        'which encoding it has, for instance encoding="latin-1", which takes any bytes.'
    )
    assert await calls.text("read_file", path="a", max_lines=100)
    latin = await calls.text("read_file", path="a", start_line=20_001, encoding="latin-1")
    assert latin.startswith("20001\tcafé\n20002\tend\n[")
    assert latin.endswith("; encoding iso8859-1]")
    assert "byte 0xe9 at offset 120003, in line 20001" in await calls.refusal(
        "edit_file", path="a", old="end", new="x"
    )


async def test_a_character_cut_off_by_the_end_is_told(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("abc€".encode()[:-1])
    assert "byte 0xe2 at offset 3, in line 1 (unexpected end of data)" in await calls.refusal(
        "read_file", path="a"
    )


async def test_an_edit_in_another_encoding_leaves_the_rest_as_it_is(calls: Calls, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"caf\xe9\nna\xefve\n")
    await calls.text("edit_file", path="a", old="naïve", new="Übung", encoding="latin-1")
    assert path.read_bytes() == b"caf\xe9\n\xdcbung\n"
    text = await calls.refusal("edit_file", path="a", old="café", new="5 €", encoding="latin-1")
    assert text.startswith(r"character '\u20ac' cannot be written in iso8859-1")
    assert path.read_bytes() == b"caf\xe9\n\xdcbung\n"


async def test_an_encoding_that_would_change_what_stays_is_refused(calls: Calls, tmp_path: Path) -> None:
    # UTF-7 has several spellings of one text.
    (tmp_path / "a").write_bytes(b"+AGE- b\n")
    text = await calls.refusal("edit_file", path="a", old="b", new="c", encoding="utf-7")
    assert "cannot be edited as utf-7" in text
    assert (tmp_path / "a").read_bytes() == b"+AGE- b\n"


async def test_utf_16_without_a_mark_can_be_asked_for(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("one\n".encode("utf-16-le"))
    assert 'say encoding="utf-16"' in await calls.refusal("read_file", path="a")
    assert (await calls.text("read_file", path="a", encoding="utf-16")).startswith("1\tone\n")
    await calls.text("edit_file", path="a", old="one", new="two", encoding="utf-16")
    assert (tmp_path / "a").read_bytes() == "two\n".encode("utf-16-le")


@pytest.mark.parametrize("encoding", ["klingon", "hex", "rot13", "", "a\0b", "undefined"])
async def test_an_unknown_encoding_is_told(calls: Calls, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a").write_text("text")
    assert "is unknown" in await calls.refusal("read_file", path="a", encoding=encoding)


async def test_a_missing_file_is_told_with_names_like_it(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "README.md").touch()
    (tmp_path / "src" / "utils.py").touch()
    assert await calls.refusal("read_file", path="src/readme.md") == (
        "'src/readme.md' does not exist: there is no 'readme.md' in the folder 'src'; did you mean "
        "'src/README.md'?"
    )
    assert "did you mean 'src/utils.py'?" in await calls.refusal("read_file", path="src/util.py")
    assert "'scr' does not exist" in await calls.refusal("read_file", path="scr/utils.py")
    assert "did you mean 'src'?" in await calls.refusal("edit_file", path="scr/utils.py", old="a", new="b")
    assert "list_files shows what there is" in await calls.refusal("read_file", path="zzz")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
async def test_a_file_without_permission_is_told(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("secret")
    (tmp_path / "a").chmod(0)
    assert await calls.refusal("read_file", path="a") == "cannot read 'a': Permission denied"
    assert "no permission to read: a" in await calls.text("search_files", pattern="x")


async def test_names_that_are_no_utf_8_can_be_read_as_they_are_shown(calls: Calls, tmp_path: Path) -> None:
    for name in (b"caf\xe9.txt", b"two\nlines", "mi\u202errored".encode()):
        try:
            (tmp_path / os.fsdecode(name)).write_text("here\n")
        except OSError:
            pytest.skip("this file system takes only names in UTF-8")
    listed = await calls.text("list_files")
    names = [line.partition(" (")[0] for line in listed.splitlines()[:-1]]
    assert names == [r"caf\xe9.txt", r"mi\xe2\x80\xaerrored", r"two\x0alines"]
    for name in names:
        assert (await calls.text("read_file", path=name)).startswith("1\there\n")
        await calls.text("edit_file", path=name, old="here", new="there")
        assert f"{name}:1:there" in await calls.text("search_files", pattern="there", path=name)
    assert sorted(map(os.fsencode, os.listdir(tmp_path))) == sorted(
        [b"caf\xe9.txt", b"two\nlines", "mi\u202errored".encode()]
    )


async def test_a_file_is_written_as_it_is_given(calls: Calls, tmp_path: Path) -> None:
    made = await calls.text("write_file", path="a/b/c.txt", content="one\r\ntwö")
    assert made == "made 'a/b/c.txt': 2 lines, 9 bytes"
    assert (tmp_path / "a/b/c.txt").read_bytes() == "one\r\ntwö".encode()
    again = await calls.text("write_file", path="a/b/c.txt", content="x\n")
    assert again == "replaced 'a/b/c.txt': 1 line, 2 bytes (it had 9 bytes)"
    assert await calls.text("write_file", path="e", content="") == "made 'e': 0 lines, 0 bytes"
    assert (tmp_path / "a/b/c.txt").read_bytes() == b"x\n"


async def test_what_cannot_be_written_is_told(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert "'folder' is a folder" in await calls.refusal("write_file", path="folder", content="")
    assert "'.' is a folder" in await calls.refusal("write_file", path=".", content="")
    assert "is the path of a folder" in await calls.refusal("write_file", path="new/", content="")
    assert "'file', which is no folder" in await calls.refusal("write_file", path="file/x", content="")
    assert "half a character (a surrogate) at character 3" in await calls.refusal(
        "write_file", path="x", content="ab\ud83d"
    )
    assert "does not exist" in await calls.refusal("write_file", path="no/../x", content="")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


async def test_writing_over_a_dangling_link_makes_what_it_leads_to(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("data/new.txt")
    assert await calls.text("write_file", path="link", content="x") == "made 'data/new.txt': 1 line, 1 bytes"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "data" / "new.txt").read_text() == "x"


async def test_a_file_too_large_to_edit_is_refused(calls: Calls, tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(MAX_EDIT_BYTES + 1)
    text = await calls.refusal("edit_file", path="a", old="a", new="b")
    assert "'a' has 10,000,001 bytes; edit_file takes files of up to 10,000,000" in text


async def test_all_file_tools_need_a_workspace_and_have_described_inputs() -> None:
    assert [each.name for each in FILE_TOOLS] == [
        "read_file",
        "write_file",
        "edit_file",
        "list_files",
        "search_files",
    ]
    for each in FILE_TOOLS:
        assert each.in_workspace
        assert "info" not in each.spec.input_schema["properties"]
        for name, schema in each.spec.input_schema["properties"].items():
            assert schema.get("description"), f"{each.name}.{name}"


@pytest.mark.ray
async def test_the_file_tools_work_as_ray_tasks(ray_cluster: Cluster, tmp_path: Path) -> None:
    toolset = RayToolset(
        [pack(each) for each in FILE_TOOLS], ["abc-defg"], None, workspace=Workspace(path=str(tmp_path))
    )

    async def text(tool: str, **tool_input: object) -> str:
        outcome = await toolset.run(ToolUse(id="call-1", name=tool, input=tool_input))
        return outcome.to_result("call-1").text

    assert await text("write_file", path="a/b.py", content="x = 1\n") == "made 'a/b.py': 1 line, 6 bytes"
    assert await text("edit_file", path="a/b.py", old="1", new="2") == (
        "'a/b.py': replaced 1 place, in line 1. Now:\n1\tx = 2"
    )
    assert await text("read_file", path="a/b.py") == "1\tx = 2\n[the whole file: 1 line, 6 bytes]"
    assert (await text("list_files", pattern="*.py")).startswith("a/b.py (6 bytes)\n")
    assert (await text("search_files", pattern="x")).startswith("a/b.py:1:x = 2\n")
    assert "leads out of the workspace" in await text("read_file", path="/etc/passwd")
    (tmp_path / "logo.png").write_bytes(PNG)
    outcome = await toolset.run(ToolUse(id="call-1", name="read_file", input={"path": "logo.png"}))
    assert outcome.content[1] == Image(media_type="image/png", data=PNG)
    await toolset.aclose()
