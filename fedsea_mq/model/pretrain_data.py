"""The embedded model's tokenizer and its endless stream of training batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fedsea_mq.tasks.examples import Example, conversation, repeat, summary, understanding
from fedsea_mq.tasks.world import World

BOS: Final = "<|bos|>"
END: Final = "<|end|>"
PAD: Final = "<|pad|>"
ROLES: Final = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
# The space after a role makes a word at the start of a message the same token as inside a text.
CHAT_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
IGNORED: Final = -100
# Words and names of the world occur this often, and become one token each.
_MIN_FREQUENCY: Final = 350
_TOKENIZER_DOCUMENTS: Final = 12_000
_POOL_BATCHES: Final = 8


@dataclass(frozen=True, slots=True)
class Stage:
    """What the documents of a stretch of training are like."""

    people: Sequence[int]
    """How many people a passage may portray, one drawn for each document."""
    repeats: float
    conversations: float
    understandings: float
    """Shares of the kinds of document; the rest are summaries."""


FULL: Final = Stage((2, 3, 3), repeats=0.02, conversations=0.40, understandings=0.43)


def document(rng: random.Random, world: World, stage: Stage) -> Example:
    """One training example: more turns a passage than evaluation asks, to learn more from each."""
    story = world.story(stage.people)
    kind = rng.random()
    if (kind := kind - stage.repeats) < 0:
        return repeat(story)
    if (kind := kind - stage.conversations) < 0:
        return conversation(rng, story, turns=rng.randint(5, 9))
    if (kind := kind - stage.understandings) < 0:
        return understanding(rng, story, questions=rng.randint(1, 8))
    return summary(story)


def train_tokenizer(seed: int, vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the world's text, with the chat template."""
    world, rng = World(seed), random.Random(f"tokenizer {seed}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=[PAD, BOS, END, *ROLES.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (
        f" {text}"
        for _ in range(_TOKENIZER_DOCUMENTS)
        for turn in document(rng, world, FULL).turns
        for text in (turn.said, turn.answer)
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded documents: `ids` and `labels` `[documents, longest]`, `answers` a mask."""

    ids: torch.Tensor
    labels: torch.Tensor
    answers: torch.Tensor


class DocumentStream:
    """Batches of documents of similar length, the same for the same seed.

    `stage` can be changed as training goes on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, batch_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._world = World(seed)
        self._rng = random.Random(f"documents {seed}")
        self._batch_tokens = batch_tokens
        self.stage = FULL
        ids = tokenizer.convert_tokens_to_ids
        self._bos, self._end = ids(BOS), ids(END)
        self._user, self._assistant = ids(ROLES["user"]), ids(ROLES["assistant"])

    def __iter__(self) -> Iterator[Batch]:
        while True:
            pool = sorted(self._encoded_pool(), key=lambda doc: len(doc[0]))
            batches = list(self._split(pool))
            self._rng.shuffle(batches)
            yield from batches

    def _encoded_pool(self) -> list[tuple[list[int], list[bool]]]:
        documents: list[tuple[list[int], list[bool]]] = []
        tokens = 0
        while tokens < _POOL_BATCHES * self._batch_tokens:
            documents.append(self.encode(document(self._rng, self._world, self.stage)))
            tokens += len(documents[-1][0])
        return documents

    def encode(self, example: Example) -> tuple[list[int], list[bool]]:
        """Token ids as the chat template gives them, and which of them belong to answers."""
        ids, is_answer = [self._bos], [False]
        for turn in example.turns:
            for role, text in ((self._user, turn.said), (self._assistant, turn.answer)):
                piece = self._tokenizer.backend_tokenizer.encode(f" {text}").ids
                ids += [role, *piece, self._end]
                answered = role == self._assistant
                is_answer += [False] + [answered] * (len(piece) + 1)
        return ids, is_answer

    def _split(self, pool: list[tuple[list[int], list[bool]]]) -> Iterator[Batch]:
        start = 0
        while start < len(pool):
            stop = start + 1
            while (
                stop < len(pool) and (stop + 1 - start) * len(pool[stop][0]) <= self._batch_tokens
            ):
                stop += 1
            yield self._pad(pool[start:stop])
            start = stop

    @staticmethod
    def _pad(documents: list[tuple[list[int], list[bool]]]) -> Batch:
        longest = max(len(ids) for ids, _ in documents)
        ids = torch.zeros((len(documents), longest), dtype=torch.long)
        labels = torch.full_like(ids, IGNORED)
        answers = torch.zeros_like(ids, dtype=torch.bool)
        for row, (tokens, is_answer) in enumerate(documents):
            ids[row, : len(tokens)] = labels[row, : len(tokens)] = torch.tensor(tokens)
            answers[row, : len(tokens)] = torch.tensor(is_answer)
        return Batch(ids, labels, answers)
