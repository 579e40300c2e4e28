"""Prompts and answers to token ids, apart, so that no token reaches over the boundary.

A text's answer follows after one space, and its tokens are those that it has in the middle of a
text: byte-level BPE puts the space into the answer's first token, sentencepiece has a mark for it,
and in neither may the answer be encoded as if a text began there. A chat's answer has the tokens
that the template gives it, its end included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from fedsea_mq.errors import ContextOverflow, InvalidPrompt
from fedsea_mq.model.chat import chat_tokens
from fedsea_mq.tasks.task import Example, Prompt, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedsea_mq.model.checkpoint import Checkpoint

IGNORED: Final = -100
# Stands where a prompt would, before an answer: punctuation, which no tokenizer joins to a space.
_BEFORE: Final = ":"
# What is left of a word that was cut; in scripts without spaces nothing is, and the cut stays.
_WORD_END: Final = re.compile(r"\S{0,40}\s")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt and its answer in token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """Both in a row."""
        return self.prompt + self.answer

    @property
    def labels(self) -> tuple[int, ...]:
        """As many as `ids`; `IGNORED` for the prompt: the loss is on the answer alone."""
        return (IGNORED,) * len(self.prompt) + self.answer


class Encoder:
    """Encodes for one tokenizer; a prompt has at most `source_tokens`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._most = source_tokens

    @classmethod
    def of(cls, task: Task, checkpoint: Checkpoint) -> Self:
        """For the task's prompts, as long as the model can take them.

        Raises `CheckpointError` for a model without a tokenizer.
        """
        limits = task.limits.within(checkpoint.max_positions)
        return cls(checkpoint.tokenizer, limits.source_tokens)

    def training(self, example: Example) -> Encoded:
        """Prompt and right answer.

        Raises:
            InvalidPrompt: the record tells no right answer, or as `prompt` and `answer` do.
            ContextOverflow: as `prompt` does.
        """
        if example.answer is None:
            raise InvalidPrompt("an example without a right answer cannot be learned from")
        answer = self.answer(example, example.answer)
        return Encoded(tuple(self.prompt(example.prompt)), tuple(answer))

    def prompt(self, prompt: Prompt) -> list[int]:
        """Token ids, of a passage that is shortened from its left where all is too long.

        Raises:
            ContextOverflow: too long even without the passage.
            InvalidPrompt: empty, or a chat without a template.
        """
        ids = self._ids(prompt)
        if not ids:
            raise InvalidPrompt("the prompt is empty")
        while len(ids) > self._most:
            if not prompt.passage:
                raise ContextOverflow(
                    f"{len(ids)} tokens without the passage, a prompt has at most {self._most}"
                )
            prompt = prompt.with_passage(self._shorter(prompt.passage, len(ids) - self._most))
            ids = self._ids(prompt)
        return ids

    def _ids(self, prompt: Prompt) -> list[int]:
        if prompt.chat:
            return chat_tokens(self._tokenizer, prompt.messages())
        return list(self._tokenizer(prompt.text)["input_ids"])

    def _shorter(self, passage: str, tokens: int) -> str:
        """The passage without its first `tokens` tokens, from the next word on."""
        encoded = self._tokenizer(passage, add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in encoded["offset_mapping"]]
        if tokens >= len(starts):
            return ""
        # At least a character goes, so that shortening comes to an end.
        at = max(1, starts[tokens])
        if not passage[at - 1].isspace() and (rest_of_word := _WORD_END.match(passage, at)):
            at = rest_of_word.end()
        return passage[at:].lstrip()

    def answer(self, example: Example, text: str) -> list[int]:
        """Token ids of an answer to `example`; its end follows where it is said freely.

        Raises `InvalidPrompt` if the tokenizer or its template tells no boundary.
        """
        if example.prompt.chat:
            return self._said(text)
        continued = self._after(self._plain(_BEFORE), self._plain(f"{_BEFORE} {text}"))
        end = self._tokenizer.eos_token_id
        return continued if example.candidates or end is None else [*continued, int(end)]

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _said(self, text: str) -> list[int]:
        asked = [{"role": "user", "content": _BEFORE}]
        opened = chat_tokens(self._tokenizer, asked)
        said = [*asked, {"role": "assistant", "content": text}]
        answer = self._after(opened, chat_tokens(self._tokenizer, said, opens_answer=False))
        end = self._tokenizer.eos_token_id
        # What a template puts after the end is not the answer's.
        return answer[: answer.index(end) + 1] if end in answer else answer

    @staticmethod
    def _after(start: Sequence[int], whole: Sequence[int]) -> list[int]:
        if list(whole[: len(start)]) != list(start) or len(whole) == len(start):
            raise InvalidPrompt("this tokenizer joins an answer to what stands before it")
        return list(whole[len(start) :])
