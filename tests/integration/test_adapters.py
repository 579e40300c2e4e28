"""Sessions with LoRA adapters, side by side, against peft on the unsplit model; over sockets."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsea_mq.cli.verify import Ask, verify
from fedsea_mq.errors import AdapterError, AdapterMismatch, AdapterUnknown, ConfigError
from fedsea_mq.model.adapters import split_adapter
from fedsea_mq.model.attention import Span
from fedsea_mq.model.chat import chat_tokens
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.serving.drafting import DraftLength
from fedsea_mq.settings import Settings
from nodes import ClientNode, TrunkNode
from tests.adapters import make_adapter, with_adapter
from tests.conftest import MakeModel
from tests.integration.systems import EXACT, System, running

NEW = 12
GREEDY = SamplingSettings(max_new_tokens=NEW, ignore_eos=True)
PROMPTS = [[5], [3, 1, 4, 1, 5, 9, 2, 6] * 5, list(range(290, 250, -1))]
# Ranks, targets, scalings and blocks of their own; the last has nothing for the trunk.
KINDS: dict[str, tuple[LoraSettings, list[int]]] = {
    "formal": (LoraSettings(rank=4, targets=("q_proj", "v_proj")), [0, 1, 2, 3]),
    "short": (
        LoraSettings(8, 4, targets=("o_proj", "up_proj", "down_proj"), rslora=True, dropout=0.5),
        [0, 1, 2, 3],
    ),
    "middle": (LoraSettings(rank=2, targets=("k_proj", "q_proj")), [1, 2]),
    "ends": (LoraSettings(rank=3, targets=("gate_proj",)), [0, 3]),
}
NAMES = [None, *KINDS]


@dataclass(frozen=True)
class Adapters:
    """Each adapter whole, and those of the trunk and of the client as they may be handed out."""

    model: Path
    whole: dict[str, Path]
    trunk: dict[str, Path]
    client: dict[str, Path]

    def overrides(self) -> list[str]:
        return [
            f"{party}.adapters={{{', '.join(f'{name}: {path}' for name, path in held.items())}}}"
            for party, held in (("trunk", self.trunk), ("client", self.client))
        ]

    @cache  # noqa: B019 - lives as long as the tests of this file
    def said(self, name: str | None, prompt: int, new: int = NEW) -> tuple[list[int], torch.Tensor]:
        """Greedy tokens, and their logits, of peft's model."""
        ids = torch.tensor([PROMPTS[prompt]])
        out = self.oracle(name).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return out.sequences[0, ids.shape[1] :].tolist(), torch.cat(out.logits)

    @cache  # noqa: B019
    def oracle(self, name: str | None) -> Any:
        return with_adapter(self.model, None if name is None else self.whole[name])

    def __hash__(self) -> int:
        return id(self)


@pytest.fixture(scope="module")
def adapters(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    """`short` in parts, each at its own party; the others whole at both, where they are of use."""
    model, folder = make_model("llama"), tmp_path_factory.mktemp("adapters")
    whole = {
        name: make_adapter(model, folder / name, lora, seed=seed, blocks=blocks)
        for seed, (name, (lora, blocks)) in enumerate(KINDS.items())
    }
    split_adapter(whole["short"], Cut(1, 1), 4, folder / "parts")
    at_trunk = (folder / "parts" / "trunk").rename(folder / "short at the trunk")
    trunk = {"formal": whole["formal"], "middle": whole["middle"], "short": at_trunk}
    return Adapters(model, whole, trunk, {**whole, "short": folder / "parts"})


@dataclass(frozen=True)
class Answer:
    tokens: list[int]
    logits: torch.Tensor


async def answers(
    system: System, names: list[str | None], new: int = NEW
) -> dict[tuple[str | None, int], Answer]:
    """Every prompt with each adapter, all at once."""
    sampling = SamplingSettings(max_new_tokens=new, ignore_eos=True)

    async def one(name: str | None, prompt: int) -> Answer:
        rows: list[torch.Tensor] = []
        asked = system.client.generate(
            PROMPTS[prompt], sampling, adapter=name, on_logits=rows.append
        )
        return Answer((await asked.complete()).tokens, torch.stack(rows))

    wanted = [(name, prompt) for name in names for prompt in range(len(PROMPTS))]
    return dict(zip(wanted, await asyncio.gather(*(one(*key) for key in wanted)), strict=True))


@pytest.mark.parametrize("frame", [7, 512])
async def test_adapters_and_none_in_one_batch_are_each_what_peft_says(
    adapters: Adapters, frame: int
) -> None:
    # Given one trunk, one client, and sessions with four adapters and without.
    frames = f"trunk.max_frame_positions={frame}"
    async with running(adapters.model, *adapters.overrides(), frames) as system:
        # When all are asked at once.
        found = await answers(system, NAMES)
        stats = system.trunks[0]._running.batcher.stats
    # Then steps were shared, and each session got peft's tokens and logits.
    assert stats.sessions > 2 * stats.steps
    for (name, prompt), answer in found.items():
        tokens, logits = adapters.said(name, prompt)
        assert answer.tokens == tokens, (name, prompt)
        assert float((answer.logits - logits).abs().max()) <= 1e-4, (name, prompt)
    # And the adapters matter, whichever part they are on.
    for name in KINDS:
        assert any(found[name, p].tokens != found[None, p].tokens for p in range(len(PROMPTS)))


@pytest.mark.parametrize("speculation", ["lookup", "early_exit", "model"])
async def test_drafts_change_no_token_of_any_adapter(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch, speculation: str
) -> None:
    monkeypatch.setattr(DraftLength, "best", lambda length: length.most)
    drafts = [f"client.speculation={speculation}", f"client.draft_model={adapters.model}"]
    async with running(adapters.model, *adapters.overrides(), *drafts) as system:
        found = await answers(system, NAMES)
    for (name, prompt), answer in found.items():
        assert answer.tokens == adapters.said(name, prompt)[0], (name, prompt)


async def test_where_the_trunk_changes_nothing_guesses_with_the_adapter_hold(
    make_model: MakeModel, tmp_path: Path
) -> None:
    # Given blocks of the trunk that add nothing: head and tail with the adapter are the model.
    model = with_adapter(make_model("llama"), None)
    for block in model.model.layers[1:-1]:
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    model.save_pretrained(tmp_path / "model")
    lora, _ = KINDS["ends"]
    folder = make_adapter(tmp_path / "model", tmp_path / "ends", lora, blocks=[0, 3])
    overrides = [f"client.adapters={{ends: {folder}}}", "client.speculation=early_exit"]
    async with running(tmp_path / "model", *overrides) as system:
        asked = system.client.generate(PROMPTS[1], GREEDY, adapter="ends")
        assert (await asked.complete()).stats.accepted == asked.stats.drafted > 0


async def test_log_likelihoods_are_those_of_the_adapter(adapters: Adapters) -> None:
    prompt, continuation = PROMPTS[1], [9, 10, 11]
    # `client.adapter` is used where nothing is said, and None is none.
    async with running(adapters.model, *adapters.overrides(), "client.adapter=short") as system:
        client = system.client
        usual = await client.log_likelihoods(prompt, [continuation])
        formal = await client.log_likelihoods(prompt, [continuation], adapter="formal")
        none = await client.log_likelihoods(prompt, [continuation], adapter=None)
        async with client.session(50, "formal") as session:
            logits = await session.advance(prompt, lambda rows: rows[-1].clone())
    for name, found in (("short", usual), ("formal", formal), (None, none)):
        with torch.no_grad():
            ids = torch.tensor([prompt + continuation])
            rows = adapters.oracle(name)(input_ids=ids).logits[0].log_softmax(-1)
        rows = rows[len(prompt) - 1 : -1]
        wanted = float(rows.gather(1, torch.tensor(continuation)[:, None]).sum())
        assert found == pytest.approx([wanted], abs=1e-4)
        if name == "formal":
            torch.testing.assert_close(logits.log_softmax(-1), rows[0], atol=1e-4, rtol=0)


async def test_a_session_goes_to_a_node_that_holds_its_adapter_and_stays_with_it(
    adapters: Adapters,
) -> None:
    # Given a node without adapters that has most room, and one that holds them.
    async with running(adapters.model, *adapters.overrides(), trunks=0) as system:
        bare = system.settings.replace(trunk={"adapters": {}, "name": "bare"})
        holder = system.settings.replace(trunk={"name": "holder", "kv_memory_mb": 8})
        async with TrunkNode(bare) as first, TrunkNode(holder) as second:
            await asyncio.gather(first.registered(), second.registered())
            asked = {
                name: system.client.generate(PROMPTS[0], GREEDY, adapter=name) for name in NAMES
            }
            for name, generation in asked.items():
                assert (await generation.complete()).tokens == adapters.said(name, 0)[0]
    placed = {name: generation.stats.node for name, generation in asked.items()}
    # Then what asks nothing of the trunk goes to the other.
    assert placed == {
        None: "bare", "ends": "bare", "formal": "holder", "short": "holder", "middle": "holder",
    }  # fmt: skip


async def test_a_session_that_loses_its_node_goes_on_with_its_adapter(adapters: Adapters) -> None:
    prompt = PROMPTS[1]
    async with AsyncExitStack() as stack:
        system = await stack.enter_async_context(
            running(adapters.model, *adapters.overrides(), trunks=0)
        )
        bare = system.settings.replace(trunk={"adapters": {}, "name": "bare"})
        nodes = [TrunkNode(system.settings), TrunkNode(system.settings), TrunkNode(bare)]
        for node in nodes:
            await (await stack.enter_async_context(node)).registered()
        async with system.client.session(60, "short") as session:
            await session.advance(prompt[:25], lambda _: None)
            (lost,) = [node for node in nodes if node.name == session.node]
            await lost.__aexit__()
            logits = await session.advance(prompt[25:], lambda rows: rows[-1].clone())
            assert session.recoveries == 1
            assert session.node not in (lost.name, "bare")
    torch.testing.assert_close(logits, adapters.said("short", 1)[1][0], atol=1e-4, rtol=0)


async def test_chats_and_conversations_have_an_adapter_too(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open("embedded")
    model, blocks = checkpoint.folders[0], range(checkpoint.blocks)
    folder = make_adapter(model, tmp_path / "formal", KINDS["formal"][0], blocks=blocks)
    said = [{"role": "user", "content": "Toban is a baker.\nWhat does Toban do?"}]
    prompt = chat_tokens(checkpoint.tokenizer, said)
    sampling = SamplingSettings(max_new_tokens=8, ignore_eos=True)
    held = [f"{party}.adapters={{formal: {folder}}}" for party in ("trunk", "client")]
    async with running("embedded", *held) as system:
        chat = await system.client.chat(said, sampling, adapter="formal").complete()
        async with system.client.conversation(sampling, 200, adapter="formal") as talk:
            answer = await talk.say(said[0]["content"]).complete()
    ids = torch.tensor([prompt])
    told = with_adapter(model, folder).generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False,
        eos_token_id=None,
    )  # fmt: skip
    assert chat.tokens == answer.tokens == told[0, len(prompt) :].tolist()


async def test_an_adapter_that_nobody_holds_or_of_another_set_is_a_typed_error(
    adapters: Adapters,
) -> None:
    held = {"formal": str(adapters.trunk["short"])}
    async with AsyncExitStack() as stack:
        system = await stack.enter_async_context(
            running(adapters.model, *adapters.overrides(), trunks=0)
        )
        node = TrunkNode(system.settings.replace(trunk={"adapters": held}))
        await (await stack.enter_async_context(node)).registered()
        for name, error in (("short", AdapterUnknown), ("formal", AdapterMismatch)):
            with pytest.raises(error, match=f"adapter {name}"):
                await system.client.generate([1], GREEDY, adapter=name).complete()
        with pytest.raises(AdapterError, match=r"adapter none-such: .*ends, formal"):
            await system.client.generate([1], GREEDY, adapter="none-such").complete()
        # And who asks for none, or only of itself, is served.
        for other in (None, "ends"):
            said = await system.client.generate(PROMPTS[0], GREEDY, adapter=other).complete()
            assert said.tokens == adapters.said(other, 0)[0]
    with pytest.raises(ConfigError, match="none-such is none of"):
        Settings.load(None, [*adapters.overrides(), "client.adapter=none-such"])


def copied_without(folder: Path, part: str, to: Path) -> Path:
    shutil.copytree(folder, to)
    shutil.rmtree(to / part)
    return to


async def test_adapters_that_do_not_fit_a_party_stop_it_at_its_start(
    adapters: Adapters, tmp_path: Path
) -> None:
    parts, at_trunk = adapters.client["short"], adapters.trunk["short"]
    wrong: list[tuple[type[TrunkNode] | type[ClientNode], Mapping[str, Path]]] = [
        (TrunkNode, {"a": tmp_path / "nowhere"}),
        (TrunkNode, {"a": parts / "head"}),
        (TrunkNode, {"a": adapters.whole["ends"]}),
        (ClientNode, {"a": tmp_path / "nowhere"}),
        (ClientNode, {"a": at_trunk}),
        (
            ClientNode,
            {"a": adapters.whole["formal"], "b": copied_without(parts, "tail", tmp_path / "b")},
        ),
    ]
    settings = Settings.load(None, [*EXACT, f"model.path={adapters.model}"])
    for node, held in wrong:
        said = {"adapters": {name: str(folder) for name, folder in held.items()}}
        bad = settings.replace(trunk=said) if node is TrunkNode else settings.replace(client=said)
        with pytest.raises(AdapterError):
            async with node(bad):
                pass


async def test_heads_that_differ_have_noise_of_their_own_and_equal_ones_the_same(
    adapters: Adapters,
) -> None:
    noise, prompt = ["noise.mode=relative", "noise.scale=0.5"], PROMPTS[1]
    async with running(adapters.model, *adapters.overrides(), *noise) as system:
        client = system.client
        sent: dict[str | None, torch.Tensor] = {}
        clean: dict[str | None, torch.Tensor] = {}
        for name in NAMES:
            async with client.session(50, name) as session:
                await session.advance(prompt, lambda _: None)
                (states,) = session._log.payload(0, len(prompt))
            sent[name] = torch.frombuffer(bytearray(states), dtype=torch.float32)
            cache = client.model.head.run.new_cache(50)
            with torch.inference_mode():
                span = Span(cache, 0, len(prompt), adapter=name)
                clean[name] = client.model.head(torch.tensor(prompt), [span]).flatten()
        sigma = client.noise_std
    drawn = {name: sent[name] - clean[name] for name in NAMES}
    assert all(float(one.std()) == pytest.approx(sigma, rel=0.1) for one in drawn.values())
    # The head of `middle` is the base model's: a second draw of its noise could be averaged with.
    assert torch.equal(sent["middle"], sent[None])
    # Equal noise on states that differ would be gone from their difference.
    for one, other in (("formal", None), ("short", None), ("formal", "short"), ("ends", None)):
        assert not torch.equal(clean[one], clean[other])
        assert abs(float(torch.corrcoef(torch.stack([drawn[one], drawn[other]]))[0, 1])) < 0.1


async def test_verify_holds_the_split_system_against_peft_over_processes(
    adapters: Adapters,
) -> None:
    settings = Settings.load(None, [f"model.path={adapters.model}", "log.level=warning"])
    asks = Ask(None, 6, 16, 100, adapters.whole["formal"])
    (verdict,) = await verify(settings, asks, every_cut=False)
    assert verdict.identical == verdict.prompts == 6
    assert verdict.max_abs_logit_diff <= 1e-4
