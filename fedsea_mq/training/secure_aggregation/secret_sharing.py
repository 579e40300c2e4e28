"""Shamir's secret sharing: any `threshold` shares give the secret, fewer say nothing about it.

A 32-byte secret is the constant term of a random polynomial of degree `threshold - 1` over the
integers modulo the smallest prime above 2^256. A member's share is the polynomial at its number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from fedsea_mq.errors import ShareMismatch

PRIME: Final = 2**256 + 297
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33
# Reduced modulo the prime, 48 random bytes are uniform to within 2^-127.
_COEFFICIENT_BYTES: Final = 48


def split(
    secret: bytes, members: Sequence[int], threshold: int, entropy: Callable[[int], bytes]
) -> dict[int, bytes]:
    """A share of `SHARE_BYTES` for each member; members are numbers from 1."""
    assert len(secret) == SECRET_BYTES
    assert 0 not in members  # its share would be the secret
    coefficients = [
        int.from_bytes(entropy(_COEFFICIENT_BYTES), "little") % PRIME for _ in range(threshold - 1)
    ]
    coefficients.append(int.from_bytes(secret, "little"))
    return {member: _evaluate(coefficients, member) for member in members}


def _evaluate(coefficients: list[int], at: int) -> bytes:
    value = 0
    for coefficient in coefficients:  # of the highest power first
        value = (value * at + coefficient) % PRIME
    return value.to_bytes(SHARE_BYTES, "little")


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret, from the shares of exactly `threshold` members.

    Raises:
        ShareMismatch: these are not shares of one 32-byte secret. Wrong shares may also give a
            wrong secret: compare it with something that its owner announced.
    """
    members = tuple(sorted(shares))
    secret = 0
    for member, factor in zip(members, _lagrange_at_zero(members), strict=True):
        value = int.from_bytes(shares[member], "little")
        if len(shares[member]) != SHARE_BYTES or value >= PRIME:
            raise ShareMismatch(f"the share of member {member} is no share")
        secret = (secret + value * factor) % PRIME
    if secret >= 1 << 8 * SECRET_BYTES:
        raise ShareMismatch("the shares are not of one secret")
    return secret.to_bytes(SECRET_BYTES, "little")


@lru_cache(maxsize=4)
def _lagrange_at_zero(members: tuple[int, ...]) -> tuple[int, ...]:
    """For each member the product over all others of `other / (other - member)`."""
    factors = []
    for member in members:
        above, below = 1, 1
        for other in members:
            if other != member:
                above = above * other % PRIME
                below = below * (other - member) % PRIME
        factors.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(factors)
