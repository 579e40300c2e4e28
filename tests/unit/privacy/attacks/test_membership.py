"""Which of several texts was sent, by its states and by its length."""

from __future__ import annotations

import pytest
import torch

from fedsea_mq.privacy.attacks.attack import Seen
from fedsea_mq.privacy.attacks.lengths import told_by_lengths
from fedsea_mq.privacy.attacks.membership import membership_auc, membership_auc_one_token
from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.settings import ModelSettings
from tests.conftest import MakeModel

TEXTS = torch.randint(3, 300, (12, 16), generator=torch.Generator().manual_seed(0)).tolist()


def received(model: PublicModel, text: list[int], sigma: float, drawn: torch.Generator) -> Seen:
    states = model.states(text)
    noised = states + sigma * torch.randn(states.shape, generator=drawn)
    return Seen(noised, states, len(text))


def test_the_sent_text_is_told_from_others_and_one_that_was_not_sent_is_not(
    make_model: MakeModel,
) -> None:
    model = PublicModel.load(ModelSettings(path=str(make_model("llama"))))
    drawn = torch.Generator().manual_seed(1)
    sent, others = TEXTS[:4], TEXTS[4:]
    found = [(received(model, text, 1.0, drawn), text) for text in sent]
    assert membership_auc(model, found, others) == 1.0
    # What came is of neither: the "sent" text is no nearer than any other.
    elsewhere = torch.randint(3, 300, (16, 16), generator=drawn).tolist()
    unrelated = [
        (received(model, other, 1.0, drawn), text)
        for other, text in zip(elsewhere, (TEXTS * 2)[:16], strict=True)
    ]
    decoys = torch.randint(3, 300, (16, 16), generator=drawn).tolist()
    assert membership_auc(model, unrelated, decoys) == pytest.approx(0.5, abs=0.2)


def test_one_other_token_is_told_unless_the_noise_is_louder_than_what_it_changes(
    make_model: MakeModel,
) -> None:
    model = PublicModel.load(ModelSettings(path=str(make_model("llama"))))
    drawn = torch.Generator().manual_seed(1)
    rms = float(model.states(TEXTS[0]).square().mean().sqrt())
    found = {
        sigma: membership_auc_one_token(
            model, [(received(model, text, sigma, drawn), text) for text in TEXTS], 8
        )
        for sigma in (0.0, 30 * rms)
    }
    assert found[0.0] == 1.0
    assert found[30 * rms] < 0.7


def test_a_length_tells_what_it_singles_out() -> None:
    told = told_by_lengths([10, 10, 20, 30])
    assert told.texts == 4
    assert told.singled_out == 0.5
    assert told.of_bits == 2.0
    assert told.bits == pytest.approx((1 + 1 + 2 + 2) / 4)
    assert told_by_lengths([7] * 8).bits == 0.0
    both = told_by_lengths([(10, 1), (10, 2), (20, 1), (30, 1)])
    assert (both.singled_out, both.bits) == (1.0, 2.0)
