"""Who may import whom: the layers of DESIGN, checked in the source with no exceptions but those named here.

Layer: tests. Imports inside functions count: a layer is not crossed late either.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("providers", "tools", "actors")

MAY_IMPORT_RAY = frozenset(
    {
        "tools/task.py",  # the one Ray task that runs a tool
        "tools/mcp_servers.py",  # the actors that hold the MCP servers of a conversation
        "actors/cluster.py",  # starts and joins Ray
        "actors/convo.py",  # the actor around a conversation
        "actors/rate_gate.py",  # the actor that all requests of a key go through
        "actors/relatives.py",  # parents and children that are actors
        "actors/remote_methods.py",  # the types of what an actor's methods give
        "actors/remote_treasury.py",  # the money of a tree whose root is another actor
        "actors/replies.py",  # what an actor answers, less Ray's exceptions
        "actors/swarm.py",  # many conversations at once
        "actors/cli.py",  # the command line
        "actors/attach.py",  # other processes' conversations
        "actors/top.py",  # the same, watched
        "actors/nodes.py",  # what the nodes of a cluster have installed
    }
)

ADAPTERS = ("anthropic", "openai", "responses", "local", "scripted")
"""The adapters in providers/, each with the modules whose names start with its own."""

MAY_IMPORT_ADAPTER = frozenset({("local", "openai"), ("responses", "openai")})
"""`local` runs llama.cpp's server, which speaks OpenAI's wire format; `responses` is
another path of its servers."""

MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module, or name within one, that `path` imports, anywhere in it, by its full name."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                assert level == 0, f"{path} has a relative import"
                yield str(module)
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name
            case _:
                pass


def crossings(path: Path, *forbidden: str) -> list[str]:
    """The imports of `path` that are one of the forbidden modules, or within one."""
    return sorted(
        name
        for name in set(imports(path))
        if any(name == no or name.startswith(no + ".") for no in forbidden)
    )


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def modules_of(layer: str) -> list[Path]:
    return [path for path in MODULES if path.is_relative_to(ROOT / layer)]


def run(program: str) -> object:
    """What a fresh Python prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("path", modules_of("providers"), ids=name_of)
def test_providers_import_neither_ray_nor_a_layer_above(path: Path) -> None:
    assert crossings(path, "ray", "palaver.tools", "palaver.actors") == []


@pytest.mark.parametrize("path", modules_of("tools"), ids=name_of)
def test_tools_never_import_actors(path: Path) -> None:
    assert crossings(path, "palaver.actors") == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_ray_is_imported_only_where_an_actor_or_a_task_is_defined_or_called(path: Path) -> None:
    if name_of(path) not in MAY_IMPORT_RAY:
        assert crossings(path, "ray") == []


def test_tools_import_ray_in_exactly_two_modules() -> None:
    knowing = [name_of(path) for path in modules_of("tools") if crossings(path, "ray")]
    assert knowing == ["tools/mcp_servers.py", "tools/task.py"]


def test_the_sdk_of_mcp_is_imported_only_where_a_server_is_talked_to() -> None:
    knowing = [name_of(path) for path in MODULES if crossings(path, "mcp", "mcp_types", "httpx2")]
    assert knowing == [
        "tools/mcp_content.py",
        "tools/mcp_host.py",
        "tools/mcp_listing.py",
        "tools/mcp_session.py",
        "tools/mcp_stdio.py",
    ]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_layers_are_imported_by_their_full_names(path: Path) -> None:
    assert crossings(path, *LAYERS) == []


def test_adapters_never_import_each_other() -> None:
    crossed: list[tuple[str, str]] = []
    for path in modules_of("providers"):
        own = next((adapter for adapter in ADAPTERS if path.stem.startswith(adapter)), None)
        if own is None:
            continue
        for other in ADAPTERS:
            if other != own and (own, other) not in MAY_IMPORT_ADAPTER:
                prefix = f"palaver.providers.{other}"
                crossed += [(name_of(path), name) for name in imports(path) if name.startswith(prefix)]
    assert crossed == []


def test_importing_the_providers_loads_none_of_what_is_costly() -> None:
    costly = ["httpx", "genai_prices", "tenacity", "ray", "anthropic", "openai", "xllamacpp"]
    loaded = run(
        f"import json, sys, palaver.providers; print(json.dumps([n for n in {costly!r} if n in sys.modules]))"
    )
    assert loaded == []


def test_the_process_of_a_conversation_loads_no_adapter_before_it_has_one() -> None:
    program = "import json, sys, palaver.actors.convo; print(json.dumps(sorted(sys.modules)))"
    loaded = cast("list[str]", run(program))
    known = [f"palaver.providers.{name}" for name in ("http", "models", "models_file", "served", *ADAPTERS)]
    assert [name for name in loaded if name.startswith(tuple(known))] == ["palaver.providers.http_errors"]


def test_importing_all_modules_has_no_side_effects() -> None:
    names = [
        "palaver." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
    ]
    effects = run(
        f"""
import importlib, json, logging, os, signal, sys, threading
import psutil, ray, typer  # what these do when imported is theirs

def state():
    return {{
        "environment": dict(os.environ),
        "signal handlers": [signal.getsignal(number) for number in signal.valid_signals()],
        "log handlers": list(logging.root.handlers),
        "working folder": os.getcwd(),
        "import path": list(sys.path),
        "ray": ray.is_initialized(),
        "threads": threading.active_count(),
        "processes": len(psutil.Process().children()),
    }}

effects = []
for name in {names!r}:
    before = state()
    importlib.import_module(name)
    after = state()
    effects += [(name, what) for what in before if before[what] != after[what]]
print(json.dumps(effects))
"""
    )
    assert effects == []
