"""`python -m nodes.trainer --config FILE`: a member of a training run until the run is over.

Events go to standard output as JSON lines, after the line that says it is ready. SIGTERM ends the
process at once; started again, it goes on exactly from its last round.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing

import torch

from fedsea_mq.entry import announce, run_process, settings_from_arguments, stop_asked
from fedsea_mq.serving.memory import peak_rss_bytes
from fedsea_mq.settings import Settings
from fedsea_mq.telemetry.endpoint import MetricsEndpoint
from nodes.trainer.client import TrainingClient
from nodes.trainer.events import as_line


async def train(settings: Settings) -> None:
    """Take part until the run is over, or until asked to stop."""
    torch.set_num_threads(settings.model.threads)
    async with (
        TrainingClient(settings) as trainer,
        MetricsEndpoint(settings.metrics, trainer.metrics.registry) as shown,
    ):
        announce(
            ready="trainer",
            member=settings.training.member,
            run=settings.training.run,
            sigma=trainer.noise_std,
            head_rms=trainer.head_rms,
            examples=len(trainer.examples.train),
            validation=len(trainer.examples.validation),
            left_out=trainer.examples.left_out,
            metrics=shown.url,
        )
        running = asyncio.create_task(_tell(trainer))
        stopping = asyncio.create_task(stop_asked())
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not running.done():
            running.cancel()
            await asyncio.wait((running,))
        elif (error := running.exception()) is not None:
            raise error
    announce(peak_rss=peak_rss_bytes())


async def _tell(trainer: TrainingClient) -> None:
    async with aclosing(trainer.run()) as events:
        async for event in events:
            announce(**as_line(event))


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process."""
    settings = settings_from_arguments("fedsea_mq training client", arguments)
    return run_process(train(settings), settings)


if __name__ == "__main__":
    sys.exit(main())
