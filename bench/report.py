"""What benchmarks share: the bare actor to compare with, turns in pairs, and one JSON line at the end."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import ray

from palaver.providers.provider import Request
from palaver.providers.scripted import Reply


@ray.remote(num_cpus=0)
class Bare:
    """An actor with one async method."""

    async def ping(self) -> str:
        """Answer."""
        return "ok"


def in_pairs(
    ours: Callable[[], float], baseline: Callable[[], float], rounds: int
) -> list[tuple[float, float]]:
    """Take both figures in turn, so that a machine that slows down slows both; the first pair warms up."""
    return [(ours(), baseline()) for _ in range(rounds + 1)][1:]


def ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """The median of ours by baseline, pair by pair."""
    return statistics.median(ours / baseline for ours, baseline in pairs)


def report(name: str, **figures: Any) -> None:
    """Print one JSON line."""
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps({"bench": name, **rounded}), flush=True)


def say_ok(_: Request) -> Reply:
    """A script for an instant provider that always answers the same."""
    return "ok"
