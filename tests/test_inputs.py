"""What the command line was given: tools by name, the workspace, limits of tools, a price."""

from __future__ import annotations

import math
import os
import re
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from palaver.actors.budget import Budget
from palaver.actors.inputs import (
    Setup,
    budget,
    choose_model,
    choose_workspace,
    limits_of_tools,
    model_price,
    rate_limits,
    setup,
)
from palaver.actors.tool_names import load_tools
from palaver.providers.errors import ConfigurationError
from palaver.providers.openai import OpenAI
from palaver.providers.prices import Price
from palaver.providers.rate_limits import RateLimits
from palaver.tools import Tool, tool
from palaver.tools.fetch import fetch_url
from palaver.tools.limits import ToolLimits
from palaver.tools.think import think
from palaver.tools.todo import todo


@tool(in_workspace=True)
def reads() -> None:
    """Work with files."""


@tool(in_workspace=True)
def writes() -> None:
    """Work with files."""


@tool
def waits() -> None:
    """Need no folder."""


OWN = [reads, waits]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "script.json").write_text('["done"]')
    return tmp_path.resolve()


def set_up(*tools: str, workspace: str | None = None, tool_timeout_s: float | None = None) -> Setup:
    return setup(
        model="scripted:script.json",
        base_url=None,
        tools=tools,
        max_dollars=None,
        max_responses=None,
        max_wall_time_s=None,
        system_prompt="",
        max_tokens=None,
        address=None,
        workspace=workspace,
        tool_timeout_s=tool_timeout_s,
    )


def test_tools_are_named_with_commas_between_in_several_options_and_keep_their_order(here: Path) -> None:
    this = __name__
    assert load_tools(["todo, think", f"{this}:waits,web", f"{this}:reads"]) == (
        todo,
        think,
        waits,
        fetch_url,
        reads,
    )
    assert load_tools([f"{this}:OWN"]) == (reads, waits)
    assert load_tools([]) == ()


def test_built_in_tools_named_twice_are_there_once_and_ones_own_are_refused(here: Path) -> None:
    assert load_tools(["web,fetch_url", "think", "think"]) == (fetch_url, think)
    with pytest.raises(ConfigurationError, match="used more than once: 'waits'"):
        load_tools([f"{__name__}:waits", f"{__name__}:OWN"])


def test_current_folder_is_looked_into_for_ones_own_tools_alone(here: Path) -> None:
    load_tools(["think"])
    assert str(here) not in sys.path
    load_tools([f"{__name__}:waits"])
    assert str(here) in sys.path


@pytest.mark.parametrize(
    ("given", "tools", "expected"),
    [
        (None, [waits], None),
        (None, [], None),
        (None, [waits, reads], "."),
        ("sub", [waits], "sub"),
        ("sub", [reads], "sub"),
        ("link", [reads], "sub"),
    ],
)
def test_workspace_is_the_one_given_or_the_current_folder_where_it_is_needed(
    here: Path, given: str | None, tools: list[Tool[..., object]], expected: str | None
) -> None:
    (here / "sub").mkdir()
    (here / "link").symlink_to("sub")
    assert choose_workspace(given, tools) == (
        None if expected is None else os.path.join(here, expected).removesuffix("/.")
    )
    assert sorted(os.listdir(here)) == ["link", "script.json", "sub"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no folder that nobody can write to")
def test_workspace_that_nobody_can_write_to_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "--workspace '/proc' cannot be written to: "
    with pytest.raises(ConfigurationError, match=told):
        choose_workspace("/proc", [])
    monkeypatch.chdir("/proc")
    told = "the current folder '/proc', the workspace of reads, writes, cannot be written to: "
    with pytest.raises(ConfigurationError, match=told):
        choose_workspace(None, [reads, waits, writes])
    assert choose_workspace(None, [waits]) is None


def test_current_folder_that_is_gone_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = here / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(
        ConfigurationError, match="the current folder, the workspace of reads, cannot be used"
    ):
        choose_workspace(None, [reads])


def test_workspace_whose_name_is_no_text_is_refused(here: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    os.mkdir(name)
    with pytest.raises(ConfigurationError, match="path of the workspace is no UTF-8"):
        choose_workspace(name, [reads])


def test_limits_of_tools_are_in_seconds() -> None:
    assert limits_of_tools(None) == ToolLimits()
    assert limits_of_tools(1.5) == ToolLimits(timeout_s=1.5)
    assert limits_of_tools(math.inf).seconds is None


def test_setup_tells_the_workspace_and_has_the_limits(here: Path) -> None:
    made = set_up("think", f"{__name__}:reads", tool_timeout_s=90)
    assert (made.workspace, made.tool_limits) == (str(here), ToolLimits(timeout_s=90))
    assert made.notes == ("model: scripted scripted", f"workspace: {here}")
    made = set_up("think")
    assert (made.workspace, made.tool_limits) == (None, ToolLimits())
    assert made.notes == ("model: scripted scripted",)
    (here / "new\nline").mkdir()
    assert set_up(workspace="new\nline").notes[1].count("\n") == 0


# A price


def test_a_price_goes_to_the_provider_in_dollars_per_million_tokens() -> None:
    for text in ("0.15/0.60", "$0.15/$0.60", " 0.15 / 0.60 "):
        assert model_price(text) == Price.per_million_tokens("0.15", "0.60")
    for name, base_url in (("m", "http://127.0.0.1:9/v1"), ("llama.cpp", None)):
        provider, _ = choose_model(name, base_url, model_price("0.15/0.60"))
        assert isinstance(provider, OpenAI)
        assert provider.price == Price.per_million_tokens("0.15", "0.60")


@pytest.mark.parametrize("text", ["", "1", "1/", "1/2/3", "much/little", "-1/2", "nan/1", "1/inf", "1,2"])
def test_a_price_that_is_none_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--price is .*; write USD per .*, like 0\.15/0\.60"):
        model_price(text)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("scripted:script.json", "'scripted:script.json' is none; leave it out, or write \"price\""),
        ("local", "'local' is free; leave it out"),
        ("local:model.gguf", "'local:model.gguf' is free; leave it out"),
        (None, "--price needs --model"),
    ],
)
def test_a_price_for_a_model_that_takes_none_is_refused(name: str | None, told: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        choose_model(name, None, model_price("1/2"))


def test_rate_limits_go_to_the_provider() -> None:
    assert rate_limits(None, None) is None
    provider, _ = choose_model("m", "http://127.0.0.1:9/v1", rate_limits=rate_limits(60, 1_000))
    assert isinstance(provider, OpenAI)
    assert provider.rate_limits == RateLimits(requests_per_minute=60, tokens_per_minute=1_000)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_limit_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(ConfigurationError, match=r"--tokens-per-minute is .*; use a number above 0"):
        rate_limits(None, limit)


@pytest.mark.parametrize("name", [None, "local", "local:model.gguf", "scripted:x.json"])
def test_rate_limits_for_a_model_that_has_none_are_refused(name: str | None) -> None:
    with pytest.raises(ConfigurationError, match="--requests-per-minute or --tokens-per-minute"):
        choose_model(name, None, rate_limits=RateLimits(requests_per_minute=1))
    for option in ("context_window", "server"):
        with pytest.raises(ConfigurationError, match=f"--{option.replace('_', '-')} "):
            choose_model(name, None, **{option: cast("Any", 1)})


def test_a_share_of_a_window_needs_one_that_is_known() -> None:
    given = {"base_url": "http://127.0.0.1:9/v1", "tools": (), "max_dollars": None, "max_responses": None}
    given |= {"max_wall_time_s": None, "system_prompt": "", "max_tokens": None, "address": None}
    given |= {"workspace": None, "tool_timeout_s": None, "model": "m", "compact_from": 0.8}
    with pytest.raises(ConfigurationError, match=r"window of model 'm' is not known.*--context-window"):
        setup(**cast("Any", given))
    assert setup(**cast("Any", given), context_window=9).compact_from == 0.8
    with pytest.raises(ConfigurationError, match=r"--compact-from is 1.5; use a part"):
        setup(**cast("Any", {**given, "compact_from": 1.5}))


def test_all_limits_of_a_budget_can_be_given() -> None:
    limits = budget(
        "$0.50",
        90,
        max_responses=1,
        max_total_tokens=2,
        max_tool_calls=3,
        max_sub_convos=4,
        max_depth=5,
    )
    assert limits == Budget(
        max_dollars="0.50",
        max_wall_time=90,
        max_responses=1,
        max_total_tokens=2,
        max_tool_calls=3,
        max_sub_convos=4,
        max_depth=5,
    )
    with pytest.raises(ConfigurationError, match="--max-tool-calls: a limit of -1 is negative"):
        budget(max_tool_calls=-1)
