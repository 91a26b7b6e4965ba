"""Waiting for work to end, whatever happens to who waits.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end even when cancelled meanwhile; the cancellation is raised after it."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


async def all_to_the_end(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all; when cancelled, cancel all and await their ends. Raises the first failure after all."""
    tasks = [asyncio.create_task(each) for each in work]
    if not tasks:
        return []
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
    return [task.result() for task in tasks]


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Wait for tasks to end, however they end, and even when cancelled meanwhile."""
    await to_the_end(_gathered(tasks))


async def _gathered(tasks: Iterable[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
