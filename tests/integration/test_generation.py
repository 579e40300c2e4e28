"""The split system against the unsplit model, over real sockets, noise off."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from fedsea_mq.errors import (
    Busy,
    CheckpointError,
    ContextOverflow,
    FingerprintMismatch,
    InvalidPrompt,
    MalformedFrame,
)
from fedsea_mq.model.partition import legal_cuts
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.serving.drafting import DraftLength
from nodes.trunk import node as trunk_node
from tests.integration.systems import running, until

NEW = 12
GREEDY = SamplingSettings(max_new_tokens=NEW, ignore_eos=True)
PROMPTS = [[5], list(range(7, 24)), [3, 1, 4, 1, 5, 9, 2, 6] * 5, list(range(290, 200, -1))]


def oracle(model: Any, prompt: list[int], new: int = NEW) -> list[int]:
    ids = torch.tensor([prompt])
    # The mask is said: transformers would guess from padding ids, which these prompts may hold.
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
    )
    return out[0, len(prompt) :].tolist()


async def test_every_legal_cut_gives_the_unsplit_tokens(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    wanted = [oracle(model, prompt) for prompt in PROMPTS]
    for cut in legal_cuts(model.config.num_hidden_layers):
        overrides = [f"model.head_blocks={cut.head_blocks}", f"model.tail_blocks={cut.tail_blocks}"]
        # Small frames, so that the long prompts are chunked.
        async with running(tiny_llama, *overrides, "trunk.max_frame_positions=16") as system:
            asked = [system.client.generate(p, GREEDY).complete() for p in PROMPTS]
            answers = await asyncio.gather(*asked)
        assert [answer.tokens for answer in answers] == wanted, f"cut {cut}"


async def test_the_embedded_model_answers_as_unsplit() -> None:
    async with running("embedded") as system:
        checkpoint = system.client.model.checkpoint
        prompt = list(
            checkpoint.tokenizer(" Marina keeps a red fox. Toban is a baker.")["input_ids"]
        )
        answer = await system.client.generate(prompt, GREEDY).complete()
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folders[0], dtype=torch.float32).eval()
    assert answer.tokens == oracle(model, prompt)


REPETITIVE = [[3, 1, 4, 1, 5, 9, 2, 6] * 5, [7, 8, 9] * 9, list(range(40, 60)) * 2, [5]]
DRAFTS = ["client.speculation=lookup", "client.max_draft=6"]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts as long as they may be, whatever they cost on this machine just now."""
    monkeypatch.setattr(DraftLength, "best", lambda length: length.most)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("tail", [0, 1, 2])
@pytest.mark.parametrize("frame", [4, 512])
async def test_drafts_change_no_token(tiny_llama: Path, tail: int, frame: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    wanted = [oracle(model, prompt, 40) for prompt in REPETITIVE]
    greedy = SamplingSettings(max_new_tokens=40, ignore_eos=True)
    overrides = [f"model.tail_blocks={tail}", f"trunk.max_frame_positions={frame}", *DRAFTS]
    async with running(tiny_llama, *overrides) as system:
        generations = [system.client.generate(prompt, greedy) for prompt in REPETITIVE]
        answers = await asyncio.gather(*(one.complete() for one in generations))
        await until(lambda: system.trunks[0].sessions == 0)
    assert [answer.tokens for answer in answers] == wanted
    drafted = sum(answer.stats.drafted for answer in answers)
    accepted = sum(answer.stats.accepted for answer in answers)
    assert drafted > accepted > 0  # right and wrong ones were met


@pytest.mark.usefixtures("eager")
async def test_in_int8_drafts_change_no_token_either(tiny_llama: Path) -> None:
    greedy = SamplingSettings(max_new_tokens=40, ignore_eos=True)
    int8 = ["model.weights=int8", "model.kv_cache=int8"]
    told = []
    for overrides in (int8, [*int8, *DRAFTS]):
        async with running(tiny_llama, *overrides) as system:
            generations = [system.client.generate(prompt, greedy) for prompt in REPETITIVE]
            answers = await asyncio.gather(*(one.complete() for one in generations))
        told.append([answer.tokens for answer in answers])
    assert told[1] == told[0]
    assert sum(answer.stats.drafted for answer in answers) > 0


@pytest.mark.usefixtures("eager")
async def test_drafts_of_a_model_change_no_token_whether_it_is_right_or_wrong(
    tiny_llama: Path, make_model: Callable[..., Path]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    wanted = [oracle(model, prompt, 40) for prompt in REPETITIVE]
    greedy = SamplingSettings(max_new_tokens=40, ignore_eos=True)
    other = make_model("llama", num_hidden_layers=2, initializer_range=0.5)
    shares = []
    for drafter in (tiny_llama, other):
        overrides = ["client.speculation=model", f"client.draft_model={drafter}"]
        async with running(tiny_llama, *overrides) as system:
            generations = [system.client.generate(prompt, greedy) for prompt in REPETITIVE]
            answers = await asyncio.gather(*(one.complete() for one in generations))
        assert [answer.tokens for answer in answers] == wanted
        drafted = sum(answer.stats.drafted for answer in answers)
        shares.append(sum(answer.stats.accepted for answer in answers) / drafted)
    assert shares[0] == 1.0  # the model itself guesses what it will say
    assert shares[1] < 0.5


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("cut", [(0, 0), (1, 0), (0, 2), (2, 1)])
async def test_drafts_past_the_trunk_change_no_token(
    tiny_llama: Path, cut: tuple[int, int]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    wanted = [oracle(model, prompt, 40) for prompt in REPETITIVE]
    greedy = SamplingSettings(max_new_tokens=40, ignore_eos=True)
    overrides = [
        f"model.head_blocks={cut[0]}",
        f"model.tail_blocks={cut[1]}",
        "client.speculation=early_exit",
    ]
    async with running(tiny_llama, *overrides) as system:
        generations = [system.client.generate(prompt, greedy) for prompt in REPETITIVE]
        answers = await asyncio.gather(*(one.complete() for one in generations))
        await until(lambda: system.trunks[0].sessions == 0)
    assert [answer.tokens for answer in answers] == wanted
    assert sum(answer.stats.drafted for answer in answers) > 0


@pytest.mark.usefixtures("eager")
async def test_where_the_trunk_changes_nothing_every_guess_past_it_holds(
    tiny_llama: Path, tmp_path: Path
) -> None:
    # Blocks that add nothing to the residual stream: head and tail alone are the whole model.
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    for block in model.model.layers[1:-1]:
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    model.save_pretrained(tmp_path)
    greedy = SamplingSettings(max_new_tokens=40, ignore_eos=True)
    overrides = ["client.speculation=early_exit", "noise.mode=off"]
    async with running(tmp_path, *overrides) as system:
        answer = await system.client.generate(REPETITIVE[0], greedy).complete()
    assert answer.tokens == oracle(model.eval(), REPETITIVE[0], 40)
    assert answer.stats.accepted == answer.stats.drafted > 0


async def test_a_draft_model_of_another_vocabulary_is_refused(
    tiny_llama: Path, make_model: Callable[..., Path]
) -> None:
    other = make_model("llama", vocab_size=64)
    overrides = ["client.speculation=model", f"client.draft_model={other}"]
    with pytest.raises(CheckpointError, match="64 tokens"):
        async with running(tiny_llama, *overrides):
            pass


@pytest.mark.usefixtures("eager")
async def test_with_a_seed_drafts_change_no_sampled_token_either(tiny_llama: Path) -> None:
    sampling = SamplingSettings(
        max_new_tokens=40,
        ignore_eos=True,
        temperature=0.7,
        top_k=5,
        repetition_penalty=1.1,
        seed=5,
    )
    said = []
    for overrides in ([], DRAFTS):
        async with running(tiny_llama, *overrides) as system:
            answers = [
                await system.client.generate(prompt, sampling).complete() for prompt in REPETITIVE
            ]
        said.append([answer.tokens for answer in answers])
    assert said[0] == said[1]
    assert sum(answer.stats.drafted for answer in answers) > 0


@pytest.mark.usefixtures("eager")
async def test_a_conversation_with_drafts_says_what_one_without_says() -> None:
    passage = (
        "Kewyn comes from Marshmoor. She eats salt herring. In spring Kewyn stole twelve combs "
        "from Dador. She owns a striped dog. Kewyn works as a weaver.\n"
    )
    turns = [passage + "Say it again.", "What did she steal?", "Who owns the dog?"]
    said = []
    for overrides in ([], DRAFTS):
        async with running("embedded", *overrides) as system:
            async with system.client.conversation() as chat:
                answers = [await chat.say(turn).complete() for turn in turns]
                answers.append(await chat.regenerate().complete())
            await until(lambda: system.trunks[0].sessions == 0)
        said.append([(answer.text, answer.finish) for answer in answers])
    assert said[0] == said[1]
    assert answers[0].stats.accepted > 10


async def test_outputs_that_are_no_numbers_are_a_typed_error(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tiny_llama) as system:
        real = trunk_node._encode_last
        monkeypatch.setattr(
            trunk_node,
            "_encode_last",
            lambda outputs, **terms: real([outputs[0] * math.nan], **terms),
        )
        with pytest.raises(MalformedFrame, match="not finite"):
            await system.client.generate([1, 2, 3], GREEDY).complete()
        monkeypatch.undo()
        assert len((await system.client.generate([1, 2, 3], GREEDY).complete()).tokens) == NEW


@pytest.mark.parametrize("wire", ["fp16", "bf16", "int8"])
async def test_lossy_wire_dtypes_stay_within_their_error(tiny_llama: Path, wire: str) -> None:
    bound = {"fp16": 0.02, "bf16": 0.1, "int8": 0.5}[wire]
    logits: dict[str, torch.Tensor] = {}
    for dtype in ("fp32", wire):
        async with running(tiny_llama, f"client.wire_dtype={dtype}") as system:
            one = SamplingSettings(max_new_tokens=1)
            seen: list[torch.Tensor] = []
            await system.client.generate(PROMPTS[2], one, on_logits=seen.append).complete()
            logits[dtype] = seen[0]
    error = (logits[wire] - logits["fp32"]).abs().max() / logits["fp32"].std()
    assert error < bound


async def test_many_sessions_at_once_stay_apart(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    prompts = [[seed + 1, 2 * seed + 3, seed * seed % 299] for seed in range(24)]
    async with running(tiny_llama, trunks=2) as system:
        asked = [system.client.generate(p, GREEDY).complete() for p in prompts]
        answers = await asyncio.gather(*asked)
        assert {answer.stats.node for answer in answers} == {t.name for t in system.trunks}
    assert [answer.tokens for answer in answers] == [oracle(model, p) for p in prompts]


async def test_cancelling_a_generation_frees_the_trunk_at_once(tiny_llama: Path) -> None:
    async with running(tiny_llama) as system:
        trunk = system.trunks[0]
        free = trunk.kv_positions_free
        endless = SamplingSettings(max_new_tokens=400, ignore_eos=True)
        first = asyncio.Event()

        async def generate() -> None:
            async for _ in system.client.generate([1, 2, 3], endless):
                first.set()

        task = asyncio.create_task(generate())
        await first.wait()
        assert trunk.kv_positions_free < free
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: trunk.sessions == 0, seconds=1)
        assert trunk.kv_positions_free == free


async def test_leaving_the_loop_early_frees_the_trunk(tiny_llama: Path) -> None:
    async with running(tiny_llama) as system:
        async for _ in system.client.generate([1, 2], GREEDY):
            break
        await until(lambda: system.trunks[0].sessions == 0, seconds=1)


async def test_a_client_of_another_cut_is_refused_by_name(tiny_llama: Path) -> None:
    async with running(tiny_llama) as system:
        other = system.settings.replace(model={"head_blocks": 2})
        from nodes import ClientNode

        async with ClientNode(other) as stranger:
            with pytest.raises(FingerprintMismatch, match="no node serves"):
                await stranger.generate([1], GREEDY).complete()


async def test_a_full_node_says_busy_and_serves_once_it_has_room(tiny_llama: Path) -> None:
    overrides = ["trunk.max_sessions=1", "client.give_up_s=0.3"]
    async with running(tiny_llama, *overrides) as system:
        async with system.client.session(50):
            turned_away = system.client.generate([1], GREEDY)
            with pytest.raises(Busy):
                await turned_away.complete()
            assert turned_away.stats.traffic.refusals > 0
            assert turned_away.stats.traffic.bytes_up > 0
        answer = await system.client.generate([1], GREEDY).complete()
    assert len(answer.tokens) == NEW


async def test_prompts_that_cannot_be_are_refused_before_anything_is_sent(
    tiny_llama: Path,
) -> None:
    async with running(tiny_llama) as system:
        most = system.client.model.max_positions
        with pytest.raises(InvalidPrompt):
            await system.client.generate([], GREEDY).complete()
        with pytest.raises(InvalidPrompt):
            await system.client.generate([system.client.model.vocab], GREEDY).complete()
        with pytest.raises(ContextOverflow):
            await system.client.generate([1] * most, GREEDY).complete()
        await until(lambda: system.trunks[0].sessions == 0)
