"""Real conversations of a real model over both wire formats, as Ray actors."""

from __future__ import annotations

import pytest

from palaver.actors import Convo
from palaver.providers import Anthropic, OpenAI, Price, Provider
from palaver.providers.local import Local

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.local]


@pytest.mark.parametrize("wire_format", ["openai", "anthropic"])
async def test_a_conversation_of_two_turns_has_its_usage_on_the_ledger(wire_format: str) -> None:
    with Local().hold() as local:
        where = await local.endpoint()
        model, key = where.model, where.api_key
        provider: Provider
        if wire_format == "openai":
            provider = OpenAI(
                model, base_url=f"{where.url}/v1", api_key=key, max_tokens=20, price=Price.free()
            )
        else:
            provider = Anthropic(model, base_url=where.url, api_key=key, max_tokens=20, price=Price.free())
        convo = Convo.remote(provider, system_prompt="You answer in one word.")
        first = await convo.run.remote("Name a colour.")
        second = await convo.run.remote("Name another.")
        usage = await convo.cumulative_usage.remote()
        messages = await convo.messages.remote()
        await convo.close.remote()
        await local.aclose()
    assert first.text
    assert second.text
    assert [each.role for each in messages] == ["user", "assistant"] * 2
    assert usage.responses == 2
    assert usage.total_input_tokens > first.usage.total_input_tokens > 0
    assert usage.output_tokens > 0
    assert usage.total_cost_usd == 0
