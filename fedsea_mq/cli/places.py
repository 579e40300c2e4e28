"""Where the processes of a command can be started."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fedsea_mq.errors import ConfigError

if TYPE_CHECKING:
    from fedsea_mq.cli.system import System


class Place(StrEnum):
    """On this machine, or wherever a Ray cluster has room."""

    LOCAL = "local"
    RAY = "ray"


def system_on(place: Place) -> type[System[Any]]:
    """The class of systems there. Raises `ConfigError` where Ray is needed and not installed."""
    if place is Place.LOCAL:
        from fedsea_mq.cli.processes import LocalSystem

        return LocalSystem
    try:
        from fedsea_mq.cli.ray.system import RaySystem
    except ImportError as error:
        raise ConfigError("--on ray needs Ray: install fedsea_mq with the extra ray") from error
    return RaySystem
