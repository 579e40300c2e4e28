"""Frames that no honest party sends: valid ones cut, flipped, spliced and swapped, and noise."""

from __future__ import annotations

import random

from fedsea_mq.protocol.frames import Parts

_INTERESTING = [
    b"",
    b"\x00",
    b"\xff",
    b"\x80",
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
]


def mutated(rng: random.Random, parts: Parts, pool: list[Parts]) -> Parts:
    """One to three mutations of a frame; now and then, nothing but noise."""
    if rng.random() < 0.05:
        return [rng.randbytes(rng.randrange(40)) for _ in range(rng.randrange(7))]
    parts = list(parts)
    for _ in range(rng.randint(1, 3)):
        _mutate(rng, parts, pool)
    return parts


def _mutate(rng: random.Random, parts: Parts, pool: list[Parts]) -> None:
    choice = rng.randrange(9)
    if choice == 0 or not parts:
        parts.insert(rng.randint(0, len(parts)), rng.choice(rng.choice(pool)))
        return
    at = rng.randrange(len(parts))
    part = parts[at]
    if choice == 1:
        del parts[at]
    elif choice == 2:
        other = rng.choice(pool)
        parts[at] = other[at % len(other)]
    elif choice == 3:
        parts[at] = part[: rng.randint(0, len(part))]
    elif choice == 4:
        parts[at] = part + rng.randbytes(rng.randint(1, 8))
    elif choice == 5:
        parts[at] = rng.choice(_INTERESTING) + part[rng.randint(0, len(part)) :]
    else:
        parts[at] = _flipped(rng, part)


def _flipped(rng: random.Random, part: bytes) -> bytes:
    """One to four bytes changed: to anything, or by one bit."""
    if not part:
        return rng.randbytes(1)
    changed = bytearray(part)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed))
        changed[at] = (
            rng.randrange(256) if rng.random() < 0.5 else changed[at] ^ 1 << rng.randrange(8)
        )
    return bytes(changed)
