"""Averaging: the same text, received several times."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedsea_mq.errors import ConfigError
from fedsea_mq.privacy.attacks.attack import Seen


def averaged(sessions: Sequence[Seen]) -> Seen:
    """One session with the mean of what was received in several of the same text.

    Independent noise is then smaller by the square root of their number; equal noise is as it was.
    Raises `ConfigError` if they are not of the same length.
    """
    if len({one.received.shape for one in sessions}) != 1:
        raise ConfigError("sessions of different lengths are not of the same text")
    first = sessions[0]
    received = torch.stack([one.received for one in sessions]).mean(dim=0)
    outputs = torch.stack([one.outputs for one in sessions]).mean(dim=0)
    return Seen(received, outputs, first.prompt)
