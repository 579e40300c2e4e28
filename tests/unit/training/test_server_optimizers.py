"""Server optimisers against torch.optim, by hand, and from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedsea_mq.errors import AdapterError, CheckpointError
from fedsea_mq.training.server_optimizers import FedAdam, FedAvg, FedYogi, ServerOptimizer
from tests.unit.training.adapters import SHAPES, adapters

OPTIMIZERS = [FedAvg(), FedAvg(0.7, 0.9), FedAdam(), FedYogi(0.02, tau=1e-2)]
Tensors = dict[str, torch.Tensor]


def run(
    optimizer: ServerOptimizer, start: Tensors, rounds: range, moments: Tensors
) -> tuple[Tensors, Tensors]:
    for number in rounds:
        start, moments = optimizer.step(start, adapters(100 + number, 0.1), moments)
    return start, moments


def by_torch(make: Callable[[list[torch.Tensor]], torch.optim.Optimizer], rounds: int) -> Tensors:
    """What torch's optimiser makes of the negative mean updates as gradients, in fp64."""
    weights = {name: tensor.double() for name, tensor in adapters(0).items()}
    optimizer = make(list(weights.values()))
    for number in range(rounds):
        update = adapters(100 + number, 0.1)
        for name, weight in weights.items():
            weight.grad = -update[name].double()
        optimizer.step()
    return weights


def assert_same(found: Tensors, expected: Tensors, atol: float = 1e-12) -> None:
    for name in SHAPES:
        torch.testing.assert_close(found[name].double(), expected[name].double(), rtol=0, atol=atol)


def doubles() -> Tensors:
    return {name: tensor.double() for name, tensor in adapters(0).items()}


class TestFormulas:
    def test_fedavg_adds_the_mean_update(self) -> None:
        stepped, _ = FedAvg().step(doubles(), adapters(1), {})
        assert_same(stepped, {name: doubles()[name] + adapters(1)[name] for name in SHAPES})

    def test_fedavgm_is_sgd_with_momentum(self) -> None:
        expected = by_torch(lambda w: torch.optim.SGD(w, lr=0.7, momentum=0.9), 6)
        assert_same(run(FedAvg(0.7, 0.9), doubles(), range(6), {})[0], expected)

    def test_fedadam_is_adam_without_its_bias_correction(self) -> None:
        """torch's Adam corrects for bias: rate and epsilon of each step undo that."""
        rate, beta1, beta2, tau = 0.05, 0.9, 0.99, 1e-3

        def adam(weights: list[torch.Tensor]) -> torch.optim.Optimizer:
            optimizer = torch.optim.Adam(weights, lr=rate, betas=(beta1, beta2), eps=tau)
            for weight in weights:
                optimizer.state[weight] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.full_like(weight, tau**2),
                }

            def uncorrect(*_: object) -> None:
                taken = 1 + int(optimizer.state[weights[0]]["step"])
                root = math.sqrt(1 - beta2**taken)
                group = optimizer.param_groups[0]
                group["lr"], group["eps"] = rate * (1 - beta1**taken) / root, tau / root

            optimizer.register_step_pre_hook(uncorrect)
            return optimizer

        found = run(FedAdam(rate, beta1, beta2, tau), doubles(), range(6), {})[0]
        assert_same(found, by_torch(adam, 6))

    def test_fedyogi_by_hand(self) -> None:
        """One element, beta1 0, beta2 0.5, tau 1, rate 1: updates 3, then 1."""
        yogi = FedYogi(1.0, beta1=0.0, beta2=0.5, tau=1.0)
        weights, moments = yogi.step({"w": torch.tensor([0.0])}, {"w": torch.tensor([3.0])}, {})
        # v = 1 - 0.5 * 9 * sign(1 - 9) = 5.5
        assert moments["second.w"].item() == 5.5
        assert weights["w"].item() == pytest.approx(3 / (math.sqrt(5.5) + 1))
        weights, moments = yogi.step(weights, {"w": torch.tensor([1.0])}, moments)
        # v = 5.5 - 0.5 * 1 * sign(5.5 - 1) = 5
        assert moments["second.w"].item() == 5.0
        assert weights["w"].item() == pytest.approx(
            3 / (math.sqrt(5.5) + 1) + 1 / (math.sqrt(5) + 1)
        )

    def test_where_second_moments_grow_yogi_and_adam_agree_to_first_order(self) -> None:
        """From v = 0 both have `v = (1 - beta2) update^2` after a step."""
        tiny = 1e-12
        update = {"w": torch.tensor([0.5, -2.0])}
        start = {"w": torch.zeros(2, dtype=torch.float64)}
        adam, _ = FedAdam(tau=tiny).step(start, update, {})
        yogi, _ = FedYogi(tau=tiny).step(start, update, {})
        torch.testing.assert_close(adam["w"], yogi["w"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
class TestCheckpoints:
    def test_moments_saved_and_read_continue_bit_for_bit(
        self, optimizer: ServerOptimizer, tmp_path: Path
    ) -> None:
        whole, whole_moments = run(optimizer, adapters(0), range(6), {})
        half, moments = run(optimizer, adapters(0), range(3), {})
        save_file(half, tmp_path / "adapters.safetensors")
        save_file(moments, tmp_path / "moments.safetensors")
        resumed, resumed_moments = run(
            optimizer,
            load_file(tmp_path / "adapters.safetensors"),
            range(3, 6),
            load_file(tmp_path / "moments.safetensors"),
        )
        assert all(torch.equal(resumed[name], whole[name]) for name in SHAPES)
        assert resumed_moments.keys() == whole_moments.keys()
        assert all(torch.equal(resumed_moments[k], whole_moments[k]) for k in whole_moments)

    def test_adapters_keep_their_dtype_and_arguments_their_values(
        self, optimizer: ServerOptimizer
    ) -> None:
        given = {name: tensor.bfloat16() for name, tensor in adapters(0).items()}
        before = {name: tensor.clone() for name, tensor in given.items()}
        stepped, moments = run(optimizer, given, range(2), {})
        assert {tensor.dtype for tensor in stepped.values()} == {torch.bfloat16}
        assert {tensor.dtype for tensor in moments.values()} == {torch.float64}
        assert all(torch.equal(given[name], before[name]) for name in SHAPES)

    def test_anothers_moments_are_refused(self, optimizer: ServerOptimizer) -> None:
        _, moments = optimizer.step(adapters(0), adapters(1), {})
        short = {key: moment for key, moment in moments.items() if not key.endswith("scale")}
        single = {key: moment.float() for key, moment in moments.items()}
        for wrong in (short, single, {"step": torch.tensor(1.0, dtype=torch.float64)}):
            with pytest.raises(CheckpointError, match="moment"):
                optimizer.step(adapters(0), adapters(1), wrong)

    def test_an_update_of_other_adapters_is_refused(self, optimizer: ServerOptimizer) -> None:
        with pytest.raises(AdapterError):
            optimizer.step(adapters(0), {"w": torch.zeros(1)}, {})
