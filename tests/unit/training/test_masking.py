"""Masks cancel, are ChaCha20's stream, and keys serve one pair, one purpose and one round."""

from __future__ import annotations

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from fedsea_mq.errors import MalformedFrame
from fedsea_mq.training.secure_aggregation.masking import (
    KeyPair,
    add_mask,
    agree,
    box_info,
    mask_info,
    pair_sign,
    public_of,
    seal,
    unseal,
)

CONTEXT, OTHER_CONTEXT = bytes(32), bytes(31) + b"\x01"
KEY = bytes(range(32))


@pytest.mark.parametrize("words", [1, 7, 1 << 15, (1 << 15) + 1, 100_003])
def test_a_mask_is_the_keys_stream_from_its_beginning(words: int) -> None:
    vector = np.zeros(words, np.uint64)
    add_mask(vector, KEY, 1)
    stream = Cipher(ChaCha20(KEY, bytes(16)), mode=None).encryptor().update(bytes(8 * words))
    assert vector.astype("<u8").tobytes() == stream


def test_added_and_subtracted_it_is_gone() -> None:
    vector = np.arange(100_000, dtype=np.uint64) * np.uint64(2**50 + 1)
    before = vector.copy()
    add_mask(vector, KEY, 1)
    assert (vector != before).mean() > 0.999
    add_mask(vector, KEY, -1)
    assert (vector == before).all()


def test_of_a_pair_one_adds_and_the_other_subtracts() -> None:
    assert pair_sign(3, 8) == -pair_sign(8, 3)


class TestAgreement:
    def test_both_of_a_pair_derive_the_same_mask_key(self) -> None:
        one, other = KeyPair(os.urandom), KeyPair(os.urandom)
        assert agree(one.private, other.public, mask_info(CONTEXT, 3, 8)) == agree(
            other.private, one.public, mask_info(CONTEXT, 8, 3)
        )
        assert public_of(one.private) == one.public

    def test_every_purpose_direction_pair_and_round_has_a_key_of_its_own(self) -> None:
        one, other = KeyPair(os.urandom), KeyPair(os.urandom)
        infos = [
            mask_info(CONTEXT, 3, 8),
            mask_info(OTHER_CONTEXT, 3, 8),
            mask_info(CONTEXT, 3, 9),
            box_info(CONTEXT, 3, 8),
            box_info(CONTEXT, 8, 3),
            box_info(OTHER_CONTEXT, 3, 8),
        ]
        assert len({agree(one.private, other.public, info) for info in infos}) == len(infos)

    @pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31)], ids=["zero", "one"])
    def test_public_keys_that_force_a_known_secret_are_refused(self, public: bytes) -> None:
        with pytest.raises(MalformedFrame, match="public key"):
            agree(os.urandom(32), public, b"")


class TestBoxes:
    def test_the_key_that_sealed_opens(self) -> None:
        assert unseal(KEY, seal(KEY, b"two shares")) == b"two shares"

    @pytest.mark.parametrize("where", [0, 5, -1])
    def test_a_changed_box_does_not_open(self, where: int) -> None:
        box = bytearray(seal(KEY, b"two shares"))
        box[where] ^= 1
        with pytest.raises(MalformedFrame, match="does not open"):
            unseal(KEY, bytes(box))

    def test_another_key_does_not_open_it(self) -> None:
        with pytest.raises(MalformedFrame):
            unseal(bytes(32), seal(KEY, b"two shares"))
