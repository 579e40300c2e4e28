"""The embedded three: tasks over the invented world, in held-out worlds but for training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest

from fedsea_mq.tasks.dialogues import Dialogue, Kind, dialogues
from fedsea_mq.tasks.task import Example, Split, Wanted


@dataclass(frozen=True, slots=True)
class WorldSource:
    """Dialogues of one kind, made as they are asked for; without a count there is no end."""

    kind: Kind

    def examples(self, wanted: Wanted) -> Iterator[Example]:
        """One example a turn, with the right answers before it, as CoQA's are asked."""
        count = sys.maxsize if wanted.count is None else wanted.count
        held_out = wanted.split is not Split.TRAIN
        made = dialogues(self.kind, wanted.seed, count, held_out=held_out)
        for number, dialogue in enumerate(made):
            yield from _turns(dialogue, str(number))


@dataclass(frozen=True, slots=True)
class MixedSource:
    """Examples of several kinds in turn, as many dialogues of each; the kind is their class."""

    kinds: tuple[Kind, ...]

    def examples(self, wanted: Wanted) -> Iterator[Example]:
        """One example a turn, as of `WorldSource`."""
        of_kinds = [WorldSource(kind).examples(wanted) for kind in self.kinds]
        for in_turn in zip_longest(*of_kinds):
            for kind, example in zip(self.kinds, in_turn, strict=True):
                if example is not None:
                    record = f"{kind.value}/{example.record}"
                    yield replace(example, label=kind.value, record=record)


def _turns(dialogue: Dialogue, record: str) -> Iterator[Example]:
    for number, turn in enumerate(dialogue.turns):
        label = turn.answer.rsplit(": ", 1)[-1] if dialogue.kind is Kind.UNDERSTANDING else ""
        yield Example(dialogue.prompt(number), turn.answer, label=label, record=record)
