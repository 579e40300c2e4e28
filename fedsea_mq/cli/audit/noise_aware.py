"""Adapters of a client's own, trained under the noise that it will send with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from fedsea_mq.cli.bench.clients_here import adapters_of_a_run
from fedsea_mq.cli.bench.kept_scores import digest_of
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.settings import Settings
from nodes.trainer.examples import load_examples

# As in configs/finetune-results.yaml, of one client who has as many examples a step.
_TRAINING: Final[dict[str, Any]] = {
    "clients": 1,
    "examples": 200,
    "batch_size": 12,
    "learning_rate": 1e-3,
    "max_norm": 1.0,
    "alpha": None,
}
_STEPS_A_ROUND: Final = 20


async def noise_aware_adapter(settings: Settings, task: str, steps: int, folder: Path) -> Path:
    """A folder in peft's format; trained at the settings' noise if `folder` has none for them."""
    settings = settings.replace(
        lora={"rank": 8, "alpha": 16},
        training={**_TRAINING, "task": task},
        federation={
            "rounds": -(-steps // _STEPS_A_ROUND),
            "local_steps": min(steps, _STEPS_A_ROUND),
        },
    )
    checkpoint = Checkpoint.open(settings.model.path)
    examples = load_examples(settings.training, checkpoint)
    folder /= digest_of(settings, [repr(examples.train), checkpoint.digests])
    merged = folder / "merged"
    if not merged.exists():
        trained = await adapters_of_a_run(settings, {"client": examples}, folder)
        trained.replace(merged)  # a run that is stopped leaves whole adapters, or none
    return merged
