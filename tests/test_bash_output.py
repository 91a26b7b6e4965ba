from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest

from palaver.tools.bash_output import Output, Shortened


def shortened(data: bytes, max_chars: int) -> str:
    text = Shortened(max_chars)
    text.take(data, last=True)
    return text.text("see below")


def test_short_text_is_shown_as_it_is() -> None:
    assert shortened(b"a\nb\n", 4) == "a\nb\n"


def test_of_long_text_the_head_and_the_tail_are_shown_and_how_much_is_left_out() -> None:
    assert shortened(b"x" * 100, 10) == "xxxxx\n[90 characters left out; see below]\nxxxxx"


def test_long_text_is_cut_between_lines_where_lines_are_short() -> None:
    lines = [f"line {number}" for number in range(100)]
    text = shortened("\n".join(lines).encode(), 100)
    head, left_out, tail = text.partition("[")[0], text.partition("[")[2], text.partition("]\n")[2]
    shown = head.splitlines() + tail.splitlines()
    assert shown == lines[: len(head.splitlines())] + lines[-len(tail.splitlines()) :]
    # The line ends beside the gap belong to it.
    missing = len("\n".join(lines)) - len(head.rstrip()) - len(tail)
    assert left_out.startswith(f"{missing} characters left out")


def test_text_that_comes_byte_by_byte_is_the_same() -> None:
    data = ("häß€𝄞\n" * 50).encode()
    text = Shortened(100)
    for number in range(len(data)):
        text.take(data[number : number + 1])
    assert text.text("see below") == shortened(data, 100)


def test_what_is_no_utf8_is_replaced_and_half_a_character_waits_for_the_rest() -> None:
    text = Shortened()
    text.take(b"\xff caf\xc3")
    assert text.waiting_bytes == 1
    text.take(b"\xa9 \xe2\x82")
    text.take(b"", last=True)
    assert text.text("") == "\ufffd café \ufffd"


def test_only_what_is_not_shown_whole_is_kept_in_a_file_and_all_of_it(tmp_path: Path) -> None:
    output = Output(lambda: tmp_path, max_chars=1000)
    output.take(b"a" * 1000)
    assert list(tmp_path.iterdir()) == []
    output.take(b"b" * 500 + b"\xff")
    text = output.text(str(tmp_path.parent))
    output.close()
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == b"a" * 1000 + b"b" * 500 + b"\xff"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f"(1,501 bytes) is in the workspace's file {tmp_path.name}/{file.name}]" in text


def test_the_limit_of_the_file_holds_to_the_byte(tmp_path: Path) -> None:
    output = Output(lambda: tmp_path, max_chars=10, max_bytes=25)
    output.take(b"x" * 20)
    assert not output.is_full
    output.take(b"x" * 20)
    assert output.is_full
    output.close()
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == 25


def test_a_file_that_cannot_be_written_is_told_where_the_text_is_cut() -> None:
    def full() -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    output = Output(full, max_chars=10)
    output.take(b"x" * 100)
    output.take(b"y" * 100)
    assert output.text("/") == (
        "xxxxx\n[190 characters left out; it could not be kept in a file: No space left on device]\nyyyyy"
    )


@pytest.mark.parametrize("size", [5, 50])
def test_discarding_leaves_no_file(tmp_path: Path, size: int) -> None:
    output = Output(lambda: tmp_path, max_chars=10)
    output.take(b"x" * size)
    output.discard()
    assert list(tmp_path.iterdir()) == []
