"""The forward passes of a step, and slices: each work's result, or what it failed with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fedsea_mq.errors import RankLost
from fedsea_mq.model.attention import Span
from fedsea_mq.serving.scheduler import Share
from fedsea_mq.serving.work import Forward, SlicedWork, Work


def run_slice(work: SlicedWork[Any]) -> tuple[bool, Any]:
    """Run one slice: whether it was the last, and then the result or the exception."""
    try:
        next(work.slices)
    except StopIteration as done:
        return True, done.value
    except RankLost:
        raise  # nobody's work can be computed any more
    except Exception as error:  # noqa: BLE001 - handed to whose work it was
        return True, error
    return False, None


def by_forward(step: Sequence[Share[Work[Any]]]) -> list[list[Share[Work[Any]]]]:
    """The shares of each pass; those with one adapter lie together, so that it runs once."""
    groups: dict[Forward, list[Share[Work[Any]]]] = {}
    for share in step:
        groups.setdefault(share.work.forward, []).append(share)
    return [sorted(shares, key=_adapter) for shares in groups.values()]


def _adapter(share: Share[Work[Any]]) -> str:
    return share.work.span.adapter or ""


def compute(shares: Sequence[Share[Work[Any]]]) -> list[Any]:
    """One pass: for each share its result, None if more chunks follow, or its exception."""
    with torch.inference_mode():
        chunks = [_attempt(share.work.chunk, share.start, share.count) for share in shares]
        sound = [i for i, chunk in enumerate(chunks) if not isinstance(chunk, Exception)]
        outcomes: list[Any] = list(chunks)
        if sound:
            outputs = _attempt(_run_pass, shares[0].work.forward, [chunks[i] for i in sound])
            for n, i in enumerate(sound):
                failed = isinstance(outputs, Exception)
                outcomes[i] = outputs if failed else _take(shares[i], outputs[n])
    return outcomes


def _run_pass(
    forward: Forward, chunks: Sequence[tuple[torch.Tensor, Span]]
) -> Sequence[torch.Tensor]:
    return forward(torch.cat([states for states, _ in chunks]), [span for _, span in chunks])


def _take(share: Share[Work[Any]], output: torch.Tensor) -> Any:
    return _attempt(lambda: share.work.add(output, last=share.completes))


def _attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """The call's value, or its exception as a value: one session's fault stays its own."""
    try:
        return call(*arguments)
    except StopIteration as error:
        return RuntimeError(f"a callback raised {error!r}")  # no future takes it as it is
    except RankLost:
        raise  # nobody's work can be computed any more
    except Exception as error:  # noqa: BLE001 - handed to the session whose work it was
        return error
