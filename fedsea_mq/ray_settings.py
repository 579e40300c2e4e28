"""The section of a configuration that says what is placed by Ray, and how much of it."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from fedsea_mq.section import Seconds, Section

MAX_REPLICAS = 256


class RaySection(Section):
    """The cluster that `--on ray` uses, and how many trunk nodes `fedsea up --on ray` keeps."""

    address: str | None = Field(
        None,
        description="HOST:PORT of a cluster; null for RAY_ADDRESS or, without, one started here",
    )
    cpus: Annotated[float, Field(ge=0, le=1024)] = Field(
        1.0, description="logical CPUs that Ray sets aside for each process, the broker apart"
    )
    gpus: Annotated[float, Field(ge=0, le=64)] = Field(
        0.0, description="GPUs that Ray sets aside for each trunk node and trainer"
    )
    place_s: Seconds = Field(
        60.0, description="a process that Ray has no place for in this time has failed"
    )
    min_nodes: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = Field(
        1, description="trunk nodes that `up` keeps at least"
    )
    max_nodes: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = Field(4, description="and at most")
    node_sessions: Annotated[int, Field(ge=1, le=16_384)] = Field(
        32, description="sessions that one trunk node is to serve; for more, another is started"
    )
    interval_s: Seconds = Field(2.0, description="how often the broker is asked what is to do")
    settle_s: Seconds = Field(
        60.0, description="fewer nodes must have been enough for so long before one is drained"
    )
    max_restarts: Annotated[int, Field(ge=0)] | None = Field(
        20, description="trunk nodes that may end unasked before `up` fails; null for no limit"
    )

    @model_validator(mode="after")
    def _least_is_less(self) -> Self:
        if self.min_nodes > self.max_nodes:
            raise ValueError("min_nodes must not be above max_nodes")
        return self
