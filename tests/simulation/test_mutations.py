"""The simulation finds faults in the product: each of these is put in, and caught."""

from __future__ import annotations

import pytest

from tests.simulation.mutations import QUICK, RARE, Mutation

FEW, MANY = 60, 1000


@pytest.mark.parametrize("mutation", QUICK, ids=str)
def test_a_mutation_is_caught_within_a_few_seeds(mutation: Mutation) -> None:
    assert mutation.caught_by(FEW) is not None


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mutation", RARE, ids=str)
def test_a_rarer_mutation_is_caught_within_a_thousand_seeds(mutation: Mutation) -> None:
    assert mutation.caught_by(MANY) is not None
