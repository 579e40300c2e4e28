"""Noise: a normal distribution, one draw a token prefix, and no way to predict or repeat it."""

from __future__ import annotations

import inspect
import math
import os
from itertools import pairwise

import pytest
import torch

from fedsea_mq.privacy.noise import NoiseChain, NoiseSource, fresh_noise, typical_rms

HIDDEN = 64
KEY = bytes(range(32))


def fixed(size: int) -> bytes:
    return KEY[:size]


def source(std: float = 1.0, domain: str = "model 1+1", key: bytes | None = KEY) -> NoiseSource:
    return NoiseSource(std, domain, fixed) if key is KEY else NoiseSource(std, domain)


def noise(drawn_by: NoiseSource, tokens: list[int], hidden: int = HIDDEN) -> torch.Tensor:
    """`[tokens, hidden]` of noise alone."""
    return drawn_by.add(torch.zeros(len(tokens), hidden), drawn_by.chain().extend(0, tokens))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


class TestDistribution:
    @pytest.mark.parametrize("std", [0.1, 1.0, 25.0])
    def test_it_has_the_moments_of_a_normal(self, std: float) -> None:
        drawn = noise(source(std), list(range(2000)), 128).double().flatten() / std
        count = drawn.numel()
        assert drawn.mean().item() == pytest.approx(0, abs=5 / math.sqrt(count))
        assert drawn.std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * count))
        assert (drawn**3).mean().item() == pytest.approx(0, abs=5 * math.sqrt(15 / count))
        assert (drawn**4).mean().item() == pytest.approx(3, abs=5 * math.sqrt(96 / count))

    def test_its_quantiles_are_a_normals(self) -> None:
        drawn = noise(source(), list(range(2000)), 128).flatten()
        for z, share in [(-2.0, 0.02275), (-1.0, 0.15866), (0.0, 0.5), (1.0, 0.84134)]:
            assert (drawn < z).float().mean().item() == pytest.approx(share, abs=0.004)

    def test_neighbouring_elements_and_positions_are_independent(self) -> None:
        drawn = noise(source(), list(range(1000)), HIDDEN)
        limit = 5 / math.sqrt(drawn.numel())
        assert abs(correlation(drawn[:, :-1], drawn[:, 1:])) < limit
        assert abs(correlation(drawn[:-1], drawn[1:])) < limit
        # Box-Muller makes pairs: their sizes must not go together either.
        assert abs(correlation(drawn[:, 0::2] ** 2, drawn[:, 1::2] ** 2)) < 2 * limit

    def test_an_odd_width_is_filled_to_the_last_element(self) -> None:
        drawn = noise(source(), list(range(50)), 7)
        assert drawn.shape == (50, 7)
        assert (drawn != 0).all()

    def test_it_is_added_in_fp32(self) -> None:
        half = torch.full((1, HIDDEN), 3.0, dtype=torch.bfloat16)
        drawn = source()
        digests = drawn.chain().extend(0, [5])
        assert torch.equal(drawn.add(half, digests), 3.0 + noise(drawn, [5]))


class TestSamePrefix:
    def test_the_same_tokens_in_another_session_carry_the_same_noise(self) -> None:
        one = source()
        assert torch.equal(noise(one, [5, 6, 7]), noise(one, [5, 6, 7]))

    def test_chunks_carry_the_noise_of_the_whole(self) -> None:
        one = source()
        chain, parts = one.chain(), []
        for start, tokens in [(0, [5, 6]), (2, [7]), (3, [8, 9])]:
            digests = chain.extend(start, tokens)
            parts.append(one.add(torch.zeros(len(tokens), HIDDEN), digests))
        assert torch.equal(torch.cat(parts), noise(one, [5, 6, 7, 8, 9]))

    def test_a_rollback_and_the_same_token_again_draws_nothing_new(self) -> None:
        chain = source().chain()
        first = chain.extend(0, [5, 6, 7])
        assert chain.extend(1, [6, 7]) == first[1:]
        assert chain.extend(1, [9]) != first[1:2]
        assert chain.extend(1, [6, 7]) == first[1:]

    def test_a_chain_forgets_what_lies_behind_where_it_is_extended(self) -> None:
        chain = source().chain()
        chain.extend(0, [5, 6, 7])
        chain.extend(1, [6])
        assert len(chain.digests) == 3

    def test_a_head_with_an_adapter_has_a_chain_of_its_own(self) -> None:
        drawn = source()
        formal, short = drawn.chain("ab" * 32), drawn.chain("cd" * 32)
        assert drawn.chain("ab" * 32).extend(0, [5]) == formal.extend(0, [5])
        ends = [chain.extend(0, [5])[0] for chain in (drawn.chain(), formal, short)]
        assert len(set(ends)) == 3


UNRELATED = {
    "another token": (source(), [5, 6, 8]),
    "another prefix": (source(), [4, 6, 7]),
    "another order": (source(), [6, 5, 7]),
    "another position": (source(), [6, 7]),
    "another std": (source(std=2.0), [5, 6, 7]),
    "nearly the same std": (source(std=math.nextafter(1.0, 2.0)), [5, 6, 7]),
    "another domain": (source(domain="model 1+2"), [5, 6, 7]),
    "another client": (source(key=None), [5, 6, 7]),
}


@pytest.mark.parametrize(("other", "tokens"), UNRELATED.values(), ids=UNRELATED)
def test_anything_else_gets_independent_noise(other: NoiseSource, tokens: list[int]) -> None:
    width = 4096
    first = noise(source(), [5, 6, 7], width)[-1]
    second = noise(other, tokens, width)[-1] / other.std
    assert abs(correlation(first, second)) < 5 / math.sqrt(width)
    assert not (first == second).any()


def test_long_prefixes_that_end_alike_differ() -> None:
    one = source()
    ends = [one.chain().extend(0, [first, *range(50)])[-1] for first in range(20)]
    assert all(a != b for a, b in pairwise(ends))
    assert len(set(ends)) == 20


def test_off_changes_no_bit() -> None:
    states = torch.randn(3, HIDDEN)
    quiet = NoiseSource(0.0, "model")
    assert torch.equal(quiet.add(states, quiet.chain().extend(0, [1, 2, 3])), states)


class TestEntropy:
    def test_it_comes_from_the_operating_system_unless_a_test_says_otherwise(self) -> None:
        assert inspect.signature(NoiseSource).parameters["entropy"].default is os.urandom

    def test_there_is_no_seed_to_be_given(self) -> None:
        named = [
            name
            for thing in (NoiseSource, NoiseSource.add, NoiseSource.chain, NoiseChain.extend)
            for name in inspect.signature(thing).parameters
        ]
        assert not [name for name in named if "seed" in name or "generator" in name]

    def test_a_whole_key_is_drawn(self) -> None:
        asked: list[int] = []

        def counting(size: int) -> bytes:
            asked.append(size)
            return os.urandom(size)

        NoiseSource(1.0, "model", counting)
        assert asked == [32]

    def test_torchs_seed_has_no_say_in_it(self) -> None:
        drawn = []
        for _ in range(2):
            torch.manual_seed(0)
            drawn.append(noise(source(key=None), [5]))
        assert not torch.equal(drawn[0], drawn[1])

    def test_every_digest_depends_on_the_key(self) -> None:
        assert source().chain().digests != source(key=None).chain().digests


def test_the_typical_rms_is_not_moved_by_one_huge_state() -> None:
    states = torch.ones(9, HIDDEN) * 2
    states[0] = 1e4
    assert typical_rms(states) == 2.0


def test_fresh_noise_is_normal_and_never_the_same() -> None:
    like = torch.zeros(999, 129)
    drawn = fresh_noise(like, 3.0)
    assert drawn.shape == like.shape
    assert float(drawn.std()) == pytest.approx(3.0, rel=0.02)
    assert float(drawn.mean().abs()) < 0.05
    assert abs(correlation(drawn, fresh_noise(like, 3.0))) < 0.02
    assert torch.equal(fresh_noise(like, 3.0, fixed), fresh_noise(like, 3.0, fixed))
