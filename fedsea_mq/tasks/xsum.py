"""XSum in the paper's chat form: a news article, to be told in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fedsea_mq.tasks.records import MaybeBlank, Record, Text
from fedsea_mq.tasks.task import Example, Prompt

SYSTEM: Final = (
    "You are a helpful assistant. You need to summarize an abstract based on the provided passage."
)


class Article(Record):
    """An article and its one-sentence summary."""

    document: MaybeBlank
    summary: Text

    def examples(self) -> Iterator[Example]:
        """One summary."""
        prompt = Prompt(
            self.document.removesuffix("."),
            before="The passage is ",
            after=".",
            chat=True,
            system=SYSTEM,
        )
        yield Example(prompt, self.summary)
