"""Where the model is cut, and which tensor belongs to which part."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from fedsea_mq.errors import IllegalCut

_BLOCK = re.compile(r"^model\.layers\.(\d+)\.")
EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"


class Part(StrEnum):
    """The three parts: head and tail run on the client, the trunk on server nodes."""

    HEAD = "head"
    TRUNK = "trunk"
    TAIL = "tail"


@dataclass(frozen=True, slots=True)
class Cut:
    """The two cut points, as the number of decoder blocks kept at each end by the client."""

    head_blocks: int
    tail_blocks: int

    def blocks(self, part: Part, total: int) -> range:
        """The decoder blocks of `part` in a model of `total` blocks.

        Raises:
            IllegalCut: a negative count, or no block left for the trunk.
        """
        first, last = self.head_blocks, total - self.tail_blocks
        if self.head_blocks < 0 or self.tail_blocks < 0 or last - first < 1:
            raise IllegalCut(
                f"cut {self} of a model of {total} blocks: head and tail must be >= 0 "
                "and leave at least one block for the trunk"
            )
        return {
            Part.HEAD: range(first),
            Part.TRUNK: range(first, last),
            Part.TAIL: range(last, total),
        }[part]

    def __str__(self) -> str:
        return f"{self.head_blocks}+{self.tail_blocks}"


def trunk_blocks(cut: Cut, total: int, asked: str | None) -> range:
    """The trunk's blocks that one node serves: all, or what `trunk.blocks` asks for.

    `4-8` are blocks 4 to 8, and `2/3` the second of three runs that are as even as can be.

    Raises:
        IllegalCut: blocks that are not the trunk's, or more runs than it has blocks.
    """
    whole = cut.blocks(Part.TRUNK, total)
    if asked is None:
        return whole
    first, sign, last = re.split(r"([-/])", asked)
    if sign == "-":
        found = range(int(first), int(last) + 1)
    else:
        found = _even_run(whole, int(first), int(last))
    if not (len(found) and found.start in whole and found.stop - 1 in whole):
        raise IllegalCut(
            f"trunk.blocks {asked}: the trunk has blocks {whole.start} to {whole.stop - 1}"
        )
    return found


def _even_run(whole: range, number: int, runs: int) -> range:
    """Run `number` of `runs`, from 1; empty if there is none."""
    if not 1 <= number <= runs <= len(whole):
        return range(0)
    return whole[(number - 1) * len(whole) // runs : number * len(whole) // runs]


def legal_cuts(total: int) -> list[Cut]:
    """Every cut of a model of `total` blocks that leaves a trunk."""
    return [Cut(head, tail) for head in range(total) for tail in range(total - head)]


def block_of(tensor: str) -> int | None:
    """The decoder block that `tensor` belongs to; None if to none."""
    match = _BLOCK.match(tensor)
    return None if match is None else int(match.group(1))


def part_of(tensor: str, cut: Cut, total: int) -> Part | None:
    """The part that holds `tensor`; None for names that are no weight of the model."""
    if tensor == EMBEDDING:
        return Part.HEAD
    if tensor in (FINAL_NORM, LM_HEAD):
        return Part.TAIL
    block = block_of(tensor)
    return next((part for part in Part if block in cut.blocks(part, total)), None)
