"""The sizes of a model as its config.json gives them: parameters and operations, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Product:
    """Linear layers side by side over the same input: `inputs` to `outputs` features in all.

    `biases` of the outputs have a bias.
    """

    inputs: int
    outputs: int
    biases: int = 0

    @property
    def weights(self) -> int:
        """Elements of the weight, biases apart."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder of one of the supported families; `window` is that of its attention, if any."""

    blocks: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    tied: bool
    window: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @classmethod
    def of(cls, config: Any) -> Self:
        """Read a transformers config of one of `checkpoint.FAMILIES`."""
        family, heads = config.model_type, int(config.num_attention_heads)
        biased = bool(getattr(config, "attention_bias", False))
        return cls(
            blocks=int(config.num_hidden_layers),
            hidden=int(config.hidden_size),
            intermediate=int(config.intermediate_size),
            heads=heads,
            kv_heads=int(config.num_key_value_heads),
            head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            vocab=int(config.vocab_size),
            max_positions=int(config.max_position_embeddings),
            tied=bool(config.tie_word_embeddings),
            window=getattr(config, "sliding_window", None),
            # Qwen2 has these three, whatever its config says.
            qkv_bias=biased or family == "qwen2",
            output_bias=biased,
            mlp_bias=bool(getattr(config, "mlp_bias", False)),
            qk_norm=family == "qwen3",
        )

    @property
    def attention_width(self) -> int:
        """Elements of a position's queries, over all heads."""
        return self.heads * self.head_dim

    @property
    def block_products(self) -> tuple[Product, ...]:
        """The linear layers of one block."""
        projected = self.attention_width + 2 * self.kv_heads * self.head_dim
        widened = 2 * self.intermediate
        return (
            Product(self.hidden, projected, projected if self.qkv_bias else 0),
            Product(self.attention_width, self.hidden, self.hidden if self.output_bias else 0),
            Product(self.hidden, widened, widened if self.mlp_bias else 0),
            Product(self.intermediate, self.hidden, self.hidden if self.mlp_bias else 0),
        )

    @property
    def block_norms(self) -> int:
        """Elements of one block's norms."""
        return 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def lm_head(self) -> Product:
        """The layer that makes logits."""
        return Product(self.hidden, self.vocab)

    @property
    def parameters(self) -> int:
        """Of the whole model; tied embeddings count once."""
        block = sum(one.weights + one.biases for one in self.block_products) + self.block_norms
        vocabulary = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.blocks * block + vocabulary + self.hidden

    @property
    def block_flops(self) -> int:
        """Floating-point operations of one block's linear layers for one position."""
        return 2 * sum(one.weights for one in self.block_products)

    def attention_flops(self, count: int, start: int) -> int:
        """Of one block's attention for `count` positions behind `start` cached ones.

        Each sees itself and what is before it: two operations an element for the scores, two for
        the sum of values.
        """
        seen = sum(self.seen(start + n + 1) for n in range(count))
        return 4 * self.attention_width * seen

    def seen(self, positions: int) -> int:
        """How many of so many positions the last one attends to."""
        return positions if self.window is None else min(positions, self.window)
