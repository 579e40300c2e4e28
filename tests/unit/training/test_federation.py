"""Rounds, averaging and secure aggregation together, against training on the pooled samples."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.averaging import WeightedMean, update_of
from fedsea_mq.training.round_plan import RoundPlan
from fedsea_mq.training.rounds import Closed, Finished, Rounds, Started, Verdict
from fedsea_mq.training.secure_aggregation.client import SecureClient
from fedsea_mq.training.secure_aggregation.messages import Terms
from fedsea_mq.training.secure_aggregation.server import SecureServer
from fedsea_mq.training.server_optimizers import FedAvg

ROUNDS, RATE = 5, 0.1
CLIENTS = [b"ada", b"bob", b"cyd"]
SAMPLES = {b"ada": 4, b"bob": 30, b"cyd": 11}
Tensors = dict[str, torch.Tensor]
Aggregate = Callable[[Started, dict[bytes, Tensors]], Tensors]


def data(client: bytes) -> tuple[torch.Tensor, torch.Tensor]:
    """A client's own regression samples: inputs `[n, 6]` and outputs `[n]`."""
    drawn = torch.Generator().manual_seed(CLIENTS.index(client))
    inputs = torch.randn(SAMPLES[client], 6, generator=drawn)
    return inputs, inputs.sum(1) + torch.randn(SAMPLES[client], generator=drawn)


def start() -> Tensors:
    return {"w": torch.zeros(6), "bias": torch.zeros(())}


def one_step(weights: Tensors, inputs: torch.Tensor, outputs: torch.Tensor) -> Tensors:
    """A step of gradient descent on the mean squared error."""
    error = inputs @ weights["w"] + weights["bias"] - outputs
    gradients = {"w": 2 * (inputs.T @ error) / len(error), "bias": 2 * error.mean()}
    return {name: weight - RATE * gradients[name] for name, weight in weights.items()}


def pooled() -> Tensors:
    inputs, outputs = (torch.cat(parts) for parts in zip(*map(data, CLIENTS), strict=True))
    weights = start()
    for _ in range(ROUNDS):
        weights = one_step(weights, inputs, outputs)
    return weights


def federated(aggregate: Aggregate) -> Tensors:
    """Runs `ROUNDS` rounds of one local step, all clients in each."""
    rounds = Rounds(RoundPlan(ROUNDS, 1, seed=0, min_clients=3, min_updates=3))
    weights, moments = start(), {}
    (event,) = [event for client in CLIENTS for event in rounds.join(client, 0.0)]
    while not isinstance(event, Finished):
        assert isinstance(event, Started)
        updates = {c: update_of(one_step(weights, *data(c)), weights) for c in event.clients}
        for client in event.clients:
            verdict, closed = rounds.update(client, event.round, 1.0)
            assert verdict is Verdict.COUNTED
        assert isinstance(closed[0], Closed)
        weights, moments = FedAvg().step(weights, aggregate(event, updates), moments)
        (event,) = rounds.aggregated(event.round, 2.0)[1]
    return weights


def plainly(_: Started, updates: dict[bytes, Tensors]) -> Tensors:
    mean = WeightedMean(AdapterLayout.of_adapters(start()))
    for client, update in updates.items():
        mean.add(update, SAMPLES[client])
    return mean.mean()


def securely(started: Started, updates: dict[bytes, Tensors]) -> Tensors:
    layout = AdapterLayout.of_adapters(start())
    terms = Terms(
        round=started.round.number,
        attempt=started.round.attempt,
        nonce=bytes(16),
        members=3,
        threshold=2,
        layout=layout.digest,
        elements=layout.elements,
        max_weight=100,
        max_abs=16.0,
    )
    server = SecureServer(terms, layout)
    members = {n: SecureClient(terms, layout, n) for n in (1, 2, 3)}
    for number, member in members.items():
        server.receive(number, member.keys)
    for number, listed in server.advance().items():
        server.receive(number, members[number].share(listed))
    for number, listed in server.advance().items():
        members[number].hold(listed)
        client = started.clients[number - 1]
        server.receive(number, *members[number].mask(updates[client], SAMPLES[client]))
    for number, request in server.advance().items():
        server.receive(number, members[number].reveal(request))
    server.advance()
    return server.mean().update


def test_one_local_step_of_all_clients_is_a_step_on_the_pooled_samples() -> None:
    found, expected = federated(plainly), pooled()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)
    assert expected["w"].norm() > 0.5


def test_secure_aggregation_changes_nothing_in_it() -> None:
    secure, plain = federated(securely), federated(plainly)
    for name in plain:
        torch.testing.assert_close(secure[name], plain[name], rtol=0, atol=1e-7)
