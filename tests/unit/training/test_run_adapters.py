"""The set that the adapters of a run are of: what each party can say of it by itself."""

from __future__ import annotations

from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.training.run_adapters import RunAdapters

FIRST, SECOND = bytes(16), b"another attempt."


def test_parties_name_the_same_set_and_another_for_each_training() -> None:
    cut = Cut(1, 2)
    trunk = RunAdapters.of("silos", cut, 6, Part)
    member = RunAdapters.of("silos", cut, 6, list(reversed(Part)))
    assert trunk.after(FIRST) == member.after(FIRST)
    others = [trunk.after(SECOND), RunAdapters.of("clinics", cut, 6, Part).after(FIRST)]
    assert len({of.digest for of in [trunk.after(FIRST), *others]}) == 3


def test_a_set_has_the_blocks_of_the_parts_that_learn() -> None:
    def blocks(*parts: Part) -> set[int]:
        return set(RunAdapters.of("silos", Cut(1, 2), 6, parts).after(FIRST).blocks)

    assert blocks(Part.HEAD, Part.TAIL) == {0, 4, 5}
    assert blocks(Part.TRUNK) == {1, 2, 3}
    assert blocks(*Part) == set(range(6))
