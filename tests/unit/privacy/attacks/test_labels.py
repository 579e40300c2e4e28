"""What the answer was, from the gradient that training sends back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedsea_mq.model.packed_attention import PackedLayout
from fedsea_mq.privacy.attacks.attack import Known, Seen
from fedsea_mq.privacy.attacks.gradient_matching import match_labels
from fedsea_mq.privacy.attacks.labels import GradientSeen, Labels, recover_labels
from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.privacy.attacks.vocabulary import BeamMatching
from fedsea_mq.settings import ModelSettings
from fedsea_mq.tasks.encoding import Encoded, Encoder
from fedsea_mq.tasks.registry import find
from fedsea_mq.tasks.task import Split, Wanted
from tests.conftest import MakeModel

ONE = Encoded((1, 17, 250, 99, 4, 250, 31), (180, 77, 17, 5, 222))
SEVERAL = [ONE, Encoded((1, 8, 8, 90), (61,)), Encoded((1, 33, 71), (200, 4, 4, 9, 290, 2))]


def public(path: str, cut: tuple[int, int] = (1, 1)) -> PublicModel:
    return PublicModel.load(ModelSettings(path=path, head_blocks=cut[0], tail_blocks=cut[1]))


def sent_back(
    model: PublicModel,
    examples: Sequence[Encoded],
    noise: float = 0.0,
    taught: PublicModel | None = None,
) -> list[GradientSeen]:
    """The true gradient of the mean loss over all answers, by torch, as fp16 brings it back.

    `noise` is in its RMS; `taught` has the tail that is used, by default the public one.
    """
    tail = (taught or model).tail
    lengths = tuple(len(one.ids) for one in examples)
    states = torch.cat([model.states(one.ids) for one in examples]).clone()
    layout = PackedLayout(lengths)
    with torch.no_grad():
        outputs = model.whole(model.trunk)(states, layout).half().float()
    outputs.requires_grad_()
    logits = tail.lm_head(tail.norm(tail.run.sequences(outputs, layout))).float()
    starts = [0, *accumulate(lengths)]
    pairs = list(zip(starts, examples, strict=False))
    rows = [at + len(one.prompt) - 1 + n for at, one in pairs for n in range(len(one.answer))]
    labels = [token for one in examples for token in one.answer]
    (gradient,) = torch.autograd.grad(cross_entropy(logits[rows], torch.tensor(labels)), outputs)
    drawn = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
    gradient = gradient + noise * gradient.square().mean().sqrt() * drawn
    largest = gradient.abs().max()
    on_the_wire = (gradient / largest).half().float() * largest
    parts = (states, outputs.detach(), on_the_wire)
    apart = zip(*(torch.split(rows, lengths) for rows in parts), strict=True)
    return [GradientSeen(*one) for one in apart]


def right(found: Sequence[Labels], examples: Sequence[Encoded]) -> float:
    """The share of the answers' tokens that were found."""
    hits = [
        one.by_position().get(position) == token
        for one, example in zip(found, examples, strict=True)
        for position, token in enumerate(example.answer, len(example.prompt))
    ]
    return sum(hits) / len(hits)


def embedded(model: PublicModel, count: int) -> list[Encoded]:
    encoder = Encoder(model.checkpoint.tokenizer, 200)
    drawn = find("embedded").source.examples(Wanted(Split.VALIDATION, count, 3))
    return [encoder.training(example) for example in drawn][:count]


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("cut", [(1, 0), (1, 1), (1, 2)])
def test_every_label_and_no_other_is_read_from_a_gradient_without_noise(
    make_model: MakeModel, family: str, cut: tuple[int, int]
) -> None:
    model = public(str(make_model(family)), cut)
    for examples in ([ONE], SEVERAL):
        for found, example in zip(
            recover_labels(model, sent_back(model, examples)), examples, strict=True
        ):
            wanted = dict(enumerate(example.answer, len(example.prompt)))
            assert found.by_position() == wanted


def test_the_embedded_models_answers_are_read_whole() -> None:
    model = public("embedded")
    examples = embedded(model, 6)
    assert right(recover_labels(model, sent_back(model, examples)), examples) >= 0.99


def test_noise_on_gradients_hides_labels_only_where_it_is_loud(make_model: MakeModel) -> None:
    model = public(str(make_model("llama")))
    found = {
        noise: right(recover_labels(model, sent_back(model, SEVERAL, noise)), SEVERAL)
        for noise in (0.1, 30.0)
    }
    assert found[0.1] == 1.0
    assert found[30.0] < 0.5


def test_a_tail_that_has_learned_something_else_still_gives_labels_away() -> None:
    model, taught = public("embedded"), public("embedded")
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in taught.tail.run.parameters():
            if weight.dim() == 2:
                size = float(weight.square().mean().sqrt())
                weight.add_(0.3 * size * torch.randn(weight.shape, generator=drawn))
    examples = embedded(model, 4)
    assert right(recover_labels(model, sent_back(model, examples, 0, taught)), examples) > 0.8


def test_what_states_leave_open_the_gradient_tells_and_the_other_way_round(
    make_model: MakeModel,
) -> None:
    model = public(str(make_model("llama")))
    step = sent_back(model, SEVERAL)
    sigma = float(step[0].received.square().mean().sqrt())
    matching = BeamMatching()
    matching.fit(Known(model, sigma, [one.ids[:1] for one in SEVERAL]))
    drawn = torch.Generator().manual_seed(2)
    alone, both, gradient_alone = 0, 0, 0
    labels = recover_labels(model, step)
    for example, seen, found in zip(SEVERAL, step, labels, strict=True):
        noised = seen.received + sigma * torch.randn(seen.received.shape, generator=drawn)
        states = Seen(noised, seen.outputs, len(example.ids))
        first, second = matching.recover(states), matching.recover(states, found.told())
        assert tuple(second[len(example.prompt) :]) == example.answer
        alone += sum(a == b for a, b in zip(first, example.ids, strict=True))
        both += sum(a == b for a, b in zip(second, example.ids, strict=True))
        gradient_alone += len(example.answer)
    assert both > alone
    assert both > gradient_alone  # and something of the prompts


def test_matching_the_gradient_finds_labels_without_taking_it_apart(make_model: MakeModel) -> None:
    model = public(str(make_model("llama")))
    (found,) = match_labels(model, sent_back(model, [ONE]))
    wanted = dict(enumerate(ONE.answer, len(ONE.prompt)))
    assert len(wanted.items() & found.items()) >= 4
