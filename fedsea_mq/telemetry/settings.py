"""The sections of a configuration that say what a process shows of itself, and where."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, model_validator

from fedsea_mq.section import Section


def _address(host: str) -> str:
    ip_address(host)
    return host


class MetricsSection(Section):
    """Where a process shows its metrics to Prometheus: over HTTP, in clear, to whoever asks."""

    port: Annotated[int, Field(ge=0, le=65_535)] | None = Field(
        None,
        description="serve `/metrics` here; 0 picks a free port, null for none. `up` counts "
        "on from it: the broker, then its trunk nodes",
    )
    host: Annotated[str, AfterValidator(_address)] = Field(
        "127.0.0.1", description="the address of this machine to listen on"
    )
    off_loopback: Annotated[bool, Field(strict=True)] = Field(
        False, description="`host` may be on a network: whoever reaches it reads the metrics"
    )

    @model_validator(mode="after")
    def _on_loopback_unless_asked(self) -> Self:
        if not (ip_address(self.host).is_loopback or self.off_loopback):
            raise ValueError(f"{self.host} is not on loopback: set metrics.off_loopback with it")
        return self


class TelemetrySection(Section):
    """Where traces of requests are sent; needs the extra `otel`."""

    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://[^\s/]+(/[^\s]*)?$")] | None = Field(
        None,
        description="an OpenTelemetry collector, as `http://127.0.0.1:4318`; null for none",
    )
    sample: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="share of traces that are sent; parties with the same share send the same ones",
    )


# What nobody hears of.
NO_TELEMETRY: Final = TelemetrySection()
