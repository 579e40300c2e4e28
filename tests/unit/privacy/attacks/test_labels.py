"""What the answer was, from the gradient that training sends back."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedsea_mq.model.packed_attention import PackedLayout
from fedsea_mq.privacy.attacks.labels import GradientSeen, LabelMatching
from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.settings import ModelSettings
from tests.conftest import MakeModel

TOKENS = (1, 17, 250, 99, 4, 250, 31, 180, 77, 17, 5, 222)
ANSWER = 7  # from here on


def sent_back(model: PublicModel, tokens: tuple[int, ...] = TOKENS) -> GradientSeen:
    """States, outputs and the true gradient, by the unsplit formula."""
    layout = PackedLayout((len(tokens),))
    states = model.states(tokens).clone()
    with torch.no_grad():
        outputs = model.whole(model.trunk)(states, layout)
    outputs.requires_grad_()
    logits = model.tail.lm_head(model.tail.norm(model.whole(model.tail.run)(outputs, layout)))
    loss = cross_entropy(logits[ANSWER - 1 : -1].float(), torch.tensor(tokens[ANSWER:]))
    (gradient,) = torch.autograd.grad(loss, outputs)
    return GradientSeen(states, outputs.detach(), gradient)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("cut", [(1, 0), (1, 1), (1, 2)])
def test_every_label_and_no_other_is_read_from_a_gradient_without_noise(
    make_model: MakeModel, family: str, cut: tuple[int, int]
) -> None:
    folder = str(make_model(family))
    model = PublicModel.load(ModelSettings(path=folder, head_blocks=cut[0], tail_blocks=cut[1]))
    seen = sent_back(model)
    half = GradientSeen(seen.received, seen.outputs, seen.gradient.half().float())
    wanted = dict(enumerate(TOKENS[ANSWER:], ANSWER))
    assert LabelMatching(model).recover(seen) == wanted
    assert LabelMatching(model).recover(half) == wanted


def test_noise_on_gradients_hides_labels_only_where_it_is_loud(make_model: MakeModel) -> None:
    model = PublicModel.load(ModelSettings(path=str(make_model("llama"))))
    seen = sent_back(model)
    rms = float(seen.gradient.square().mean().sqrt())
    wanted = set(enumerate(TOKENS[ANSWER:], ANSWER))
    found = {}
    for noise in (0.1, 30.0):
        drawn = torch.randn(seen.gradient.shape, generator=torch.Generator().manual_seed(0))
        noised = GradientSeen(seen.received, seen.outputs, seen.gradient + noise * rms * drawn)
        found[noise] = len(wanted & set(LabelMatching(model, noise).recover(noised).items()))
    assert found[0.1] == len(wanted)
    assert found[30.0] < len(wanted) / 2
