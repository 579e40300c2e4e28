"""Vocabulary matching: left to right, the token whose state after the recovered prefix fits best.

After Thomas et al., "Hidden No More" (ICML 2025, arXiv 2505.18332), made stronger where the noise's
sigma is known: candidates are weighed by

    log p(token | prefix) - |received - state(prefix, token)|^2 / (2 sigma^2)

which is, up to a constant, the logarithm of the posterior under a prior and Gaussian noise, and
several prefixes are kept (beam search). The prior is that of the public model that is attacked,
mixed with a little of any token: names and numbers are what a language model expects least.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from statistics import median
from typing import ClassVar, Final

import torch

from fedsea_mq.privacy.attacks.attack import Knowledge, Known, Seen
from fedsea_mq.privacy.attacks.public_model import Caches

# How many candidates are tried: the nearest out of context, and the likeliest to follow. Who knows
# sigma tries fewer of the nearest: twice as many as in texts of its own miss this share of tokens.
_NEAREST_ALONE: Final = 192
_IN_DOUBT: Final = 512
_NEAREST: Final = 384
_FEWEST: Final = 16
_LIKELY: Final = 64
# After other prefixes than the best one: the likeliest after that.
_AFTER_OTHERS: Final = 32
_MISSES: Final = 0.001
_TRIED_ON: Final = 24
_BEAMS: Final = 4
_AT_ONCE: Final = 2048
# A prefix that is e to the power of this less likely than the best is given up.
_HOPELESS: Final = 30.0
# The noise alone leaves a squared distance of about hidden * sigma^2; more than so many times that
# is not noise. Who does not know sigma takes it from what fitted before.
_FITS: Final = 1.5
_FITS_ALONE: Final = 1.05
# Of the prior, the share that is of any token alike.
_ANYTHING: Final = 0.2
# Rounding on the wire and in the head leaves a distance, too: of the states' RMS.
_ROUNDING: Final = 2e-3


# By position the log-likelihoods `[vocab]` of its tokens, up to a constant.
Evidence = Mapping[int, torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Beam:
    """A prefix, the logarithm of how likely it is, and what is likely to follow `[vocab]`."""

    tokens: tuple[int, ...]
    score: float
    caches: Caches
    following: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Tried:
    """Candidates after a prefix, `[ids]`.

    `before` is the logarithm of how likely each is before its state is looked at, `missed` the
    squared distance of its state to what was received.
    """

    beam: _Beam
    ids: torch.Tensor
    before: torch.Tensor
    missed: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Search:
    """One position: what was received there `[hidden]`, and what else is told of its token.

    `variance` is that of each element.
    """

    row: torch.Tensor
    position: int
    told: torch.Tensor | None
    variance: float


class _Matching(ABC):
    """The search that both attacks share; what they know makes the rest."""

    beams: ClassVar[int]
    # Of the noise, as far as it is known; and how many of the nearest are tried.
    _sigma: float
    _nearest: int

    def fit(self, known: Known) -> None:
        """Count what texts begin with."""
        self._model = known.model
        self._table = known.table
        counts = torch.ones(known.model.vocab, device=known.model.device)
        for tokens in known.shadow:
            counts[tokens[0]] += 1
        self._first = (counts / counts.sum()).log()

    def recover(self, seen: Seen, evidence: Evidence | None = None) -> list[int]:
        """See `Attack.recover`; `evidence` is what is known of tokens from elsewhere."""
        evidence = evidence or {}
        received = seen.received.to(self._model.device)
        positions = received.shape[0]
        variance = max(self._sigma, _ROUNDING * float(received.square().mean().sqrt())) ** 2
        spare = [self._model.caches(positions) for _ in range(2 * self.beams)]
        beams = [_Beam((), 0.0, spare[0], self._first)]
        missed: list[float] = []
        for position, row in enumerate(received):
            search = _Search(row, position, evidence.get(position), variance)
            tried = self._tried(search, beams)
            if _missed_least(tried) > self._fits(variance * len(row), missed):
                # None of them was what was sent: context makes more of a token than it is itself.
                tried = self._tried(search, beams, self._others(search))
            missed.append(_missed_least(tried))
            found = [way for one in tried for way in self._best(one, variance)]
            found.sort(key=lambda way: way[1], reverse=True)
            likely = [way for way in found[: self.beams] if way[1] > found[0][1] - _HOPELESS]
            beams = self._grown(likely, beams, spare, position)
        return list(beams[0].tokens)

    @abstractmethod
    def _fits(self, expected: float, missed: Sequence[float]) -> float:
        """The most that the squared distance of what was sent may be."""

    @abstractmethod
    def _others(self, search: _Search) -> torch.Tensor:
        """Candidates where none of the shortlist fits: `[ids]`."""

    @abstractmethod
    def _following(
        self, tokens: Sequence[int], caches: Sequence[Caches], position: int
    ) -> Iterable[torch.Tensor]:
        """Go on by these tokens; what is likely to follow each `[vocab]`."""

    def _near(self, row: torch.Tensor, position: int, count: int) -> torch.Tensor:
        distances = self._table.distances(row, position)
        return distances.topk(min(count, len(distances)), largest=False).indices

    def _tried(
        self, search: _Search, beams: Sequence[_Beam], ids: torch.Tensor | None = None
    ) -> list[_Tried]:
        """Candidates after each prefix, the best first: of `ids`, or of the shortlist."""
        first = self._tried_after(beams[0], search, ids)
        if len(beams) == 1:
            return [first]
        # Prefixes differ in few tokens: what is hopeless after the best is so after the others.
        scores = self._scores(first, search.variance)
        ids = first.ids[scores.topk(min(_AFTER_OTHERS, len(scores))).indices]
        return [first, *(self._tried_after(beam, search, ids) for beam in beams[1:])]

    def _tried_after(self, beam: _Beam, search: _Search, ids: torch.Tensor | None) -> _Tried:
        told = search.told
        before = beam.following if told is None else beam.following + told.to(beam.following)
        if ids is None:
            ids = self._shortlist(before, search.row, search.position)
        return _Tried(beam, ids, before[ids], self._missed(beam, ids, search.row, search.position))

    def _scores(self, tried: _Tried, variance: float) -> torch.Tensor:
        """The logarithm of how likely each candidate is after its prefix: `[ids]`."""
        return -tried.missed / (2 * variance)

    def _best(self, tried: _Tried, variance: float) -> Sequence[tuple[_Beam, float, int]]:
        """The best ways to go on: the logarithm of how likely each is, and the token."""
        beam, ids = tried.beam, tried.ids
        best = self._scores(tried, variance).topk(min(self.beams, len(ids)))
        ways = zip((beam.score + best.values).tolist(), ids[best.indices].tolist(), strict=True)
        return [(beam, score, token) for score, token in ways]

    def _missed(
        self, beam: _Beam, ids: torch.Tensor, row: torch.Tensor, position: int
    ) -> torch.Tensor:
        """Squared distance of each candidate's state to what was received: `[ids]`."""
        parts = [
            self._model.alternatives(part, beam.caches.head, position)
            for part in torch.split(ids, _AT_ONCE)
        ]
        return (torch.cat(parts) - row).square().sum(dim=-1)

    def _shortlist(self, before: torch.Tensor, row: torch.Tensor, position: int) -> torch.Tensor:
        """Candidates to begin with, `before` the state is looked at: `[ids]`."""
        return self._near(row, position, self._nearest)

    def _grown(
        self,
        found: Sequence[tuple[_Beam, float, int]],
        beams: Sequence[_Beam],
        spare: Sequence[Caches],
        position: int,
    ) -> list[_Beam]:
        used = {id(beam.caches) for beam in beams}
        free = [caches for caches in spare if id(caches) not in used][: len(found)]
        for (beam, _, _), caches in zip(found, free, strict=True):
            caches.copy_from(beam.caches, position)
        following = self._following([token for _, _, token in found], free, position)
        return [
            _Beam((*beam.tokens, token), score, caches, rows)
            for (beam, score, token), caches, rows in zip(found, free, following, strict=True)
        ]


class VocabularyMatching(_Matching):
    """The nearest token in context, one prefix."""

    name: ClassVar[str] = "vocabulary matching"
    knowledge: ClassVar[Knowledge] = Knowledge.WEIGHTS
    beams: ClassVar[int] = 1
    _sigma = 0.0
    _nearest = _NEAREST_ALONE

    def _fits(self, expected: float, missed: Sequence[float]) -> float:
        return _FITS_ALONE * max(median(missed), expected) if missed else 0.0

    def _others(self, search: _Search) -> torch.Tensor:
        return self._near(search.row, search.position, _IN_DOUBT)

    def _following(
        self, tokens: Sequence[int], caches: Sequence[Caches], position: int
    ) -> Iterable[torch.Tensor]:
        self._model.advance_head(tokens, caches, position)
        return repeat(self._first, len(tokens))  # which does not count here


class BeamMatching(_Matching):
    """The most likely text by the noise's sigma and a language model, several prefixes."""

    name: ClassVar[str] = "vocabulary matching, beam"
    knowledge: ClassVar[Knowledge] = Knowledge.SIGMA
    beams: ClassVar[int] = _BEAMS

    def fit(self, known: Known) -> None:
        """Count what texts begin with, and find out how near the right token is."""
        super().fit(known)
        self._sigma = known.sigma
        self._nearest = _reach(known)

    def _fits(self, expected: float, missed: Sequence[float]) -> float:
        return _FITS * expected

    def _others(self, search: _Search) -> torch.Tensor:
        return torch.arange(self._model.vocab, device=search.row.device)

    def _scores(self, tried: _Tried, variance: float) -> torch.Tensor:
        return super()._scores(tried, variance) + tried.before

    def _shortlist(self, before: torch.Tensor, row: torch.Tensor, position: int) -> torch.Tensor:
        near = super()._shortlist(before, row, position)
        likely = before.topk(min(_LIKELY, len(before))).indices
        return torch.tensor(sorted({*near.tolist(), *likely.tolist()}), device=row.device)

    def _following(
        self, tokens: Sequence[int], caches: Sequence[Caches], position: int
    ) -> Iterable[torch.Tensor]:
        likely = self._model.advance(tokens, caches, position).exp()
        return ((1 - _ANYTHING) * likely + _ANYTHING / self._model.vocab).log()


def _missed_least(tried: Sequence[_Tried]) -> float:
    return min(float(one.missed.min()) for one in tried)


def _reach(known: Known) -> int:
    """How many of the nearest hold the right token: found in shadow texts, noised alike."""
    noise, ranks = torch.Generator().manual_seed(0), list[int]()
    for tokens in known.shadow[:_TRIED_ON]:
        states = known.model.states(tokens).cpu()
        noised = states + known.sigma * torch.randn(states.shape, generator=noise)
        for position, (token, row) in enumerate(zip(tokens, noised, strict=True)):
            distances = known.table.distances(row.to(known.model.device), position)
            ranks.append(int((distances < distances[token]).sum()))
    far = torch.tensor(ranks).float().quantile(1 - _MISSES)
    return min(_NEAREST, max(_FEWEST, 2 * (int(far) + 1)))
