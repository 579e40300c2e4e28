"""Where processes listen on the machine that Ray has put them on."""

from __future__ import annotations

import pytest

from fedsea_mq.cli.ray.host import listening_at
from fedsea_mq.errors import ConfigError
from fedsea_mq.settings import Settings

BROKER = {"clients": "tcp://127.0.0.1:7700", "nodes": "tcp://127.0.0.1:*"}
SETTINGS = Settings().replace(broker=BROKER, trunk={"direct": "tcp://127.0.0.1:7710"})


def test_a_broker_listens_at_its_machine_and_keeps_its_ports() -> None:
    broker = listening_at("192.0.2.7", "broker", SETTINGS).broker
    assert (broker.clients, broker.nodes) == ("tcp://192.0.2.7:7700", "tcp://192.0.2.7:*")
    assert listening_at("fd00::7", "broker", SETTINGS).broker.clients == "tcp://[fd00::7]:7700"


def test_a_trunk_node_offers_its_own_machine_and_connects_where_the_broker_is() -> None:
    trunk = listening_at("192.0.2.8", "nodes.trunk", SETTINGS)
    assert trunk.trunk.direct == "tcp://192.0.2.8:7710"
    assert trunk.broker == SETTINGS.broker
    without = SETTINGS.replace(trunk={"direct": None})
    assert listening_at("192.0.2.8", "nodes.trunk", without) == without


@pytest.mark.parametrize("module", ["nodes.trainer", "nodes.aggregator", "nodes.load"])
def test_what_does_not_listen_is_as_it_was(module: str) -> None:
    assert listening_at("192.0.2.7", module, SETTINGS) == SETTINGS


def test_a_socket_file_is_no_way_between_machines() -> None:
    ipc = SETTINGS.replace(broker={"clients": "ipc:///tmp/clients"})
    with pytest.raises(ConfigError, match="ipc:///tmp/clients: on Ray, expected tcp://"):
        listening_at("192.0.2.7", "broker", ipc)
