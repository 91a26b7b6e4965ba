"""Light sub-conversations: how many a second and how much memory each, beside other frameworks in one run;
and 1,000 at once against a server that takes two seconds, beside bare httpx.

    python bench/map.py [ITEMS]
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import ray
from report import ratio, report

from palaver.actors import Convo, results
from palaver.actors.cluster import cluster
from palaver.providers import OpenAI, Price, Request, Scripted, ToolUse
from palaver.providers.scripted import Reply
from palaver.tools import tool

ROOT = Path(__file__).parent.parent
OTHERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
OTHERS = ("pydantic-ai", "openai-agents")
ITEMS = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
WITH_TOOLS = ITEMS // 10
ROUNDS = 3
AT_ONCE = 1_000
ANSWER_S = 2.0


@tool
def weather(place: str) -> str:
    """The weather at a place."""
    return f"fine in {place}"


def instant(_: Request) -> Reply:
    """Answer at once."""
    return "ok"


def calls_once(request: Request) -> Reply:
    """Call a tool, and end with its result."""
    if len(request.messages) == 1:
        return ToolUse(id="1", name="weather", input={"place": "Rome"})
    return "ok"


def memory_kb(_: Any) -> tuple[int, int]:
    """Resident memory now, and the most so far, of the process this runs in."""
    import os
    import resource

    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return now, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def mapped(script: Any, count: int, **options: Any) -> tuple[float, float]:
    """Items a second, and the kilobytes each took at the peak."""
    root: Any = Convo.remote(Scripted(script))
    async for result in results(root.map.remote(["warm up"] * 200, **options)):
        assert result.finished
    before_kb, _ = await root.__ray_call__.remote(memory_kb)
    items = [f"item {n}" for n in range(count)]
    began = time.perf_counter()
    finished = 0
    async for result in results(root.map.remote(items, **options)):
        finished += result.finished
    took_s = time.perf_counter() - began
    assert finished == count
    _, peak_kb = await root.__ray_call__.remote(memory_kb)
    await root.close.remote()
    return count / took_s, (peak_kb - before_kb) / count


def other(framework: str, count: int, *options: str) -> tuple[float, float]:
    """The same of another framework, in a process of its own."""
    program = str(ROOT / "bench" / "others" / "crowd.py")
    done = subprocess.run(
        [str(OTHERS_PYTHON), program, framework, str(count), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    return told["a_second"], told["kb_each"]


def compare(name: str, script: Any, count: int, *options: str, **ours: Any) -> None:
    """Print one line: ours against each of the others, round by round."""
    runs: list[tuple[tuple[float, float], list[tuple[float, float]]]] = []
    for _ in range(ROUNDS):
        mine = asyncio.run(mapped(script, count, **ours))
        runs.append((mine, [other(each, count // 5, *options) for each in OTHERS]))
    report(
        name,
        items=count,
        a_second=statistics.median(mine[0] for mine, _ in runs),
        kb_each=statistics.median(mine[1] for mine, _ in runs),
        **{
            f"by_{each}": ratio([(mine[0], theirs[n][0]) for mine, theirs in runs])
            for n, each in enumerate(OTHERS)
        },
        **{
            f"{each}_a_second": statistics.median(theirs[n][0] for _, theirs in runs)
            for n, each in enumerate(OTHERS)
        },
    )


def compare_workers() -> None:
    """Print one line: two processes that share the items, against one that has all."""
    pairs = [
        (asyncio.run(mapped(instant, ITEMS // 4, workers=2))[0], asyncio.run(mapped(instant, ITEMS // 4))[0])
        for _ in range(ROUNDS)
    ]
    report(
        "map, 2 workers",
        items=ITEMS // 4,
        a_second=statistics.median(mine for mine, _ in pairs),
        by_one_process=ratio(pairs),
    )


def serve(port: Any) -> None:
    """Answer every request after ANSWER_S."""
    body = json.dumps(
        {
            "id": "1",
            "model": "m",
            "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "ok"}}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        }
    ).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while asked := (await reader.readuntil(b"\r\n\r\n")).lower():
                length = next(
                    int(line[15:]) for line in asked.split(b"\r\n") if line[:15] == b"content-length:"
                )
                await reader.readexactly(length)
                await asyncio.sleep(ANSWER_S)
                writer.write(head + body)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=2 * AT_ONCE)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    asyncio.run(main())


async def bare_s(url: str) -> float:
    """How long bare httpx takes for AT_ONCE requests at once."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        began = time.perf_counter()
        answers = await asyncio.gather(
            *(client.post(f"{url}/chat/completions", json=body) for _ in range(AT_ONCE))
        )
        took_s = time.perf_counter() - began
    assert all(answer.json()["id"] == "1" for answer in answers)
    return took_s


async def light_s(url: str) -> float:
    """How long as many light conversations take, all at once."""
    provider = OpenAI("m", base_url=url, api_key="x", price=Price.free(), rate_limits=None)
    root = Convo.remote(provider)
    await root.id.remote()
    began = time.perf_counter()
    finished = 0
    async for result in results(root.map.remote(["x"] * AT_ONCE, concurrency=AT_ONCE)):
        finished += result.finished
    took_s = time.perf_counter() - began
    assert finished == AT_ONCE
    await root.close.remote()
    return took_s


def main() -> None:
    """Compare, and print."""
    port = multiprocessing.Value("i", 0)
    server = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    server.start()
    with cluster("local", log_to_driver=False):
        assert ray.is_initialized()
        url = f"http://127.0.0.1:{port.value}"
        pairs = [(asyncio.run(light_s(url)), asyncio.run(bare_s(url))) for _ in range(ROUNDS)]
        report(
            f"{AT_ONCE} at once, of {ANSWER_S:g} s each",
            ratio=ratio(pairs),
            target="1.5 or less of bare httpx",
            took_s=statistics.median(mine for mine, _ in pairs),
            bare_took_s=statistics.median(bare for _, bare in pairs),
        )
        server.terminate()
        if not OTHERS_PYTHON.exists():
            raise SystemExit("make bench installs what the rest compares with")
        compare("map", instant, ITEMS)
        compare_workers()
        compare("map, a tool call each", calls_once, WITH_TOOLS, "tool", tools=[weather])


if __name__ == "__main__":
    main()
