from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from file_calls import Calls

from palaver.tools import ToolCallInfo, replacement
from palaver.tools.confined import Confined
from palaver.tools.replacement import replace


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "a"
    made.write_text("old\n")
    return made


def test_the_mode_of_a_file_stays_and_a_new_one_follows_the_umask(path: Path) -> None:
    path.chmod(0o640)
    info = ToolCallInfo("call-1", "tool", "abc-defg", workspace=str(path.parent))
    before = os.umask(0o027)
    try:
        with Confined(info) as files:
            for name in ("a", "new"):
                with files.place(name) as place:
                    assert replace(place, b"new")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o640
    assert (path.parent / "new").stat().st_mode & 0o7777 == 0o640
    path.chmod(0o4755)
    with Confined(info) as files, files.place("a") as place:
        replace(place, b"newer")
    assert path.stat().st_mode & 0o7777 == 0o755  # the trust was in the old content


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
async def test_the_owner_of_a_file_stays(calls: Calls, path: Path) -> None:
    os.chown(path, 12345, 54321)
    await calls.text("write_file", path="a", content="new")
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


async def test_a_read_only_file_stays(calls: Calls, path: Path) -> None:
    path.chmod(0o444)
    assert await calls.refusal("write_file", path="a", content="new") == (
        "'a' is read-only (mode 444); it was not changed"
    )
    assert "is read-only" in await calls.refusal("edit_file", path="a", old="old", new="new")
    assert path.read_text() == "old\n"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
async def test_a_read_only_folder_is_told(calls: Calls, tmp_path: Path, path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        assert "Permission denied" in await calls.refusal("write_file", path="new", content="new")
        assert "Permission denied" in await calls.refusal("write_file", path="new/er", content="new")
        assert "Permission denied" in await calls.refusal("write_file", path="a", content="new")
    finally:
        tmp_path.chmod(0o755)
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_text() == "old\n"


FAULTS = [
    ("write", errno.ENOSPC),
    ("write", errno.EDQUOT),
    ("fsync", errno.EIO),
    ("replace", errno.EROFS),
    ("fchmod", errno.EPERM),
]


@pytest.mark.parametrize(("where", "number"), FAULTS, ids=[f"{w}-{errno.errorcode[n]}" for w, n in FAULTS])
async def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    calls: Calls, path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    real_write = os.write
    written = 0

    def fails(*args: Any, **kwargs: Any) -> int:
        nonlocal written
        if where == "write" and written == 0:  # a part still fits
            written = real_write(args[0], bytes(args[1][:3]))
            return written
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(replacement.os, where, fails)
        text = await calls.refusal("write_file", path="a", content="new content\n")
    assert text == f"cannot write 'a': {os.strerror(number)}; the old content is as it was"
    assert os.listdir(path.parent) == ["a"]
    assert path.read_text() == "old\n"
    with monkeypatch.context() as patch:
        written = 0
        patch.setattr(replacement.os, where, fails)
        if where != "fchmod":
            text = await calls.refusal("write_file", path="new", content="new content\n")
            assert text == f"cannot write 'new': {os.strerror(number)}; there is no such file now"
    assert os.listdir(path.parent) == ["a"]


LIMITED = """
import asyncio, resource, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from file_calls import Calls
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
calls = Calls(Path(sys.argv[1]))
print(asyncio.run(calls.refusal("write_file", path="a", content="x" * 1001)))
print(asyncio.run(calls.text("write_file", path="a", content="x" * 1000)))
"""


async def test_a_real_limit_on_the_size_of_files_is_told(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, path.parent, Path(__file__).parent],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "cannot write 'a': File too large; the old content is as it was",
        "replaced 'a': 1 line, 1,000 bytes (it had 4 bytes)",
    ]
    assert os.listdir(path.parent) == ["a"]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 64 KB."""
    if os.getuid() != 0 or sys.platform != "linux":
        pytest.skip("only root can mount a disk")
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=False, capture_output=True
        )
        if mounted.returncode:
            pytest.skip("this container may not mount")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


async def test_a_disk_that_is_really_full_is_told(small_disk: Path) -> None:
    calls = Calls(small_disk)
    await calls.text("write_file", path="a", content="old\n" * 10_000)
    for name in ("a", "b"):
        text = await calls.refusal("write_file", path=name, content="new\n" * 10_000)
        assert text.startswith(f"cannot write '{name}': No space left on device; ")
    text = await calls.refusal("edit_file", path="a", old="old", new="much longer", replace_all=True)
    assert "the old content is as it was" in text
    assert os.listdir(small_disk) == ["a"]
    assert (small_disk / "a").read_text() == "old\n" * 10_000


async def test_a_change_by_somebody_else_is_not_undone(
    calls: Calls, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is changed in place after it was read, just before it is replaced: the edit is made anew."""
    real = os.fsync
    changes = iter(["old and more\n"])

    def changes_the_file(file: int) -> None:
        for content in changes:
            path.write_text(content)
            break
        real(file)

    monkeypatch.setattr(replacement.os, "fsync", changes_the_file)
    await calls.text("edit_file", path="a", old="old", new="new")
    assert path.read_text() == "new and more\n"
    assert os.listdir(path.parent) == ["a"]


async def test_a_file_that_changes_all_the_time_is_told(
    calls: Calls, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    count = 0

    def changes_the_file(file: int) -> None:
        nonlocal count
        count += 1
        path.write_text(f"old {count}\n")
        real(file)

    monkeypatch.setattr(replacement.os, "fsync", changes_the_file)
    assert "it has changed itself at each of 20 tries" in await calls.refusal(
        "edit_file", path="a", old="old", new="new"
    )
    assert path.read_text() == "old 20\n"


async def test_a_lock_that_somebody_keeps_is_told(
    calls: Calls, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacement, "_LOCK_WAIT_S", 0.05)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        assert "another program has held a lock on its folder for 0.05 s" in await calls.refusal(
            "write_file", path="a", content="new"
        )
    finally:
        os.close(folder)
    assert os.listdir(path.parent) == ["a"]
    assert path.read_text() == "old\n"
