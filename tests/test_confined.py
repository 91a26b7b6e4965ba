from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from file_calls import Calls
from hypothesis import given, settings
from hypothesis import strategies as st

from palaver.tools import ToolCallInfo, ToolError
from palaver.tools.confined import Confined
from palaver.tools.files import edit_file, list_files, read_file, search_files, write_file

SECRET = "do not tell"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the workspace, which has the same names as the workspace's folder `dir`."""
    folder = tmp_path / "outside"
    (folder / "sub").mkdir(parents=True)
    (folder / "file.txt").write_text(f"{SECRET}\n")
    (folder / "sub" / "file.txt").write_text(f"{SECRET}\n")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, outside: Path) -> Path:
    """A workspace with `dir/file.txt` and `dir/sub/file.txt`."""
    top = tmp_path / "ws"
    (top / "dir" / "sub").mkdir(parents=True)
    (top / "dir" / "file.txt").write_text("inside\n")
    (top / "dir" / "sub" / "file.txt").write_text("inside too\n")
    return top


@pytest.fixture
def calls(workspace: Path) -> Calls:
    return Calls(workspace)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Everything in a folder: kind and mode, and the contents of files."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else None,
        )
        for path in sorted(folder.rglob("*"))
    }


EVERY_TOOL: list[tuple[str, dict[str, Any]]] = [
    ("read_file", {}),
    ("write_file", {"content": "changed"}),
    ("edit_file", {"old": SECRET, "new": "changed"}),
    ("list_files", {}),
    ("search_files", {"pattern": "."}),
]


@pytest.mark.parametrize(("tool", "others"), EVERY_TOOL, ids=[tool for tool, _ in EVERY_TOOL])
@pytest.mark.parametrize(
    "path",
    [
        "../outside/file.txt",
        "dir/../../outside/file.txt",
        "dir/sub/../../../outside",
        "{outside}/file.txt",
        "{outside}",
        "//{outside}/file.txt",
        "{ws}/../outside/file.txt",
        "{ws}-2/file.txt",
        "/",
        "..",
        "../..",
        "/etc/passwd",
        "to_file",
        "to_folder/file.txt",
        "to_folder",
        "chain",
        "up",
        "up/file.txt",
        "dangling",
        "dir/back/outside/file.txt",
    ],
)
async def test_no_path_leads_out(
    calls: Calls, workspace: Path, outside: Path, path: str, tool: str, others: dict[str, Any]
) -> None:
    (workspace / "to_file").symlink_to(outside / "file.txt")
    (workspace / "to_folder").symlink_to(outside)
    (workspace / "chain").symlink_to("dir/chain2")
    (workspace / "dir" / "chain2").symlink_to("../to_file")
    (workspace / "up").symlink_to("../outside")
    (workspace / "dangling").symlink_to(outside / "new.txt")
    (workspace / "dir" / "back").symlink_to("../..")
    (workspace.parent / "ws-2").mkdir()
    (workspace.parent / "ws-2" / "file.txt").write_text(SECRET)
    before = snapshot(outside)
    text = await calls.refusal(tool, path=path.format(outside=outside, ws=workspace), **others)
    assert SECRET not in text
    assert snapshot(outside) == before
    assert "leads out of the workspace" in text


async def test_a_spelled_out_name_is_never_one_that_leads_up(
    calls: Calls, workspace: Path, outside: Path
) -> None:
    before = snapshot(outside)
    for path in (r"\x2e\x2e/outside/file.txt", r"dir/\x2e\x2e/\x2e\x2e", r"dir/a\x2f..\x2f..", r"\x00"):
        assert "does not exist" in await calls.refusal("read_file", path=path)
    await calls.text("write_file", path=r"\x2e\x2e/outside/file.txt", content="a folder of that very name")
    assert (workspace / r"\x2e\x2e" / "outside" / "file.txt").exists()
    assert snapshot(outside) == before


async def test_a_refusal_says_which_link_led_out_and_what_to_do(
    calls: Calls, workspace: Path, outside: Path
) -> None:
    (workspace / "link").symlink_to(outside)
    assert await calls.refusal("read_file", path="link/file.txt") == (
        f"path 'link/file.txt' leads out of the workspace, through the link 'link' to '{outside}'. Only what "
        "is inside can be used: give a path relative to the workspace's top, such as 'docs/notes.txt', or "
        f"one that starts with '{workspace}'."
    )


@pytest.mark.parametrize(
    "path",
    [
        "dir/file.txt",
        "./dir//sub/.././file.txt",
        "{ws}/dir/file.txt",
        "//{ws}//dir/file.txt",
        "{ws}/dir/../../ws/dir/file.txt",
        "../ws/dir/file.txt",
        "relative",
        "absolute",
        "around",
        "chain",
        "folder/file.txt",
        "folder/sub/../file.txt",
        "to_sub/../file.txt",
        "to_top/dir/file.txt",
    ],
)
async def test_every_path_that_stays_inside_works(calls: Calls, workspace: Path, path: str) -> None:
    (workspace / "relative").symlink_to("dir/file.txt")
    (workspace / "absolute").symlink_to(workspace / "dir" / "file.txt")
    (workspace / "around").symlink_to("../ws/dir/file.txt")
    (workspace / "chain").symlink_to("dir/next")
    (workspace / "dir" / "next").symlink_to("../absolute")
    (workspace / "folder").symlink_to("dir")
    (workspace / "to_sub").symlink_to("dir/sub")
    (workspace / "to_top").symlink_to(workspace)
    path = path.format(ws=workspace)
    assert (await calls.text("read_file", path=path)).startswith("1\tinside\n")
    assert "'dir/file.txt'" in await calls.text("write_file", path=path, content="new\n")
    assert (workspace / "dir" / "file.txt").read_text() == "new\n"
    assert (workspace / "relative").is_symlink()
    assert (workspace / "absolute").is_symlink()


async def test_a_workspace_given_by_a_link_can_be_named_by_it(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(workspace)
    calls = Calls(tmp_path / "alias")
    for top in (tmp_path / "alias", workspace):
        assert "inside" in await calls.text("read_file", path=f"{top}/dir/file.txt")
    (workspace / "link").symlink_to(tmp_path / "alias" / "dir")
    assert "inside" in await calls.text("read_file", path="link/file.txt")


async def test_links_in_a_circle_end(calls: Calls, workspace: Path) -> None:
    (workspace / "a").symlink_to("b")
    (workspace / "b").symlink_to("a")
    assert "goes through more than 40 links" in await calls.refusal("read_file", path="a")
    assert "goes through more than 40 links" in await calls.refusal("write_file", path="a/x", content="")


async def test_forty_links_are_followed_as_the_system_does(calls: Calls, workspace: Path) -> None:
    (workspace / "0").write_text("end")
    for number in range(41):
        (workspace / str(number + 1)).symlink_to(str(number))
    assert "end" in await calls.text("read_file", path="40")
    assert "more than 40 links" in await calls.refusal("read_file", path="41")


async def test_a_path_through_many_folders_does_not_use_up_the_open_files(calls: Calls) -> None:
    deep = "/".join(["d"] * 190)
    await calls.text("write_file", path=f"{deep}/file.txt", content="deep")
    assert "deep" in await calls.text("read_file", path=f"{deep}/file.txt")
    assert "more than 200 folders" in await calls.refusal(
        "write_file", path="/".join(["d"] * 250), content=""
    )


async def test_no_call_leaves_a_file_open(calls: Calls, workspace: Path, outside: Path) -> None:
    (workspace / "link").symlink_to(outside)
    (workspace / "circle").symlink_to("circle")

    async def all_calls() -> int:
        for path in (
            "dir/file.txt",
            "dir",
            "link/file.txt",
            "circle",
            "dir/no/file",
            "../x",
            "dir/../dir/sub",
        ):
            await calls.result("read_file", path=path)
            await calls.result("list_files", path=path, pattern="**", max_entries=1)
            await calls.result("search_files", path=path, pattern="i", max_matches=1)
            await calls.result("edit_file", path=path, old="inside", new="inside")
            await calls.result("write_file", path=path, content="inside")
        return len(os.listdir("/dev/fd"))

    assert await all_calls() == await all_calls()


@pytest.mark.parametrize(("tool", "others"), EVERY_TOOL, ids=[tool for tool, _ in EVERY_TOOL])
@pytest.mark.parametrize(
    ("path", "why"), [("", "it is empty"), ("a\0b", "it has a NUL"), ("a\ud800", "it has half a character")]
)
async def test_what_is_no_path_is_told(
    calls: Calls, path: str, why: str, tool: str, others: dict[str, Any]
) -> None:
    assert f"is no path: {why}" in await calls.refusal(tool, path=path, **others)


async def test_a_name_that_is_too_long_is_told(calls: Calls) -> None:
    assert "File name too long" in await calls.refusal("read_file", path="x" * 300)
    assert "File name too long" in await calls.refusal("write_file", path="x" * 300 + "/y", content="")
    longest = "x" * 255
    await calls.text("write_file", path=longest, content="as long as can be")
    assert "as long as can be" in await calls.text("read_file", path=longest)


async def test_a_path_through_a_file_is_told(calls: Calls) -> None:
    text = await calls.refusal("read_file", path="dir/file.txt/x")
    assert text == "path 'dir/file.txt/x' goes through 'dir/file.txt', which is no folder"


async def test_a_conversation_without_a_workspace_is_told(tmp_path: Path) -> None:
    assert "has no workspace" in await Calls(None).refusal("read_file", path="x")
    gone = tmp_path / "gone"
    assert f"the workspace '{gone}' cannot be opened: No such file or directory" in await Calls(gone).refusal(
        "list_files"
    )


@pytest.fixture
def special(workspace: Path) -> Iterator[dict[str, str]]:
    """Files that are none, by what they are."""
    os.mkfifo(workspace / "fifo")
    listening = socket.socket(socket.AF_UNIX)
    before = Path.cwd()
    os.chdir(workspace)  # a socket's name may be short only
    try:
        listening.bind("socket")
    finally:
        os.chdir(before)
    (workspace / "to_fifo").symlink_to("fifo")
    yield {"fifo": "a FIFO", "socket": "a socket", "to_fifo": "a FIFO"}
    listening.close()


@pytest.mark.parametrize(("tool", "others"), EVERY_TOOL[:3], ids=[tool for tool, _ in EVERY_TOOL[:3]])
async def test_only_regular_files_are_touched(
    calls: Calls, workspace: Path, special: dict[str, str], tool: str, others: dict[str, Any]
) -> None:
    before = snapshot(workspace)
    for name, what in special.items():
        assert f"is {what}, not a file" in await calls.refusal(tool, path=name, **others)
    assert snapshot(workspace) == before


@pytest.mark.skipif(os.getuid() != 0 or sys.platform != "linux", reason="only root can make a device")
@pytest.mark.parametrize(("tool", "others"), EVERY_TOOL[:3], ids=[tool for tool, _ in EVERY_TOOL[:3]])
async def test_a_device_is_not_touched(
    calls: Calls, workspace: Path, tool: str, others: dict[str, Any]
) -> None:
    try:
        os.mknod(workspace / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this container may not make devices")
    assert "is a device, not a file" in await calls.refusal(tool, path="null", **others)


async def test_searching_and_listing_pass_over_what_is_no_file(calls: Calls, special: dict[str, str]) -> None:
    assert "in 2 files searched" in await calls.text("search_files", pattern="nowhere")
    listed = await calls.text("list_files")
    assert "fifo (no file: a FIFO, socket or device)\n" in listed
    assert "to_fifo -> fifo\n" in listed


async def test_a_hard_link_is_read_and_its_other_name_keeps_its_content(
    calls: Calls, workspace: Path, outside: Path
) -> None:
    os.link(outside / "file.txt", workspace / "hard")
    assert SECRET in await calls.text("read_file", path="hard")
    await calls.text("write_file", path="hard", content="changed")
    await calls.text("edit_file", path="hard", old="changed", new="again")
    assert (outside / "file.txt").read_text() == f"{SECRET}\n"


NAMES = st.sampled_from(["a", "b", "c", "..", ".", "{ws}", "", "f", "ws", "outside", "/"])
PATHS = st.lists(NAMES, min_size=1, max_size=6).map("/".join)


@settings(derandomize=True, max_examples=200, deadline=None, database=None)
@given(links=st.dictionaries(st.sampled_from(["a", "b", "c", "d/a", "d/b"]), PATHS), path=PATHS)
def test_a_path_leads_where_the_system_says_or_nowhere(links: dict[str, str], path: str) -> None:
    """Whatever the links are: what is opened is what realpath tells, and only when that is inside."""
    with tempfile.TemporaryDirectory() as folder:
        top = os.path.realpath(folder) + "/ws"
        os.makedirs(top + "/d/e")
        os.makedirs(top + "/../outside/d")
        for where in ("/f", "/d/f", "/d/e/f", "/../outside/f", "/../f"):
            Path(top + where).write_text(where)
        for name, target in links.items():
            os.symlink(target.format(ws=top) or ".", f"{top}/{name}")
        path = path.format(ws=top) or "."
        try:
            from_root = path if path.startswith("/") else f"{top}/{path}"
            os.stat(from_root)  # realpath lets "file/.." pass, which the system does not
            real = os.path.realpath(from_root)
        except OSError:
            real = None
        info = ToolCallInfo("call-1", "tool", "abc-defg", workspace=top)
        try:
            with Confined(info) as files, files.place(path) as place:
                status = place.status()
                led_to = f"{top}/{place.path}".rstrip("/") if status is not None else None
                why = "it is not there"
        except ToolError as error:
            led_to, why = None, str(error)
        if led_to is not None:
            # Where the system is stricter, a file was given a "/" as if it were a folder.
            assert led_to == real or (real is None and Path(led_to).is_file())
            assert f"{led_to}/".startswith(f"{top}/")
        elif real is not None and f"{real}/".startswith(f"{top}/") and "40 links" not in why:
            # Refused although it is inside: only for a way through another folder outside.
            assert any("outside" in each for each in [path, *links.values()]), why


# What follows swaps files and folders for links during a call.

WATCHED = ("open", "stat", "fstat", "readlink", "mkdir", "replace", "unlink", "scandir", "pread", "fsync")
REAL = {name: getattr(os, name) for name in WATCHED}


class Step:
    """Does something once, before the call of the system with this number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], None]) -> None:
        self.seen = 0
        self._number = number
        self._action = action
        for name in WATCHED:
            monkeypatch.setattr(os, name, self._watching(REAL[name]))

    def _watching(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.seen += 1
            if self.seen == self._number:
                self._action()
            return real(*args, **kwargs)

        return watched


def swap_folder(workspace: Path, outside: Path) -> None:
    os.rename(workspace / "dir", workspace / "was")
    os.symlink(outside, workspace / "dir")


def swap_folder_relative(workspace: Path, outside: Path) -> None:
    os.rename(workspace / "dir", workspace / "was")
    os.symlink("../outside", workspace / "dir")


def swap_file(workspace: Path, outside: Path) -> None:
    os.symlink(outside / "file.txt", workspace / "link")
    os.rename(workspace / "link", workspace / "dir" / "file.txt")


def swap_for_fifo(workspace: Path, outside: Path) -> None:
    os.mkfifo(workspace / "fifo")
    os.rename(workspace / "fifo", workspace / "dir" / "file.txt")


def swap_new_folder(workspace: Path, outside: Path) -> None:
    if (workspace / "dir" / "new").exists():
        os.rename(workspace / "dir" / "new", workspace / "was")
    os.symlink(outside, workspace / "dir" / "new")


def swap_top(workspace: Path, outside: Path) -> None:
    os.rename(workspace, workspace.parent / "was")
    (outside / "dir").symlink_to(outside)
    os.symlink(outside, workspace)


def move_out(workspace: Path, outside: Path) -> None:
    """The system's `..` of what was `dir/sub` then is the folder outside."""
    os.rename(workspace / "dir" / "sub", outside / "moved")


RACES: list[tuple[Callable[[Path, Path], None], Callable[[ToolCallInfo], Any]]] = [
    *(
        (swap, call)
        for swap in (swap_folder, swap_folder_relative, swap_file, swap_for_fifo, swap_top)
        for call in (
            lambda info: read_file("dir/file.txt", info),
            lambda info: read_file("dir/sub/../file.txt", info),
            lambda info: write_file("dir/file.txt", "written", info),
            lambda info: edit_file("dir/file.txt", "inside", "written", info),
            lambda info: list_files(info, "dir", "**"),
            lambda info: list_files(info, pattern="**"),
            lambda info: search_files(".", info),
            lambda info: search_files(".", info, "dir"),
            lambda info: search_files(".", info, "dir/file.txt"),
        )
    ),
    (swap_new_folder, lambda info: write_file("dir/new/er/file.txt", "written", info)),
    (move_out, lambda info: read_file("dir/sub/../file.txt", info)),
    (move_out, lambda info: list_files(info, "dir/sub/..")),
    (move_out, lambda info: write_file("dir/sub/../file.txt", "written", info)),
]


@pytest.mark.parametrize(
    ("swap", "call"), RACES, ids=[f"{swap.__name__}-{n}" for n, (swap, _) in enumerate(RACES)]
)
def test_a_swap_before_any_step_of_a_call_leads_nowhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    swap: Callable[[Path, Path], None],
    call: Callable[[ToolCallInfo], Any],
) -> None:
    number = 0
    while True:
        number += 1
        place = tmp_path / str(number)
        workspace, outside = place / "ws", place / "outside"
        for top, text in ((workspace / "dir", "inside"), (outside, SECRET)):
            (top / "sub").mkdir(parents=True)
            for folder in (top, top / "sub"):
                (folder / "file.txt").write_text(f"{text}\n")
        before: dict[str, Any] = {}

        def swap_now(
            workspace: Path = workspace, outside: Path = outside, before: dict[str, Any] = before
        ) -> None:
            with monkeypatch.context() as real:
                for name in WATCHED:
                    real.setattr(os, name, REAL[name])
                swap(workspace, outside)
                before.update(snapshot(outside))

        with monkeypatch.context() as patch:
            step = Step(patch, number, swap_now)
            info = ToolCallInfo("call-1", "tool", "abc-defg", workspace=str(workspace))
            try:
                result = str(call(info))
            except ToolError as error:
                result = str(error)
        assert SECRET not in result, f"step {number}"
        if step.seen < number:
            break
        after = snapshot(outside)
        assert after == before, f"step {number}"
        assert not list(place.rglob(".palaver-*")), f"step {number}"
    assert number > 5


def test_swapping_all_the_time_leads_nowhere(workspace: Path, outside: Path) -> None:
    """The same with real threads: the file and the folder are links outside about half of the time."""
    (workspace / "other").write_text("inside\n")
    before = snapshot(outside)
    ended = threading.Event()

    def swap_file_forever() -> None:
        while not ended.is_set():
            os.symlink(outside / "file.txt", workspace / "l")
            os.rename(workspace / "l", workspace / "other")
            (workspace / "f").write_text("inside\n")
            os.rename(workspace / "f", workspace / "other")

    def swap_folder_forever() -> None:
        while not ended.is_set():
            os.rename(workspace / "dir", workspace / "was")
            with suppress(OSError):  # write_file may have made a new one
                os.symlink(outside, workspace / "dir")
                os.unlink(workspace / "dir")
            while (workspace / "was").exists():
                with suppress(OSError):
                    os.rename(workspace / "was", workspace / "dir")
                    break
                shutil.rmtree(workspace / "dir", ignore_errors=True)

    info = ToolCallInfo("call-1", "tool", "abc-defg", workspace=str(workspace))
    threads = [threading.Thread(target=each) for each in (swap_file_forever, swap_folder_forever)]
    for each in threads:
        each.start()
    told: list[str] = []
    try:
        for _ in range(60):
            for call in (
                lambda: read_file("other", info),
                lambda: read_file("dir/file.txt", info),
                lambda: read_file("dir/sub/../file.txt", info),
                lambda: write_file("other", "inside\n", info),
                lambda: write_file("dir/file.txt", "inside\n", info),
                lambda: write_file("dir/new.txt", "inside\n", info),
                lambda: edit_file("dir/file.txt", "inside", "inside\ninside", info),
                lambda: list_files(info, "dir"),
                lambda: search_files(".", info),
            ):
                try:
                    told.append(str(call()))
                except ToolError as error:
                    told.append(str(error))
    finally:
        ended.set()
        for each in threads:
            each.join()
    assert not any(SECRET in each for each in told)
    assert snapshot(outside) == before
    assert any("inside" in each for each in told)
