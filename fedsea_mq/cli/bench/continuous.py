"""The unsplit model in transformers' continuous batching: paged caches, requests that join steps.

On a CPU its attention is masked: each token of a step is compared with the cached positions of all
requests in it. So what is best is neither one request after the other nor all of them at once.
"""

from __future__ import annotations

import time
from typing import Any, Final

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

# Requests in a step at most: fewer waste less on masked attention, more share reading the weights.
REQUESTS_A_STEP: Final = (8, 16)
_STEP_TOKENS: Final = 512
_PAGE_TOKENS: Final = 32
_POLL_S: Final = 1.0


def continuous_seconds(model: Any, batch: int, prompt: int, new: int, *, requests: int) -> float:
    """Greedy, `batch` random prompts at once: from adding them to the last one's end."""
    ids = torch.randint(model.config.vocab_size, (batch, prompt))
    seconds, tokens = continuous_batch(model, ids, new, requests=requests)
    assert [len(one) for one in tokens] == [new] * batch
    return seconds


def continuous_batch(
    model: Any, ids: torch.Tensor, new: int, *, requests: int
) -> tuple[float, list[list[int]]]:
    """Continue each row of `ids`, `[batch, prompt]`, greedily by `new` tokens.

    Seconds from adding them until all were there, and the tokens. Setting up is not counted.

    Raises:
        RuntimeError: transformers' loop ended before all requests were done.
    """
    batch, prompt = ids.shape
    pages = batch * -(-(prompt + new) // _PAGE_TOKENS)
    bounds = ContinuousBatchingConfig(
        page_size=_PAGE_TOKENS,
        num_blocks=pages,  # by default sized for 60 % of the memory
        max_batch_tokens=_STEP_TOKENS,
        max_requests_per_batch=requests,
        safety_margin=0.0,
        allow_block_sharing=False,
        auto_switch_to_flash=False,
    )
    greedy = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    with (
        torch.inference_mode(),
        model.continuous_batching_context_manager(greedy, continuous_batching_config=bounds) as run,
    ):
        begun = time.perf_counter()
        names = run.add_requests(ids.tolist())
        done: dict[str, list[int]] = {}
        while len(done) < batch:
            result = run.get_result(timeout=_POLL_S)
            if result is not None and result.is_finished():
                done[result.request_id] = result.generated_tokens
            elif not run.is_running():
                raise RuntimeError("continuous batching ended before its requests did")
        return time.perf_counter() - begun, [done[name] for name in names]
