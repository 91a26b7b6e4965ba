"""A tool that starts sub-conversations, several at once, and a listener that watches.

The models are scripted, so that this runs anywhere and always the same; put `provider_for("...")` in
their place for real ones.
"""

import asyncio

import ray

from palaver.actors import Budget, Convo, ConvoInfo, NoopListener
from palaver.actors.cluster import cluster
from palaver.providers import Scripted, ToolUse
from palaver.providers.provider import Request
from palaver.providers.scripted import Reply
from palaver.tools import ToolCallInfo, tool


@tool
async def survey(cities: list[str], info: ToolCallInfo) -> dict[str, str]:
    """Ask a sub-conversation about each city, all at once.

    Args:
        cities: names of cities
    """
    agents = await asyncio.gather(*(info.convo.sub_convo.remote(label=city) for city in cities))
    runs = [agent.run.remote(f"One fact about {city}.") for agent, city in zip(agents, cities, strict=True)]
    results = await asyncio.gather(*runs)
    await asyncio.gather(*(agent.close.remote() for agent in agents))
    return {city: result.text for city, result in zip(cities, results, strict=True)}


class Narrator(NoopListener):
    """Prints the tool calls of every conversation in the tree."""

    def on_tool_call(self, convo: ConvoInfo, call: ToolUse) -> None:
        """Print a call."""
        print(f"{convo.label} calls {call.name}({call.input})")


def play(request: Request) -> Reply:
    """The script of all models: the root calls the tool and sums up; the others tell a fact."""
    question = request.messages[-1]
    if question.tool_results:
        return f"The survey says: {question.tool_results[0].text}"
    if "fact about" in question.text:
        return f"{question.text.removesuffix('.').split()[-1]} has a river."
    return ToolUse(id="call-1", name="survey", input={"cities": ["Paris", "Cairo", "Hanoi"]})


def main() -> None:
    """Run the tree, and print what it came to."""
    with cluster():
        root = Convo.remote(
            Scripted(play), label="root", tools=[survey], budget=Budget(max_responses=20), listener=Narrator()
        )
        print(ray.get(root.run.remote("Survey three cities.")).text)
        print(ray.get(root.cumulative_usage.remote()).log_view())
        ray.get(root.close.remote())


if __name__ == "__main__":
    main()
