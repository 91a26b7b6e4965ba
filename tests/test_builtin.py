"""The catalogue of built-in tools."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from palaver.providers.errors import ConfigurationError
from palaver.tools import Tool
from palaver.tools.builtin import CATALOGUE, builtin_tools
from palaver.tools.fetch import fetch_url
from palaver.tools.think import think
from palaver.tools.todo import todo
from palaver.tools.tool import check_names


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_name_of_the_catalogue_gives_tools(name: str) -> None:
    tools = builtin_tools(name)
    assert tools
    assert all(isinstance(each, Tool) for each in tools)
    assert all(each.spec.description for each in tools)
    place = CATALOGUE[name]
    if place.only is not None:
        assert [each.name for each in tools] == [name]


def test_all_built_in_tools_can_be_used_together() -> None:
    tools = builtin_tools(*CATALOGUE)
    check_names(tools)
    # A tool is found under its own name, or is one of a group.
    assert {"bash", "read_file", "fetch_url", "think", "todo", "delegate"} <= {each.name for each in tools}


def test_tools_come_in_the_order_of_their_names_and_each_once() -> None:
    assert builtin_tools("todo", "web", "think", "fetch_url", "todo") == (todo, fetch_url, think)
    assert builtin_tools() == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "there is no built-in tool 'file'; did you mean 'files'? There are: bash, files, web, "),
        ("fetch-url", "did you mean 'fetch_url'?"),
        ("todos", "did you mean 'todo'?"),
        ("my_tools", "there is no built-in tool 'my_tools'; there are: bash"),
        ("", "there is no built-in tool ''; there are"),
    ],
)
def test_a_name_that_is_none_is_refused_with_the_nearest_and_all(name: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        builtin_tools("think", name)
    assert message in str(caught.value)


def test_importing_the_catalogue_imports_no_tool_and_using_one_no_other() -> None:
    program = """
import json, sys
from palaver.tools.builtin import CATALOGUE, builtin_tools
modules = {place.module for place in CATALOGUE.values()}
before = sorted(modules & sys.modules.keys())
builtin_tools("think")
print(json.dumps([before, sorted(modules & sys.modules.keys()), "httpx" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], ["palaver.tools.think"], False]


def test_importing_the_tool_that_fetches_loads_none_of_what_it_needs_to_fetch() -> None:
    costly = ["httpx", "html_to_markdown", "ray"]
    loaded = f"[name for name in {costly!r} if name in sys.modules]"
    program = f"import json, sys, palaver.tools.fetch; print(json.dumps({loaded}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
