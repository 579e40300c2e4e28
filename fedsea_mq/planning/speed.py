"""How fast a machine is, in a few rates that are measured once and kept in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError

from fedsea_mq.errors import ConfigError
from fedsea_mq.section import Section
from fedsea_mq.settings import ModelSettings, explain

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Duration = Annotated[float, Field(ge=0, le=86_400)]
ByteCount = Annotated[int, Field(ge=0)]


class BlockRates(Section):
    """What decoder blocks cost; `step` and `chunk` are the two ways that they are run.

    A step has a position of each of several sessions, a chunk many positions of one.
    """

    pass_s: Duration = Field(description="a run of blocks, before its first block")
    block_s: Duration = Field(description="one block, however narrow")
    weight_bytes_per_s: Rate = Field(description="weights read, once a run")
    step_flops_per_s: Rate = Field(description="linear layers, each position of a step")
    kv_bytes_per_s: Rate = Field(description="keys and values read by a position of a step")
    chunk_flops_per_s: Rate = Field(description="linear layers, each position of a chunk")
    attention_flops_per_s: Rate = Field(description="attention of a chunk")


class ClientRates(Section):
    """What else a client computes."""

    lm_head_bytes_per_s: Rate = Field(description="lm_head read, for the logits of one position")
    state_elements_per_s: Rate = Field(description="noise, encoding and decoding of states")


class SystemTimes(Section):
    """What a token takes, and a process holds, where the model is next to nothing."""

    relay_s: Duration = Field(description="client to trunk and back, by sockets and broker")
    token_s: Duration = Field(description="the rest of a token: loops, threads, sampling")
    open_s: Duration = Field(description="opening a session, its way to the trunk included")
    client_process_bytes: ByteCount = Field(description="a client process without weights")
    trunk_process_bytes: ByteCount = Field(description="a trunk process without weights")


class Speed(Section):
    """One machine, computing with the numerics of `model`."""

    processor: str = Field(max_length=256)
    cores: Annotated[int, Field(ge=1)]
    model: ModelSettings = Field(description="what was measured with: path, dtype, threads")
    blocks: BlockRates
    client: ClientRates
    system: SystemTimes

    @classmethod
    def read(cls, file: Path) -> Self:
        """What `write` wrote.

        Raises:
            ConfigError: names the file, the key and what was expected.
        """
        try:
            return cls.model_validate_json(file.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read") from error
        except ValidationError as error:
            raise ConfigError(f"{file}: {explain(error)}") from None

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        file.write_text(json.dumps(self.model_dump(mode="json"), indent=2) + "\n")
