"""A chat keeps its session: what was sent is not sent again, and faults lose nothing."""

from __future__ import annotations

import asyncio

import pytest

from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.tasks.dialogues import Kind, dialogues
from tests.integration.systems import running, until

SHORT = SamplingSettings(max_new_tokens=16)


def turns() -> list[str]:
    return [turn.said for turn in next(dialogues(Kind.CONVERSATION, 5, 1)).turns]


async def test_each_turn_answers_as_if_the_whole_chat_were_asked_at_once() -> None:
    async with running("embedded") as system, system.client.conversation(SHORT) as conversation:
        for said in turns():
            answer = await conversation.say(said).complete()
            asked = conversation.messages[:-1]
            assert answer.text == (await system.client.chat(asked, SHORT).complete()).text


async def test_a_later_turn_sends_only_its_own_positions() -> None:
    async with running("embedded") as system, system.client.conversation(SHORT) as conversation:
        first, second, *_ = turns()
        opening = await conversation.say(first).complete()
        later = await conversation.say(second).complete()
        assert later.stats.prompt_tokens > opening.stats.prompt_tokens
        sent = later.stats.traffic.bytes_up - opening.stats.traffic.bytes_up
        assert sent < opening.stats.prefill.bytes_up / 2


async def test_regenerating_gives_another_answer_to_the_same_question() -> None:
    warm = SamplingSettings(max_new_tokens=8, temperature=3.0)
    async with running("embedded") as system, system.client.conversation(warm) as conversation:
        await conversation.say(turns()[0]).complete()
        asked = conversation.messages[:-1]
        answers = {(await conversation.regenerate().complete()).text for _ in range(4)}
        assert conversation.messages[:-1] == asked
        assert len(answers) > 1


async def test_a_cancelled_turn_leaves_the_conversation_as_it_was() -> None:
    endless = SamplingSettings(max_new_tokens=500, ignore_eos=True)
    async with running("embedded") as system, system.client.conversation(endless) as conversation:
        started = asyncio.Event()

        async def talk() -> None:
            async for _ in conversation.say(turns()[0]):
                started.set()

        task = asyncio.create_task(talk())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert conversation.messages == []
        await until(lambda: system.trunks[0].sessions == 0, seconds=1)
