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


async def test_a_conversation_outgrows_the_window_of_its_model_and_goes_on_from_summaries() -> None:
    with Local(context_tokens=1024).hold() as local:
        convo = Convo.remote(local, system_prompt="Answer briefly.", compact_from=0.6, max_tokens=48)
        whole = await convo.context_left.remote()
        for number in range(6):
            result = await convo.run.remote(f"Fact {number}: " + "the sky is blue and the sea is wide. " * 22)
            assert result.finished or result.stop == "max_tokens"
        former = await convo.former_messages.remote()
        messages = await convo.messages.remote()
        left = await convo.context_left.remote()
        usage = await convo.cumulative_usage.remote()
        asked = await convo.compact.remote()
        tree = await convo.tree.remote()
        await convo.close.remote()
        await local.aclose()
    assert whole is not None
    assert whole > 900
    assert len(former) >= 2
    assert messages[0].text.startswith("The conversation so far grew long.")
    assert left is not None
    assert 0 < left < whole
    assert usage.responses == 6 + len(former)
    assert asked.number == len(former) + 1
    assert asked.messages == len(messages)
    assert tree.usage.responses == usage.responses + 1
