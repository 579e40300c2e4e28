"""Train the embedded model from nothing: seeded, on CPU, on text the project makes itself."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedsea_mq.model.pretrain_clip import QueryClip
from fedsea_mq.model.pretrain_data import FIRST_WORD, Batch, DocumentStream, train_tokenizer
from fedsea_mq.model.pretrain_recall import Recall, recall_batches

WORLD: Final = "world"
_REPORT_STEPS: Final = 50
_SNAPSHOT_STEPS: Final = 500


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """Size and schedule of a training run. The defaults made the embedded model."""

    seed: int = 0
    # Few pairs first: with many, nothing is learned for a long time.
    lessons: tuple[Recall, ...] = (
        Recall(3, steps=300),
        Recall(8, steps=100),
        Recall(24, steps=100),
    )
    steps: int = 1200
    batch_tokens: int = 4096
    peak_learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    # Passages are random draws: most of their tokens cannot be predicted, so answers weigh more.
    passage_weight: float = 0.3
    vocab: int = 1280
    hidden: int = 256
    feed_forward: int = 704
    blocks: int = 6
    heads: int = 8
    kv_heads: int = 4
    max_positions: int = 2048
    embedding_std: float = 0.5
    max_attention_score: float = 30.0

    def with_steps(self, steps: int) -> PretrainSettings:
        """The same run in `steps` steps of passages, each lesson shorter in proportion."""
        share = steps / self.steps
        lessons = tuple(
            replace(one, steps=max(1, round(one.steps * share))) for one in self.lessons
        )
        return replace(self, steps=steps, lessons=lessons)


# What made the draft model: small enough to cost a client nothing, trained on passages alone.
DRAFT: Final = PretrainSettings(
    lessons=(),
    steps=1200,
    peak_learning_rate=2e-3,
    hidden=128,
    feed_forward=352,
    blocks=3,
    heads=4,
    kv_heads=4,
)


@dataclass(frozen=True, slots=True)
class PretrainProgress:
    """Running means since the last report. `answer_loss` is in nats a token."""

    lesson: str
    step: int
    steps: int
    answer_loss: float
    answer_accuracy: float
    tokens_per_s: float


def pretrain(
    settings: PretrainSettings, out: Path, report: Callable[[PretrainProgress], None]
) -> None:
    """Train and write an fp16 model with its tokenizer and settings into `out`."""
    torch.manual_seed(settings.seed)
    tokenizer = train_tokenizer(settings.seed, settings.vocab)
    model = LlamaForCausalLM(_config(settings, tokenizer))
    _initialise(model, settings)
    run = _Run(settings, model, tokenizer)

    def tell(progress: PretrainProgress) -> None:
        report(progress)
        # A model that can be tried before the run ends, and that outlives a run cut short.
        whole = progress.step % _SNAPSHOT_STEPS == 0 or progress.step == settings.steps
        if progress.lesson == WORLD and whole:
            write_model(model, tokenizer, settings, out)

    run.train(tell)


def write_model(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: PretrainSettings,
    out: Path,
) -> None:
    """The model in fp16, as transformers saves it, beside the settings that made it."""
    out.mkdir(parents=True, exist_ok=True)
    halved = LlamaForCausalLM(model.config)
    halved.load_state_dict(model.state_dict())
    halved.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "pretrain.json").write_text(json.dumps(asdict(settings), indent=1) + "\n")


def _config(settings: PretrainSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.blocks,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        max_position_embeddings=settings.max_positions,
        tie_word_embeddings=False,
        # On CPU the plain attention is quicker to train at these lengths than the fused one.
        attn_implementation="eager",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _initialise(model: LlamaForCausalLM, settings: PretrainSettings) -> None:
    """Unit gain through every matrix, a loud embedding, and heads that look for their own token.

    The residual stream starts as the tokens themselves, which is what copying from the passage
    needs: with one small spread for all weights, learning took several times as many steps. Half of
    the heads start with equal query and key weights, so that a token attends to where it stood
    before, which is where recall begins.
    """
    into_residual = (2 * settings.blocks) ** -0.5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                continue
            if "embed_tokens" in name:
                weight.normal_(std=settings.embedding_std)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.normal_(std=into_residual * weight.shape[1] ** -0.5)
            else:
                weight.normal_(std=weight.shape[1] ** -0.5)
        for layer in model.model.layers:
            _look_for_own_token(layer.self_attn, settings)


def _look_for_own_token(attention: Any, settings: PretrainSettings) -> None:
    """Start the first query head of each key head with that key head's weights."""
    dim, shared = settings.hidden // settings.heads, settings.heads // settings.kv_heads
    for group in range(settings.kv_heads):
        first = group * shared * dim
        key = attention.k_proj.weight[group * dim : (group + 1) * dim]
        attention.q_proj.weight[first : first + dim] = key


class _Run:
    """One training run: model, optimiser, data and running means."""

    def __init__(
        self, settings: PretrainSettings, model: Any, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        self._settings = settings
        self._model = model
        self._tokenizer = tokenizer
        self._steps_done = 0
        self._clip = QueryClip(model, settings.max_attention_score)
        self._optimizer = torch.optim.AdamW(
            _weight_groups(model, settings.weight_decay),
            lr=settings.peak_learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )

    def train(self, report: Callable[[PretrainProgress], None]) -> None:
        settings = self._settings
        self._model.train()
        tokens = range(FIRST_WORD, len(self._tokenizer))
        for number, lesson in enumerate(settings.lessons):
            batches = recall_batches(
                lesson, tokens, seed=settings.seed + number, batch_tokens=settings.batch_tokens
            )
            self._teach(str(lesson), lesson.steps, batches, report)
        documents = DocumentStream(self._tokenizer, settings.seed, settings.batch_tokens)
        self._teach(WORLD, settings.steps, documents, report)

    def _teach(
        self,
        lesson: str,
        steps: int,
        batches: Iterable[Batch],
        report: Callable[[PretrainProgress], None],
    ) -> None:
        losses, hits, tokens, started = 0.0, 0.0, 0, time.perf_counter()
        for step, batch in enumerate(itertools.islice(batches, steps), start=1):
            loss, accuracy = self._step(batch)
            losses, hits, tokens = losses + loss, hits + accuracy, tokens + batch.ids.numel()
            if step % _REPORT_STEPS == 0 or step == steps:
                count = (step - 1) % _REPORT_STEPS + 1
                rate = tokens / (time.perf_counter() - started)
                report(PretrainProgress(lesson, step, steps, losses / count, hits / count, rate))
                losses, hits, tokens, started = 0.0, 0.0, 0, time.perf_counter()

    def _step(self, batch: Batch) -> tuple[float, float]:
        self._steps_done += 1
        for group in self._optimizer.param_groups:
            group["lr"] = _learning_rate(self._settings, self._steps_done)
        with torch.autocast("cpu", torch.bfloat16):
            # Padding lies on the right, so causal attention needs no mask.
            logits = self._model(input_ids=batch.ids, use_cache=False).logits
        answer_loss, rest_loss, accuracy = _losses(logits, batch)
        loss = answer_loss + self._settings.passage_weight * rest_loss
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._clip.clip()
        return answer_loss.item(), accuracy


def _losses(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean cross entropy over answer tokens and over all others, if any; accuracy on answers."""
    targets, answers = batch.labels[:, 1:], batch.answers[:, 1:]
    scores = logits[:, :-1].float()
    each = cross_entropy(scores.transpose(1, 2), targets, reduction="none")
    others = (targets >= 0) & ~answers
    hits = (scores.argmax(-1) == targets)[answers].float().mean().item()
    rest = each[others].sum() / others.sum().clamp(min=1)
    return each[answers].mean(), rest, hits


def _weight_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _learning_rate(settings: PretrainSettings, step: int) -> float:
    """Linear warm-up, level through the lessons, then a cosine down to nothing."""
    lessons = sum(lesson.steps for lesson in settings.lessons)
    warm = min(1.0, step / settings.warmup_steps)
    done = max(0, step - lessons) / max(1, settings.steps)
    return settings.peak_learning_rate * warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
