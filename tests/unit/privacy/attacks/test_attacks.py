"""Attacks against the public head: what they compute is the head's, and without noise they win."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedsea_mq.errors import ConfigError
from fedsea_mq.model.packed_attention import PackedLayout
from fedsea_mq.privacy.attacks.attack import Attack, Known, Seen
from fedsea_mq.privacy.attacks.averaging import averaged
from fedsea_mq.privacy.attacks.decoder import LearnedDecoder
from fedsea_mq.privacy.attacks.inversion import SoftInversion
from fedsea_mq.privacy.attacks.nearest import NearestNeighbour
from fedsea_mq.privacy.attacks.output_side import PublicTail
from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.privacy.attacks.vocabulary import BeamMatching, VocabularyMatching
from fedsea_mq.privacy.noise import NoiseSource, clipped
from fedsea_mq.privacy.noise_shape import NoiseShape
from fedsea_mq.settings import ModelSettings
from tests.conftest import MakeModel

FIRST = 1
TOKENS = (FIRST, 17, 250, 99, 4, 250, 31, 180, 77, 17, 5, 222)


def public(path: Path, cut: tuple[int, int] = (2, 1)) -> PublicModel:
    head, tail = cut
    return PublicModel.load(ModelSettings(path=str(path), head_blocks=head, tail_blocks=tail))


def known(model: PublicModel, sigma: float = 0.0, shadow: int = 24) -> Known:
    drawn = torch.Generator().manual_seed(5)
    texts = torch.randint(3, model.vocab, (shadow, 16), generator=drawn).tolist()
    return Known(model, sigma, [(FIRST, *text) for text in texts])


def seen(model: PublicModel, sigma: float = 0.0, tokens: tuple[int, ...] = TOKENS) -> Seen:
    states = model.states(tokens)
    noise = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        outputs = model.trunk.sequences(states, PackedLayout((len(tokens),)))
    return Seen(states + sigma * noise, outputs, len(tokens))


def share(attack: Attack, of: Known, received: Seen) -> float:
    attack.fit(of)
    guess = attack.recover(received)
    assert len(guess) == len(TOKENS)
    return sum(a == b for a, b in zip(guess, TOKENS, strict=True)) / len(TOKENS)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("cut", [(0, 1), (1, 1), (3, 0)])
def test_alternatives_are_what_the_head_makes_of_each_token(
    make_model: MakeModel, family: str, cut: tuple[int, int]
) -> None:
    model = public(make_model(family), cut)
    caches = model.caches(len(TOKENS))
    ids = torch.tensor([3, 44, 250, 299])
    for position, token in enumerate(TOKENS):  # past Mistral's window of 6
        found = model.alternatives(ids, caches.head, position)
        for row, alternative in zip(found, ids.tolist(), strict=True):
            alone = model.states([*TOKENS[:position], alternative])[-1]
            torch.testing.assert_close(row, alone, atol=1e-4, rtol=1e-4)
        model.advance([token], [caches], position)


def test_what_follows_is_what_the_unsplit_model_says(make_model: MakeModel) -> None:
    from transformers import AutoModelForCausalLM

    folder = make_model("llama")
    model = public(folder)
    whole = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        expected = whole(torch.tensor([TOKENS])).logits[0].log_softmax(dim=-1)
    ours, other = model.caches(len(TOKENS)), model.caches(len(TOKENS))
    for position, token in enumerate(TOKENS):
        if position == 6:  # another sequence goes on from what this one holds
            other.copy_from(ours, position)
        both = [ours, other] if position >= 6 else [ours]
        found = model.advance([token] * len(both), both, position)
        for row in found:
            torch.testing.assert_close(row, expected[position], atol=1e-3, rtol=1e-3)


def test_a_differentiable_head_is_the_head(make_model: MakeModel) -> None:
    model = public(make_model("llama"))
    inputs = model.head.embedding(torch.tensor(TOKENS)).detach().requires_grad_()
    outputs = model.head.run.sequences(inputs, PackedLayout((len(TOKENS),)))
    torch.testing.assert_close(outputs.detach(), model.states(TOKENS), atol=1e-5, rtol=1e-5)
    torch.autograd.backward(outputs.sum())
    assert inputs.grad is not None
    assert bool(inputs.grad.abs().sum(dim=-1).gt(0).all())


@pytest.mark.parametrize("attack", [VocabularyMatching, BeamMatching])
@pytest.mark.parametrize("cut", [(0, 1), (2, 1), (3, 0)])
def test_without_noise_the_states_are_the_text(
    make_model: MakeModel, attack: type[Attack], cut: tuple[int, int]
) -> None:
    model = public(make_model("llama"), cut)
    assert share(attack(), known(model), seen(model)) == 1.0


def test_each_of_the_others_reads_much_where_it_is_at_its_best(make_model: MakeModel) -> None:
    shallow = public(make_model("llama"), (0, 1))
    assert share(NearestNeighbour(), known(shallow), seen(shallow)) == 1.0
    assert share(SoftInversion(), known(shallow), seen(shallow)) == 1.0
    learned = share(LearnedDecoder(), known(shallow, shadow=200), seen(shallow))
    assert learned > 0.8


def test_known_noise_and_several_prefixes_read_what_the_nearest_token_does_not() -> None:
    model = PublicModel.load(ModelSettings(path="embedded"))
    text = "Kewyn is a weaver. She lives in Marshmoor. Kewyn likes honey bread."
    tokens = tuple(model.checkpoint.tokenizer(text)["input_ids"])
    sigma = 6.0  # several times the states
    what = Known(model, sigma, [tokens[:1]])
    found = {}
    for attack in (VocabularyMatching(), BeamMatching()):
        attack.fit(what)
        guess = attack.recover(seen(model, sigma, tokens))
        found[attack.name] = sum(a == b for a, b in zip(guess, tokens, strict=True))
    assert found[BeamMatching.name] > found[VocabularyMatching.name]


def test_where_nothing_of_the_text_is_received_nothing_is_recovered(make_model: MakeModel) -> None:
    model = public(make_model("llama"))
    noise = torch.randn(len(TOKENS), 64, generator=torch.Generator().manual_seed(2))
    nothing = Seen(noise, noise, len(TOKENS))
    for attack in (NearestNeighbour(), VocabularyMatching(), SoftInversion()):
        assert share(attack, known(model), nothing) < 0.3


def test_the_public_tail_says_the_likeliest_tokens(make_model: MakeModel) -> None:
    from transformers import AutoModelForCausalLM

    folder = make_model("llama")
    model = public(folder)
    whole = AutoModelForCausalLM.from_pretrained(folder)
    prompt = torch.tensor([TOKENS[:4]])
    written = whole.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)
    tokens = tuple(written[0].tolist())
    attack = PublicTail()
    attack.fit(known(model))
    assert tuple(attack.recover(seen(model, tokens=tokens)))[4:] == tokens[4:]


def test_an_average_of_independent_noise_is_nearer_and_one_of_equal_noise_is_not(
    make_model: MakeModel,
) -> None:
    model = public(make_model("llama"))
    clean = seen(model).received
    drawn = torch.Generator().manual_seed(3)
    several = [
        Seen(clean + torch.randn(clean.shape, generator=drawn), clean, len(TOKENS))
        for _ in range(16)
    ]
    distance = (averaged(several).received - clean).square().mean().sqrt()
    assert float(distance) == pytest.approx(0.25, rel=0.1)
    same = averaged([several[0]] * 16)
    torch.testing.assert_close(same.received, several[0].received)
    with pytest.raises(ConfigError, match="lengths"):
        averaged([several[0], seen(model, tokens=TOKENS[:5])])


def test_an_attacker_who_knows_clip_and_shape_undoes_them(make_model: MakeModel) -> None:
    model = public(make_model("llama"))
    hidden = model.checkpoint.hidden
    drawn = torch.Generator().manual_seed(4)
    # Most of the noise in one half of the directions.
    basis = torch.linalg.qr(torch.randn(hidden, hidden, generator=drawn)).Q
    spread = torch.cat((torch.full((hidden // 2,), 0.1), torch.full((hidden // 2,), 1.41)))
    root = (basis * (spread / spread.square().mean().sqrt())) @ basis.T
    shape = NoiseShape(root, "a digest")
    bound = float(model.states(TOKENS).norm(dim=-1).median())
    noise = NoiseSource(0.8, "test", clip=bound, shape=shape)
    received = noise.add(model.states(TOKENS), noise.chain().extend(0, TOKENS))

    knows = model.against(noise)
    looked_at = knows.whitened(received)
    expected = clipped(model.states(TOKENS), bound) @ torch.linalg.inv(root)
    torch.testing.assert_close(knows.states(TOKENS), expected, atol=1e-2, rtol=1e-3)
    error = looked_at - knows.states(TOKENS)
    assert float(error.std()) == pytest.approx(0.8, rel=0.1)  # isotropic again
    attack = BeamMatching()
    right = share(attack, known(knows, 0.8), Seen(looked_at, looked_at, len(TOKENS)))
    assert right == 1.0
