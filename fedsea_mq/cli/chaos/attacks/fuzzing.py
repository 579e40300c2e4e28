"""Frames that were good, and are not quite so any more."""

from __future__ import annotations

from random import Random

from fedsea_mq.protocol.frames import Parts

_MOST_CHANGES = 3
_LONGEST = 200


def mutated(rng: Random, parts: Parts) -> Parts:
    """The parts with up to three things changed: bytes, lengths, parts put in and left out."""
    mutant = [bytearray(part) for part in parts]
    for _ in range(rng.randint(1, _MOST_CHANGES)):
        at = rng.randrange(len(mutant))
        match rng.randrange(5):
            case 0 if mutant[at]:
                mutant[at][rng.randrange(len(mutant[at]))] = rng.randrange(256)
            case 1:
                del mutant[at][rng.randint(0, len(mutant[at])) :]
            case 2:
                mutant[at] += rng.randbytes(rng.randint(1, _LONGEST))
            case 3:
                mutant.insert(at, bytearray(rng.randbytes(rng.randint(0, _LONGEST))))
            case _ if len(mutant) > 1:
                del mutant[at]
    return [bytes(part) for part in mutant]
