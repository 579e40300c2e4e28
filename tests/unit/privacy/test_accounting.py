"""Epsilon: the published formula, and a refusal wherever it would not be true."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from fedsea_mq.errors import ConfigError
from fedsea_mq.privacy.accounting import (
    ADJACENCY,
    affected_positions,
    privacy_of,
    privacy_of_sessions,
    privacy_of_training,
)
from fedsea_mq.privacy.noise import NoiseSource
from fedsea_mq.privacy.noise_shape import NoiseShape

pytest.importorskip("dp_accounting")


def noise(std: float, clip: float | None = 0.5, shape: NoiseShape | None = None) -> NoiseSource:
    return NoiseSource(std, "model", clip=clip, shape=shape)


def delta_of(epsilon: float, ratio: float) -> float:
    """Balle and Wang, theorem 8, for a ratio of sensitivity to sigma."""

    def log_phi(at: float) -> float:
        return float(torch.special.log_ndtr(torch.tensor(at, dtype=torch.float64)))

    # In logarithms: e^epsilon itself overflows where epsilon is large.
    minus = math.exp(epsilon + log_phi(-ratio / 2 - epsilon / ratio))
    return math.exp(log_phi(ratio / 2 - epsilon / ratio)) - minus


@pytest.mark.parametrize(
    ("sigma", "epsilon"),
    [
        # Sigma that the algorithm published with the paper gives for epsilon 1, delta 1e-5.
        (3.730631634816464, 1.0),
        # The Gaussian mechanism of sensitivity 1 and sigma 1 at delta 1e-5.
        (1.0, 4.377178),
    ],
)
def test_published_numbers(sigma: float, epsilon: float) -> None:
    said = privacy_of(noise(sigma), positions=1, delta=1e-5)
    assert said.epsilon == pytest.approx(epsilon, rel=1e-6)


@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.1])
@pytest.mark.parametrize(
    ("sigma", "positions", "releases"), [(8.0, 1, 1), (3.0, 9, 4), (0.1, 60, 1)]
)
def test_it_is_the_formulas_epsilon(
    sigma: float, positions: int, releases: int, delta: float
) -> None:
    said = privacy_of(noise(sigma), positions=positions, delta=delta, releases=releases)
    ratio = math.sqrt(positions * releases) / sigma
    if said.epsilon == 0:
        assert delta_of(0.0, ratio) <= delta
    else:
        assert delta_of(said.epsilon, ratio) == pytest.approx(delta, rel=1e-4)
        # The bound is tight: a little less would not hold.
        assert delta_of(0.999 * said.epsilon, ratio) > delta


def test_it_says_what_it_is_of() -> None:
    said = privacy_of(noise(2.0, 0.25), positions=7, delta=1e-6, releases=3)
    assert (said.clip, said.sigma, said.positions, said.releases) == (0.25, 2.0, 7, 3)
    assert (said.delta, said.adjacency) == (1e-6, ADJACENCY)


def test_positions_and_releases_compose_alike() -> None:
    one, other, wider = (
        privacy_of(noise(2.0), positions=12, delta=1e-5, releases=3).epsilon,
        privacy_of(noise(2.0), positions=36, delta=1e-5).epsilon,
        privacy_of(noise(2.0, 3.0), positions=1, delta=1e-5).epsilon,
    )
    assert one == other == pytest.approx(wider)


def test_what_is_too_large_to_compute_is_said_to_be_infinite() -> None:
    assert privacy_of(noise(1e-7), positions=1, delta=1e-5).epsilon == math.inf
    assert privacy_of(noise(1e-5), positions=1, delta=1e-5).epsilon > 5e9


class TestAffected:
    def test_of_one_sequence_it_is_all_that_is_not_public(self) -> None:
        assert affected_positions([[1, 2, 3, 4]]) == 4
        assert affected_positions([[1, 2, 3, 4]], public=1) == 3
        assert affected_positions([[1]], public=1) == 0

    def test_what_is_sent_again_as_the_same_bytes_counts_once(self) -> None:
        assert affected_positions([[1, 2, 3], [1, 2, 3], [1, 2]]) == 3
        # A regenerated answer: two ways to go on.
        assert affected_positions([[1, 2, 3], [1, 2, 4, 5]]) == 5

    def test_the_worst_token_counts_and_not_all_sequences(self) -> None:
        apart = [[1, 2, 3], [4, 5], [6]]
        assert affected_positions(apart) == 3
        assert affected_positions([[0, *tokens] for tokens in apart]) == 7
        assert affected_positions([[0, *tokens] for tokens in apart], public=1) == 3

    def test_sessions_are_accounted_by_them(self) -> None:
        said = privacy_of_sessions(noise(2.0), [[0, 1, 2], [0, 3]], delta=1e-5, public=1)
        assert said == privacy_of(noise(2.0), positions=2, delta=1e-5)
        again = privacy_of_sessions(noise(2.0), [[1, 2]], delta=1e-5, processes=4)
        assert (again.positions, again.releases) == (2, 4)


class TestRefusals:
    @pytest.mark.parametrize(
        ("source", "said"),
        [(noise(1.0, None), r"noise\.clip"), (noise(0.0), "noise in every direction")],
    )
    def test_without_clip_or_noise(self, source: NoiseSource, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            privacy_of(source, positions=1, delta=1e-5)

    @pytest.mark.parametrize(
        ("positions", "releases", "delta"), [(0, 1, 0.1), (1, 0, 0.1), (1, 1, 0.0), (1, 1, 1.0)]
    )
    def test_of_nothing(self, positions: int, releases: int, delta: float) -> None:
        with pytest.raises(ConfigError):
            privacy_of(noise(1.0), positions=positions, delta=delta, releases=releases)

    @pytest.mark.parametrize(
        ("head", "gradients", "said"),
        [(True, True, "head trains"), (True, False, "head trains"), (False, True, "gradients")],
    )
    def test_of_training(self, head: bool, gradients: bool, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            privacy_of_training(
                noise(1.0), [[1, 2]], delta=1e-5, head_trains=head, sends_gradients=gradients
            )

    def test_states_that_are_the_same_each_time_are_sent_once(self) -> None:
        said = privacy_of_training(
            noise(1.0), [[1, 2]], delta=1e-5, head_trains=False, sends_gradients=False
        )
        assert said == privacy_of(noise(1.0), positions=2, delta=1e-5)

    def test_without_the_library_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "dp_accounting", None)
        with pytest.raises(ConfigError, match="the extra audit"):
            privacy_of(noise(1.0), positions=1, delta=1e-5)


class TestShape:
    def test_the_direction_with_the_least_noise_counts(self) -> None:
        root = torch.diag(torch.tensor([0.5, 1.0, math.sqrt(1.75)]))
        said = privacy_of(noise(3.0, 0.5, NoiseShape(root, "a")), positions=4, delta=1e-5)
        assert said.sigma == pytest.approx(1.5)
        plain = privacy_of(noise(1.5), positions=4, delta=1e-5)
        assert said.epsilon == pytest.approx(plain.epsilon)

    def test_a_direction_without_noise_has_no_epsilon(self) -> None:
        turned, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)))
        root = turned @ torch.diag(torch.tensor([0.0, 1.0, math.sqrt(2.0)])) @ turned.T
        with pytest.raises(ConfigError, match="every direction"):
            privacy_of(noise(3.0, 0.5, NoiseShape(root, "a")), positions=4, delta=1e-5)


def test_importing_it_does_not_import_the_library() -> None:
    script = "import sys, fedsea_mq.privacy.accounting; print('dp_accounting' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
