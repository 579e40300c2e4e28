"""The embedded model's tokenizer and its endless stream of training batches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fedsea_mq.tasks.dialogues import (
    Dialogue,
    conversation,
    mixed,
    repeat,
    summary,
    understanding,
)
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
_SPECIAL: Final = [PAD, BOS, END, *ROLES.values()]
# Ids below are special tokens.
FIRST_WORD: Final = len(_SPECIAL)
IGNORED: Final = -100
# Words and names of the world occur this often, and become one token each.
_MIN_FREQUENCY: Final = 350
_TOKENIZER_DOCUMENTS: Final = 12_000
_POOL_BATCHES: Final = 8


def document(rng: random.Random, world: World) -> Dialogue:
    """One training example: more turns a passage than evaluation asks, to learn more from each."""
    story = world.story()
    kind = rng.random()
    if kind < 0.10:
        return repeat(story)
    if kind < 0.35:
        return conversation(rng, story, turns=rng.randint(4, 8))
    if kind < 0.60:
        return mixed(rng, story, turns=rng.randint(4, 8))
    if kind < 0.90:
        return understanding(rng, story, questions=rng.randint(1, 10))
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
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (
        f" {text}"
        for _ in range(_TOKENIZER_DOCUMENTS)
        for turn in document(rng, world).turns
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
    """Batches of documents of similar length, the same for the same seed."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, batch_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._world = World(seed)
        self._rng = random.Random(f"documents {seed}")
        self._batch_tokens = batch_tokens
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
            documents.append(self.encode(document(self._rng, self._world)))
            tokens += len(documents[-1][0])
        return documents

    def encode(self, dialogue: Dialogue) -> tuple[list[int], list[bool]]:
        """Token ids as the chat template gives them, and which of them belong to answers."""
        ids, is_answer = [self._bos], [False]
        for turn in dialogue.turns:
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
            while stop < len(pool) and self._fits(stop + 1 - start, len(pool[stop][0])):
                stop += 1
            yield self._pad(pool[start:stop])
            start = stop

    def _fits(self, documents: int, longest: int) -> bool:
        return documents * _rounded(longest) <= self._batch_tokens

    @staticmethod
    def _pad(documents: list[tuple[list[int], list[bool]]]) -> Batch:
        # Few distinct shapes: each new one costs the CPU's matmul library a set-up and memory.
        longest = _rounded(max(len(ids) for ids, _ in documents))
        ids = torch.zeros((len(documents), longest), dtype=torch.long)
        labels = torch.full_like(ids, IGNORED)
        answers = torch.zeros_like(ids, dtype=torch.bool)
        for row, (tokens, is_answer) in enumerate(documents):
            ids[row, : len(tokens)] = labels[row, : len(tokens)] = torch.tensor(tokens)
            answers[row, : len(tokens)] = torch.tensor(is_answer)
        return Batch(ids, labels, answers)


def _rounded(length: int) -> int:
    return -(-length // 16) * 16
