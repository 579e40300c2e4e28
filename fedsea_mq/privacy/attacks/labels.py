"""Labels from the gradient that the tail sends back: what an example's answer was.

The trunk knows the outputs `u` that it sent, and with public weights the tail's logits `z(u)`. A
loss that is a mean over `M` answer tokens has the gradient by `u`

    G = sum over rows t that carry a loss of  J_t^T (softmax(z_t) - onehot(label_t)) / M

where `J_t` is the Jacobian of `z_t`. The tail is causal: `J_t` reaches rows up to `t` only. So the
last row that carries a loss is explained by its own label alone, and going backwards each row is,
once what later rows add to it is taken away. No search over texts is needed, and noise on the
states that the trunk received changes nothing: it knows what it sent. Related are label inference
from gradients (iDLG, Zhao et al., arXiv 2001.02610) and the backward half of BiSR (Chen et al.,
CCS 2024, arXiv 2409.00960).

What the attacker knows beside the weights is the format of training: in each sequence the loss is
on one answer, which goes to the sequence's end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import torch

from fedsea_mq.model.attention import Span
from fedsea_mq.model.packed_attention import PackedLayout
from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.privacy.attacks.vocabulary import Evidence

# fp16 on the wire, of a row's RMS; and of the batch's largest magnitude, where numbers are too
# small for fp16's full precision.
_ROUNDING: Final = 1e-3
_SMALLEST: Final = 2.0**-25
# In nats. Where the model was sure of a token its row says next to nothing: the answer is taken to
# be as long as it can be without being so much less likely than the likeliest...
_PLAUSIBLE: Final = 3.0
# ...and no more rows are looked at once it is so much less likely.
_HOPELESS: Final = 30.0
_ROUNDS: Final = 3
# How far a row's scale may well be from the typical one, in those.
_SPREAD: Final = 2.0
# What the public tail has wrong where it is not the one that is used, before anything is seen.
_STRANGE: Final = 0.2
# Scales of their own for all rows must explain so much more of the gradient.
_BETTER: Final = 0.02
_AT_ONCE: Final = 4096
# What is said against a label at most, beside the best one.
_AT_MOST: Final = 100.0


@dataclass(frozen=True, slots=True)
class GradientSeen:
    """One sequence in training, as the trunk saw it: all `[positions, hidden]`, fp32.

    `received` are its states, `outputs` what the trunk answered, `gradient` what came back: that of
    the loss by the outputs.
    """

    received: torch.Tensor
    outputs: torch.Tensor
    gradient: torch.Tensor


@dataclass(frozen=True, slots=True)
class Labels:
    """What was found of one sequence: `tokens` stand at its positions from `start` to its end.

    `evidence` `[tokens, vocab]` is the log-likelihood of each token of the vocabulary by the
    gradient alone, up to a constant.
    """

    start: int
    tokens: tuple[int, ...]
    evidence: torch.Tensor

    def by_position(self) -> dict[int, int]:
        """The tokens by the position that they are at."""
        return dict(enumerate(self.tokens, self.start))

    def told(self) -> Evidence:
        """The evidence by position, for a search that has other evidence as well.

        It is bounded: where the tail is not the public one, less is sure than it looks.
        """
        best = self.evidence.amax(dim=-1, keepdim=True)
        return dict(enumerate((self.evidence - best).clamp_min(-_AT_MOST), self.start))


def recover_labels(model: PublicModel, step: Sequence[GradientSeen]) -> list[Labels]:
    """The answers of all sequences of one optimiser step.

    How many answer tokens the loss was a mean over is found as well: first from the last rows,
    which all carry a loss; then from how many rows were found to carry one. Where that explains
    less than a scale of its own for each row, the tail is not the public one any more: training has
    made it surer of some tokens, which makes their rows smaller and turns them little.
    """
    noise = _noise(step)
    seen = [_Sequence(model, one, noise, _largest(step)) for one in step]
    count = _answer_tokens(seen)
    alike = _alike(seen, count)
    every = sum(float(one.gradient.square().sum()) for one in step)
    explainable = alike.unexplained - noise * sum(one.gradient.numel() for one in step)
    if explainable < _BETTER * every:
        return alike.labels
    apart = _Step([one.labels(_Scale(1 / count, 1 / len(seen))) for one in seen])
    explains_more = alike.unexplained - apart.unexplained > _BETTER * every
    return (apart if explains_more else alike).labels


def _alike(seen: Sequence[_Sequence], count: int) -> _Step:
    """With the same scale for all rows: one over the number of answer tokens."""
    best = _Step([one.labels(_Scale(1 / count)) for one in seen])
    for _ in range(_ROUNDS):
        if best.likeliest <= count <= best.longest:
            break
        count = best.likeliest
        other = _Step([one.labels(_Scale(1 / count)) for one in seen])
        if other.score <= best.score:
            break
        best = other
    return best


def _largest(step: Sequence[GradientSeen]) -> float:
    return max(float(one.gradient.abs().max()) for one in step)


def _noise(step: Sequence[GradientSeen]) -> float:
    """Variance of noise on the gradient. Nothing else is on a sequence's last row."""
    return float(torch.stack([one.gradient[-1] for one in step]).square().mean())


def _answer_tokens(seen: Sequence[_Sequence]) -> int:
    """The number that explains the last rows best, with the label that fits each best."""
    most = sum(one.positions for one in seen)
    counts = torch.arange(len(seen), most + 1, dtype=torch.float32)
    total = sum((one.last_row(counts) for one in seen), torch.zeros(len(counts)))
    return int(counts[total.argmax()])


@dataclass(frozen=True, slots=True)
class _Found:
    """Of a sequence: the longest plausible answer, how long the likeliest is, how well that fits.

    `unexplained` is the squared norm of the gradient without what the answer explains.
    """

    labels: Labels
    likeliest: int
    score: float
    unexplained: float


@dataclass(frozen=True, slots=True)
class _Step:
    """The same of all sequences."""

    found: Sequence[_Found]

    @property
    def labels(self) -> list[Labels]:
        return [one.labels for one in self.found]

    @property
    def likeliest(self) -> int:
        return sum(one.likeliest for one in self.found)

    @property
    def longest(self) -> int:
        return sum(len(one.labels.tokens) for one in self.found)

    @property
    def score(self) -> float:
        return sum(one.score for one in self.found)

    @property
    def unexplained(self) -> float:
        return sum(one.unexplained for one in self.found)


@dataclass(frozen=True, slots=True)
class _Scale:
    """What rows are multiplied by: the same for all, or what fits, up to `most`."""

    typical: float
    most: float | None = None

    @property
    def is_free(self) -> bool:
        return self.most is not None

    def of(
        self, rows: torch.Tensor, left: torch.Tensor, variance: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """For each of `rows` `[labels, hidden]` the likeliest, `[labels, 1]`, with that noise.

        And what it costs in nats, `[labels]`, that a scale was chosen: by how far it is from the
        typical one, and by how many it was chosen from (the marginal likelihood, by Laplace).
        """
        if self.most is None:
            scales = torch.full_like(rows[:, :1], self.typical)
            return scales, torch.zeros_like(scales[:, 0])
        sure = rows.square().sum(dim=-1, keepdim=True) / variance
        fits = (rows @ left)[:, None] / variance
        likeliest = (fits + self.typical * self._before) / (sure + self._before)
        scales = likeliest.clamp(0, self.most)
        far = self._before * (scales - self.typical).square() / 2
        return scales, (far + (1 + sure / self._before).log() / 2)[:, 0]

    @property
    def _before(self) -> float:
        """How sure the typical scale is, before anything is seen: one over a variance."""
        return 1 / (_SPREAD * self.typical) ** 2


@dataclass(frozen=True, slots=True)
class _Guess:
    """What a row says: its best label, and by how many nats that is likelier than no loss.

    `evidence` `[vocab]` and `none` are the log-likelihoods of each label and of no loss, up to a
    common constant.
    """

    token: int
    scale: float
    worth: float
    evidence: torch.Tensor
    none: float
    missed: float
    """The share of the row's squared norm that the label leaves."""

    def said(self, *, surely: bool) -> torch.Tensor:
        """Of each token `[vocab]`; where the row may carry no loss, it may say nothing."""
        if surely:
            return self.evidence
        return torch.logaddexp(self.evidence, torch.tensor(self.none))


@dataclass(frozen=True, slots=True)
class _Row:
    """What each label would put on its own row, times the number of answer tokens.

    `jacobian` `[hidden, hidden]` is of what goes into lm_head by the row, `weight`
    `[vocab, hidden]` is lm_head's, and `mean` `[hidden]` what the model's own probabilities put on
    the row.
    """

    jacobian: torch.Tensor
    weight: torch.Tensor
    mean: torch.Tensor

    def of_labels(self) -> Iterator[torch.Tensor]:
        """`[labels, hidden]`, some labels after the others: all at once may be very large."""
        for weight in torch.split(self.weight, _AT_ONCE):
            yield self.mean - weight.float() @ self.jacobian

    def fitted(
        self, left: torch.Tensor, scale: _Scale, variance: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each label the scale, its cost, and the squared distance to what is left.

        All three are `[vocab]`.
        """
        parts = []
        for rows in self.of_labels():
            scales, cost = scale.of(rows, left, variance)
            missed = (left - scales * rows).square().sum(dim=-1)
            parts.append((scales[:, 0], cost, missed))
        scales, cost, missed = (torch.cat(part) for part in zip(*parts, strict=True))
        return scales, cost, missed

    def products(self, left: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each label's row with what is left, and with itself: `[vocab]` both."""
        both = [(rows @ left, rows.square().sum(dim=-1)) for rows in self.of_labels()]
        with_left, with_itself = zip(*both, strict=True)
        return torch.cat(with_left), torch.cat(with_itself)


class _Sequence:
    def __init__(self, model: PublicModel, one: GradientSeen, noise: float, largest: float) -> None:
        self._model = model
        self._gradient = one.gradient.to(model.device)
        self.positions, self._hidden = one.gradient.shape
        small = (_SMALLEST * largest) ** 2
        rounding = (_ROUNDING**2) * self._gradient.square().mean(dim=-1)
        self._variance = noise + small + rounding
        run, tail = model.tail.run, model.tail
        self._inputs = one.outputs.to(model.device, run.dtype).requires_grad_()
        states = model.whole(run)(self._inputs, PackedLayout((self.positions,)))
        self._logits = tail.lm_head(tail.norm(states)).float()
        self._log_p = self._logits.detach().log_softmax(dim=-1)
        self._cache = run.new_cache(self.positions)
        with torch.no_grad():
            span = Span(self._cache, 0, self.positions, adapter=model.adapter)
            tail(self._inputs.detach(), [span])
        self._rows: dict[int, _Row] = {}

    def _row(self, at: int) -> _Row:
        """As many copies of one row as it is wide give the Jacobian in one backward pass."""
        if at not in self._rows:
            tail, wide = self._model.tail, self._inputs.shape[1]
            copies = self._inputs[at].detach().expand(wide, -1).clone().requires_grad_()
            states = tail.run.alternatives(copies, self._cache, at, self._model.adapter)
            normed = tail.norm(states)
            (jacobian,) = torch.autograd.grad(normed, copies, torch.eye(wide).to(normed))
            jacobian, weight = jacobian.float(), torch.as_tensor(tail.lm_head.weight)
            expected = (self._log_p[at].exp().to(weight) @ weight).float()
            self._rows[at] = _Row(jacobian, weight, expected @ jacobian)
        return self._rows[at]

    def last_row(self, counts: torch.Tensor) -> torch.Tensor:
        """How well each number of answer tokens explains the last row with a loss: `[counts]`."""
        at = self.positions - 2
        left, row = self._gradient[at], self._row(at)
        with_left, with_itself = row.products(left)
        scale = 1 / counts.to(left)[:, None]
        missed = left.square().sum() - 2 * scale * with_left + scale**2 * with_itself
        least = missed.amin(dim=1).clamp_min(0) / self._hidden
        variance = least.clamp_min(float(self._variance[at]))
        fits = -missed / (2 * variance[:, None]) + self._log_p[at]
        best: torch.Tensor = fits.amax(dim=1) - self._hidden / 2 * variance.log()
        return best.cpu()

    def labels(self, scale: _Scale) -> _Found:
        """The answer, if rows are multiplied by this."""
        cotangent = torch.zeros_like(self._logits)
        found: list[_Guess] = []
        scores: list[float] = []
        for at in range(self.positions - 2, -1, -1):
            known = self._known(cotangent)[at]
            guess = self._guess(at, known, scale, self._strange(found) if scale.is_free else 0.0)
            # The last row carries a loss, whatever it says.
            scores.append(scores[-1] + guess.worth if scores else 0.0)
            found.append(guess)
            if scores[-1] < max(scores) - _HOPELESS:
                break
            cotangent[at] = self._log_p[at].exp() * guess.scale
            cotangent[at, guess.token] -= guess.scale
        best = max(scores)
        likeliest = scores.index(best) + 1
        longest = max(n for n, score in enumerate(scores, 1) if score >= best - _PLAUSIBLE)
        cotangent[: self.positions - 1 - longest] = 0
        answer = list(enumerate(found[:longest]))[::-1]
        labels = Labels(
            self.positions - longest,
            tuple(guess.token for _, guess in answer),
            torch.stack([guess.said(surely=place < likeliest) for place, guess in answer]),
        )
        unexplained = float((self._gradient - self._known(cotangent)).square().sum())
        return _Found(labels, likeliest, best, unexplained)

    def _known(self, cotangent: torch.Tensor) -> torch.Tensor:
        """What the rows whose label is known put on all rows."""
        (known,) = torch.autograd.grad(self._logits, self._inputs, cotangent, retain_graph=True)
        return known.float()

    @staticmethod
    def _strange(found: Sequence[_Guess]) -> float:
        """What share of a row's square the public tail has wrong, as a variance."""
        return fmean([_STRANGE, *(one.missed for one in found if one.worth > 0)])

    def _guess(self, at: int, known: torch.Tensor, scale: _Scale, strange: float) -> _Guess:
        """What a row says, where `known` is what later rows put on it.

        What the weights do not explain, as where the tail has adapters, is taken for noise.
        """
        left = self._gradient[at] - known
        both = left.square().mean() + known.square().mean()
        expected = float(self._variance[at] + strange * both)
        scales, cost, missed = self._row(at).fitted(left, scale, expected)
        without = float(left.square().sum())
        least = min(float(missed.min()), without) / self._hidden
        variance = max(expected, least)
        evidence = -missed / (2 * variance) - cost
        none = -without / (2 * variance)
        fits = evidence + self._log_p[at]
        token = int(fits.argmax())
        share = float(missed[token]) / without if without else 0.0
        worth = float(fits[token]) - none
        return _Guess(token, float(scales[token]), worth, evidence.cpu(), none, share)
