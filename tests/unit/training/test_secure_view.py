"""What the server of a secure round sees of one member, against uniform words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsea_mq.errors import (
    OutOfTurn,
)
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.secure_aggregation.messages import (
    Stage,
)
from tests.unit.training.secure_rounds import (
    SecureRound,
    key_list,
    terms,
    until,
)


class TestWhatTheServerSees:
    """One client's vector, for updates that could not differ more, against uniform words."""

    WORDS = 1 << 15
    LAYOUT = AdapterLayout.of({"w": (WORDS,)})

    def seen(self, value: float, seed: int) -> np.ndarray:
        """All masked words of member 1 but the last, over an update of one value."""
        one = SecureRound(terms(3, 2, self.LAYOUT), self.LAYOUT, seed)
        one.keys()
        one.shares()
        one.masked({member: ({"w": torch.full((self.WORDS,), value)}, 7) for member in (1, 2, 3)})
        return np.frombuffer(one.vectors[1], "<u8")[:-1]

    @pytest.mark.parametrize("value", [0.0, 1e-3, -8.0])
    def test_its_bytes_are_uniform(self, value: float) -> None:
        """Chi-square over each of the eight bytes of a word: 255 degrees of freedom."""
        for byte in range(8):
            column = self.seen(value, 1).view(np.uint8).reshape(-1, 8)[:, byte]
            counts = np.bincount(column, minlength=256)
            statistic = float(((counts - self.WORDS / 256) ** 2).sum() / (self.WORDS / 256))
            assert abs(statistic - 255) < 5 * (2 * 255) ** 0.5

    def test_its_bits_are_fair_and_neighbours_have_nothing_to_do_with_each_other(self) -> None:
        words = self.seen(-8.0, 2)
        bits = np.unpackbits(words.view(np.uint8)).reshape(-1, 64)
        assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / self.WORDS**0.5
        uniform = words / 2.0**64
        correlation = float(np.corrcoef(uniform[:-1], uniform[1:])[0, 1])
        assert abs(correlation) < 5 / self.WORDS**0.5

    def test_it_says_nothing_of_the_update(self) -> None:
        """Correlated with an update that alternates between its extremes."""
        signs = torch.tensor([1.0, -1.0]).repeat(self.WORDS // 2)
        one = SecureRound(terms(3, 2, self.LAYOUT), self.LAYOUT, 3)
        one.keys()
        one.shares()
        one.masked({member: ({"w": 8.0 * signs}, 1000) for member in (1, 2, 3)})
        words = np.frombuffer(one.vectors[1], "<u8")[:-1]
        correlation = float(np.corrcoef(words.astype(np.float64), signs.numpy())[0, 1])
        assert abs(correlation) < 5 / self.WORDS**0.5

    def test_the_same_update_in_another_round_is_another_vector(self) -> None:
        assert (self.seen(1.0, 4) != self.seen(1.0, 5)).all()

    def test_a_lost_members_late_vector_stays_masked_though_its_key_is_known(self) -> None:
        """What its seed is for: the server rebuilds a lost member's pair masks, and no more."""
        one = SecureRound(terms(3, 2, self.LAYOUT), self.LAYOUT, 6)
        one.keys()
        one.shares()
        zeros = ({"w": torch.zeros(self.WORDS)}, 1)
        one.members[1].hold(one.told[1])
        late, vector = one.members[1].mask(*zeros)
        one.masked(dict.fromkeys((1, 2, 3), zeros), lost={1})
        one.unmask()
        assert one.server.mean().survivors == (2, 3)
        with pytest.raises(OutOfTurn):
            one.server.receive(1, late, vector)
        # All that is left of the pair masks once they are taken away is the seed's: not zeros.
        words = np.frombuffer(vector, "<u8")
        one.server._unmask_lost(total := words.copy(), 1)
        assert (total[:-1] != 0).all()

    def test_only_sealed_shares_pass_through_it(self) -> None:
        one = until(Stage.MASKED)
        for member, client in one.members.items():
            for box in client.share(key_list(one)).boxes:
                held = one.members[box.member]
                assert box.member != member
                held.hold(one.told[box.member])
                of_key, of_seed = held._held[member]
                assert of_key not in box.box
                assert of_seed not in box.box
