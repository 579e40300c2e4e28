"""The recall lesson: every answer stands above, after the same token."""

from __future__ import annotations

import torch

from fedsea_mq.model.pretrain_data import IGNORED, Batch
from fedsea_mq.model.pretrain_recall import Recall, recall_batches

WORDS = range(7, 900)


def batches(pairs: int, seed: int = 1) -> list[Batch]:
    lesson = Recall(pairs, steps=2)
    return list(recall_batches(lesson, WORDS, seed=seed, batch_tokens=400))


def test_every_answer_follows_its_question_above_and_nothing_else_counts() -> None:
    batch, _ = batches(5)
    assert batch.ids.shape == (20, 20)
    assert batch.ids.min() >= WORDS.start
    assert batch.ids.max() < WORDS.stop
    assert batch.answers.sum() == 20 * 5
    assert bool((batch.labels[~batch.answers] == IGNORED).all())
    assert torch.equal(batch.labels[batch.answers], batch.ids[batch.answers])
    for ids, answers in zip(batch.ids.tolist(), batch.answers.tolist(), strict=True):
        told = sorted(zip(ids[0:10:2], ids[1:10:2], strict=True))
        asked = sorted((ids[i - 1], ids[i]) for i, answer in enumerate(answers) if answer)
        assert told == asked


def test_a_lesson_is_the_same_for_the_same_seed_and_each_batch_is_another() -> None:
    first, second = batches(3)
    assert torch.equal(first.ids, batches(3)[0].ids)
    assert not torch.equal(first.ids, second.ids)
    assert not torch.equal(first.ids, batches(3, seed=2)[0].ids)
    assert not torch.equal(first.ids[:, :6], first.ids[:, 6:])
