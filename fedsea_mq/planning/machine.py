"""How long a machine computes: the formulas, all in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from fedsea_mq.model.numerics import Numerics
from fedsea_mq.planning.architecture import Architecture
from fedsea_mq.planning.holdings import Holdings
from fedsea_mq.planning.speed import BlockRates, Speed
from fedsea_mq.serving.scheduler import SHORT_POSITIONS


@dataclass(frozen=True, slots=True)
class Machine:
    """One party's machine, and what it holds of the model."""

    speed: Speed
    holdings: Holdings

    @classmethod
    def running(cls, of: Architecture, speed: Speed) -> Self:
        """A machine of this speed, with the numerics that it was measured with."""
        return cls(speed, Holdings(of, Numerics.of(speed.model)))

    def step_s(self, blocks: int, sessions: int, context: float) -> float:
        """A position of each session, behind `context` cached ones, through so many blocks.

        pass + blocks * (block + weight bytes / rate
                         + sessions * (flops / rate + context * KV bytes / rate))
        """
        of, rates = self.holdings.of, self._rates
        seen = context if of.window is None else min(context, of.window)
        each_s = of.block_flops / rates.step_flops_per_s
        each_s += seen * self.holdings.kv_bytes(1) / rates.kv_bytes_per_s
        return self._run_s(blocks, sessions * each_s)

    def chunk_s(self, blocks: int, count: int, start: int) -> float:
        """`count` positions of one session behind `start` cached ones, through so many blocks.

            pass + blocks * (block + weight bytes / rate
                             + count * flops / rate + attention's flops / rate)

        Few positions are run as those of a step are.
        """
        if count <= SHORT_POSITIONS:
            return self.step_s(blocks, count, start + count)
        of, rates = self.holdings.of, self._rates
        linear_s = count * of.block_flops / rates.chunk_flops_per_s
        attention_s = of.attention_flops(count, start) / rates.attention_flops_per_s
        return self._run_s(blocks, linear_s + attention_s)

    def _run_s(self, blocks: int, positions_s: float) -> float:
        if not blocks:
            return 0.0
        rates = self._rates
        read_s = self.holdings.block_product_bytes / rates.weight_bytes_per_s
        return rates.pass_s + blocks * (rates.block_s + read_s + positions_s)

    @property
    def _rates(self) -> BlockRates:
        return self.speed.blocks

    @property
    def logits_s(self) -> float:
        """The final norm and lm_head of one position, and the choice of a token."""
        return self.holdings.lm_head_bytes / self.speed.client.lm_head_bytes_per_s

    def states_s(self, positions: int) -> float:
        """Noise on so many states, and their way into bytes and back."""
        return positions * self.holdings.of.hidden / self.speed.client.state_elements_per_s

    def client_bytes(self, weights: int, positions: int, kv_blocks: int, chunk: int) -> int:
        """The most that a client process holds with one session of `positions`.

        While it loads, or while it runs the longest `chunk`.
        """
        held = self.holdings
        runs = held.kv_bytes(kv_blocks) * positions + held.working_bytes(chunk)
        return self.speed.system.client_process_bytes + weights + max(held.loading_bytes, runs)
