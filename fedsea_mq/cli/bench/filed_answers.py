"""A task to fine-tune on whose loss stays away from zero, made from the embedded ones.

The embedded model knows the embedded tasks by heart: their loss is near nothing, and so is what
fine-tuning could add. Here the answers end in a number that no prompt tells. So a new form is to
be learned, and the numbers keep a loss that two ways of training can be compared by.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from fedsea_mq.tasks.registry import find
from fedsea_mq.tasks.task import Split, Wanted


def write_filed_answers(file: Path, dialogues: int, seed: int = 0) -> None:
    """JSON lines for `jsonl:FILE`: the first question of that many dialogues of each kind."""
    rng = random.Random(seed)  # noqa: S311 - text to measure with
    source = find("embedded").source
    seen: set[str] = set()
    with file.open("w") as out:
        for example in source.examples(Wanted(Split.TRAIN, dialogues, seed)):
            if example.record in seen:
                continue
            seen.add(example.record)
            number = " ".join(str(rng.randrange(10)) for _ in range(3))
            said = {"prompt": example.prompt.text, "answer": f"{example.answer} filed as {number}"}
            out.write(json.dumps(said) + "\n")
