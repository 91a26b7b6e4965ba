"""One of the programs that `bench/map.py` compares: a crowd of agents in one process, answered at once.

    python bench/others/crowd.py FRAMEWORK ITEMS [tool]

prints items a second, and the kilobytes each item took at the peak, as JSON. It runs in an environment of its
own, .venv-bench, with requirements/bench.txt.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

AT_ONCE = 200


def resident_kb() -> int:
    """Resident memory now."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def peak_kb() -> int:
    """The most resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def crowd(items: int, run: Callable[[str], Awaitable[str]]) -> None:
    """Run all items, AT_ONCE of them at once, and keep what each answered."""
    waiting = iter(range(items))
    answers: list[str] = []

    async def work() -> None:
        for n in waiting:
            answers.append(await run(f"item {n}"))  # noqa: PERF401

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    assert answers == ["ok"] * items


def weather(place: str) -> str:
    """The weather at a place."""
    return f"fine in {place}"


def pydantic_ai(tool: bool) -> Callable[[str], Awaitable[str]]:
    """An agent of pydantic-ai, whose model is a function."""
    from pydantic_ai import Agent
    from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
    from pydantic_ai.models.function import AgentInfo, FunctionModel

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        if tool and len(messages) == 1:
            return ModelResponse(parts=[ToolCallPart("weather", {"place": "Rome"})])
        return ModelResponse(parts=[TextPart("ok")])

    agent = Agent(FunctionModel(answer), tools=[weather] if tool else [])

    async def run(prompt: str) -> str:
        return (await agent.run(prompt)).output

    return run


def openai_agents(tool: bool) -> Callable[[str], Awaitable[str]]:
    """An agent of openai-agents, whose model is made here."""
    from agents import Agent, Model, ModelResponse, RunConfig, Runner, Usage, function_tool
    from openai.types.responses import (
        ResponseFunctionToolCall,
        ResponseOutputMessage,
        ResponseOutputText,
    )

    class Instant(Model):
        async def get_response(
            self, system_instructions: Any, input: Any, *_: Any, **__: Any
        ) -> ModelResponse:
            item: Any
            if tool and (isinstance(input, str) or len(input) == 1):
                item = ResponseFunctionToolCall(
                    arguments='{"place":"Rome"}', call_id="c1", name="weather", type="function_call"
                )
            else:
                text = ResponseOutputText(annotations=[], text="ok", type="output_text")
                item = ResponseOutputMessage(
                    id="m", content=[text], role="assistant", status="completed", type="message"
                )
            return ModelResponse(output=[item], usage=Usage(), response_id=None)

        def stream_response(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError

    agent = Agent(name="a", model=Instant(), tools=[function_tool(weather)] if tool else [])
    quiet = RunConfig(tracing_disabled=True)

    async def run(prompt: str) -> str:
        return (await Runner.run(agent, prompt, run_config=quiet)).final_output

    return run


FRAMEWORKS = {"pydantic-ai": pydantic_ai, "openai-agents": openai_agents}


async def main() -> None:
    """Warm up, run, and tell."""
    framework, items, *options = sys.argv[1:]
    run = FRAMEWORKS[framework]("tool" in options)
    await crowd(200, run)
    before_kb = resident_kb()
    began = time.perf_counter()
    await crowd(int(items), run)
    took_s = time.perf_counter() - began
    kb_each = (peak_kb() - before_kb) / int(items)
    print(json.dumps({"a_second": int(items) / took_s, "kb_each": kb_each}))


if __name__ == "__main__":
    asyncio.run(main())
