"""Secure aggregation under any losses: the sum of those who remain, or a typed refusal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsea_mq.errors import TooFewClients
from tests.unit.training.secure_rounds import SecureRound, plain_mean, terms, updates


@settings(max_examples=400, deadline=None)
@given(st.integers(2, 7), st.data())
def test_whoever_is_lost_the_mean_is_that_of_the_others_or_there_is_none(
    members: int, data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(members // 2 + 1, members))
    given_updates = updates(members, data.draw(st.sampled_from((1e-4, 1.0))))
    one = SecureRound(terms(members, threshold), seed=data.draw(st.integers(0, 99)))
    there = set(range(1, members + 1))
    some = st.sets(st.sampled_from(sorted(there)), max_size=members)
    stages = (
        one.keys,
        one.shares,
        lambda lost: one.masked(given_updates, lost),
        one.unmask,
    )
    summed = there
    for number, stage in enumerate(stages):
        lost = data.draw(some)
        there = there - lost
        if len(there) < threshold:
            with pytest.raises(TooFewClients, match=f"threshold is {threshold}"):
                stage(lost)
            return
        stage(lost)
        summed = there if number == 2 else summed
    result = one.server.mean()
    assert set(result.survivors) == summed
    plain = plain_mean(given_updates, summed)
    assert result.weight == plain.weight
    bound = one.server.terms.fixed_point.error_bound(len(summed), plain.weight)
    for name, mean in plain.mean().items():
        # The plain mean rounds too: one ulp of fp64 for each client.
        rounding = float(mean.abs().max()) * members * 2.0**-52
        torch.testing.assert_close(result.update[name], mean, rtol=0, atol=bound + rounding)
