"""Shamir's scheme: enough shares give the secret, fewer give nothing, wrong ones are noticed."""

from __future__ import annotations

import os
from itertools import combinations

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsea_mq.errors import ShareMismatch
from fedsea_mq.training.secure_aggregation.secret_sharing import (
    PRIME,
    SECRET_BYTES,
    SHARE_BYTES,
    combine,
    split,
)

secrets = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)


def test_the_field_is_one() -> None:
    assert sympy.isprime(PRIME)
    assert not any(sympy.isprime(2**256 + above) for above in range(297))


@settings(max_examples=300, deadline=None)
@given(st.data(), secrets)
def test_any_threshold_of_shares_gives_the_secret(data: st.DataObject, secret: bytes) -> None:
    numbers = st.lists(st.integers(1, 1024), min_size=1, max_size=24, unique=True)
    members = data.draw(numbers)
    threshold = data.draw(st.integers(1, len(members)))
    shares = split(secret, members, threshold, os.urandom)
    assert {len(share) for share in shares.values()} == {SHARE_BYTES}
    chosen = data.draw(st.permutations(members))[:threshold]
    assert combine({member: shares[member] for member in chosen}) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32], ids=["zero", "largest"])
def test_the_ends_of_the_range_are_secrets_too(secret: bytes) -> None:
    shares = split(secret, [1, 2, 3], 2, os.urandom)
    for pair in combinations(shares, 2):
        assert combine({member: shares[member] for member in pair}) == secret


def test_a_share_by_hand() -> None:
    """Secret 5, coefficients 3 and 2 of the first and second power: f(x) = 5 + 3 x + 2 x^2."""
    drawn = iter([2, 3])
    shares = split(
        (5).to_bytes(32, "little"), [1, 2, 10], 3, lambda size: next(drawn).to_bytes(size, "little")
    )
    assert [int.from_bytes(share, "little") for share in shares.values()] == [10, 19, 235]


def test_one_share_less_fits_any_secret() -> None:
    """With `threshold - 1` shares there is, for every secret, one share that leads to it."""
    shares = split(b"\x07" * 32, [1, 2, 3, 4], 3, os.urandom)
    known = {1: shares[1], 2: shares[2]}
    for wanted in (bytes(32), b"\xaa" * 32, os.urandom(32)):
        # The line through what is known and the wanted secret, read at 3.
        at = {0: int.from_bytes(wanted, "little")}
        at |= {member: int.from_bytes(share, "little") for member, share in known.items()}
        third = (at[0] - 3 * at[1] + 3 * at[2]) % PRIME  # Lagrange at 3 over 0, 1, 2
        assert combine({**known, 3: third.to_bytes(SHARE_BYTES, "little")}) == wanted


def test_shares_of_one_secret_are_new_each_time() -> None:
    first, second = (split(bytes(32), [1, 2, 3], 2, os.urandom) for _ in range(2))
    assert all(first[member] != second[member] for member in first)


@settings(max_examples=100, deadline=None)
@given(secrets, st.integers(0, SHARE_BYTES * 8 - 1))
def test_a_changed_share_never_gives_the_secret(secret: bytes, bit: int) -> None:
    shares = split(secret, [1, 2, 3], 3, os.urandom)
    value = int.from_bytes(shares[2], "little") ^ (1 << bit)
    shares[2] = value.to_bytes(SHARE_BYTES, "little")
    try:
        assert combine(shares) != secret
    except ShareMismatch:
        return


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), b"\xff" * 33])
def test_what_is_no_share_is_refused(share: bytes) -> None:
    with pytest.raises(ShareMismatch, match="member 2"):
        combine({1: bytes(SHARE_BYTES), 2: share})
