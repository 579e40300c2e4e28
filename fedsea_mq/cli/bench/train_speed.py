"""How fast split training is: by strategy and number of clients, with and without a link."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import torch

from fedsea_mq.cli.bench.clients_here import clients_here, trunk_and_aggregator
from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.unsplit_training import Trainee, UnsplitModel
from fedsea_mq.cli.bench.workbench import Workbench
from fedsea_mq.cli.loadtest import run_load
from fedsea_mq.cli.output import progress_console
from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.load.plan import Lengths, Link, LoadPlan
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.run_settings import Strategy
from fedsea_mq.settings import Settings
from fedsea_mq.tasks.encoding import Encoded
from fedsea_mq.training.initial_adapters import adapter_shapes, drawn_adapter
from fedsea_mq.training.settings import TrainingSettings
from nodes.trainer import Examples, TrainingClient
from nodes.trainer.events import StepDone

RATIOS: Final = (
    Ratio("hierarchical_8_vs_sequential", "8 clients, 20 ms each way: samples/s", 6.0),
    Ratio("client_batch_8_vs_sequential", "8 clients, 20 ms each way: samples/s", 6.0),
    Ratio("split_vs_unsplit", "one client, no link, the same threads: samples/s", 0.85),
    Ratio("bytes_vs_floor", "4 x tokens x hidden x bytes an element", 1.02, at_most=True),
)
CLIENTS: Final = (2, 4, 8)
LINKS: Final = {"none": Link(), "20 ms": Link(delay_ms=20.0)}
_TOKENS: Final = 128
_ANSWER: Final = 8
_STEPS: Final = 12
# The first round is warm-up, and not counted.
_ROUNDS: Final = 2
_THREADS: Final = 2
_CHATS: Final = LoadPlan(
    sessions=(1,) * 16,
    prompt=Lengths(low=64, high=64),
    new=Lengths(low=32, high=32),
    duration_s=12.0,
    warmup_s=2.0,
)


@dataclass(frozen=True, slots=True)
class Pace:
    """Of a whole system, over the rounds that count.

    `busy` is the share of all cores' time; `trunk_busy` and `clients_busy` of one core's, since
    each of the two computes on one thread where there are several clients.
    """

    samples_per_s: float
    bytes_per_sample: float
    busy: float
    trunk_busy: float
    clients_busy: float

    def as_json(self) -> dict[str, float]:
        """Rounded for people."""
        return {
            "samples_per_s": round(self.samples_per_s, 2),
            "bytes_per_sample": round(self.bytes_per_sample),
            "cores_busy": round(self.busy, 3),
            "trunk_busy": round(self.trunk_busy, 3),
            "clients_busy": round(self.clients_busy, 3),
        }


async def _measure(_: Workbench) -> Repeat:
    paces: dict[tuple[str, int, str], Pace] = {}
    for link in LINKS:
        for clients in CLIENTS:
            for strategy in Strategy:
                progress_console.print(f"{strategy}, {clients} clients, link {link}", style="dim")
                paces[strategy, clients, link] = await _pace(strategy, clients, LINKS[link])
    one = await _pace(Strategy.HIERARCHICAL, 1, LINKS["none"], threads=_THREADS)
    unsplit = await asyncio.to_thread(_unsplit_samples_per_s)
    slow = {strategy: paces[strategy, 8, "20 ms"].samples_per_s for strategy in Strategy}
    ratios = {
        "hierarchical_8_vs_sequential": slow[Strategy.HIERARCHICAL] / slow[Strategy.SEQUENTIAL],
        "client_batch_8_vs_sequential": slow[Strategy.CLIENT_BATCH] / slow[Strategy.SEQUENTIAL],
        "split_vs_unsplit": one.samples_per_s / unsplit,
        "bytes_vs_floor": one.bytes_per_sample / _floor(),
    }
    measured: dict[str, Any] = {
        f"{strategy}, {clients} clients, link {link}": pace.as_json()
        for (strategy, clients, link), pace in paces.items()
    }
    measured["one client, no link"] = one.as_json()
    measured["unsplit peft"] = {"samples_per_s": round(unsplit, 2)}
    return ratios, measured


def _floor() -> float:
    """Bytes of a sample's states there and back, and of their gradients, in fp16."""
    return 4 * _TOKENS * Checkpoint.open("embedded").hidden * 2


def _settings(strategy: Strategy, clients: int, threads: int, folder: Path) -> Settings:
    return Settings().replace(
        model={"threads": threads},
        training={
            "run": "speed",
            "strategy": strategy,
            "clients": clients,
            "batch_size": 1,
            "out": folder,
        },
        federation={"rounds": _ROUNDS, "local_steps": _STEPS},
        log={"level": "warning"},
    )


def _examples(seed: int) -> list[Encoded]:
    rng = random.Random(seed)  # noqa: S311 - tokens to measure with
    vocab = Checkpoint.open("embedded").config.vocab_size
    made = ([rng.randrange(vocab) for _ in range(_TOKENS)] for _ in range(16))
    return [Encoded(tuple(ids[:-_ANSWER]), tuple(ids[-_ANSWER:])) for ids in made]


def _shards(clients: int) -> dict[str, Examples]:
    return {f"member-{number}": Examples(_examples(number)) for number in range(clients)}


async def _pace(strategy: Strategy, clients: int, link: Link, threads: int = 1) -> Pace:
    with tempfile.TemporaryDirectory(prefix="fedsea-speed-") as name:
        settings = _settings(strategy, clients, threads, Path(name))
        torch.set_num_threads(threads)
        async with (
            trunk_and_aggregator(settings) as system,
            clients_here(system.settings, _shards(clients), link) as trainers,
            asyncio.TaskGroup() as group,
        ):
            watch = _Watch(clients, system)
            for trainer in trainers:
                group.create_task(watch.follow(trainer))
    return watch.pace()


@dataclass(frozen=True, slots=True)
class _Moment:
    """When, and the seconds of CPU used by then: by the clients here, the trunk, and the others."""

    at: float
    used: list[float]


class _Watch:
    """Times the rounds after the first: from its last step to the run's last."""

    def __init__(self, clients: int, system: LocalSystem) -> None:
        self._warm_left = clients
        trunk, others = system.trunks[0], [c for c in system.children if c not in system.trunks]
        pids = [None, trunk.process.pid, *(child.process.pid for child in others)]
        self._processes = [psutil.Process(pid) for pid in pids]
        self._began = self._ended = _Moment(0.0, [])
        self._samples = 0
        self._bytes = 0

    async def follow(self, trainer: TrainingClient) -> None:
        """Take a client's events to the end of the run."""
        async for event in trainer.run():
            if isinstance(event, StepDone):
                self._step(event)

    def _step(self, event: StepDone) -> None:
        if event.round == 0:
            self._warm_left -= event.step == _STEPS - 1
            if not self._warm_left:
                self._began = self._now()
            return
        self._samples += event.samples
        self._bytes += event.bytes_up + event.bytes_down
        self._ended = self._now()

    def _now(self) -> _Moment:
        used = (process.cpu_times() for process in self._processes)
        return _Moment(time.monotonic(), [times.user + times.system for times in used])

    def pace(self) -> Pace:
        """What came of it."""
        seconds = self._ended.at - self._began.at
        pairs = zip(self._ended.used, self._began.used, strict=True)
        clients, trunk, *others = ((after - before) / seconds for after, before in pairs)
        busy = (clients + trunk + sum(others)) / (psutil.cpu_count() or 1)
        return Pace(self._samples / seconds, self._bytes / self._samples, busy, trunk, clients)


async def _beside(_: Workbench) -> Repeat:
    with tempfile.TemporaryDirectory(prefix="fedsea-beside-") as name:
        # Rounds without end: the load says how long it goes on.
        settings = _settings(Strategy.HIERARCHICAL, 2, 1, Path(name)).replace(
            federation={"rounds": 10_000}, training={"batch_size": 4}
        )
        async with trunk_and_aggregator(settings) as local:
            alone = await run_load(local, _CHATS)
            async with clients_here(local.settings, _shards(2), LINKS["none"]) as trainers:
                taken = _Taken()
                following = [asyncio.create_task(taken.follow(one)) for one in trainers]
                await taken.begun.wait()
                before = taken.samples
                beside = await run_load(local, _CHATS)
                trained = taken.samples - before
                for task in following:
                    task.cancel()
                await asyncio.wait(following)
    p95 = [run.tally.tpot.percentile(95) * 1000 for run in (alone, beside)]
    return {"decode_p95_beside_training": p95[1] / p95[0]}, {
        "tpot_p95_alone_ms": p95[0],
        "tpot_p95_beside_ms": p95[1],
        "errors_beside": (beside.tally.errors + beside.tally.errors_outside).total(),
        "samples_trained_beside": trained,
    }


class _Taken:
    """Samples that all clients together have trained on so far."""

    def __init__(self) -> None:
        self.samples = 0
        self.begun = asyncio.Event()

    async def follow(self, trainer: TrainingClient) -> None:
        async for event in trainer.run():
            if isinstance(event, StepDone):
                self.samples += event.samples
                self.begun.set()


def _unsplit_samples_per_s() -> float:
    """Peft on the unsplit model: the same steps, one after the other, with the same threads."""
    torch.set_num_threads(_THREADS)
    checkpoint, settings = Checkpoint.open("embedded"), Settings()
    how = TrainingSettings.of(settings, seed=0, max_positions=1)
    cut = Cut(settings.model.head_blocks, settings.model.tail_blocks)
    adapter = {
        name: tensor
        for part in Part
        for name, tensor in drawn_adapter(
            adapter_shapes(checkpoint, cut, part, how.lora), 0
        ).items()
    }
    model = UnsplitModel(str(checkpoint.folders[0]), how.lora, range(checkpoint.blocks))
    trainee, examples = Trainee(adapter, how.optimizer), _examples(0)
    for number in range(_STEPS * _ROUNDS):
        if number == _STEPS:
            began = time.perf_counter()
        loss = model.loss(trainee.weights, [examples[number % len(examples)]]) / _ANSWER
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trainee.weights.values(), settings.training.max_norm)
        trainee.step(1.0)
    return _STEPS * (_ROUNDS - 1) / (time.perf_counter() - began)


TRAINING: Final = Comparison("training", RATIOS, _measure)
BESIDE: Final = Comparison(
    "beside",
    (
        Ratio(
            "decode_p95_beside_training",
            "p95 TPOT of 16 thin sessions while two clients train on the same trunk, over without",
            2.0,
            at_most=True,
        ),
    ),
    _beside,
)
