"""The bytes that a party holds: weights as it keeps them, and keys and values. Exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedsea_mq.model.int8_linear import Int8Linear
from fedsea_mq.model.kv_cache import KVShape
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.planning.architecture import Architecture, Product

_FP32_BYTES: Final = 4
# Of one position while a block runs: the three wide rows of its MLP, and the states about it.
_WIDE_ROWS: Final = 3
_HIDDEN_ROWS: Final = 6


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a party with these numerics needs memory for."""

    of: Architecture
    numerics: Numerics

    def linear_bytes(self, product: Product) -> int:
        """Weights, biases and, in int8, the scales of linear layers."""
        if self.numerics.linear is Int8Linear:
            return product.weights + _FP32_BYTES * (product.outputs + product.biases)
        return self.numerics.weights.itemsize * (product.weights + product.biases)

    @property
    def block_bytes(self) -> int:
        """The weights of one block."""
        products = sum(self.linear_bytes(product) for product in self.of.block_products)
        return products + self.numerics.states.itemsize * self.of.block_norms

    @property
    def block_product_bytes(self) -> int:
        """Those of its linear layers alone: what each step reads."""
        return sum(self.linear_bytes(product) for product in self.of.block_products)

    @property
    def lm_head_bytes(self) -> int:
        """What the logits of a step read."""
        return self.linear_bytes(self.of.lm_head)

    def trunk_bytes(self, cut: Cut) -> int:
        """The trunk's weights."""
        return len(cut.blocks(Part.TRUNK, self.of.blocks)) * self.block_bytes

    def client_bytes(self, cut: Cut) -> int:
        """The weights of head and tail, with embedding, final norm and lm_head."""
        blocks = cut.head_blocks + cut.tail_blocks
        norm = self.numerics.states.itemsize * self.of.hidden
        # Tied weights are held twice where lm_head keeps them in a layout of its own.
        shared = self.of.tied and self.numerics.linear is None
        lm_head = 0 if shared else self.lm_head_bytes
        return blocks * self.block_bytes + self._embedding_bytes + norm + lm_head

    @property
    def _embedding_bytes(self) -> int:
        return self.numerics.weights.itemsize * self.of.vocab * self.of.hidden

    @property
    def loading_bytes(self) -> int:
        """What reading a client's weights takes beyond them: lm_head once more, last of all.

        It is in memory as it lies in the file while what is kept is made of it.
        """
        return self._embedding_bytes

    def kv_bytes(self, blocks: int) -> int:
        """Keys and values of one position in so many blocks."""
        of, numerics = self.of, self.numerics
        shape = KVShape(range(blocks), of.kv_heads, of.head_dim, numerics.kv, numerics.device)
        return shape.bytes_per_position

    def working_bytes(self, positions: int) -> int:
        """The states of a pass of so many positions."""
        row = _WIDE_ROWS * self.of.intermediate + _HIDDEN_ROWS * self.of.hidden
        return positions * row * self.numerics.states.itemsize
