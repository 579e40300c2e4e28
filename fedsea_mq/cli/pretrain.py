"""`fedsea pretrain`: train the embedded model again, with its progress shown."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from fedsea_mq.cli.output import progress_console
from fedsea_mq.model.pretrain import DRAFT, PretrainProgress, PretrainSettings
from fedsea_mq.model.pretrain import pretrain as train


def pretrain(
    out: Path, *, draft: bool, steps: int | None, seed: int, threads: int, as_json: bool
) -> None:
    """Train into `out`; a JSON line or a line for people every few steps."""
    torch.set_num_threads(threads)
    settings = replace(DRAFT if draft else PretrainSettings(), seed=seed)
    if steps is not None:
        settings = settings.with_steps(steps)

    def report(progress: PretrainProgress) -> None:
        if as_json:
            sys.stdout.write(json.dumps(asdict(progress)) + "\n")
            sys.stdout.flush()
            return
        left_s = (progress.steps - progress.step) * settings.batch_tokens / progress.tokens_per_s
        progress_console.print(
            f"{progress.lesson}  {progress.step}/{progress.steps}  "
            f"answer loss {progress.answer_loss:.3f}  accuracy {progress.answer_accuracy:.1%}  "
            f"{progress.tokens_per_s:.0f} tokens/s  {left_s / 60:.0f} min left of this lesson"
        )

    disable_progress_bar()  # the lines above are the progress
    train(settings, out, report)
