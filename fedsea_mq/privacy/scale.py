"""How a noise scale is given, and the standard deviation that it stands for. No torch here."""

from __future__ import annotations

import math
from enum import StrEnum


class NoiseMode(StrEnum):
    """How the noise scale is given."""

    RELATIVE = "relative"
    STD = "std"
    MEAN_ABS = "mean_abs"
    OFF = "off"


def clip_bound(mode: NoiseMode, clip: float | None, head_rms: float, hidden: int) -> float | None:
    """L2 norm that no position's state exceeds, or None where nothing is clipped.

    `relative`: `clip` times the typical norm of the head's output, `head_rms * sqrt(hidden)`.
    Otherwise `clip` itself.
    """
    if clip is None or mode is not NoiseMode.RELATIVE:
        return clip
    return clip * head_rms * math.sqrt(hidden)


def noise_std(mode: NoiseMode, scale: float, head_rms: float) -> float:
    """Standard deviation of the noise, per element of the hidden state.

    `std`: `scale` itself. `relative`: `scale` times the RMS of the head's output. `mean_abs`: the
    paper's scale, the mean absolute noise: E|N(0, std)| = std * sqrt(2 / pi), so
    std = scale * sqrt(pi / 2) (arXiv 2505.15683, appendix).
    """
    match mode:
        case NoiseMode.OFF:
            return 0.0
        case NoiseMode.STD:
            return scale
        case NoiseMode.RELATIVE:
            return scale * head_rms
        case NoiseMode.MEAN_ABS:
            return scale * math.sqrt(math.pi / 2)
