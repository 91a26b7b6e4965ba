"""What `palaver run --over` does, from Python: one sub-conversation per file, a few at a time, one budget."""

import asyncio
from datetime import timedelta
from pathlib import Path

from palaver.actors import Budget, Convo
from palaver.actors.cluster import cluster
from palaver.actors.swarm import Item, swarm
from palaver.providers.local import Local

TEXTS = sorted((Path(__file__).parent / "texts").glob("*.txt"))


async def main() -> None:
    """Print the first line of each summary as it comes, and what all of them used."""
    with Local().hold() as model, cluster():
        root = Convo.remote(model, budget=Budget(max_wall_time=timedelta(minutes=5)))
        items = [
            Item(label=text.name, prompt=f"Summarise in one sentence:\n{text.read_text()}") for text in TEXTS
        ]
        async for result in swarm(root, items, concurrency=2, max_tokens=80):
            print(f"{result.label}: {(result.text or result.reason).splitlines()[0]}")
        print((await root.cumulative_usage.remote()).log_view())
        await root.close.remote()


if __name__ == "__main__":
    asyncio.run(main())
