"""A trunk node of two ranks, the second a process: over sockets, against the unsplit model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedsea_mq.cli.processes import Child
from fedsea_mq.errors import ConfigError
from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.serving.drafting import DraftLength
from fedsea_mq.settings import Settings
from fedsea_mq.tensor_parallel.rendezvous import Listener
from nodes import ClientNode, TrunkNode
from nodes.trunk import rank
from nodes.trunk.engine import load
from tests.adapters import make_adapter, unsplit, with_adapter
from tests.integration.systems import EXACT, System, running, until

TWO = "trunk.tensor_parallel=2"
NEW = 24
GREEDY = SamplingSettings(max_new_tokens=NEW, ignore_eos=True)
PROMPTS = [[5], list(range(7, 24)), [3, 1, 4, 1, 5, 9, 2, 6] * 5, list(range(290, 200, -1))]


def oracle(model: Any, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens of the unsplit model, and the logits that they were chosen from."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)


async def check_all_at_once(client: ClientNode, wanted: Sequence[tuple[list[int], Any]]) -> int:
    """Every prompt at the same time, tokens and logits as the oracle's; how many drafts held."""
    rows: list[list[torch.Tensor]] = [[] for _ in PROMPTS]
    asked = [
        client.generate(prompt, GREEDY, on_logits=own.append).complete()
        for prompt, own in zip(PROMPTS, rows, strict=True)
    ]
    answers = await asyncio.gather(*asked)
    for answer, own, (tokens, logits) in zip(answers, rows, wanted, strict=True):
        assert answer.tokens == tokens
        assert float((torch.stack(own) - logits).abs().max()) <= 1e-4
    return sum(answer.stats.accepted for answer in answers)


async def test_two_ranks_give_the_unsplit_tokens(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions of all lengths in shared steps, prompts in chunks, drafts that hold and do not."""
    formal = make_adapter(tiny_llama, tmp_path / "formal", LoraSettings(rank=4))
    plain, adapted = (with_adapter(tiny_llama, folder) for folder in (None, formal))
    wanted = [oracle(plain, prompt) for prompt in PROMPTS]
    held = [f"{party}.adapters={{formal: {formal}}}" for party in ("trunk", "client")]
    chunks = ["trunk.max_frame_positions=32", "trunk.step_positions=24"]
    async with running(tiny_llama, TWO, *held, *chunks) as system:
        (node,) = system.trunks
        assert node.rank_tensor_bytes == [node.tensor_bytes] * 2
        spoken = system.client.generate(PROMPTS[1], GREEDY, adapter="formal").complete()
        answer, _ = await asyncio.gather(spoken, check_all_at_once(system.client, wanted))
        assert answer.tokens == oracle(adapted, PROMPTS[1])[0] != wanted[1][0]
        monkeypatch.setattr(DraftLength, "best", lambda length: length.most)
        drafting = system.settings.replace(client={"speculation": "lookup", "max_draft": 6})
        async with ClientNode(drafting) as client:
            assert await check_all_at_once(client, wanted) > 0
        await until(lambda: node.sessions == 0)


@asynccontextmanager
async def trunk_process(system: System, folder: Path, **trunk: Any) -> AsyncIterator[Child]:
    """One more node, with room for more than the others have: it gets the next session."""
    more = {"name": "two", "tensor_parallel": 2, "kv_memory_mb": 2048, **trunk}
    child = await Child.start("nodes.trunk", "two", system.settings.replace(trunk=more), folder)
    try:
        await child.wait_ready()
        yield child
    finally:
        await child.stop()


async def test_a_rank_that_is_killed_ends_its_node_and_costs_no_token(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with running(tiny_llama) as system, trunk_process(system, tmp_path) as node:
        (other,) = psutil.Process(node.process.pid).children()
        generation = system.client.generate(PROMPTS[1], GREEDY)
        tokens = []
        async for token in generation:
            tokens.append(token.id)
            if len(tokens) == 5:
                assert generation.stats.node == "two"
                other.kill()
        assert generation.stats.recoveries == 1
        assert await node.process.wait() == 1
        assert "RankLost" in node.log_tail()
    assert tokens == oracle(unsplit(tiny_llama), PROMPTS[1])[0]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """94 MB of trunk: memory says who holds what."""
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "large")
    return tmp_path / "large"


async def test_a_rank_that_is_started_by_hand_holds_its_half_and_no_more(
    large: Path, tmp_path: Path
) -> None:
    listener = Listener()
    listener.close()
    overrides = [
        "model.head_blocks=0",
        "model.tail_blocks=1",
        TWO,
        f"trunk.rendezvous={listener.endpoint}",
    ]
    second = Settings.load(None, [*EXACT, f"model.path={large}", *overrides, "trunk.rank=1"])
    hand = await Child.start("nodes.trunk.rank", "rank", second, tmp_path)
    try:
        async with running(large, *overrides) as system:
            ready = await hand.wait_ready()
            assert system.trunks[0].rank_tensor_bytes == [ready["tensor_bytes"]] * 2
            answer = await system.client.generate(PROMPTS[1], GREEDY).complete()
        peak = (await hand.line())["peak_rss"]
        assert await hand.process.wait() == 0
    finally:
        await hand.stop()
    assert answer.tokens == oracle(unsplit(large), PROMPTS[1])[0]
    whole = 2 * (2 * 1024 * 1024 + 2 * 256 * 1024 + 3 * 1024 * 3072) * 4
    assert whole / 2 <= ready["tensor_bytes"] < 1.01 * whole / 2
    slack = 32 << 20  # sockets, KV and the allocator; whole tensors would be 47 MB more
    assert peak - ready["baseline_rss"] < ready["tensor_bytes"] + slack


def test_two_ranks_do_not_train() -> None:
    settings = Settings.load(None, [TWO, "training.run=run"])
    with pytest.raises(ConfigError, match="tensor_parallel"):
        load(settings)


@pytest.mark.parametrize(
    "overrides",
    [
        ["trunk.rank=1"],
        [TWO, "trunk.rank=1"],
        [TWO, "trunk.rank=2", "trunk.rendezvous=tcp://127.0.0.1:9"],
        [TWO, "trunk.rendezvous=tcp://192.0.2.21:7720"],
    ],
)
def test_ranks_that_cannot_meet_or_only_in_the_open_are_refused(overrides: list[str]) -> None:
    with pytest.raises(ConfigError):
        Settings.load(None, overrides)


async def test_a_node_is_rank_0_and_a_rank_is_another() -> None:
    second = Settings.load(None, [TWO, "trunk.rank=1", "trunk.rendezvous=tcp://127.0.0.1:9"])
    with pytest.raises(ConfigError, match="rank"):
        async with TrunkNode(second):
            pass
    with pytest.raises(ConfigError, match="rank"):
        rank.serve(second.replace(trunk={"rank": 0}))
