"""Data of one's own: JSON lines with `prompt`, `answer` and, to choose from, `candidates`."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import model_validator

from fedsea_mq.tasks.records import Record, Text
from fedsea_mq.tasks.task import Example, Prompt


class Own(Record):
    """One line. A prompt that is too long loses its beginning."""

    prompt: Text
    answer: Text
    candidates: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _answer_is_a_candidate(self) -> Own:
        if self.candidates and self.answer not in self.candidates:
            raise ValueError("the answer is not among the candidates")
        return self

    def examples(self) -> Iterator[Example]:
        """The line's one example."""
        label = self.answer if self.candidates else ""
        yield Example(Prompt(self.prompt), self.answer, self.candidates, label=label)
