"""A run as its settings and its checkpoint describe it, checked before anything is begun."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedsea_mq.errors import CheckpointError, ConfigError
from fedsea_mq.model.adapters import write_adapter
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.run_settings import FederationSection
from fedsea_mq.settings import Settings
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.aggregation.secure_stages import SecureRules
from fedsea_mq.training.aggregator_state import AggregatorState, newest_aggregator
from fedsea_mq.training.averaging import Personal
from fedsea_mq.training.initial_adapters import Shapes, adapter_shapes, drawn_adapter
from fedsea_mq.training.round_plan import RoundPlan
from fedsea_mq.training.rounds import Progress
from fedsea_mq.training.run_adapters import RunAdapters
from fedsea_mq.training.secure_aggregation.messages import MAX_ABS
from fedsea_mq.training.server_optimizers import FedAdam, FedAvg, FedYogi, ServerOptimizer
from fedsea_mq.training.shared_adapters import Shared, SharedAdapters
from fedsea_mq.training.state_folders import StateFolders

# Of a secure round's time: four stages, then the mean and the trunk.
_STAGES = 5


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run. Made by `of`.

    `parts` are the shapes of head's and tail's adapters, personal ones too; `layout` is of what is
    shared of them, and is empty where neither part has an adapter. `adapters` are the run's, over
    all parts.
    """

    settings: Settings
    run: str
    fingerprint: str
    cut: Cut
    hidden: int
    parts: Mapping[Part, Shapes]
    layout: AdapterLayout
    adapters: RunAdapters
    rounds: RoundPlan
    secure: SecureRules | None
    folders: StateFolders

    @classmethod
    def of(cls, settings: Settings) -> RunPlan:
        """Read the checkpoint's table of contents.

        Raises:
            ConfigError: no run is named, or no round could follow the settings.
            CheckpointError, UnsupportedModel, IllegalCut: as the model says.
        """
        run, model, lora = settings.training.run, settings.model, _lora(settings)
        if run is None:
            raise ConfigError("training.run: an aggregator is that of a run, which has a name")
        checkpoint, cut = Checkpoint.open(model.path), Cut(model.head_blocks, model.tail_blocks)
        parts: dict[Part, Shapes] = {
            part: adapter_shapes(checkpoint, cut, part, lora)
            for part in (Part.HEAD, Part.TAIL)
            if part in settings.lora.parts
        }
        layout = AdapterLayout.of_adapters(_initial(settings, parts))
        plan = cls(
            settings=settings,
            run=run,
            fingerprint=checkpoint.fingerprint(cut),
            cut=cut,
            hidden=checkpoint.hidden,
            parts=parts,
            layout=layout,
            adapters=RunAdapters.of(run, cut, checkpoint.blocks, settings.lora.parts),
            rounds=_rounds(settings),
            secure=_secure(settings.federation, layout),
            folders=StateFolders(settings.training.out / run / "aggregator"),
        )
        plan._check_size()
        return plan

    def _check_size(self) -> None:
        """What travels as one part must be let through by all."""
        bytes_each = 4 if self.secure is None else 8
        most = self.settings.broker.max_part_mb << 20
        if (needed := bytes_each * (self.layout.elements + 1)) > most:
            raise ConfigError(
                f"broker.max_part_mb: the shared adapters need parts of {needed} bytes, "
                f"{most} may pass"
            )

    def begin(self) -> AggregatorState:
        """Where the run stands: as it was left, or at its beginning.

        Raises:
            CheckpointError: there is a state, and it is not to be resumed or cannot be.
        """
        state = newest_aggregator(self.folders, self.settings.agreed, self.layout)
        if state is None:
            initial = _initial(self.settings, self.parts)
            return AggregatorState(self.settings.agreed, Progress(), Shared(initial, {}))
        if not self.settings.training.resume:
            raise CheckpointError(
                f"{self.folders.root}: a run of this name is there already; "
                "training.resume goes on with it"
            )
        return state

    def shared(self, begin: Shared) -> SharedAdapters:
        """The shared adapters, in the hands of the run's optimiser."""
        federation = self.settings.federation
        return SharedAdapters(
            self.layout, _optimizer(federation), federation.max_update_norm, begin
        )

    def write_adapters(self, shared: Shared) -> None:
        """Write what is shared of head and tail in peft's format; personal tensors are zero.

        A part of which nothing is shared is not written.
        """
        made, of = shared.adapters, self.adapters.after(shared.attempt)
        for part, of_part in self.parts.items():
            if of_part.keys() & made.keys():
                whole = {
                    name: made[name] if name in made else torch.zeros(shape)
                    for name, shape in of_part.items()
                }
                folder = self.settings.training.out / self.run / part.value
                write_adapter(folder, whole, _lora(self.settings), of)


def _lora(settings: Settings) -> LoraSettings:
    lora = settings.lora
    return LoraSettings(lora.rank, lora.alpha, lora.dropout, lora.targets, lora.rslora)


def _initial(settings: Settings, parts: Mapping[Part, Shapes]) -> dict[str, torch.Tensor]:
    """What is shared, as it is before the first round."""
    shapes = {name: shape for of_part in parts.values() for name, shape in of_part.items()}
    drawn, personal = drawn_adapter(shapes, settings.training.seed), settings.federation.personal
    return Personal(personal).shared(drawn) if drawn or personal else {}


def _rounds(settings: Settings) -> RoundPlan:
    federation, clients = settings.federation, settings.training.clients
    min_clients = clients if federation.min_clients is None else federation.min_clients
    min_updates = clients if federation.min_updates is None else federation.min_updates
    return RoundPlan(
        rounds=federation.rounds,
        local_steps=federation.local_steps,
        seed=settings.training.seed,
        min_clients=min_clients,
        min_updates=min(min_updates, min_clients)
        if federation.min_updates is None
        else min_updates,
        fraction=federation.fraction,
        quorum=federation.quorum,
        training_s=federation.training_s,
        aggregation_s=federation.aggregation_s,
        max_attempts=federation.max_attempts,
    )


def _secure(federation: FederationSection, layout: AdapterLayout) -> SecureRules | None:
    if not federation.secure:
        return None
    if not layout.elements:
        raise ConfigError("federation.secure: head and tail have no adapter to sum")
    if federation.max_update_norm > MAX_ABS:
        raise ConfigError(f"federation.secure: max_update_norm is to be at most {MAX_ABS:g}")
    return SecureRules(
        layout,
        federation.max_update_norm,
        federation.aggregation_s / _STAGES,
        federation.threshold,
    )


def _optimizer(federation: FederationSection) -> ServerOptimizer:
    match federation.optimizer:
        case "fedavg":
            return FedAvg(federation.learning_rate, federation.momentum)
        case "fedadam":
            return FedAdam(federation.learning_rate)
        case "fedyogi":
            return FedYogi(federation.learning_rate)
