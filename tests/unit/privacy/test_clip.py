"""Clipping: a bound on every state, noise that is of the bound, and autograd's own gradient."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from fedsea_mq.errors import ConfigError
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.privacy.noise import NoiseSource, clip_gradient, clipped, noise_source
from fedsea_mq.privacy.noise_shape import write_shape
from fedsea_mq.privacy.scale import NoiseMode, clip_bound
from fedsea_mq.settings import NoiseSettings, Settings
from nodes.client.engine import load

HIDDEN = 64
KEY = bytes(range(32))


def states(*norms: float) -> torch.Tensor:
    drawn = torch.randn(len(norms), HIDDEN, generator=torch.Generator().manual_seed(1))
    return drawn / drawn.norm(dim=-1, keepdim=True) * torch.tensor(norms)[:, None]


def test_longer_rows_get_the_bounds_length_and_keep_their_direction() -> None:
    given = states(0.5, 3.0, 1e4, 0.0)
    cut = clipped(given, 2.0)
    assert cut.norm(dim=-1).tolist() == pytest.approx([0.5, 2.0, 2.0, 0.0], rel=1e-6)
    assert torch.equal(cut[[0, 3]], given[[0, 3]])
    cosines = torch.cosine_similarity(cut[1:3], given[1:3])
    assert cosines.tolist() == pytest.approx([1.0, 1.0])


def test_the_gradient_is_autograds() -> None:
    given = states(0.5, 3.0, 40.0, 1.999).requires_grad_()
    came = torch.randn(given.shape, generator=torch.Generator().manual_seed(2))
    norms = given.norm(dim=-1, keepdim=True)
    (expected,) = torch.autograd.grad(given * (2.0 / norms).clamp(max=1.0), given, came)
    torch.testing.assert_close(clip_gradient(came, given.detach(), 2.0), expected)
    assert torch.equal(clip_gradient(came, torch.zeros_like(came), 2.0), came)


@pytest.mark.parametrize(
    ("mode", "bound"),
    [(NoiseMode.RELATIVE, 1.5 * 0.25 * 16), (NoiseMode.STD, 1.5), (NoiseMode.MEAN_ABS, 1.5)],
)
def test_the_unit_of_the_bound_is_the_modes(mode: NoiseMode, bound: float) -> None:
    assert clip_bound(mode, 1.5, 0.25, 256) == pytest.approx(bound)
    assert clip_bound(mode, None, 0.25, 256) is None
    how = NoiseSettings(mode=mode, scale=0.5, clip=1.5)
    assert noise_source(how, 0.25, 256, "model").clip == pytest.approx(bound)


def test_noise_comes_after_the_clip_and_is_of_the_bound() -> None:
    def source(clip: float | None) -> NoiseSource:
        return NoiseSource(1.0, "model", lambda size: KEY[:size], clip=clip)

    def noise(of: NoiseSource, given: torch.Tensor) -> torch.Tensor:
        sent = of.add(given, of.chain().extend(0, [5]))
        return sent - (given if of.clip is None else clipped(given, of.clip))

    short, long = states(1.0), states(100.0)
    drawn = noise(source(2.0), short)
    torch.testing.assert_close(noise(source(2.0), long), drawn)
    assert drawn.norm() > math.sqrt(HIDDEN) / 2
    # Equal noise under two bounds would leave the exact difference of the clipped states.
    for other in (None, 3.0, math.nextafter(2.0, 3.0)):
        assert not torch.isclose(noise(source(other), short), drawn).any()


def test_without_noise_it_still_clips() -> None:
    quiet = NoiseSource(0.0, "model", clip=2.0)
    sent = quiet.add(states(50.0), quiet.chain().extend(0, [1]))
    assert float(sent.norm()) == pytest.approx(2.0)


def test_a_client_node_clips_and_shapes_as_the_settings_say(
    tiny_llama: Path, tmp_path: Path
) -> None:
    hidden = Checkpoint.open(str(tiny_llama)).hidden
    file = tmp_path / "shape.safetensors"
    write_shape(file, torch.eye(hidden))
    noise = {"scale": 0.5, "clip": 0.75, "shape": str(file)}
    loaded = load(Settings().replace(model={"path": str(tiny_llama)}, noise=noise))
    assert loaded.noise.clip == pytest.approx(0.75 * loaded.head_rms * math.sqrt(hidden))
    assert loaded.noise.shape is not None
    with pytest.raises(ConfigError, match="expected float32"):
        noise_source(NoiseSettings(shape=file), 1.0, hidden + 1, "model")
