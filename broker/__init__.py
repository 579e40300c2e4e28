"""The broker: places sessions on trunk nodes and relays their frames by the envelope alone."""

from broker.server import Broker

__all__ = ["Broker"]
