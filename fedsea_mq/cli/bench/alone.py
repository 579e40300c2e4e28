"""`python -m fedsea_mq.cli.bench.alone --config FILE`: measurements in a process of their own.

Each line of standard input asks for one, as JSON with its `task`; each gets one line back.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final

import torch

from fedsea_mq.cli.bench import continuous, engine_loop, machine, relay_ends, resend, unsplit
from fedsea_mq.cli.bench.model_b import CUT
from fedsea_mq.entry import announce, run_process, settings_from_arguments
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.parts import BlockRun
from fedsea_mq.settings import Settings

Found = dict[str, Any]


class _Tasks:
    """What can be asked for; models are loaded once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.model.path
        self.run = cache(self._load_run)
        self.unsplit = cache(unsplit.load_unsplit)

    def _load_run(self) -> BlockRun:
        return engine_loop.load_run(self._settings)

    def step(self, batch: int, context: int, steps: int) -> Found:
        hidden = Checkpoint.open(self._folder).hidden
        seconds = engine_loop.step_seconds(self.run(), hidden, batch, context, steps)
        return {"step_s": seconds, "tokens_per_s": batch / seconds}

    def floors(self, batch: int, context: int) -> Found:
        attention_s, read = engine_loop.attention_seconds(self.run(), batch, context)
        linears_s, flops = engine_loop.linears_seconds(self.run(), batch)
        return {
            "read_bytes_per_s": machine.read_bytes_per_s(),
            "gemm_flops_per_s": machine.gemm_flops_per_s(),
            "attention_s": attention_s,
            "attention_bytes_per_s": read / attention_s,
            "linears_s": linears_s,
            "linears_flops_per_s": flops / linears_s,
        }

    def generate(self, dtype: str, batch: int, prompt: int, new: int) -> Found:
        model = self.unsplit(self._folder, dtype)
        return {"seconds": unsplit.generate_seconds(model, batch, prompt, new)}

    def continuous(self, dtype: str, batch: int, prompt: int, new: int, requests: int) -> Found:
        model = self.unsplit(self._folder, dtype)
        seconds = continuous.continuous_seconds(model, batch, prompt, new, requests=requests)
        return {"seconds": seconds}

    def decode_token(self, dtype: str, prompt: int, new: int) -> Found:
        model = self.unsplit(self._folder, dtype)
        return {"token_s": unsplit.decode_token_seconds(model, prompt, new)}

    def serve_resent(self, dtype: str) -> None:
        resend.serve_resent(self._folder, dtype, CUT, lambda port: announce(port=port))

    def resend(self, dtype: str, port: int, context: int, tokens: int, *, mask: bool) -> Found:
        seconds = resend.resend_seconds(
            self._folder, dtype, CUT, port, context=context, tokens=tokens, mask=mask
        )
        return {"token_s": seconds}

    def proxy(self) -> None:
        relay_ends.proxy(lambda front, back: announce(front=front, back=back))

    def echo(self, endpoint: str) -> None:
        relay_ends.echo(endpoint, announce)

    def frames_per_s(self, endpoint: str, seconds: float) -> Found:
        return {"per_s": relay_ends.frames_per_s(endpoint, seconds)}


_NAMES: Final = (
    "step",
    "floors",
    "generate",
    "continuous",
    "decode_token",
    "serve_resent",
    "resend",
    "proxy",
    "echo",
    "frames_per_s",
)


async def serve(settings: Settings) -> None:
    """Answer until the input ends."""
    torch.set_num_threads(settings.model.threads)
    tasks = _Tasks(settings)
    known: dict[str, Callable[..., Any]] = {name: getattr(tasks, name) for name in _NAMES}
    announce(ready="bench")
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        asked = json.loads(line)
        task = known[asked.pop("task")]
        announce(**(await loop.run_in_executor(None, partial(task, **asked)) or {}))


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process."""
    settings = settings_from_arguments("fedsea_mq benchmark", arguments)
    return run_process(serve(settings), settings)


if __name__ == "__main__":
    sys.exit(main())
