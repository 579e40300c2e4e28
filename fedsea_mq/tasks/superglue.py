"""SuperGLUE's eight tasks in the paper's cloze forms (Tasks and prompts).

The blank `[M]` of a form is what the model is asked for. Where a form goes on after its blank, the
place is marked and the answer follows at the end: a model that reads from left to right could not
know what comes later. Both layouts are read, that of the official files and that of the hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Final

from pydantic import AliasChoices, AliasPath, Field, Strict, model_validator

from fedsea_mq.tasks.records import YES_NO, MaybeBlank, Record, Text, class_label, ended, yes_or_no
from fedsea_mq.tasks.task import Example, Prompt

BLANK: Final = "[MASK]"
_HIGHLIGHT: Final = "@highlight\n"
_PLACEHOLDER: Final = "@placeholder"
Offset = Annotated[int, Field(ge=0)]
_NLI: Final = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}


class BoolQ(Record):
    """`[p]. Question: q? Answer: [M].`: yes or no."""

    passage: Text
    question: Text
    label: bool

    def examples(self) -> Iterator[Example]:
        """One yes-or-no question."""
        asked = f" Question: {ended(self.question, '?')} Answer:"
        answer = yes_or_no(self.label)
        yield Example(Prompt(ended(self.passage, "."), after=asked), answer, YES_NO, label=answer)


def _hypothesis(hypothesis: str, blank: str, premise: str) -> Prompt:
    return Prompt(premise, before=f'"{hypothesis.removesuffix(".")}"? {blank} "', after='"')


class CB(Record):
    """`"[h]"? [M], "[p]"`: yes, no or maybe."""

    premise: Text
    hypothesis: Text
    label: Annotated[str, class_label("entailment", "contradiction", "neutral")]

    def examples(self) -> Iterator[Example]:
        """One hypothesis."""
        prompt = _hypothesis(self.hypothesis, f"{BLANK},", self.premise)
        yield Example(prompt, _NLI[self.label], tuple(_NLI.values()), label=self.label)


class RTE(Record):
    """`"[h]"? [M] "[p]"`: yes or no."""

    premise: Text
    hypothesis: Text
    label: Annotated[str, class_label("entailment", "not_entailment")]

    def examples(self) -> Iterator[Example]:
        """One hypothesis."""
        answer = yes_or_no(self.label == "entailment")
        prompt = _hypothesis(self.hypothesis, BLANK, self.premise)
        yield Example(prompt, answer, YES_NO, label=self.label)


class COPA(Record):
    """`"[c1]" or "[c2]"? [p], so [M].`, or `because` where the cause is asked for."""

    premise: Text
    choice1: Text
    choice2: Text
    question: Annotated[str, class_label("cause", "effect")]
    label: Annotated[int, Strict(), Field(ge=0, le=1)]

    def examples(self) -> Iterator[Example]:
        """One choice of two."""
        choices = tuple(ended(choice, ".") for choice in (self.choice1, self.choice2))
        one, other = (choice.removesuffix(".") for choice in choices)
        link = "so" if self.question == "effect" else "because"
        prompt = Prompt(
            self.premise.removesuffix("."), before=f'"{one}" or "{other}"? ', after=f", {link}"
        )
        yield Example(prompt, choices[self.label], choices, label=str(self.label))


class WiC(Record):
    """`"[s1]" / "[s2]" Similar sense of [w]? [M].`: yes or no."""

    word: Text
    sentence1: Text
    sentence2: Text
    label: bool

    def examples(self) -> Iterator[Example]:
        """One pair of sentences."""
        form = f'"{self.sentence1}" / "{self.sentence2}" Similar sense of {self.word}?'
        answer = yes_or_no(self.label)
        yield Example(Prompt(before=form), answer, YES_NO, label=answer)


def _of_target(name: str) -> Any:
    return Field(validation_alias=AliasChoices(AliasPath("target", name), name))


class WSC(Record):
    """`[s] The pronoun '*p*' refers to [M].`: said freely, and compared with the noun.

    A record whose noun is the wrong one tells nothing to learn.
    """

    text: Text
    noun: Text = _of_target("span1_text")
    pronoun: Text = _of_target("span2_text")
    at: Offset = _of_target("span2_index")
    label: bool

    def examples(self) -> Iterator[Example]:
        """One pronoun, marked where the record says that it stands, if it does."""
        words = self.text.split()
        for word in range(self.at, min(self.at + 1, len(words))):
            words[word] = words[word].replace(self.pronoun, f"*{self.pronoun}*", 1)
        prompt = Prompt(" ".join(words), after=f" The pronoun '*{self.pronoun}*' refers to")
        answer = self.noun if self.label else None
        yield Example(prompt, answer, references=(self.noun,), label=yes_or_no(self.label))


class _Answer(Record):
    text: MaybeBlank
    label: bool
    idx: int


class _Question(Record):
    question: Text
    answers: list[_Answer]
    idx: int


class _Passage(Record):
    text: Text
    questions: list[_Question]


class MultiRC(Record):
    """`[p]. Question: q? Is it [a]? [M].`, for each answer of each question."""

    passage: _Passage
    idx: int

    @model_validator(mode="before")
    @classmethod
    def _from_row(cls, fields: Any) -> Any:
        """The official layout of a row as the hub has it, with one answer a row."""
        if not isinstance(fields, dict) or "paragraph" not in fields:
            return fields
        at = fields["idx"] if isinstance(fields.get("idx"), dict) else {}
        answer = {
            "text": fields.get("answer"),
            "label": fields.get("label"),
            "idx": at.get("answer"),
        }
        asked = {"question": fields.get("question"), "answers": [answer], "idx": at.get("question")}
        return {
            "passage": {"text": fields["paragraph"], "questions": [asked]},
            "idx": at.get("paragraph"),
        }

    def examples(self) -> Iterator[Example]:
        """One yes-or-no question for each answer, grouped by question."""
        passage = ended(self.passage.text, ".")
        for asked in self.passage.questions:
            for answer in asked.answers:
                question = f" Question: {ended(asked.question, '?')}"
                candidate = answer.text.removesuffix(".").removesuffix("?")
                verdict = yes_or_no(answer.label)
                yield Example(
                    Prompt(passage, after=f"{question} Is it {candidate}?"),
                    verdict,
                    YES_NO,
                    label=verdict,
                    record=str(self.idx),
                    group=str(asked.idx),
                )


class ReCoRD(Record):
    """`[p] [q]`, with the blank in the query; the candidates are the passage's entities.

    An answer ends in a full stop, so that no entity is preferred for being the beginning of
    another.
    """

    passage: Text
    entities: Annotated[list[Text], Field(min_length=1)]
    query: Text
    answers: Annotated[list[Text], Field(min_length=1)]

    @model_validator(mode="after")
    def _query_has_its_place(self) -> ReCoRD:
        if _PLACEHOLDER not in self.query:
            raise ValueError(f"query: {_PLACEHOLDER} is not in it")
        return self

    def examples(self) -> Iterator[Example]:
        """One query."""
        told = self.passage.replace(_HIGHLIGHT, "- ")
        query = self.query.replace(_PLACEHOLDER, BLANK)
        entities = tuple(ended(entity, ".") for entity in dict.fromkeys(self.entities))
        yield Example(
            Prompt(told, after=f" {query}"),
            ended(self.answers[0], "."),
            entities,
            references=tuple(dict.fromkeys(self.answers)),
        )


class _Span(Record):
    start: Offset
    end: Offset


class _Told(Record):
    text: Annotated[str, Strict()]
    entities: Annotated[list[_Span], Field(min_length=1)]

    @model_validator(mode="after")
    def _spans_are_there(self) -> _Told:
        for number, span in enumerate(self.entities):
            if not span.start <= span.end < len(self.text):
                raise ValueError(f"entity {number} is not inside the text")
        return self


class _NamedAnswer(Record):
    text: Text


class _Query(Record):
    query: Text
    answers: Annotated[list[_NamedAnswer], Field(min_length=1)]
    idx: int


class ReCoRDPassage(Record):
    """ReCoRD's official layout: entities by place, and several queries a passage."""

    passage: _Told
    qas: list[_Query]
    idx: int

    def examples(self) -> Iterator[Example]:
        """Every query of the passage."""
        text = self.passage.text
        # The files count the last character in.
        entities = [text[span.start : span.end + 1] for span in self.passage.entities]
        for asked in self.qas:
            answers = [answer.text for answer in asked.answers]
            one = ReCoRD(passage=text, entities=entities, query=asked.query, answers=answers)
            for example in one.examples():
                yield replace(example, record=str(self.idx), group=str(asked.idx))
