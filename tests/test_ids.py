"""Conversation ids: their form, and that two conversations of a tree never share one."""

from __future__ import annotations

import re

from palaver.actors.conversation import Conversation
from palaver.actors.errors import ConvoIdTaken
from palaver.actors.ids import new_convo_id
from palaver.actors.treasury import RootTreasury
from palaver.providers import Scripted
from palaver.tools.toolset import InlineToolset


def test_an_id_is_seven_characters_of_crockfords_alphabet_each_as_likely() -> None:
    ids = {new_convo_id() for _ in range(2_000)}
    assert len(ids) == 2_000
    assert all(re.fullmatch(r"[0-9a-hjkmnp-tv-z]{3}-[0-9a-hjkmnp-tv-z]{4}", each) for each in ids)
    for place in (0, 1, 2, 4, 5, 6, 7):
        assert len({each[place] for each in ids}) == 32


async def test_a_sub_conversation_whose_id_is_taken_gets_another() -> None:
    refused: list[str] = []

    class Refusing(RootTreasury):
        async def open(self, accounts):  # type: ignore[no-untyped-def]
            if len(refused) < 2:
                refused.append(accounts[0].convo_id)
                raise ConvoIdTaken(accounts[0].convo_id)
            await super().open(accounts)

    core = Conversation(Scripted(["ok"]), InlineToolset(()))
    core.treasury = Refusing(core.treasury.ledger)  # type: ignore[attr-defined]
    child = await core.sub_conversation(InlineToolset(()))
    assert child.id not in refused
    assert [each.id for each in (await core.tree()).children] == [child.id]
    await core.close()
