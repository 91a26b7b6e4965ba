"""Follow a run while it goes on: text as it comes, tool calls, and what it used."""

import asyncio

from palaver.actors import Convo, events, reply
from palaver.actors.cluster import cluster
from palaver.providers import Scripted, ToolUse
from palaver.tools import tool


@tool
def temperature(place: str) -> float:
    """How warm it is at a place, in degrees Celsius."""
    return {"Cairo": 31.5}.get(place, 12.0)


# A model that says what is written here; any other provider goes in its place.
MODEL = Scripted(
    [ToolUse(id="1", name="temperature", input={"place": "Cairo"}), "It is 31.5 degrees in Cairo."]
)


async def main() -> None:
    convo = Convo.remote(MODEL, tools=[temperature])
    async for event in events(convo.stream.remote("How warm is it in Cairo?")):
        match event.type:
            case "text":
                print(event.text, end="", flush=True)
            case "tool_ended":
                print(f"[{event.call.name}({event.call.input}) gave {event.result.text}]")
            case "run_ended":
                print(f"\n[{event.result.stop} after {event.result.responses} responses]")
    await reply(convo.close.remote())


if __name__ == "__main__":
    with cluster():
        asyncio.run(main())
