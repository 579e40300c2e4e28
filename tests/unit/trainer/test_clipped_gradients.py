"""The head's gradient through the clip: autograd is the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedsea_mq.model.wire_gradients import encode_gradient
from fedsea_mq.model.wire_states import decode_states
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.settings import Settings
from fedsea_mq.tasks.encoding import Encoded
from fedsea_mq.training.averaging import Personal
from nodes.trainer.compute import Compute, MicroBatch
from nodes.trainer.parts import TrainedParts
from tests.unit.training.unsplit import samples

TICKET = (0, 0)


def loaded(folder: Path, clip: float | None) -> TrainedParts:
    settings = Settings().replace(
        model={"path": str(folder)},
        noise={"mode": "relative", "scale": 0.0, "clip": clip},
        client={"wire_dtype": WireDtype.FP32.value},
    )
    parts = TrainedParts.load(settings, "a")
    # Fresh adapters leave half of the gradients zero.
    drawn = torch.Generator().manual_seed(1)
    parts.load_adapters(
        {
            name: 0.1 * torch.randn(held.shape, generator=drawn)
            for name, held in sorted(parts.adapters().items())
        }
    )
    return parts


def gradients(parts: TrainedParts) -> dict[str, torch.Tensor]:
    found = {name: weight.grad for name, weight in parts.head.adapter.parameters().items()}
    assert found
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def through_compute(
    parts: TrainedParts, examples: list[Encoded], came: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The states as they are sent, and the head's gradients for `came`, as it comes back."""
    compute = Compute(parts, Personal(()), gradient_noise=0.0, proximal=0.0)
    micro = MicroBatch.of(TICKET, examples)
    payload = compute.send_states(micro)
    sent = decode_states(payload, micro.packed.batch.total, parts.spec, torch.float32)
    exponent, encoded = encode_gradient(came, parts.spec.dtype)
    compute.take_gradient(micro, exponent, encoded)
    return sent, gradients(parts)


def test_the_heads_gradient_is_by_the_clipped_states(tiny_llama: Path) -> None:
    examples = list(samples(3, seed=5))
    packed = MicroBatch.of(TICKET, examples).packed
    clipping, oracle = loaded(tiny_llama, 0.95), loaded(tiny_llama, None)
    bound = clipping.noise.clip
    assert bound is not None
    states = oracle.head.forward(TICKET, packed.ids, packed.batch)
    longer = states.norm(dim=-1) > bound
    assert 0 < int(longer.sum()) < len(longer)

    came = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    sent, found = through_compute(clipping, examples, came)
    assert float(sent.norm(dim=-1).max()) == pytest.approx(bound)
    assert torch.equal(sent[~longer], states[~longer])

    graph = oracle.head._passes.graphs.get(TICKET).outputs
    factors = (bound / graph.norm(dim=-1, keepdim=True)).clamp(max=1.0)
    torch.autograd.backward(graph * factors, came)
    expected = gradients(oracle)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)

    _, straight = through_compute(loaded(tiny_llama, None), examples, came)
    assert any(not torch.allclose(straight[name], expected[name], rtol=0.01) for name in expected)
