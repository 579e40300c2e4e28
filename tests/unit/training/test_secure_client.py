"""The members' side: what it reveals, what it refuses, what serves once."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from fedsea_mq.errors import (
    AdapterError,
    MalformedFrame,
    MasksSpent,
    OutOfTurn,
    RevealRefused,
    TooFewClients,
)
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.secure_aggregation.client import SecureClient
from fedsea_mq.training.secure_aggregation.messages import (
    Box,
    KeyList,
    ShareList,
    Stage,
    UnmaskRequest,
)
from tests.unit.training.secure_rounds import (
    LAYOUT,
    SecureRound,
    key_list,
    terms,
    until,
    updates,
)


class TestNeverBothSecretsOfOneMember:
    def test_survivors_give_their_seed_and_the_lost_their_key(self) -> None:
        one = until(Stage.UNMASK, {2})
        reveal = one.members[1].reveal(one.told[1])
        assert [share.member for share in reveal.seeds] == [1, 3, 4, 5]
        assert [share.member for share in reveal.mask_keys] == [2]

    def test_a_second_request_with_other_survivors_is_refused(self) -> None:
        one = until(Stage.UNMASK)
        client, context = one.members[1], one.server.terms.context
        first = client.reveal(UnmaskRequest(context, [1, 2, 3, 4]))
        with pytest.raises(RevealRefused, match="another"):
            client.reveal(UnmaskRequest(context, [1, 2, 3, 5]))
        assert client.reveal(UnmaskRequest(context, [1, 2, 3, 4])) == first

    @pytest.mark.parametrize(
        "survivors", [[1, 2], [2, 3, 4], [1, 2, 3, 6]], ids=["too few", "without us", "a stranger"]
    )
    def test_a_request_that_cannot_be_honest_is_refused(self, survivors: list[int]) -> None:
        one = SecureRound(terms(6, 4) if 6 in survivors else terms())
        one.keys(lost={6})
        one.shares()
        one.masked(updates(6))
        client = one.members[1]
        with pytest.raises(RevealRefused):
            client.reveal(UnmaskRequest(one.server.terms.context, survivors))
        # Nothing was given away by that: the honest request is answered.
        assert client.reveal(one.told[1])

    def test_nothing_is_revealed_before_our_update_is_masked(self) -> None:
        one = until(Stage.MASKED)
        one.members[1].hold(one.told[1])
        with pytest.raises(OutOfTurn):
            one.members[1].reveal(UnmaskRequest(one.server.terms.context, [1, 2, 3]))

    def test_no_two_groups_can_be_told_different_tales(self) -> None:
        """Half told that member 5 is lost, half that it survives: neither secret is complete."""
        one = until(Stage.UNMASK)
        context = one.server.terms.context
        lost = [one.members[m].reveal(UnmaskRequest(context, [1, 2, 3, 4])) for m in (1, 2)]
        survives = [one.members[m].reveal(UnmaskRequest(context, [1, 2, 3, 4, 5])) for m in (3, 4)]
        keys = sum(share.member == 5 for reveal in lost for share in reveal.mask_keys)
        seeds = sum(share.member == 5 for reveal in survives for share in reveal.seeds)
        assert (keys, seeds) == (2, 2)
        assert max(keys, seeds) < one.server.terms.threshold


class TestMasksServeOnce:
    def test_a_second_update_is_not_masked(self) -> None:
        one = until(Stage.MASKED)
        client = one.members[1]
        client.hold(one.told[1])
        client.mask(*updates(1)[1])
        with pytest.raises(MasksSpent):
            client.mask(*updates(1)[1])

    def test_an_update_that_is_refused_spends_nothing(self) -> None:
        one = until(Stage.MASKED)
        client, (update, weight) = one.members[1], updates(1)[1]
        client.hold(one.told[1])
        for wrong in ({}, {**update, "tail.scale": torch.tensor(float("nan"))}):
            with pytest.raises(AdapterError):
                client.mask(wrong, weight)
        client.mask(update, weight)

    def test_nothing_is_masked_before_the_others_shares_are_held(self) -> None:
        with pytest.raises(OutOfTurn):
            until(Stage.MASKED).members[1].mask(*updates(1)[1])


class TestTheClientRefuses:
    def test_terms_of_other_adapters_and_numbers_beyond_them(self) -> None:
        with pytest.raises(AdapterError):
            SecureClient(terms(), AdapterLayout.of({"w": (3,)}), 1)
        for member in (0, 6):
            with pytest.raises(OutOfTurn):
                SecureClient(terms(), LAYOUT, member)

    def test_key_lists_that_are_not_of_distinct_members_with_its_own_keys(self) -> None:
        one = until(Stage.SHARES)
        listed, client = one.told[1], one.members[1]
        first, *others = listed.members
        stranger = replace(first, mask_key=os.urandom(32))
        twice = replace(others[0], mask_key=others[1].mask_key)
        beyond = replace(others[-1], member=6)
        for members in (
            [stranger, *others],
            others,
            [first, twice, *others[1:]],
            [first, *others[:-1], beyond],
        ):
            with pytest.raises(MalformedFrame):
                client.share(replace(listed, members=members))
        with pytest.raises(TooFewClients):
            client.share(replace(listed, members=[first, others[0]]))
        assert client.share(listed)  # none of it left a trace

    def test_boxes_that_were_changed_swapped_or_come_from_nobody(self) -> None:
        one = until(Stage.MASKED)
        listed, client = one.told[1], one.members[1]
        first, second, *others = listed.boxes
        flipped = bytes([first.box[0] ^ 1]) + first.box[1:]
        wrong = {
            "changed": [Box(first.member, flipped), second, *others],
            "swapped": [Box(first.member, second.box), Box(second.member, first.box), *others],
            "for another": [*one.told[2].boxes[:1], *listed.boxes],
        }
        for boxes in wrong.values():
            with pytest.raises(MalformedFrame):
                client.hold(replace(listed, boxes=boxes))
        with pytest.raises(TooFewClients):
            client.hold(replace(listed, boxes=[first]))
        client.hold(listed)

    def test_boxes_replayed_from_another_round_do_not_open(self) -> None:
        """The same parties with the same secrets under other terms: keys are of one round."""

        def round_of(attempt: int) -> SecureRound:
            one = SecureRound(terms(attempt=attempt))
            one.keys()
            one.shares()
            return one

        before, now = round_of(0), round_of(1)
        replayed = ShareList(now.server.terms.context, before.told[1].boxes)
        with pytest.raises(MalformedFrame, match="does not open"):
            now.members[1].hold(replayed)

    @pytest.mark.parametrize("stage", [Stage.SHARES, Stage.MASKED, Stage.UNMASK])
    def test_messages_of_another_round(self, stage: Stage) -> None:
        one = until(stage)
        told, client = one.told[1], one.members[1]
        answer = {KeyList: client.share, ShareList: client.hold, UnmaskRequest: client.reveal}
        with pytest.raises(OutOfTurn, match="another round"):
            answer[type(told)](replace(told, context=bytes(32)))

    def test_another_list_than_the_one_answered(self) -> None:
        one = until(Stage.MASKED)
        client, listed = one.members[1], key_list(one)
        assert client.share(listed) == client.share(listed)
        with pytest.raises(OutOfTurn, match="another KeyList"):
            client.share(replace(listed, members=listed.members[:4]))
        client.hold(one.told[1])
        client.hold(one.told[1])
        with pytest.raises(OutOfTurn, match="another ShareList"):
            client.hold(replace(one.told[1], boxes=one.told[1].boxes[:3]))
