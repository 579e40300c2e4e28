"""One typed schema for every configuration file and command line.

A file is YAML; every key has a default, and every key can be overridden as `section.key=value`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    model_validator,
)

from fedsea_mq.errors import ConfigError
from fedsea_mq.gateway_settings import GatewaySettings
from fedsea_mq.privacy.scale import NoiseMode
from fedsea_mq.protocol.adapter_ref import MAX_ADAPTERS
from fedsea_mq.protocol.bounded import Name
from fedsea_mq.protocol.endpoint import reachable
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.ray_settings import RaySection
from fedsea_mq.run_settings import FederationSection, LoraSection, TrainingSection, agreed
from fedsea_mq.section import Seconds, Section
from fedsea_mq.security.keyring import is_local
from fedsea_mq.security.settings import SecuritySection
from fedsea_mq.telemetry.settings import MetricsSection, TelemetrySection

_LAST_PORT: Final = 65_535
Milliseconds = Annotated[int, Field(ge=10, le=86_400_000)]


def _at_a_port(endpoint: str) -> str:
    found = re.fullmatch(r"tcp://\S+:(\*|[0-9]{1,5})", endpoint)
    is_port = found is not None and (found[1] == "*" or int(found[1]) <= _LAST_PORT)
    if endpoint.startswith("tcp://") and not is_port:
        # ZeroMQ would take the rest of a division by 65536.
        raise ValueError(f"expected tcp://ADDRESS:PORT, with a port up to {_LAST_PORT} or *")
    return endpoint


Endpoint = Annotated[str, Field(pattern=r"^(tcp|ipc)://\S+$"), AfterValidator(_at_a_port)]


def _reachable_at_some_port(endpoint: str) -> str:
    reachable(re.sub(r":\*$", ":1", endpoint))
    return endpoint


# Offered to clients as it stands, once the port is known.
OfferedEndpoint = Annotated[str, AfterValidator(_reachable_at_some_port)]
Megabytes = Annotated[int, Field(ge=1, le=1 << 20)]
Limit = Annotated[int, Field(ge=1)] | None
BlocksAsked = Annotated[str, Field(pattern=r"^[0-9]{1,4}[-/][0-9]{1,4}$")]
ComputeDtype = Literal["fp32", "bf16", "fp16"]
# What is kept in memory: in the compute dtype, or smaller.
Storage = Literal["auto", "int8"]
Adapters = Annotated[dict[Name, Path], Field(max_length=MAX_ADAPTERS)]


# Of a value that is wrong, so many characters are shown.
_SHOWN: Final = 100
_BOOL_TAG: Final = "tag:yaml.org,2002:bool"


class _Yaml(yaml.SafeLoader):
    """YAML with 1.2's booleans, so that `mode: off` is the word it says and not `false`."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the shape that PyYAML's class expects
        letter: [pair for pair in pairs if pair[0] != _BOOL_TAG]
        for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Yaml.add_implicit_resolver(_BOOL_TAG, re.compile(r"^(true|false)$", re.IGNORECASE), list("tTfF"))


class ModelSettings(Section):
    """Which model, where it is cut, and how it is computed."""

    path: str = Field("embedded", description="`embedded`, a folder, a shard folder or a hub id")
    head_blocks: Annotated[int, Field(ge=0)] = Field(1, description="decoder blocks in the head")
    tail_blocks: Annotated[int, Field(ge=0)] = Field(1, description="decoder blocks in the tail")
    dtype: ComputeDtype = Field("fp32", description="compute dtype of this party's blocks")
    weights: Storage = Field("auto", description="linear layers: in `dtype`, or int8 on a CPU")
    kv_cache: Storage = Field("auto", description="keys and values: in `dtype`, or int8 on a CPU")
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = Field(
        "cpu", description="`cpu`, `cuda` or `cuda:N`"
    )
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(1, description="torch threads")

    @model_validator(mode="after")
    def _int8_where_it_is_there(self) -> Self:
        if "int8" in (self.weights, self.kv_cache):
            if self.device != "cpu":
                raise ValueError("int8 weights and KV cache are for device cpu only")
            if self.dtype == "fp16":
                raise ValueError("int8 weights and KV cache are for dtype fp32 or bf16")
        return self


class NoiseSettings(Section):
    """The Gaussian noise on states that leave the head."""

    mode: NoiseMode = Field(NoiseMode.RELATIVE, description="what `scale` means; `off` for none")
    scale: Annotated[float, Field(ge=0, le=1e6)] = Field(
        0.5, description="relative: times the head output's RMS; std; or the paper's mean_abs"
    )
    audit: Path | None = Field(
        None,
        description="a report.json to be warned by; null for that of the embedded model",
    )
    max_recovery: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="warn where an audited attack recovers more than this share of a prompt"
    )
    clip: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None,
        description="largest L2 norm of a position's state before noise: relative: times the head "
        "output's typical norm; otherwise absolute. null for none",
    )
    shape: Path | None = Field(
        None, description="safetensors file with the `root` that unit noise is multiplied by"
    )

    @model_validator(mode="after")
    def _off_is_off(self) -> Self:
        # `off` promises the unsplit model's tokens, and leaves the unit of `clip` open.
        if self.mode is NoiseMode.OFF and (self.clip is not None or self.shape is not None):
            raise ValueError(
                "mode off leaves the states as they are: set clip and shape to null with it; "
                "for clipping alone set scale: 0 in another mode"
            )
        return self


NOISE_OFF: Final[Mapping[str, Any]] = {"mode": "off", "clip": None, "shape": None}
"""The section `noise` with which the states go as they are, whatever it said before."""


def relative_noise(scale: float) -> dict[str, Any]:
    """The section `noise` for so many times the head output's RMS; 0 is none."""
    return {"mode": "relative", "scale": scale} if scale else dict(NOISE_OFF)


class StandbySettings(Section):
    """Where another broker listens."""

    clients: Endpoint
    nodes: Endpoint


class BrokerSettings(Section):
    """Where the broker listens, and when it takes a silent node for dead."""

    clients: Endpoint = Field("tcp://127.0.0.1:7700", description="clients connect here")
    nodes: Endpoint = Field("tcp://127.0.0.1:7701", description="trunk nodes connect here")
    standby: StandbySettings | None = Field(
        None,
        description="another broker, with the same key: trunk nodes register with both, clients "
        "go there when the first falls silent",
    )
    heartbeat_ms: Milliseconds = Field(1000, description="nodes must speak this often")
    timeout_ms: Milliseconds = Field(5000, description="silent for longer means dead")
    max_part_mb: Megabytes = Field(64, description="largest frame part accepted off the wire")
    max_queued_frames: Annotated[int, Field(ge=16, le=1 << 20)] = Field(
        1024,
        description="messages queued to one peer before it is cut as a slow consumer; small frames "
        "travel together, up to 256 KiB a message",
    )
    max_connections: Annotated[int, Field(ge=1, le=60_000)] = Field(
        4096, description="on each of the two ports; further ones are refused, and try again"
    )
    # A client is a key or, where there are no keys, a connection.
    client_sessions: Limit = Field(1024, description="sessions of one client; null for no limit")
    client_positions: Limit = Field(None, description="KV positions of one client's sessions")
    client_frames_per_s: Limit = Field(None, description="what one client may send; two seconds'")
    client_mb_per_s: Limit = Field(None, description="worth at once. Beyond it is told busy")

    @model_validator(mode="after")
    def _timeout_spans_heartbeats(self) -> Self:
        if self.timeout_ms < 2 * self.heartbeat_ms:
            raise ValueError("timeout_ms must be at least twice heartbeat_ms")
        return self

    @property
    def all_for_clients(self) -> list[str]:
        """Where clients connect, the first first."""
        return [self.clients, *([] if self.standby is None else [self.standby.clients])]

    @property
    def all_for_nodes(self) -> list[str]:
        """Where trunk nodes connect, the first first."""
        return [self.nodes, *([] if self.standby is None else [self.standby.nodes])]

    @property
    def at(self) -> str:
        """How messages name the broker to who cannot reach it."""
        return f"the broker at {self.clients}"


class TrunkSettings(Section):
    """What a trunk node offers and bounds."""

    name: Name | None = Field(None, description="shown in status; drawn at random if absent")
    nodes: Annotated[int, Field(ge=1, le=64)] = Field(1, description="nodes that `up` starts")
    stages: Annotated[int, Field(ge=1, le=64)] = Field(
        1,
        description="stages of the chain that `up` divides the trunk into, `nodes` nodes each",
    )
    blocks: BlocksAsked | None = Field(
        None,
        description="this node's blocks of the trunk, if it is a stage of a chain: `4-8`, counted "
        "from the model's first, which is 0, or `2/3`, the second of three even runs",
    )
    kv_memory_mb: Megabytes = Field(1024, description="budget for all sessions' KV cache")
    max_sessions: Annotated[int, Field(ge=1, le=16_384)] = Field(
        1024, description="sessions at once; with `direct`, connections to this node as well"
    )
    max_frame_positions: Annotated[int, Field(ge=1, le=1 << 16)] = Field(
        512, description="positions of one frame; longer prompts come in chunks"
    )
    step_positions: Annotated[int, Field(ge=1, le=1 << 16)] = Field(
        1024, description="positions computed in one step over all sessions"
    )
    max_wait_ms: Annotated[float, Field(ge=0, le=1000)] = Field(
        10.0,
        description="how long a step may be held back for sessions on their way; never longer "
        "than sharing the step saves",
    )
    step_timeout_s: Seconds = Field(
        120.0, description="a step that takes longer is stuck: the node leaves, and ends"
    )
    lease_s: Seconds = Field(30.0, description="a session silent for longer is closed")
    drain_s: Annotated[float, Field(ge=0, le=86_400)] = Field(
        20.0, description="on SIGTERM, how long running sessions may take to end"
    )
    direct: OfferedEndpoint | None = Field(
        None,
        description="listen here for clients, too, so that states need not pass the broker; "
        "`tcp://ADDRESS:PORT`, or `*` for any port",
    )
    adapters: Adapters = Field(
        default_factory=dict, description="LoRA adapters that sessions may use, by name: folders"
    )
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="ranks: processes that compute each block together, each with its share"
    )
    rank: Annotated[int, Field(ge=0, le=63)] = Field(
        0, description="of this process; 0 is the node, the others do as it says"
    )
    rendezvous: Annotated[str, AfterValidator(reachable)] | None = Field(
        None,
        description="`tcp://ADDRESS:PORT` of rank 0, where ranks on several machines meet, in the "
        "clear; null to have rank 0 start the others on its own",
    )
    insecure_rendezvous_off_loopback: Annotated[bool, Field(strict=True)] = Field(
        False,
        description="let ranks meet over a network: whoever sees it reads all sessions' states, "
        "whoever reaches it may take part",
    )

    @model_validator(mode="after")
    def _ranks_that_can_meet(self) -> Self:
        if self.rank >= self.tensor_parallel:
            raise ValueError("trunk.rank counts from 0, so it is less than trunk.tensor_parallel")
        if self.rank and self.rendezvous is None:
            raise ValueError("trunk.rank above 0 needs the trunk.rendezvous with rank 0")
        is_reachable = self.rendezvous is not None and not is_local(self.rendezvous)
        if is_reachable and not self.insecure_rendezvous_off_loopback:
            raise ValueError(
                "trunk.rendezvous is plaintext off loopback, which only "
                "trunk.insecure_rendezvous_off_loopback allows"
            )
        return self


class Speculation(StrEnum):
    """Where drafts of the next tokens come from."""

    OFF = "off"
    LOOKUP = "lookup"
    MODEL = "model"
    EARLY_EXIT = "early_exit"


class ClientSettings(Section):
    """How a client speaks to the broker."""

    wire_dtype: WireDtype = Field(WireDtype.FP16, description="dtype of states on the wire")
    request_timeout_s: Seconds = Field(5.0, description="unanswered for longer is sent again")
    give_up_s: Seconds = Field(60.0, description="unanswered or busy for longer is an error")
    step_positions: Annotated[int, Field(ge=1, le=1 << 16)] = Field(
        1024, description="positions computed in one head or tail step over all sessions"
    )
    speculation: Speculation = Field(
        Speculation.OFF,
        description="`lookup`: guess that what followed the last tokens before follows them again; "
        "`model`: guess with a small model; `early_exit`: guess with head and tail alone",
    )
    draft_model: str = Field(
        "embedded-draft",
        description="for `model`: as model.path, of the same vocabulary; kept whole",
    )
    max_draft: Annotated[int, Field(ge=1, le=15)] = Field(
        12, description="guesses sent with a token at most"
    )
    direct: Annotated[bool, Field(strict=True)] = Field(
        False,
        description="connect to the trunk nodes that offer it, so that states need not pass the "
        "broker; they then see this machine's address",
    )
    adapters: Adapters = Field(
        default_factory=dict, description="LoRA adapters of head and tail, by name: folders"
    )
    adapter: Name | None = Field(
        None, description="the one of `adapters` that sessions use unless they say otherwise"
    )

    @model_validator(mode="after")
    def _uses_what_it_has(self) -> Self:
        if self.adapter is not None and self.adapter not in self.adapters:
            raise ValueError(f"adapter {self.adapter} is none of client.adapters")
        return self


class LogSettings(Section):
    """What the processes log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least")
    format: Literal["console", "json"] = Field(
        "console", description="for people, or one JSON object a line"
    )


class Settings(Section):
    """Everything. Each process reads the sections that it needs."""

    model: ModelSettings = ModelSettings()
    noise: NoiseSettings = NoiseSettings()
    broker: BrokerSettings = BrokerSettings()
    trunk: TrunkSettings = TrunkSettings()
    client: ClientSettings = ClientSettings()
    gateway: GatewaySettings = GatewaySettings()
    training: TrainingSection = TrainingSection()
    lora: LoraSection = LoraSection()
    federation: FederationSection = FederationSection()
    security: SecuritySection = SecuritySection()
    ray: RaySection = RaySection()
    log: LogSettings = LogSettings()
    metrics: MetricsSection = MetricsSection()
    telemetry: TelemetrySection = TelemetrySection()

    @property
    def agreed(self) -> str:
        """A digest of what all parties of a training run must have in common."""
        return agreed(self.training, self.lora, self.federation)

    @classmethod
    def load(
        cls,
        file: Path | None = None,
        overrides: Sequence[str] = (),
        defaults: Sequence[str] = (),
    ) -> Settings:
        """Read a file and apply `section.key=value` overrides; `defaults` yield to both.

        Raises:
            ConfigError: names the file, the key and what was expected.
        """
        source = str(file) if file is not None else "defaults"
        fields: dict[str, Any] = {}
        for default in defaults:
            _apply(fields, default)
        for section, keys in (_read(file) if file is not None else {}).items():
            both_maps = isinstance(keys, dict) and section in fields
            fields[section] = fields[section] | keys if both_maps else keys
        for override in overrides:
            _apply(fields, override)
        return cls._validated(fields, f"{source} with overrides" if overrides else source)

    def replace(self, **sections: Mapping[str, Any]) -> Settings:
        """A copy with some keys of some sections changed; checked like a file."""
        fields = self.model_dump(mode="json")
        for section, keys in sections.items():
            fields[section] |= keys
        return self._validated(fields, "settings")

    @classmethod
    def _validated(cls, fields: dict[str, Any], source: str) -> Settings:
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise ConfigError(f"{source}: {explain(error)}") from None

    def write(self, file: Path) -> None:
        """Write every key as YAML that `load` reads back."""
        file.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def _read(file: Path) -> dict[str, Any]:
    try:
        fields = yaml.load(file.read_text(), _Yaml)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{file}: not YAML{where}") from error
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        raise ConfigError(f"{file}: expected sections with keys, found {type(fields).__name__}")
    # A section with every key commented out is empty, not wrong.
    return {section: {} if keys is None else keys for section, keys in fields.items()}


def _apply(fields: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    section, dot, key = path.partition(".")
    if not equals or not dot:
        raise ConfigError(f"override {override!r}: expected section.key=value")
    try:
        value = yaml.load(text, _Yaml)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"override {path}: the value is not YAML") from error
    held = fields.get(section) or {}
    if not isinstance(held, dict):
        raise ConfigError(f"override {path}: {section} is not a section with keys")
    fields[section] = held | {key: value}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def explain(error: ValidationError, *, as_options: bool = False) -> str:
    """Which keys, or options of a command, are wrong, what was expected and what came."""
    said = []
    for item in error.errors(include_url=False):
        key = ".".join(str(step) for step in item["loc"])
        if as_options:
            key = f"--{key.partition('.')[0].replace('_', '-')}"
        named = f"{key}: " if key else ""
        if item["type"] == "extra_forbidden":
            said.append(f"unknown key {key}")
        else:
            found = "" if isinstance(item["input"], dict) else f", found {_short(item['input'])}"
            expected = item["msg"].replace("Input should be", "expected", 1)
            said.append(f"{named}{expected.removeprefix('Value error, ')}{found}")
    return "; ".join(said)
