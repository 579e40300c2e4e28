"""Adapters as a vector: a stable order, and nothing of another shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsea_mq.errors import AdapterError
from fedsea_mq.training.adapter_layout import (
    MAX_DIMENSIONS,
    MAX_ELEMENTS,
    MAX_TENSORS,
    AdapterLayout,
)
from tests.unit.training.adapters import SHAPES, adapters

LAYOUT = AdapterLayout.of(SHAPES)


def test_elements_are_in_order_of_names_then_row_major() -> None:
    layout = AdapterLayout.of({"b": (2, 2), "a": (1,), "B": ()})
    given = {
        "a": torch.tensor([9.0]),
        "b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "B": torch.tensor(7.0),
    }
    assert layout.flatten(given).tolist() == [7.0, 9.0, 1.0, 2.0, 3.0, 4.0]


def test_a_vector_and_back_is_the_same_adapters() -> None:
    given = adapters(0)
    vector = LAYOUT.flatten(given)
    assert (vector.dtype, vector.shape) == (np.float32, (LAYOUT.elements,))
    back = LAYOUT.unflatten(vector)
    assert back.keys() == given.keys()
    assert all(torch.equal(back[name], given[name]) for name in given)
    vector[:] = 0  # the tensors are their own
    assert torch.equal(back["tail.scale"], given["tail.scale"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_dtype_becomes_fp32(dtype: torch.dtype) -> None:
    given = {name: tensor.to(dtype) for name, tensor in adapters(0).items()}
    back = LAYOUT.unflatten(LAYOUT.flatten(given))
    assert all(torch.equal(back[name], given[name].float()) for name in given)


def test_views_and_gradients_are_flattened_by_their_values() -> None:
    layout = AdapterLayout.of({"w": (3, 2)})
    weight = torch.arange(6.0).reshape(2, 3).requires_grad_()
    assert layout.flatten({"w": weight.T}).tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]


def test_the_digest_is_of_names_and_shapes_in_any_order() -> None:
    assert AdapterLayout.of(dict(reversed(SHAPES.items()))).digest == LAYOUT.digest
    assert AdapterLayout.of_adapters(adapters(3)) == LAYOUT
    assert AdapterLayout.of({**SHAPES, "tail.scale": (1,)}).digest != LAYOUT.digest
    assert AdapterLayout.of({"a": (2, 3)}).digest != AdapterLayout.of({"a": (3, 2)}).digest


class TestRefusals:
    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"tail.scale": None}, "tail.scale is missing"),
            ({"tail.scale": torch.zeros(2)}, r"tail.scale of shape \(2,\), expected \(\)"),
            ({"head.0.q.lora_A": torch.zeros(16, 4)}, r"\(16, 4\), expected \(4, 16\)"),
            ({"secret name": torch.zeros(1)}, "6 tensors, expected 5"),
        ],
    )
    def test_other_adapters_are_refused(
        self, changed: dict[str, torch.Tensor | None], said: str
    ) -> None:
        given = {**adapters(0), **changed}
        present = {name: tensor for name, tensor in given.items() if tensor is not None}
        with pytest.raises(AdapterError, match=said) as refused:
            LAYOUT.flatten(present)
        assert "secret name" not in str(refused.value)

    @pytest.mark.parametrize("shape", [(LAYOUT.elements + 1,), (LAYOUT.elements - 1,), (1, 257)])
    def test_other_vectors_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(AdapterError, match="expected"):
            LAYOUT.unflatten(np.zeros(shape, np.float32))

    @pytest.mark.parametrize(
        "shapes",
        [
            {"a": (0,)},
            {"a": (-1, -2)},
            {"a": (1,) * (MAX_DIMENSIONS + 1)},
            {"a": (1 << 20, 1 << 20)},
            {"a": (MAX_ELEMENTS,), "b": (1,)},
            {str(n): (1,) for n in range(MAX_TENSORS + 1)},
        ],
        ids=["empty", "negative", "deep", "huge", "one too many", "too many tensors"],
    )
    def test_layouts_out_of_bounds_are_refused(self, shapes: dict[str, tuple[int, ...]]) -> None:
        with pytest.raises(AdapterError):
            AdapterLayout.of(shapes)


def test_without_any_adapter_the_vector_is_empty() -> None:
    layout = AdapterLayout.of({})
    assert layout.flatten({}).shape == (0,)
    assert layout.unflatten(np.zeros(0, np.float32)) == {}
