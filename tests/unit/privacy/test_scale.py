"""What each way to give a noise scale stands for."""

from __future__ import annotations

import math

import pytest
import torch

from fedsea_mq.privacy.noise import NoiseSource
from fedsea_mq.privacy.scale import NoiseMode, noise_std


def test_std_is_the_scale_itself() -> None:
    assert noise_std(NoiseMode.STD, 0.3, head_rms=7.0) == 0.3


def test_relative_is_times_the_heads_rms() -> None:
    assert noise_std(NoiseMode.RELATIVE, 0.3, head_rms=7.0) == pytest.approx(2.1)


def test_off_is_none_whatever_the_scale() -> None:
    assert noise_std(NoiseMode.OFF, 0.3, head_rms=7.0) == 0.0


def test_mean_abs_is_the_papers_mean_absolute_noise() -> None:
    std = noise_std(NoiseMode.MEAN_ABS, 0.02, head_rms=7.0)
    assert std * math.sqrt(2 / math.pi) == pytest.approx(0.02)
    source = NoiseSource(std, "model")
    drawn = source.add(torch.zeros(500, 256), source.chain().extend(0, list(range(500))))
    assert drawn.abs().mean().item() == pytest.approx(0.02, rel=0.01)
