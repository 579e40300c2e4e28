"""A trunk node's part in a training run: the rules, and adapters on the blocks that it serves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from fedsea_mq.errors import ConfigError, FedSeaError, NotRunning
from fedsea_mq.log import get_logger
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.parts import BlockRun
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.serving.batcher import Batcher
from fedsea_mq.serving.trunk_sessions import Reply
from fedsea_mq.serving.work import SlicedWork
from fedsea_mq.settings import Settings
from fedsea_mq.training.load import grouped_trunk
from fedsea_mq.training.run_adapters import RunAdapters
from fedsea_mq.training.settings import TrainingSettings
from fedsea_mq.training.trunk_compute import PART, TrunkCompute
from fedsea_mq.training.trunk_members import TrainingSessions, TrainingTerms
from fedsea_mq.training.trunk_rounds import Action, TrunkRounds
from fedsea_mq.training.trunk_work import Outcome, Work

_log = get_logger(__name__)
_OF_TRAINING: Final = frozenset(
    {Kind.ENLIST, Kind.FORWARD, Kind.BACKWARD, Kind.STEP, Kind.BEGIN_ROUND, Kind.END_ROUND}
)
_OF_ANY_SESSION: Final = frozenset({Kind.RENEW, Kind.CLOSE})


def check_trainable(settings: Settings) -> None:
    """Refuse what cannot both serve and train.

    Raises:
        ConfigError: weights that are not fp32, as there is one copy of them; `training.dtype` may
            be bf16 all the same. Or a stage or several ranks: gradients do not go from one to
            another.
    """
    if settings.trunk.tensor_parallel > 1:
        raise ConfigError("a trunk that trains has trunk.tensor_parallel 1")
    model = settings.model
    if settings.trunk.blocks is not None:
        raise ConfigError("a node that trains has the whole trunk: set trunk.blocks to null")
    if model.weights == "int8" or model.dtype != "fp32":
        raise ConfigError(
            f"a trunk that trains has model.dtype fp32 and model.weights auto, "
            f"found {model.dtype} and {model.weights}"
        )


def trunk_compute(run: BlockRun, settings: Settings, checkpoint: Checkpoint) -> TrunkCompute:
    """Adapters and optimisers on the blocks of `run`, whose linear layers are plain ones."""
    training, model, own = settings.training, settings.model, TrainingSettings.of_trunk(settings)
    assert training.run is not None
    cut = Cut(model.head_blocks, model.tail_blocks)
    made = RunAdapters.of(training.run, cut, checkpoint.blocks, settings.lora.parts)
    folder = training.out / training.run / PART
    trunk = grouped_trunk(run, own, checkpoint.hidden)
    return TrunkCompute(trunk, own, training.max_norm, made, folder)


def training_terms(settings: Settings, node: str, fingerprint: str, hidden: int) -> TrainingTerms:
    """What the node offers to its run."""
    training, trunk = settings.training, settings.trunk
    assert training.run is not None
    return TrainingTerms(
        node=node,
        run=training.run,
        fingerprint=fingerprint,
        agreed=settings.agreed,
        hidden=hidden,
        strategy=training.strategy,
        max_positions=training.max_positions,
        max_sessions=trunk.max_sessions,
        lease_s=trunk.lease_s,
        patience_s=training.patience_s,
    )


class TrunkTraining:
    """Does what the rules say: replies by the broker, work in slices between serving's steps."""

    def __init__(
        self,
        terms: TrainingTerms,
        compute: TrunkCompute,
        batcher: Batcher,
        send: Callable[[Parts], None],
    ) -> None:
        self._rounds = TrunkRounds(terms)
        self._compute = compute
        self._batcher = batcher
        self._send = send

    @property
    def sessions(self) -> TrainingSessions:
        """Who has enlisted."""
        return self._rounds.sessions

    def takes(self, frame: Frame) -> bool:
        """Whether a frame is for training."""
        kind, session = frame.envelope.kind, frame.envelope.session
        return kind in _OF_TRAINING or (kind in _OF_ANY_SESSION and session in self.sessions)

    def receive(self, frame: Frame) -> None:
        """Handle a frame that came by the broker."""
        self._act(self._rounds.receive(frame, time.monotonic()))

    def expire(self) -> None:
        """End sessions whose lease ran out, and waiting for members that are silent."""
        self._act(self._rounds.expire(time.monotonic()))

    def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Reply):
                self._send(action.parts)
            else:
                self._start(action)

    def _start(self, work: Work) -> None:
        sliced = SlicedWork(self._compute.slices(work), partial(self._done, work))
        try:
            self._batcher.submit_slices(sliced)
        except FedSeaError as error:
            self._done(work, error)

    def _done(self, work: Work, outcome: Outcome) -> None:
        if isinstance(outcome, NotRunning):
            return
        if isinstance(outcome, Exception):
            # The class says enough: messages may name files, and a run's members.
            reason, failed = type(outcome).__name__, type(work).__name__
            _log.error("training work failed", work=failed, error=reason)
        self._act(self._rounds.done(work, outcome, time.monotonic()))
