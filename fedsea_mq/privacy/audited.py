"""What an audit found for a setting, for whoever is about to run with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedsea_mq.errors import ConfigError
from fedsea_mq.privacy.scale import NoiseMode, noise_std
from fedsea_mq.settings import NoiseSettings

_EMBEDDED = "embedded_audit.json"


@dataclass(frozen=True, slots=True)
class Finding:
    """The strongest attack at the audited setting that is nearest to the one asked about.

    `share` of a prompt's tokens was recovered, at `noise` over the head output's RMS.
    """

    share: float
    noise: float
    attack: str
    knowledge: str

    def __str__(self) -> str:
        return (
            f"at the nearest noise audited, {self.noise:.2f} of the head output's RMS, a server "
            f"with {self.knowledge} recovered {self.share:.0%} of a prompt's tokens ({self.attack})"
        )


def finding(noise: NoiseSettings, fingerprint: str) -> Finding | None:
    """What the audit of `noise.audit` says of this noise, for the model and cut of `fingerprint`.

    None if they are not in it. Without `noise.audit`, the embedded model's own is asked.

    Raises:
        ConfigError: the file is not the report of an audit.
    """
    rows = [row for row in _strongest(noise.audit) if row["fingerprint"] == fingerprint]
    if not rows:
        return None
    is_relative = noise.mode in (NoiseMode.RELATIVE, NoiseMode.OFF)
    column = "sigma_over_head_rms" if is_relative else "sigma"
    wanted = noise_std(noise.mode, noise.scale, head_rms=1.0)
    nearest = min(abs(row[column] - wanted) for row in rows)
    # Of several defences at one noise, the worst: which of them is in use is not known here.
    near = [row for row in rows if abs(row[column] - wanted) <= nearest + 1e-9]
    row = max(near, key=lambda row: float(row["token_recovery"]))
    return Finding(
        row["token_recovery"], row["sigma_over_head_rms"], row["attack"], row["knowledge"]
    )


def too_much(noise: NoiseSettings, fingerprint: str) -> Finding | None:
    """The same, if more of a prompt was recovered than the operator allows. Raises as `finding`."""
    found = finding(noise, fingerprint)
    return found if found is not None and found.share > noise.max_recovery else None


def _strongest(file: Path | None) -> list[dict[str, Any]]:
    source = files("fedsea_mq.privacy") / _EMBEDDED if file is None else file
    try:
        rows = json.loads(source.read_text())["strongest"]
        for row in rows:
            numbers = (row["token_recovery"], row["sigma"], row["sigma_over_head_rms"])
            texts = (row["fingerprint"], row["attack"], row["knowledge"])
            if not all(isinstance(n, int | float) for n in numbers):
                raise TypeError
            if not all(isinstance(text, str) for text in texts):
                raise TypeError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{source}: not the report.json of an audit") from error
    return list(rows)
