"""`fedsea verify`: the split system, over real processes, against the unsplit model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from fedsea_mq.cli.output import progress_bar
from fedsea_mq.cli.processes import Child, LocalSystem
from fedsea_mq.cli.prompts import prompt_tokens
from fedsea_mq.errors import CheckpointError, ProcessFailed
from fedsea_mq.model.adapters import AdapterFolder
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.numerics import DTYPES
from fedsea_mq.model.partition import Cut, Part, legal_cuts
from fedsea_mq.settings import NOISE_OFF, ModelSettings, Settings

_Logits = np.ndarray[Any, np.dtype[np.float32]]
# What batching and the order of sums may change in a logit of fp32.
_EQUAL: Final = 1e-4
_ADAPTER: Final = "verified"


@dataclass(frozen=True, slots=True)
class Ask:
    """What is verified, and on how much."""

    prompts_file: Path | None
    count: int
    new_tokens: int
    max_prompt_tokens: int
    adapter: Path | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One cut against the oracle. Logits are compared where both saw the same tokens."""

    head_blocks: int
    tail_blocks: int
    dtype: str
    weights: str
    kv_cache: str
    prompts: int
    identical: int
    max_abs_logit_diff: float
    relative_logit_error: float
    bytes_per_decode_token: dict[str, float]
    payload_floor_bytes: int
    peak_rss: dict[str, int]
    baseline_rss: dict[str, int]
    tensor_bytes: dict[str, int]

    @property
    def failed(self) -> bool:
        """Whether what has to be equal differs: fp32 throughout. All else rounds as it does."""
        exact = self.dtype == "fp32" and self.weights == self.kv_cache == "auto"
        return exact and (self.identical < self.prompts or self.max_abs_logit_diff > _EQUAL)

    def as_json(self) -> dict[str, Any]:
        """The verdict as a JSON object."""
        return asdict(self)


@dataclass(slots=True)
class _Answer:
    tokens: list[int]
    logits: _Logits


async def verify(settings: Settings, asks: Ask, *, every_cut: bool) -> list[Verdict]:
    """Noise off, greedy: one verdict a cut. The oracle is computed last, in this process."""
    checkpoint = Checkpoint.open(settings.model.path)
    if checkpoint.manifest is not None:
        raise CheckpointError("verify needs the whole model: shards have no unsplit counterpart")
    prompts = prompt_tokens(checkpoint, asks.prompts_file, asks.count, asks.max_prompt_tokens)
    model = settings.model
    cuts = (
        legal_cuts(checkpoint.blocks) if every_cut else [Cut(model.head_blocks, model.tail_blocks)]
    )
    with progress_bar() as progress:
        task = progress.add_task("cuts", total=len(cuts))
        runs = []
        for cut in cuts:
            adapted = _adapted(settings, asks.adapter, checkpoint, cut)
            runs.append(await _run_split(adapted, cut, prompts, asks.new_tokens))
            progress.advance(task)
    # Last, so that this process never holds the unsplit model while it starts the others.
    oracle = _oracle(_unsplit(checkpoint, model, asks.adapter), prompts, asks.new_tokens)
    floor = checkpoint.hidden * DTYPES[model.dtype].itemsize
    return [run.against(oracle, model, floor) for run in runs]


def _adapted(
    settings: Settings, adapter: Path | None, checkpoint: Checkpoint, cut: Cut
) -> Settings:
    """The settings with the adapter for all sessions; the trunk has it if anything is for it."""
    if adapter is None:
        return settings
    at_trunk = AdapterFolder.open(adapter).blocks.intersection(
        cut.blocks(Part.TRUNK, checkpoint.blocks)
    )
    held = {_ADAPTER: str(adapter)}
    return settings.replace(
        trunk={"adapters": held if at_trunk else {}},
        client={"adapters": held, "adapter": _ADAPTER},
    )


def _unsplit(checkpoint: Checkpoint, model: ModelSettings, adapter: Path | None) -> Any:
    """The transformers model, with peft's adapter on it if there is one."""
    torch.set_num_threads(model.threads)
    disable_progress_bar()  # of reading weights that are here already
    unsplit = AutoModelForCausalLM.from_pretrained(checkpoint.folders[0], dtype=DTYPES[model.dtype])
    if adapter is not None:
        from peft import PeftModel

        unsplit = PeftModel.from_pretrained(unsplit, adapter)
    return unsplit.to(model.device).eval()


def _oracle(model: Any, prompts: Sequence[list[int]], new_tokens: int) -> list[_Answer]:
    """`generate` of the unsplit model, with the logits it chose from."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        logits = torch.cat(out.logits).float().cpu().numpy()
        answers.append(_Answer(out.sequences[0, len(prompt) :].tolist(), logits))
    return answers


@dataclass(frozen=True, slots=True)
class _Run:
    """What the split system did at one cut."""

    cut: Cut
    answers: list[_Answer]
    bytes_per_decode_token: dict[str, float]
    peak_rss: dict[str, int]
    baseline_rss: dict[str, int]
    tensor_bytes: dict[str, int]

    def against(self, oracle: Sequence[_Answer], model: ModelSettings, floor: int) -> Verdict:
        pairs = list(zip(self.answers, oracle, strict=True))
        compared = [_compared(answer, told) for answer, told in pairs]
        ours, theirs = (np.concatenate(rows) for rows in zip(*compared, strict=True))
        return Verdict(
            head_blocks=self.cut.head_blocks,
            tail_blocks=self.cut.tail_blocks,
            dtype=model.dtype,
            weights=model.weights,
            kv_cache=model.kv_cache,
            prompts=len(pairs),
            identical=sum(answer.tokens == told.tokens for answer, told in pairs),
            max_abs_logit_diff=float(np.abs(ours - theirs).max()),
            relative_logit_error=float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)),
            bytes_per_decode_token=self.bytes_per_decode_token,
            payload_floor_bytes=floor,
            peak_rss=self.peak_rss,
            baseline_rss=self.baseline_rss,
            tensor_bytes=self.tensor_bytes,
        )


async def _run_split(
    settings: Settings, cut: Cut, prompts: Sequence[list[int]], new_tokens: int
) -> _Run:
    plain = settings.replace(
        model={"head_blocks": cut.head_blocks, "tail_blocks": cut.tail_blocks},
        noise=NOISE_OFF,
        trunk={"nodes": 1},
        client={"wire_dtype": settings.model.dtype},
    )
    async with LocalSystem(plain) as system:
        client = await system.start_client("client")
        await client.wait_ready()
        with tempfile.TemporaryDirectory(prefix="fedsea-verify-") as folder:
            reports, answers = await _ask(client, prompts, new_tokens, Path(folder))
        client.end_input()
        peaks = {"client": (await client.line())["peak_rss"]}
        trunk = system.trunks[0]
        trunk.process.terminate()
        peaks["trunk"] = (await trunk.line())["peak_rss"]
        children = {"client": client, "trunk": trunk}
    return _Run(
        cut,
        answers,
        bytes_per_decode_token={
            way: max(report[f"bytes_{way}_per_token"] for report in reports)
            for way in ("up", "down")
        },
        peak_rss=peaks,
        baseline_rss={name: child.ready["baseline_rss"] for name, child in children.items()},
        tensor_bytes={name: child.ready["tensor_bytes"] for name, child in children.items()},
    )


async def _ask(
    client: Child, prompts: Sequence[list[int]], new_tokens: int, folder: Path
) -> tuple[list[dict[str, Any]], list[_Answer]]:
    """Ask everything at once, so that the batched path is what is verified."""
    files = [folder / f"{number}.npy" for number in range(len(prompts))]
    for number, prompt in enumerate(prompts):
        client.ask(
            {
                "id": str(number),
                "tokens": prompt,
                "sampling": {"max_new_tokens": new_tokens, "ignore_eos": True},
                "logits": str(files[number]),
            }
        )
    reports: dict[int, dict[str, Any]] = {}
    while len(reports) < len(prompts):
        line = await client.line()
        if "error" in line:
            raise ProcessFailed(f"{client.name}: {line['error']}: {line['message']}")
        if "done" in line:
            reports[int(line["id"])] = line["done"]
    ordered = [reports[number] for number in range(len(prompts))]
    answers = [
        _Answer(report["tokens"], np.load(file))
        for report, file in zip(ordered, files, strict=True)
    ]
    return ordered, answers


def _compared(answer: _Answer, oracle: _Answer) -> tuple[_Logits, _Logits]:
    """The logits of both up to and including the first step where the tokens part."""
    same = 0
    for ours, theirs in zip(answer.tokens, oracle.tokens, strict=False):
        same += 1
        if ours != theirs:
            break
    return answer.logits[:same], oracle.logits[:same]
