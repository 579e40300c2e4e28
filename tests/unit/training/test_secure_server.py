"""The server's side: the exact mean, and what is refused on the way to it."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedsea_mq.errors import (
    MalformedFrame,
    OutOfTurn,
    ShareMismatch,
    TooFewClients,
    UpdateRefused,
)
from fedsea_mq.training.secure_aggregation.client import SecureClient
from fedsea_mq.training.secure_aggregation.messages import (
    Box,
    Keys,
    MaskedUpdate,
    Share,
    Stage,
)
from fedsea_mq.training.secure_aggregation.server import SecureServer
from tests.unit.training.secure_rounds import (
    LAYOUT,
    SecureRound,
    entropy,
    plain_mean,
    terms,
    until,
    updates,
)

EVERYBODY = {1, 2, 3, 4, 5}
KEY = bytes(range(32))


class TestTheMean:
    def test_a_whole_round_is_weighted_fedavg(self) -> None:
        result = until(Stage.DONE).server.mean()
        plain = plain_mean(updates(5), EVERYBODY)
        assert (result.weight, result.survivors) == (plain.weight, (1, 2, 3, 4, 5))
        bound = terms().fixed_point.error_bound(5, plain.weight) + 5 * 2.0**-50
        for name, mean in plain.mean().items():
            torch.testing.assert_close(result.update[name], mean, rtol=0, atol=bound)

    def test_words_sum_exactly_to_those_of_unmasked_updates(self) -> None:
        """Before anything is rounded to a mean: the integers are the same, to the last bit."""
        one = until(Stage.UNMASK, {2, 5})
        one.unmask()
        fixed, given = one.server.terms.fixed_point, updates(5)
        words = sum(fixed.encode(LAYOUT.flatten(given[m][0]), given[m][1]) for m in (1, 3, 4))
        expected, weight = fixed.decode(words, 3)
        result = one.server.mean()
        assert result.weight == weight
        flat = np.concatenate([result.update[name].flatten() for name, _ in LAYOUT.shapes])
        assert (flat == expected).all()

    def test_it_can_be_read_twice(self) -> None:
        server = until(Stage.DONE).server
        first, second = server.mean(), server.mean()
        assert all(torch.equal(first.update[name], second.update[name]) for name in first.update)

    def test_there_is_none_before_the_end(self) -> None:
        with pytest.raises(OutOfTurn, match="UNMASK"):
            until(Stage.UNMASK).server.mean()

    def test_unmasking_needs_no_more_than_the_threshold(self) -> None:
        one = until(Stage.UNMASK)
        one.unmask(lost={1, 5})
        assert one.server.mean().survivors == (1, 2, 3, 4, 5)


class TestTheServerRefuses:
    def test_what_comes_again_changes_nothing(self) -> None:
        one = SecureRound(terms())
        for stage, step in enumerate((one.keys, one.shares, lambda: one.masked(updates(5)))):
            step()
            assert len(one.server.waiting_for) == 5
            one.server.receive(1, one.members[1].keys)  # at whatever stage
            assert len(one.server.waiting_for) == 5, stage
        one.server.receive(2, MaskedUpdate(one.server.terms.context), one.vectors[2])
        one.unmask()
        assert one.server.mean().weight == plain_mean(updates(5), EVERYBODY).weight

    def test_a_second_vector_is_not_added(self) -> None:
        one = until(Stage.MASKED)
        client = one.members[1]
        client.hold(one.told[1])
        message, vector = client.mask(*updates(1)[1])
        one.server.receive(1, message, vector)
        one.server.receive(1, message, vector)
        with pytest.raises(OutOfTurn, match="other content"):
            one.server.receive(1, message, bytes(len(vector)))
        assert (one.server._total == np.frombuffer(vector, "<u8")).all()

    @pytest.mark.parametrize("by", [-8, -1, 1, 8])
    def test_a_vector_of_another_length(self, by: int) -> None:
        one = until(Stage.MASKED)
        size = one.server.terms.vector_bytes
        with pytest.raises(MalformedFrame, match=f"expected {size}"):
            one.server.receive(1, MaskedUpdate(one.server.terms.context), bytes(size + by))
        assert 1 in one.server.waiting_for

    def test_who_is_no_member(self) -> None:
        server = SecureServer(terms(), LAYOUT)
        for member in (0, 6):
            with pytest.raises(OutOfTurn, match=f"member {member}"):
                server.receive(member, Keys(terms().context, bytes(32), KEY))

    def test_who_was_lost_at_the_stage_before(self) -> None:
        one = SecureRound(terms())
        one.keys()
        spare = {member: one.members[member].share(one.told[member]) for member in EVERYBODY}
        one.shares(lost={2})
        one.members[1].hold(one.told[1])
        message, vector = one.members[1].mask(*updates(1)[1])
        with pytest.raises(OutOfTurn, match="member 2"):
            one.server.receive(2, message, vector)
        with pytest.raises(OutOfTurn, match="member 2"):
            one.server.receive(2, spare[2])
        assert not one.server._total.any()

    def test_messages_of_another_round_or_stage(self) -> None:
        one = until(Stage.SHARES)
        foreign = Keys(bytes(32), os.urandom(32), os.urandom(32))
        with pytest.raises(OutOfTurn, match="another round"):
            one.server.receive(1, foreign)
        early, vector = MaskedUpdate(one.server.terms.context), bytes(terms().vector_bytes)
        with pytest.raises(OutOfTurn, match="stage SHARES"):
            one.server.receive(1, early, vector)

    def test_keys_that_are_somebodys_already(self) -> None:
        server, context = SecureServer(terms(), LAYOUT), terms().context
        client = SecureClient(terms(), LAYOUT, 1, entropy(1))
        server.receive(1, client.keys)
        for keys in (
            client.keys,
            Keys(context, KEY, KEY),
            Keys(context, client.keys.mask_key, KEY),
        ):
            with pytest.raises(MalformedFrame, match="already"):
                server.receive(2, keys)
        with pytest.raises(OutOfTurn, match="other content"):
            server.receive(1, Keys(context, KEY, bytes(32)))

    def test_boxes_and_shares_that_are_not_of_the_right_members(self) -> None:
        one = until(Stage.SHARES)
        shares = one.members[1].share(one.told[1])
        for boxes in (shares.boxes[:-1], [Box(1, shares.boxes[0].box), *shares.boxes]):
            with pytest.raises(MalformedFrame, match="each other member"):
                one.server.receive(1, replace(shares, boxes=boxes))
        one = until(Stage.UNMASK, {2})
        reveal = one.members[1].reveal(one.told[1])
        both = replace(reveal, mask_keys=[Share(1, reveal.seeds[0].share), *reveal.mask_keys])
        for wrong in (replace(reveal, seeds=reveal.seeds[1:]), both):
            with pytest.raises(MalformedFrame, match="one secret"):
                one.server.receive(1, wrong)

    @pytest.mark.parametrize("secret", ["seeds", "mask_keys"])
    def test_a_wrong_share_is_noticed_and_no_mean_comes_of_it(self, secret: str) -> None:
        one = until(Stage.UNMASK, {2})
        for member in (1, 3, 4):
            reveal = one.members[member].reveal(one.told[member])
            if member == 3:
                first, *rest = getattr(reveal, secret)
                # Not the lowest bits: X25519 ignores three of them in a secret key.
                changed = bytearray(first.share)
                changed[9] ^= 1
                wrong = Share(first.member, bytes(changed))
                reveal = replace(reveal, **{secret: [wrong, *rest]})
            one.server.receive(member, reveal)
        one.server.advance()
        with pytest.raises(ShareMismatch):
            one.server.mean()

    def test_a_sum_that_is_none_of_updates_is_noticed(self) -> None:
        one = until(Stage.MASKED)
        for member in EVERYBODY:
            one.members[member].hold(one.told[member])
            message, vector = one.members[member].mask(*updates(5)[member])
            one.server.receive(member, message, os.urandom(len(vector)) if member == 3 else vector)
        one.told = one.server.advance()
        one.unmask()
        with pytest.raises(UpdateRefused, match="weight"):
            one.server.mean()

    def test_a_stage_with_too_few_stays_open_and_a_round_ends_once(self) -> None:
        one = SecureRound(terms())
        with pytest.raises(TooFewClients, match="2 members at stage KEYS, the threshold is 3"):
            one.keys(lost={3, 4, 5})
        one.keys()  # the two again, and the three that were missing
        one.shares()
        one.masked(updates(5))
        one.unmask()
        with pytest.raises(OutOfTurn, match="over"):
            one.server.advance()
