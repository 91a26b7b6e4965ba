from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from palaver.tools import Resources, Tool, ToolDefinitionError, tool
from palaver.tools.placement import asked_of, shortfall
from palaver.tools.task import PackedTool, pack
from palaver.tools.tool import check_names


@tool(num_cpus=0.5, timeout_s=3)
def double(number: int) -> int:
    """Double a number."""
    return number * 2


@tool
def quadruple(number: int) -> int:
    """Double twice."""
    return double(double(number))


@tool
def factorial(number: int) -> int:
    """Compute it by calling the tool itself."""
    return number * factorial(number - 1) if number else 1


def travel(made: Tool[..., Any]) -> PackedTool:
    return pickle.loads(pickle.dumps(made))


def test_a_tool_is_still_its_function() -> None:
    assert double(4) == 8
    assert double.function(4) == 8
    assert (double.name, double.spec.description, double.limits.timeout_s) == (
        "double",
        "Double a number.",
        3,
    )
    assert double.resources == Resources(num_cpus=0.5)


def test_name_and_description_can_be_given() -> None:
    made = tool(name="twice-2", description="")(double.function)
    assert (made.name, made.spec.description) == ("twice-2", "")


@pytest.mark.parametrize("name", ["", "two words", "ü", "x" * 65, "a.b", "a\n"])
def test_a_name_that_a_provider_would_refuse_is_refused(name: str) -> None:
    with pytest.raises(ToolDefinitionError, match="is not allowed; use 1 to 64 letters"):
        tool(name=name)(double.function)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout_s: float) -> None:
    with pytest.raises(ToolDefinitionError, match=r"timeout_s of tool 'double' is .*; use seconds above 0"):
        tool(timeout_s=timeout_s)(double.function)


def test_an_output_limit_below_one_byte_is_refused() -> None:
    with pytest.raises(ToolDefinitionError, match="max_output_bytes of tool 'double' is 0"):
        tool(max_output_bytes=0)(double.function)


def test_two_tools_of_one_name_are_refused() -> None:
    check_names([double, factorial])
    with pytest.raises(ToolDefinitionError, match="tool name used more than once: 'double'"):
        check_names([double, factorial, pack(double)])


def test_resources_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ToolDefinitionError, match=r"num_cpus: Input should be .* \(got -1\)"):
        tool(num_cpus=-1)
    for asked in (
        Resources(resources={"CPU": 1}),
        Resources(resources={"x": -1}),
        Resources(num_cpus=float("inf")),
        Resources(label_selector={"zone": "in("}),
    ):
        with pytest.raises(ToolDefinitionError, match="tool 'double' asks for what Ray does not take"):
            pack(Tool(double.function, resources=asked))


def test_an_importable_tool_travels_by_its_name() -> None:
    packed = travel(double)
    assert isinstance(packed, PackedTool)
    assert (packed.spec, packed.resources, packed.limits.timeout_s) == (double.spec, double.resources, 3)
    assert len(packed.code) < 200
    assert packed.unpack() is double
    assert packed(4) == 8
    assert pack(packed) is packed


def test_whoever_passes_a_tool_on_does_not_import_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a_module_with_a_tool"
    (tmp_path / f"{name}.py").write_text(
        "from palaver.tools import tool\n@tool\ndef shout(text: str) -> str:\n    return text.upper()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pickled = pickle.dumps(importlib.import_module(name).shout)
    del sys.modules[name]
    packed = pickle.loads(pickle.dumps(pickle.loads(pickled)))
    assert packed.spec.name == "shout"
    assert name not in sys.modules
    assert packed("a") == "A"
    assert name in sys.modules
    del sys.modules[name]


def test_a_tool_defined_inside_a_function_travels_with_what_it_closes_over() -> None:
    factor = 3

    @tool
    def scale(number: int) -> int:
        """Scale, with help of another tool."""
        return double(number) * factor

    @tool(max_output_bytes=7)
    def scale_twice(number: int) -> int:
        return scale(scale(number))

    there = travel(scale_twice).unpack()
    assert there is not scale_twice
    assert (there(1), there.limits.max_output_bytes, there.spec) == (36, 7, scale_twice.spec)
    assert there.signature.bind({"number": "2"}, None) == {"number": 2}  # type: ignore[arg-type]


def test_a_tool_may_close_over_itself() -> None:
    @tool
    def count_down(number: int) -> str:
        assert isinstance(count_down, Tool)  # so that it can be given to a sub-conversation
        return f"{number} {count_down(number - 1)}" if number else "lift-off"

    assert travel(count_down)(3) == "3 2 1 lift-off"


def test_tools_may_close_over_each_other() -> None:
    @tool
    def even(number: int) -> bool:
        return odd(number - 1) if number else True

    @tool
    def odd(number: int) -> bool:
        return even(number - 1) if number else False

    assert travel(even)(4) is True
    assert travel(odd)(4) is False


def test_a_tool_with_a_hand_written_schema_checks_by_it_where_it_arrives() -> None:
    @tool(input_schema={"type": "object", "properties": {"n": {"type": "integer", "maximum": 3}}})
    def take(n: int) -> int:
        return n

    there = travel(take).unpack()
    assert there.spec == take.spec
    with pytest.raises(Exception, match="4 is greater than the maximum of 3"):
        there.signature.bind({"n": 4}, None)  # type: ignore[arg-type]


def test_a_bound_method_travels_with_its_object() -> None:
    class Counter:
        def __init__(self, start: int) -> None:
            self.start = start

        def add(self, number: int) -> int:
            return self.start + number

    assert travel(tool(Counter(40).add))(2) == 42


def test_what_cannot_be_pickled_is_refused_with_advice() -> None:
    lock = threading.Lock()

    @tool
    def locks() -> None:
        with lock:
            pass

    with pytest.raises(
        ToolDefinitionError,
        match=r"tool 'locks' cannot be sent .*cannot pickle '_thread.lock'.* Make what",
    ):
        pack(locks)
    # And that leaves nothing behind for the next.
    assert isinstance(travel(quadruple), PackedTool)


MAIN = """
from __future__ import annotations
import asyncio, sys
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Optional
from pydantic import BaseModel
from palaver.tools import ToolCallInfo, tool

class Colour(Enum):
    RED = "red"

@dataclass
class Point:
    x: int

class Line(BaseModel):
    start: Point
    colour: Optional[Colour] = None

class Draw:
    def __call__(self, line: Line, style: Literal["thin", "thick"]) -> str:
        return f"{line.start.x} {style}"

@tool
def helper(text: str) -> str:
    return text.upper()

@tool
async def draw(line: Line, info: ToolCallInfo, style: Literal["thin", "thick"] = "thin") -> str:
    return helper(f"{line.start.x} {line.colour.value} {style} {info.tool_use_id} {type(line).__module__}")

@tool
def again(depth: int) -> int:
    return again(depth - 1) + 1 if depth else 0

if __name__ == "__main__":
    import pickle
    sys.stdout.buffer.write(pickle.dumps([draw, tool(Draw()), again]))
"""

ELSEWHERE = """
import asyncio, pickle, sys
from palaver.tools import ToolCallInfo
draw, thing, again = [packed.unpack() for packed in pickle.load(sys.stdin.buffer)]
info = ToolCallInfo("call-1", "draw", "abc-defg")
tool_input = {"line": {"start": {"x": "3"}, "colour": "red"}, "style": "thick"}
print(asyncio.run(draw.function(**draw.signature.bind(tool_input, info))))
tool_input["line"] = {"start": {"x": 4}}
print(thing.function(**thing.signature.bind(tool_input, info)))
print(again(3), "Literal" in draw.function.__globals__)
"""


def test_tools_of_a_script_travel_with_the_types_of_their_annotations(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(MAIN)
    packed = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, check=True).stdout
    there = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], input=packed, stdout=subprocess.PIPE, check=True
    )
    assert there.stdout.decode().splitlines() == ["3 RED THICK CALL-1 __MAIN__", "4 thick", "3 False"]


def node(alive: bool = True, labels: dict[str, str] | None = None, **has: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": has, "Labels": labels or {}}


def test_a_call_fits_when_one_node_has_all_it_asks() -> None:
    asked = Resources(num_cpus=2, resources={"disk": 1})
    assert shortfall(asked, [node(CPU=1), node(CPU=2, disk=1)]) is None
    assert shortfall(asked, [node(CPU=2), node(disk=1)]) is not None
    assert shortfall(asked, [node(CPU=2, disk=1, alive=False)]) is not None
    assert asked_of(Resources()) == {}


@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        ("a", True),
        ("b", False),
        ("!a", False),
        ("!b", True),
        ("in(b, a)", True),
        ("in(b)", False),
        ("!in(a,b)", False),
    ],
)
def test_label_selectors_are_read_as_ray_reads_them(selector: str, fits: bool) -> None:
    asked = Resources(label_selector={"zone": selector})
    assert (shortfall(asked, [node(labels={"zone": "a"})]) is None) == fits


def test_the_shortfall_says_what_is_asked_and_what_there_is() -> None:
    asked = Resources(num_cpus=1, num_gpus=8, label_selector={"zone": "c"})
    nodes = [node(CPU=4, labels={"zone": "a"}), node(CPU=2, GPU=4), node(CPU=64, alive=False)]
    assert shortfall(asked, nodes) == (
        "it asks for 1 CPU, 8 GPU, label zone=c, and no node of the cluster has that; "
        "of 2 nodes the most that one has is 4 CPU, 4 GPU, label zone in ['a']"
    )
    assert "of 0 nodes" in str(shortfall(asked, []))


def test_a_dataclass_defined_in_a_script_has_a_schema_where_its_tool_runs(tmp_path: Path) -> None:
    here = """
import pickle, sys
from dataclasses import dataclass, field
from palaver.tools import tool
from palaver.tools.task import pack

@dataclass
class Point:
    x: int
    tags: list[str] = field(default_factory=list)
    scale: int = field(default=3, kw_only=True)

@tool
def show(point: Point) -> str:
    return f"{point.x} {point.tags} {point.scale}"

pickle.dump(pack(show), open(sys.argv[1], "wb"))
"""
    there = """
import pickle, sys
from palaver.tools import ToolCallInfo
tool = pickle.load(open(sys.argv[1], "rb")).unpack()
print(tool(**tool.signature.bind({"point": {"x": 1}}, ToolCallInfo("1", "show", "c"))))
"""
    for program in (here, there):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "packed")],
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout == "1 [] 3\n"
