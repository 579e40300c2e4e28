"""CoQA in the paper's chat form: a story, then questions that follow each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pydantic import model_validator

from fedsea_mq.tasks.records import MaybeBlank, Record, Text
from fedsea_mq.tasks.task import Example, Prompt, talk_before

SYSTEM: Final = (
    "You are a helpful assistant. You need to answer my question based on the provided story."
)


class _Turn(Record):
    input_text: MaybeBlank


class Story(Record):
    """A story of the official file, with the first annotator's answers and those of others."""

    story: Text
    questions: list[_Turn]
    answers: list[_Turn]
    additional_answers: dict[str, list[_Turn]] = {}  # noqa: RUF012 - pydantic copies defaults
    source: str = ""

    @model_validator(mode="before")
    @classmethod
    def _from_row(cls, fields: Any) -> Any:
        """The official layout of a row as the hub has it, with lists of texts."""
        if not isinstance(fields, dict) or not isinstance(fields.get("answers"), dict):
            return fields
        texts = fields["answers"].get("input_text")
        listed = {"questions": fields.get("questions"), "answers": texts}
        turns = {
            key: [{"input_text": text} for text in value] if isinstance(value, list) else value
            for key, value in listed.items()
        }
        return {**fields, **turns}

    @model_validator(mode="after")
    def _every_turn_is_answered(self) -> Story:
        asked = len(self.questions)
        for name, said in {"answers": self.answers, **self.additional_answers}.items():
            if len(said) != asked:
                raise ValueError(f"{len(said)} answers of {name} to {asked} questions")
        return self

    def examples(self) -> Iterator[Example]:
        """One example a turn, with the right answers before it."""
        said = [turn.input_text for turn in self.answers]
        asked = [turn.input_text for turn in self.questions]
        opening = f". My question is {asked[0]}" if asked else ""
        for turn, answer in enumerate(said):
            others = [turns[turn].input_text for turns in self.additional_answers.values()]
            yield Example(
                Prompt(
                    self.story.removesuffix("."),
                    before="The story is ",
                    after=opening,
                    chat=True,
                    system=SYSTEM,
                    then=talk_before(turn, asked, said),
                ),
                answer,
                references=(answer, *others),
                label=self.source,
            )
